"""What products of Student-t experts learn from patches of photographs, beside FastICA.

    python -m experiments.natural_images                  # two photographs of scikit-learn
    python -m experiments.natural_images --images DIR     # a folder of images
    python -m experiments.natural_images --wav FILE       # windows of a sound, speech say

Complete models are learned by the exact gradient, by CD-1 with block Gibbs and by CD-1 with
Hamiltonian Monte Carlo, seed by seed, twice overcomplete ones by both kinds of CD. Prints held-out
log-likelihoods, exact or by AIS, and how sparse and localised the filters are; writes config.json,
results.json and figures/ to the working directory.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import poejax as pj
from experiments import filter_report, ica, patches, runs
from poejax import chains, training


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything the study depends on, with its data."""

    preset: Literal["default", "smoke"] = "default"
    """Defaults of all other options."""
    images: Path | None = None
    """Folder of images; the two photographs of scikit-learn unless given."""
    wav: Path | None = None
    """Sound to take instead of images."""
    shrink: int = 2
    """Pixels (samples) averaged along each axis first, which removes most artefacts of JPEG."""
    side: int = 12
    """Side of a patch in pixels after shrinking."""
    window: int = 100
    """Samples of a window after shrinking (wav only)."""
    num_components: int = 64
    """Principal components kept by the whitening, the D of the models."""
    num_train: int = 40_000
    """Patches to learn from."""
    num_test: int = 10_000
    """Patches to judge by, from tiles of their own."""
    overcompleteness: int = 2
    """Experts per component in the overcomplete models; 1 leaves these out."""
    exponent: float = 1.5
    """Exponents of the experts, held by CD; where the exact gradient starts from."""
    wide_exponent: float = 1.0
    """Exponents of the experts of overcomplete models, held: more experts need less each."""
    scale: float = 0.1
    """Scales of the experts, held by CD; where the exact gradient starts from."""
    num_steps: int = 2_000
    """Updates."""
    batch_size: int = 200
    """Patches per update."""
    learning_rate: float = 0.01
    """Of Adam, lowered to zero along a cosine."""
    hmc_leapfrog: int = 10
    """Leapfrog steps per HMC step."""
    hmc_acceptance: float = 0.8
    """Acceptance that the HMC step size is tuned to, at each of `num_stages` times."""
    num_stages: int = 4
    """Stages of training."""
    marginal_steps: int = 500
    """Updates that fit scales and exponents to directions that are held."""
    marginal_rate: float = 0.05
    """Learning rate of those."""
    num_seeds: int = 3
    """Seeds 0, 1, ... of tiles, patches and learning; overcomplete models use seed 0 only."""
    ais_chains: int = 100
    """Annealed importance sampling runs."""
    ais_steps: int = 1_000
    """Temperatures between base and model."""
    workdir: Path | None = None
    """Where results go; runs/natural_images/PRESET unless given."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        if self.images is not None and self.wav is not None:
            raise ValueError("images, wav: expected one of them at most, got both")
        at_least_one = ("shrink", "num_components", "num_train", "num_test", "overcompleteness")
        for name in (*at_least_one, "hmc_leapfrog", "marginal_steps", "num_stages", "num_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("side", "window", "ais_chains", "ais_steps"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: expected at least 2, got {getattr(self, name)}")
        if not 1 <= self.batch_size <= self.num_train:
            raise ValueError(
                f"batch_size: expected 1 to num_train = {self.num_train}, got {self.batch_size}"
            )
        for name in ("exponent", "wide_exponent"):
            if not getattr(self, name) > 0.5:
                raise ValueError(
                    f"{name}: expected more than 0.5, or a complete product (as AIS starts from) "
                    f"is improper, got {getattr(self, name)}"
                )
        for name in ("learning_rate", "marginal_rate", "scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 < self.hmc_acceptance < 1:
            raise ValueError(
                f"hmc_acceptance: expected a number in (0, 1), got {self.hmc_acceptance}"
            )
        if self.num_steps < self.num_stages or self.num_steps % self.num_stages:
            raise ValueError(
                f"num_steps: expected a multiple of num_stages = {self.num_stages}, got "
                f"{self.num_steps}"
            )


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        side=5,
        window=20,
        num_components=6,
        num_train=1_000,
        num_test=300,
        num_steps=40,
        batch_size=50,
        hmc_leapfrog=3,
        num_stages=1,
        marginal_steps=40,
        num_seeds=1,
        ais_chains=20,
        ais_steps=20,
    ),
}


def load(config: Config, seed: int) -> patches.Patches:
    """Read the pictures or the sound, and cut training and test patches.

    Raises:
      FileNotFoundError: if there is nothing to read.
      ValueError: if what is there cannot be read or is too small.
    """
    shape = (config.side, config.side)
    if config.wav is not None:
        pictures, shape = patches.read_wav(config.wav), (1, config.window)
        source = config.wav.name
    elif config.images is not None:
        pictures, source = patches.read_folder(config.images), config.images.name
    else:
        pictures, source = patches.sample_photographs(), "two photographs"
    pictures = [patches.shrink(picture, config.shrink) for picture in pictures]
    return patches.cut(pictures, shape, config.num_train, config.num_test, seed, source)


class Learner:
    """Trains products over the same whitened patches; programs are shared between seeds."""

    def __init__(self, config: Config) -> None:
        """Take what does not change from run to run."""
        self.config = config
        rate, steps = config.learning_rate, config.num_steps
        # The optimizers are part of what is compiled: made once, shared by all seeds.
        self.full_tx = ica.optimizer(rate, steps)
        self.directions_tx = ica.optimizer(rate, steps, ("log_scale", "log_exponent"))
        self.marginals_tx = ica.optimizer(config.marginal_rate, config.marginal_steps, ("w",))

    def model(self, num_experts: int) -> pj.Product:
        """Return the product of `num_experts` experts."""
        config = self.config
        is_square = num_experts == config.num_components
        exponent = config.exponent if is_square else config.wide_exponent
        return ica.student_t_product(config.num_components, num_experts, exponent, config.scale)

    def random(self, num_experts: int, seed: int) -> pj.types.Params:
        """Draw initial parameters, orthonormal directions if complete."""
        params = self.model(num_experts).init(jax.random.key(seed))
        if num_experts == self.config.num_components:
            params["student"]["w"] = jnp.linalg.qr(params["student"]["w"])[0]
        return params

    def fit_marginals(self, w: np.ndarray, z: jax.Array, seed: int) -> pj.types.Params:
        """Fit scales and exponents of a square model by maximum likelihood, w [D, D] held."""
        config, model = self.config, self.model(w.shape[1])
        params = self.random(w.shape[1], seed)
        params["student"]["w"] = jnp.asarray(w, jnp.float32)
        estimator, key = pj.estimators.exact(model), jax.random.key(seed + 1)
        state = training.init(key, model, estimator, self.marginals_tx, z, params=params)
        state, _ = training.train_steps(
            estimator, self.marginals_tx, state, z, config.batch_size, config.marginal_steps
        )
        return state.params

    def fit(self, rule: str, num_experts: int, z: jax.Array, seed: int) -> pj.types.Params:
        """Train from random directions: everything by "exact", directions by "gibbs" or "hmc"."""
        config, key = self.config, jax.random.key(seed + 1)
        model, params = self.model(num_experts), self.random(num_experts, seed)
        tx = self.full_tx if rule == "exact" else self.directions_tx
        estimator: Any
        estimator = pj.estimators.exact(model) if rule == "exact" else pj.estimators.cd(model)
        state = training.init(key, model, estimator, tx, z, params=params)
        step_size = 0.1
        for stage in range(config.num_stages):
            if rule == "hmc":
                tune_key = jax.random.fold_in(key, stage)
                step_size = self._step_size(tune_key, model, state.params, z, step_size)
                kernel = pj.kernels.hmc(model, step_size, config.hmc_leapfrog)
                estimator = pj.estimators.cd(model, kernel)
            state, _ = training.train_steps(
                estimator, tx, state, z, config.batch_size, config.num_steps // config.num_stages
            )
        return state.params

    def _step_size(
        self, rng_key: jax.Array, model: pj.Product, params: Any, z: jax.Array, first: float
    ) -> float:
        """Return the tuned step size, on a grid of factors 1.25 so that programs are reused."""
        config = self.config
        kernel = pj.kernels.hmc(model, first, config.hmc_leapfrog)
        count = min(200, len(z))
        states = chains.init(rng_key, kernel, params, count, z[:count])
        kernel, _ = pj.kernels.tune_step_size(
            rng_key, kernel, params, states, target=config.hmc_acceptance, num_steps=100
        )
        return float(1.25 ** np.round(np.log(kernel.step_size) / np.log(1.25)))


def gibbs_speed(model: pj.Product, params: Any, z: jax.Array, num_steps: int = 5) -> float:
    """Return chain-steps per second of block Gibbs, compiled, 200 chains at once."""
    kernel, count = pj.kernels.block_gibbs(model), min(200, len(z))
    states = chains.init(jax.random.key(0), kernel, params, count, z[:count])
    states, _ = chains.run(jax.random.key(1), kernel, params, states, num_steps)
    jax.block_until_ready(states)
    start = time.perf_counter()
    states, _ = chains.run(jax.random.key(2), kernel, params, states, num_steps)
    jax.block_until_ready(states)
    return count * num_steps / (time.perf_counter() - start)


class Judge:
    """Collects what is found out about each model, and the filters of the first seed."""

    def __init__(self, config: Config, shape: tuple[int, int]) -> None:
        """Start with nothing."""
        self.config, self.shape = config, shape
        self.models: dict[str, list[dict[str, Any]]] = {}
        self.filters: dict[str, np.ndarray] = {}
        self.measures: dict[str, dict[str, np.ndarray]] = {}

    def add_gaussian(self, z_test: jax.Array) -> None:
        """Note the log-likelihood of N(0, I), the best Gaussian for the training patches."""
        square = float(jnp.mean(jnp.sum(z_test**2, axis=1)))
        value = -0.5 * (square + z_test.shape[1] * np.log(2 * np.pi))
        self.models.setdefault("Gaussian", []).append({"fitted": float(value)})

    def add_filters(
        self, name: str, w: np.ndarray, white: ica.Whitening, z_test: jax.Array, seconds: float
    ) -> dict[str, Any]:
        """Measure directions `w` [D, J]; returns the row of `name`, to be filled in."""
        filters = white.forward @ w
        found = filter_report.measures(filters, self.shape, np.asarray(z_test, np.float64) @ w)
        if name not in self.filters:
            self.filters[name], self.measures[name] = filters, found
        row: dict[str, Any] = {key: float(np.median(values)) for key, values in found.items()}
        row["seconds"] = round(seconds, 2)
        self.models.setdefault(name, []).append(row)
        return row

    def anneal(self, model: pj.Product, params: Any, z_test: jax.Array) -> Any:
        """Return the held-out log-likelihood with log Z by AIS from a base as heavy-tailed."""
        config = self.config
        log_z = pj.evidence.ais(
            jax.random.key(0),
            model,
            params,
            pj.evidence.student_t_base(model, params, closeness=1.0),
            pj.evidence.linear_betas(config.ais_steps),
            config.ais_chains,
        )
        return pj.evidence.log_likelihood(model, params, z_test, log_z)


RULES = {"exact": "exact gradient", "gibbs": "CD-1, block Gibbs", "hmc": "CD-1, HMC"}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Learn, judge and draw; returns what results.json holds.

    Raises:
      FileNotFoundError: if there are no data.
      ValueError: if `workdir` holds a study with another config, or the data do not fit the config.
      FloatingPointError: if a rule diverges.
    """
    # Before the folder is made: data that cannot be read should leave nothing behind.
    data = load(config, seed=0)
    white = ica.whitening(data.train, config.num_components)
    runs.open_workdir(workdir, config, resume=True, unchecked=("workdir",))
    size, learner, judge = config.num_components, Learner(config), Judge(config, data.shape)
    results: dict[str, Any] = {"source": data.source, "variance_kept": white.kept}
    wide = ("gibbs", "hmc") if config.overcompleteness > 1 else ()
    with runs.progress(6 * config.num_seeds + len(wide), "training", "model") as bar:

        def score(params: Any) -> float:
            model = learner.model(size)
            log_z = pj.exact.log_z(model, params)
            return float(pj.evidence.log_likelihood(model, params, z_test, log_z).mean)

        def done(name: str, row: dict[str, Any]) -> None:
            bar.update()
            bar.set_postfix(
                {name: f"{row.get('fitted', row.get('as_trained')):.2f}"}, refresh=False
            )

        for seed in range(config.num_seeds):
            if seed:
                data = load(config, seed)
                white = ica.whitening(data.train, size)
            z, z_test = (jnp.asarray(white(x), jnp.float32) for x in (data.train, data.test))
            judge.add_gaussian(z_test)
            for name, basis in BASES.items():
                start = time.perf_counter()
                w = basis(z, seed)
                row = judge.add_filters(name, w, white, z_test, time.perf_counter() - start)
                row["fitted"] = score(learner.fit_marginals(w, z, seed))
                done(name, row)
            for rule, name in RULES.items():
                start = time.perf_counter()
                params = learner.fit(rule, size, z, seed)
                w = ica.directions(params)
                row = judge.add_filters(name, w, white, z_test, time.perf_counter() - start)
                row["as_trained"] = row["fitted"] = score(params)
                if rule != "exact":
                    row["fitted"] = score(learner.fit_marginals(w, z, seed))
                else:
                    row |= quantiles(params)
                done(name, row)
            if seed:
                continue
            for rule in wide:
                name = f"{RULES[rule]}, {config.overcompleteness}x"
                start, count = time.perf_counter(), config.overcompleteness * size
                params = learner.fit(rule, count, z, seed)
                w = ica.directions(params)
                row = judge.add_filters(name, w, white, z_test, time.perf_counter() - start)
                found = judge.anneal(learner.model(count), params, z_test)
                row["as_trained"], row["ess"] = float(found.mean), float(found.ess)
                row["interval"] = [float(found.ci_low), float(found.ci_high)]
                done(name, row)
            results["gibbs_chain_steps_per_second"] = {
                str(n): round(gibbs_speed(learner.model(n), learner.random(n, seed), z))
                for n in sorted({size, config.overcompleteness * size})
            }
    results |= {"models": judge.models, "machine": runs.machine()}
    runs.write_json(workdir / "results.json", results)
    folder = workdir / "figures"
    filter_report.draw(folder, judge.filters, judge.measures, data.shape, data.source)
    return results


