"""What the study depends on; learning products of Student-t experts, judging what they learned."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import poejax as pj
from experiments.lab import ica, runs
from experiments.natural_images import report
from poejax import chains, training


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the study depends on, with its data."""

    images: Path | None = None
    """Folder of images; the two photographs of scikit-learn unless given."""
    wav: Path | None = None  # Sound to take instead of images.
    shrink: int = 2
    """Pixels (samples) averaged along each axis first, which removes most artefacts of JPEG."""
    side: int = 12  # Side of a patch in pixels after shrinking.
    window: int = 100  # Samples of a window after shrinking (wav only).
    num_components: int = 64  # Principal components kept by the whitening, the D of the models.
    num_train: int = 40_000  # Patches to learn from.
    num_test: int = 10_000  # Patches to judge by, from tiles of their own.
    overcompleteness: int = 2
    """Experts per component in the overcomplete models; 1 leaves these out."""
    exponent: float = 1.5
    """Exponents of the experts, held by CD; where the exact gradient starts from."""
    wide_exponent: float = 1.0
    """Exponents of the experts of overcomplete models, held: more experts need less each."""
    scale: float = 0.1  # Scales of the experts, held by CD; where the exact gradient starts from.
    num_steps: int = 2_000  # Updates.
    batch_size: int = 200  # Patches per update.
    learning_rate: float = 0.01  # Of Adam, lowered to zero along a cosine.
    hmc_leapfrog: int = 10  # Leapfrog steps per HMC step.
    hmc_acceptance: float = 0.8
    """Acceptance that the HMC step size is tuned to, at each of `num_stages` times."""
    num_stages: int = 4  # Stages of training.
    marginal_steps: int = 500  # Updates that fit scales and exponents to directions that are held.
    marginal_rate: float = 0.05  # Learning rate of those.
    num_seeds: int = 3
    """Seeds 0, 1, ... of tiles, patches and learning; overcomplete models use seed 0 only."""
    ais_chains: int = 100  # Annealed importance sampling runs.
    ais_steps: int = 1_000  # Temperatures between base and model.

    bounds: ClassVar = {"side": 2, "window": 2, "ais_chains": 2, "ais_steps": 2}
    bounds |= {"hmc_acceptance": (0, 1)}

    def check(self) -> None:
        """Refuse two kinds of data, improper products, and stages of unequal length."""
        if self.images is not None and self.wav is not None:
            raise ValueError("images, wav: expected one of them at most, got both")
        runs.require_batch(self.batch_size, self.num_train)
        proper = "more than 0.5, or a complete product (as AIS starts from) is improper"
        for name in ("exponent", "wide_exponent"):
            self.expect(getattr(self, name) > 0.5, name, proper)
        self.expect_multiple("num_steps", of="num_stages")


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

_MARGINALS = ("log_scale", "log_exponent")
_HELD: dict[str, tuple[str, ...]] = {
    "exact": (), "gibbs": _MARGINALS, "hmc": _MARGINALS, "marginals": ("w",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Learner:
    """Trains products over the same whitened patches; programs are shared between seeds."""

    config: Config

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
        config, run = self.config, self._run("marginals", w.shape[1])
        params = self.random(w.shape[1], seed)
        params["student"]["w"] = jnp.asarray(w, jnp.float32)
        state = run.init(jax.random.key(seed + 1), z, params)
        return run.steps(state, z, config.marginal_steps)[0].params

    def fit(self, rule: str, num_experts: int, z: jax.Array, seed: int) -> pj.types.Params:
        """Train from random directions: everything by "exact", directions by "gibbs" or "hmc"."""
        config, key = self.config, jax.random.key(seed + 1)
        run, params = self._run(rule, num_experts), self.random(num_experts, seed)
        state, step_size, model = run.init(key, z, params), 0.1, self.model(num_experts)
        for stage in range(config.num_stages):
            if rule == "hmc":
                tune_key = jax.random.fold_in(key, stage)
                step_size = self._step_size(tune_key, model, state.params, z, step_size)
                kernel = pj.kernels.hmc(model, step_size, config.hmc_leapfrog)
                run = dataclasses.replace(run, estimator=pj.estimators.cd(model, kernel))
            state, _ = run.steps(state, z, config.num_steps // config.num_stages)
        return state.params

    def _run(self, rule: str, num_experts: int) -> training.Run:
        config, model = self.config, self.model(num_experts)
        is_exact = rule in ("exact", "marginals")
        estimator = pj.estimators.exact(model) if is_exact else pj.estimators.cd(model)
        tx = ica.optimizer(config.learning_rate, config.num_steps, _HELD[rule])
        if rule == "marginals":
            tx = ica.optimizer(config.marginal_rate, config.marginal_steps, _HELD[rule])
        return training.Run(estimator, tx, config.batch_size)

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


@dataclasses.dataclass(frozen=True)
class Judge:
    """Collects what is found out about each model, and the filters of the first seed."""

    config: Config
    shape: tuple[int, int]
    models: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    filters: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    measures: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

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
        found = report.measures(filters, self.shape, np.asarray(z_test, np.float64) @ w)
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
