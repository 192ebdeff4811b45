"""Figures and numbers of a binary model of digits: what is watched, evaluated and drawn."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import poejax as pj
from experiments import runs
from poejax import datasets, plotting, training
from poejax.types import Array, Params

_MONITORED = 500
_PSEUDO_SITES = 20
_PANELS = {
    "pseudo-log-likelihood (nats)": [
        "train_pseudo_log_likelihood",
        "validation_pseudo_log_likelihood",
    ],
    "free energy gap (nats)": ["free_energy_gap"],
    "squared error per pixel": ["reconstruction_error"],
    "examples per second": ["examples_per_second"],
}


class Monitor:
    """Cheap figures on fixed examples, after Hinton (2010), sections 5, 6 and 15."""

    def __init__(
        self,
        model: pj.Product,
        data: datasets.Dataset,
        preprocess: training.Preprocess,
        seed: int,
    ) -> None:
        """Binarise the examples to watch once."""
        key = jax.random.key(seed)
        keys = jax.random.split(jax.random.fold_in(key, 0xA1), 3)
        self.model = model
        self.train = preprocess(keys[0], jnp.asarray(data.train.images[:_MONITORED]))
        self.validation = preprocess(keys[1], jnp.asarray(data.validation.images[:_MONITORED]))
        self.key = keys[2]

    def __call__(self, params: Params) -> dict[str, float]:
        """Return the figures; pseudo-log-likelihoods in nats per example."""
        figures = _monitor(self.model, params, self.train, self.validation, self.key)
        return {name: float(value) for name, value in figures.items()}


@functools.partial(jax.jit, static_argnames="model")
def _monitor(
    model: pj.Product, params: Params, train: Array, validation: Array, key: Array
) -> dict[str, Array]:
    def pseudo(x: Array) -> Array:
        # The same sites at every report, so that its changes are the model's.
        keys = jax.random.split(key, x.shape[0])
        return jax.vmap(
            lambda k, row: pj.diagnostics.pseudo_log_likelihood(
                k, model, params, row, min(_PSEUDO_SITES, row.size)
            )
        )(keys, x).mean()

    def density(x: Array) -> Array:
        return jax.vmap(model.log_density, in_axes=(None, 0))(params, x).mean()

    reconstructed = jax.vmap(functools.partial(pj.inference.reconstruct, model, params))(validation)
    return {
        "train_pseudo_log_likelihood": pseudo(train),
        "validation_pseudo_log_likelihood": pseudo(validation),
        "reconstruction_error": jnp.mean((reconstructed - validation) ** 2),
        "free_energy_gap": density(train) - density(validation),
    }


def live_figures(record: dict[str, Any]) -> dict[str, str]:
    """Return the figures shown beside the progress bar."""
    return {
        "pseudo-ll": f"{record['validation_pseudo_log_likelihood']:.1f}",
        "recon": f"{record['reconstruction_error']:.4f}",
        "gap": f"{record['free_energy_gap']:.1f}",
        "ex/s": f"{record['examples_per_second']:.0f}",
    }


def evaluate(
    model: pj.Product,
    params: Params,
    data: datasets.Dataset,
    preprocess: training.Preprocess,
    betas: Array,
    num_chains: int,
    sample_steps: int,
    seed: int,
) -> dict[str, Any]:
    """Estimate log Z by AIS, forward and in reverse, and the log-likelihood of every split."""
    start = time.perf_counter()
    key = jax.random.fold_in(jax.random.key(seed), 0xA15)
    train_key, test_key, ais_key, chain_key, reverse_key = jax.random.split(key, 5)
    x_train = preprocess(train_key, jnp.asarray(data.train.images))
    x_test = preprocess(test_key, jnp.asarray(data.test.images))
    base = pj.evidence.base_rate(model, x_train)
    # From the data, where the chains are soon at equilibrium; in turn, if there are few.
    starts = x_train[jnp.arange(num_chains) % x_train.shape[0]]
    fantasies = sample(chain_key, model, params, sample_steps, starts)
    log_z = {
        "": _anneal(ais_key, model, params, base, betas, num_chains, None),
        "reverse_": _anneal(reverse_key, model, params, base, betas, num_chains, fantasies),
    }
    results: dict[str, Any] = {"ais_chains": num_chains, "ais_steps": int(betas.shape[0]) - 1}
    for side, estimate in log_z.items():
        results[f"{side}log_z"] = float(estimate.log_z)
        results[f"{side}log_z_std_err"] = float(estimate.std_err)
        results[f"{side}ais_ess"] = float(estimate.ess)
        for split, x in (("train", x_train), ("test", x_test)):
            likelihood = pj.evidence.log_likelihood(model, params, x, estimate)
            interval = [float(likelihood.ci_low), float(likelihood.ci_high)]
            results[f"{side}{split}_log_likelihood"] = float(likelihood.mean)
            results[f"{side}{split}_interval"] = interval
            results[f"{split}_examples"] = int(x.shape[0])
    results["evaluation_seconds"] = round(time.perf_counter() - start, 1)
    return results


def _anneal(
    rng_key: Array,
    model: pj.Product,
    params: Params,
    base: pj.evidence.Base,
    betas: Array,
    num_chains: int,
    reverse_from: Array | None,
) -> pj.evidence.LogZ:
    total = int(betas.shape[0]) - 1
    piece = max(1, total // 50)
    state = pj.evidence.ais_init(rng_key, model, params, base, betas, num_chains, reverse_from)
    with runs.progress(total, "AIS" if reverse_from is None else "reverse AIS", "beta") as bar:
        while (step := int(state.step)) < total:
            state = pj.evidence.ais_steps(state, model, params, base, betas, piece)
            bar.update(int(state.step) - step)
            ess = float(pj.evidence.ais_result(state).ess)
            bar.set_postfix({"ess": f"{ess:.1f}/{num_chains}"}, refresh=False)
    return pj.evidence.ais_result(state)


def table(results: dict[str, Any]) -> str:
    """Return the closing table."""
    lines = [
        f"\n{'log-likelihood, nats per example':<42}{'mean':>8}   95 % interval  ess of log Z",
    ]
    sides = {"": "AIS (tends to be high)", "reverse_": "reverse AIS (low)"}
    for split in ("train", "test"):
        for side, words in sides.items():
            low, high = results[f"{side}{split}_interval"]
            name = f"{split} ({results[f'{split}_examples']}), {words}"
            mean, ess = results[f"{side}{split}_log_likelihood"], results[f"{side}ais_ess"]
            row = f"{name:<42}{mean:>8.2f}   [{low:.2f}, {high:.2f}]  {ess:.1f}"
            lines.append(f"{row} of {results['ais_chains']}")
    lines += [
        f"log Z = {results['log_z']:.2f} ± {results['log_z_std_err']:.2f}, in reverse "
        f"{results['reverse_log_z']:.2f} ± {results['reverse_log_z_std_err']:.2f}; "
        f"{results['ais_steps']} temperatures",
        f"binarisation {results['binarization']}, seed {results['seed']}, "
        f"{results['steps']} updates",
        f"training {results['training_seconds']:.0f} s "
        f"({results['examples_per_second']:.0f} examples/s), evaluation "
        f"{results['evaluation_seconds']:.0f} s; {results['machine']}",
    ]
    return "\n".join(lines)


def draw(
    directory: Path,
    model: pj.Product,
    params: Params,
    data: datasets.Dataset,
    preprocess: training.Preprocess,
    records: list[dict[str, Any]],
    sample_steps: int,
    seed: int,
) -> None:
    """Draw filters, samples beside digits, reconstructions and learning curves as PNG files."""
    key = jax.random.fold_in(jax.random.key(seed), 0xF16)
    binary_key, start_key, chain_key = jax.random.split(key, 3)
    shown = preprocess(binary_key, jnp.asarray(data.test.images[:64]))
    starts = jax.vmap(model.init_visible)(jax.random.split(start_key, 64))
    samples = sample(chain_key, model, params, sample_steps, starts)
    # Pixel probabilities, the way samples of RBMs are usually shown.
    reconstruct = jax.vmap(functools.partial(pj.inference.reconstruct, model, params))
    samples, reconstructed = reconstruct(samples), reconstruct(shown[:10])
    plotting.save(
        plotting.filters(np.asarray(params["hidden"]["w"]), data.shape), directory / "filters.png"
    )
    plotting.save(
        plotting.samples_beside(
            np.asarray(shown),
            np.asarray(samples),
            data.shape,
            labels=("test digits, binarised", f"probabilities after {sample_steps} Gibbs sweeps"),
        ),
        directory / "samples.png",
    )
    plotting.save(
        plotting.reconstructions(np.asarray(shown[:10]), np.asarray(reconstructed), data.shape),
        directory / "reconstructions.png",
    )
    plotting.save(plotting.learning_curves(records, _PANELS, x="epoch"), directory / "curves.png")


def sample(
    rng_key: Array, model: pj.Product, params: Params, num_steps: int, starts: Array
) -> Array:
    """Run one chain from each row of `starts` for `num_steps` Gibbs sweeps."""
    kernel = pj.kernels.block_gibbs(model)
    states = pj.chains.init(rng_key, kernel, params, starts.shape[0], x=starts)
    pieces = 20
    with runs.progress(num_steps, "sampling", "sweep") as bar:
        for i in range(pieces):
            piece = num_steps * (i + 1) // pieces - num_steps * i // pieces
            if piece:
                key = jax.random.fold_in(rng_key, i)
                states, _ = pj.chains.run(key, kernel, params, states, piece)
            bar.update(piece)
    x: Array = states.x
    return x