def quantiles(params: pj.types.Params) -> dict[str, list[float]]:
    """Return the smallest, median and largest scale and exponent."""
    leaves = {"scales": "log_scale", "exponents": "log_exponent"}
    return {
        key: [float(q) for q in np.quantile(np.exp(params["student"][leaf]), (0, 0.5, 1))]
        for key, leaf in leaves.items()
    }


def _random(z: jax.Array, seed: int) -> np.ndarray:
    size = z.shape[1]
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def _principal(z: jax.Array, seed: int) -> np.ndarray:
    del seed
    return np.eye(z.shape[1])


def _fastica(z: jax.Array, seed: int) -> np.ndarray:
    return ica.fastica(np.asarray(z), seed, max_iter=200)


# Orthonormal bases of the whitened space whose Student-t marginals are fitted.
BASES = {"random basis": _random, "principal components": _principal, "FastICA": _fastica}


def main() -> int:
    """Run from the command line; returns the exit status."""
    try:
        config = runs.parse(PRESETS, __doc__ or "")
        workdir = config.workdir or Path("runs") / "natural_images" / config.preset
        results = train_and_evaluate(config, workdir)
    except (FloatingPointError, OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"\n{results['source']}; whitened by {config.num_components} principal components")
    print(filter_report.table(results["models"]))
    for name, rows in results["models"].items():
        if "ess" in rows[0]:
            low, high = rows[0]["interval"]
            print(
                f"{name}: log Z by AIS, 95 % interval of the likelihood {low:.2f} to {high:.2f}, "
                f"ESS {rows[0]['ess']:.0f} of {config.ais_chains}"
            )
    speeds = results["gibbs_chain_steps_per_second"]
    print("block Gibbs: " + ", ".join(f"{v} chain-steps/s, {k} experts" for k, v in speeds.items()))
    print(f"{results['machine']}; figures and numbers: {workdir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
