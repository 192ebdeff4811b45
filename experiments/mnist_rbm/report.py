"""Figures and numbers of an RBM of digits or other data: what is watched, evaluated and drawn."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure
from tqdm.auto import tqdm

import poejax as pj
from experiments.lab import devices, own_data, runs, scoring, tables
from experiments.lab.encoders import reconstruct
from poejax import _meshes, plotting, training
from poejax.types import Array, Params

_MONITORED = 500
_PSEUDO_SITES = 100
_ROWS_AT_A_TIME = 20  # of each of which a neighbour at every such site is held
_TABLE_CHAINS = 500
_FORGOTTEN = 0.25  # autocorrelation of chains between reports, above which they do not mix
_PANELS = {
    "pseudo-log-likelihood (nats)": [
        "train_pseudo_log_likelihood",
        "validation_pseudo_log_likelihood",
    ],
    "score matching loss": ["train_score_matching", "validation_score_matching"],
    "free energy gap (nats)": ["free_energy_gap"],
    "squared error per pixel": ["reconstruction_error"],
    "persistent chains": ["flip_rate", "chain_autocorrelation", "jump_acceptance"],
    "log-likelihood of batches (nats)": ["batch_log_likelihood"],
    "examples per second": ["examples_per_second"],
}


class Monitor:
    """Cheap figures on fixed examples, after Hinton (2010), sections 5, 6 and 15.

    Of real values the loss of score matching stands in for the pseudo-log-likelihood: it ranks
    models without log Z too, and is to be low.
    """

    def __init__(self, model: pj.Product | None, data: own_data.Data, seed: int) -> None:
        """Binarise the examples to watch once."""
        key = jax.random.key(seed)
        keys = jax.random.split(jax.random.fold_in(key, 0xA1), 3)
        assert model is not None
        self.model = model
        self.train = data.preprocess(keys[0], jnp.asarray(data.train[:_MONITORED]))
        self.validation = data.preprocess(keys[1], jnp.asarray(data.validation[:_MONITORED]))
        self.key = keys[2]
        self.score = "score_matching" if data.coordinates else "pseudo_log_likelihood"
        self.best_metric = f"validation_{self.score}"
        self.best_mode: Literal["max", "min"] = "min" if data.coordinates else "max"

    def __call__(self, params: Params) -> dict[str, float]:
        """Return the figures; pseudo-log-likelihoods in nats per example."""
        figures = _monitor(self.model, self.score, params, self.train, self.validation, self.key)
        return {name: float(value) for name, value in figures.items()}


@functools.partial(jax.jit, static_argnames=("model", "score"))
def _monitor(
    model: pj.Product, score: str, params: Params, train: Array, validation: Array, key: Array
) -> dict[str, Array]:
    num_sites = min(_PSEUDO_SITES, model.visible.num_sites)

    def scored(x: Array) -> Array:
        def one(of: tuple[Array, Array]) -> Array:
            key, row = of
            if score == "score_matching":
                return pj.estimators.score_matching(model, num_sites).loss(key, params, row)
            return pj.diagnostics.pseudo_log_likelihood(key, model, params, row, num_sites)

        # The same sites at every report, so that its changes are the model's.
        of = jax.random.split(key, x.shape[0]), x
        return jax.lax.map(one, of, batch_size=_ROWS_AT_A_TIME).mean()

    def density(x: Array) -> Array:
        return jax.vmap(model.log_density, in_axes=(None, 0))(params, x).mean()

    reconstructed = reconstruct(model, params, validation)
    return {
        f"train_{score}": scored(train),
        f"validation_{score}": scored(validation),
        "reconstruction_error": jnp.mean((reconstructed - validation) ** 2),
        "free_energy_gap": density(train) - density(validation),
    }


class ChainWatch:
    """How persistent chains move from report to report; says once if they do not mix."""

    def __init__(self, state: training.TrainState) -> None:
        """Remember where the chains of a run are, if it has some."""
        self.x, self.step, self.is_said = _chains_of(state), int(state.step), False

    def __call__(self, state: training.TrainState, metrics: training.Metrics) -> dict[str, float]:
        """Return the figures of the updates since the last call.

        The autocorrelation is that of the chains then and now, over all updates in between: chains
        that keep to the digit that they show cannot bring it to 0.
        """
        info = metrics.info
        if hasattr(info, "log_z"):  # of PTT
            return {
                "batch_log_likelihood": float((info.data_log_density - info.log_z).mean()),
                "jump_acceptance": float(info.acceptance.mean()),
                "num_checkpoints": int(info.num_checkpoints[-1]),
            }
        if self.x is None:
            return {}
        x, step = _chains_of(state), int(state.step)
        correlation = float(_autocorrelation(self.x, x))
        taken, self.x, self.step = step - self.step, x, step
        if correlation > _FORGOTTEN and not self.is_said and devices.is_first():
            self.is_said = True
            tqdm.write(
                f"warning: the persistent chains do not mix: their autocorrelation over {taken} "
                f"updates is {correlation:.2f} at step {step}, expected at most {_FORGOTTEN}; "
                "gradients are biased: lower --learning-rate, or raise --num-gibbs-steps",
                file=sys.stderr,
            )
        return {
            "flip_rate": float(info.flip_rate.mean()),
            "chain_gap": float((info.data_log_density - info.model_log_density).mean()),
            "chain_autocorrelation": correlation,
        }


# Compiled whole, as no process can look at what is spread over several of them.
_autocorrelation = jax.jit(pj.diagnostics.autocorrelation)


def _chains_of(state: training.TrainState) -> Any:
    chains = getattr(state.estimator_state, "inner", state.estimator_state)  # of a centred rule
    return getattr(chains, "x", None)


def live_figures(record: dict[str, Any]) -> dict[str, str]:
    """Return the figures shown beside the progress bar."""
    scores = {"pseudo-ll": "pseudo_log_likelihood", "score": "score_matching"}
    score = {k: record[f"validation_{v}"] for k, v in scores.items() if f"validation_{v}" in record}
    chains = {"flips": ("flip_rate", ".3f"), "chain gap": ("chain_gap", ".1f")}
    chains |= {"chain acf": ("chain_autocorrelation", ".2f"), "jumps": ("jump_acceptance", ".2f")}
    chains |= {"ll": ("batch_log_likelihood", ".1f"), "checkpoints": ("num_checkpoints", "d")}
    return {
        **{name: f"{value:.1f}" for name, value in score.items()},
        "recon": f"{record['reconstruction_error']:.4f}",
        "gap": f"{record['free_energy_gap']:.1f}",
        **{name: f"{record[key]:{how}}" for name, (key, how) in chains.items() if key in record},
        "ex/s": f"{record['examples_per_second']:.0f}",
    }


class Evaluation(NamedTuple):
    """What is asked of a trained RBM."""

    model: pj.Product
    params: Params
    data: own_data.Data
    seed: int
    mesh: Mesh | None = None

    def _keys(self, use: int, count: int) -> Array:
        return jax.random.split(jax.random.fold_in(jax.random.key(self.seed), use), count)

    def score(self, betas: Array, num_chains: int, sample_steps: int) -> dict[str, Any]:
        """Estimate log Z by AIS, forward and in reverse, and the log-likelihood of every split.

        Log-likelihoods are in the units of the data; log Z is that of the model, in coordinates.
        """
        start, (model, params, data, *_) = time.perf_counter(), self
        train_key, test_key, score_key = self._keys(0xA15, 3)
        x_train = data.preprocess(train_key, jnp.asarray(data.train))
        x_test = data.preprocess(test_key, jnp.asarray(data.test))
        found = scoring.two_sided(
            score_key,
            model,
            params,
            x_test,
            data=x_train,
            betas=betas,
            num_chains=num_chains,
            num_sweeps=sample_steps,
            max_states=0,  # what is compared is the estimates
            place=functools.partial(devices.place, mesh=self.mesh),
        ).bracket
        assert found is not None
        log_z = {"": found.forward, "reverse_": found.reverse}
        shift = data.log_volume  # density in the coordinates of the model, to density in the data's
        results: dict[str, Any] = {"ais_chains": num_chains, "ais_steps": int(betas.shape[0]) - 1}
        for side, estimate in log_z.items():
            results[f"{side}log_z"] = float(estimate.log_z)
            results[f"{side}log_z_std_err"] = float(estimate.std_err)
            results[f"{side}ais_ess"] = float(estimate.ess)
            for split, x in (("train", x_train), ("test", x_test)):
                likelihood = pj.evidence.log_likelihood(model, params, x, estimate)
                interval = [float(end) - shift for end in (likelihood.ci_low, likelihood.ci_high)]
                results[f"{side}{split}_log_likelihood"] = float(likelihood.mean) - shift
                results[f"{side}{split}_interval"] = interval
                results[f"{split}_examples"] = int(x.shape[0])
        results["evaluation_seconds"] = round(time.perf_counter() - start, 1)
        return results

    def draw(self, directory: Path, records: list[dict[str, Any]], sample_steps: int) -> None:
        """Draw PNG files: learning curves, and images or, of other data, marginals and moments."""
        data = self.data
        binary_key, start_key, chain_key = self._keys(0xF16, 3)
        num_chains = _TABLE_CHAINS if data.shape is None else 64
        starts = jax.vmap(self.model.init_visible)(jax.random.split(start_key, num_chains))
        samples = jnp.asarray(_meshes.to_host(self.sample(chain_key, sample_steps, starts)))
        here = self._replace(params=jax.tree.map(_meshes.to_host, self.params))
        if not devices.is_first():
            return
        if data.shape is None:
            figures = table_figures(data, samples, sample_steps)
        else:
            shown = data.preprocess(binary_key, jnp.asarray(data.test[:64]))
            figures = here.image_figures(data.shape, shown, samples, sample_steps)
        panels, known = {}, set().union(*records)
        for label, names in _PANELS.items():
            if there := [name for name in names if name in known]:
                panels[label if data.shape else label.replace("pixel", "value")] = there
        if panels:
            figures["curves"] = plotting.learning_curves(records, panels, x="epoch")
        for name, figure in figures.items():
            plotting.save(figure, directory / f"{name}.png")

    def image_figures(
        self, shape: tuple[int, int], shown: Array, samples: Array, sample_steps: int
    ) -> dict[str, Figure]:
        """Draw filters, samples beside images and reconstructions."""
        model, params, data, *_ = self
        # Pixel probabilities, the way samples of RBMs are usually shown.
        means, reconstructed = (reconstruct(model, params, x) for x in (samples, shown[:10]))
        what = "values" if data.coordinates else "probabilities"
        held_out = "test digits, binarised" if not data.description else "test images"
        labels = (held_out, f"{what} after {sample_steps} Gibbs sweeps")
        values = [data.to_values(x) for x in (shown, means, shown[:10], reconstructed)]
        return {
            "filters": plotting.filters(np.asarray(params["hidden"]["w"]), shape),
            "samples": plotting.samples_beside(values[0], values[1], shape, labels=labels),
            "reconstructions": plotting.reconstructions(values[2], values[3], shape),
        }

    def sample(self, rng_key: Array, num_steps: int, starts: Array) -> Array:
        """Run one chain from each row of `starts` for `num_steps` Gibbs sweeps."""
        kernel = pj.kernels.block_gibbs(self.model)
        states = pj.chains.init(rng_key, kernel, self.params, starts.shape[0], x=starts)
        states = devices.place(states, self.mesh)
        pieces = 20
        with runs.progress(num_steps, "sampling", "sweep") as bar:
            for i in range(pieces):
                piece = num_steps * (i + 1) // pieces - num_steps * i // pieces
                if piece:
                    key = jax.random.fold_in(rng_key, i)
                    states, _ = pj.chains.run(key, kernel, self.params, states, piece)
                bar.update(piece)
        x: Array = states.x
        return x


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    rows = []
    for split in ("train", "test"):
        for side, words in {"": "AIS (tends to be high)", "reverse_": "reverse AIS (low)"}.items():
            low, high = results[f"{side}{split}_interval"]
            rows.append(
                (
                    f"{split} ({results[f'{split}_examples']}), {words}",
                    f"{results[f'{side}{split}_log_likelihood']:.2f}",
                    f"[{low:.2f}, {high:.2f}]",
                    f"{results[f'{side}ais_ess']:.1f} of {results['ais_chains']}",
                )
            )
    caption = (
        f"log-likelihood, nats per example; {_units(results)}, seed {results['seed']}, "
        f"{results['steps']} updates; log Z = {results['log_z']:.2f} ± "
        f"{results['log_z_std_err']:.2f}, in reverse {results['reverse_log_z']:.2f} ± "
        f"{results['reverse_log_z_std_err']:.2f}, {results['ais_steps']} temperatures; training "
        f"{results['training_seconds']:.0f} s ({results['examples_per_second']:.0f} examples/s), "
        f"evaluation {results['evaluation_seconds']:.0f} s; {results['machine']}"
    )
    return [tables.table(caption, ("", "mean", "95 % interval", "ESS of log Z"), rows)]


def _units(results: dict[str, Any]) -> str:
    """Say what the events are, on which a log-likelihood depends."""
    kind = results.get("data", {}).get("values", "intensities")
    if kind == "intensities":
        return f"binarisation {results['binarization']}"
    if kind == "reals":
        return "densities in the units of the file, log Z in those of standardised columns"
    return f"{kind} as they are"


def table_figures(data: own_data.Data, samples: Array, sample_steps: int) -> dict[str, Figure]:
    """Draw histograms of columns, and moments of all columns, of data and samples."""
    x = data.preprocess(jax.random.key(0), jnp.asarray(data.train))
    labels = (f"{len(x)} training rows", f"{len(samples)} samples, {sample_steps} Gibbs sweeps")
    real, drawn = data.to_values(x), data.to_values(samples)
    flat, flat_drawn = (np.asarray(rows.reshape(len(rows), -1)) for rows in (x, samples))
    of = "standardised columns" if data.coordinates else "columns"
    of = "indicators of categories" if data.levels is not None else of
    return {
        "marginals": plotting.marginals(real, drawn, names=data.names, labels=labels),
        "moments": plotting.moments(flat, flat_drawn, labels=labels, title=f"{flat.shape[1]} {of}"),
    }
