"""Toy densities on the plane under mixtures and under products, with about equally many parameters.

    python -m experiments.toy_densities

Fits four data sets by a mixture of Gaussians (EM) and by products of Gaussians, of mixtures, of
unigauss and of Student-t experts, and compares exact held-out log-likelihoods. Then two facts
behind the pictures: the KL divergence of a mixture falls with the number K of Gaussians and that of
a product of K Gaussians does not; and a product of D univariate mixtures is a mixture of K^D.

Where the data are a conjunction (grid) a product says in 28 numbers what a mixture needs 25
components for; where they are a union (ring, star) the mixture is ahead.

Writes to the working directory: densities.png, kl_against_k.png, expansion.png, results.json.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import poejax as pj
from experiments.lab import runs
from experiments.lab.plane import TARGETS
from experiments.lab.scoring import mixture_log_probs
from experiments.toy_densities import report, theory
from experiments.toy_densities.products import FAMILIES, Family
from poejax import plotting, training
from poejax._product import log_densities
from poejax.types import Array, Event, Params


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the study depends on."""

    targets: tuple[str, ...] = tuple(TARGETS)  # Data sets, of experiments.toy_targets.
    families: tuple[str, ...] = (
        "mixture", "gaussians", "axis_mixtures", "joint_mixtures", "unigauss", "student_t",
    )  # fmt: skip
    """Models, of those in FAMILIES."""
    num_train: int = 2000  # Training rows, drawn anew by every seed.
    num_test: int = 20_000  # Held-out rows.
    num_steps: int = 1500  # Adam updates of every product.
    batch_size: int = 500  # Rows per update.
    learning_rate: float = 0.05  # Of Adam, lowered to zero along a cosine.
    num_restarts: int = 5
    """Starts of every fit, EM included; the one of highest training likelihood counts."""
    num_pcd_restarts: int = 2  # The same for the products learned by PCD, whose starts agree.
    num_chains: int = 200  # Persistent chains, for the products whose log Z has no cheap gradient.
    num_seeds: int = 3  # Seeds 0, 1, ... of data and fits.
    max_components: int = 6
    """Largest K of the curve of KL against K; EM in single precision stops at about 5e-5 nats."""
    kl_steps: int = 1000  # EM steps at most, and Adam updates, of each fit of that curve.


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        targets=("grid",),
        families=("mixture", "axis_mixtures"),
        num_test=4000,
        num_steps=300,
        num_restarts=3,
        num_seeds=2,
        max_components=3,
        kl_steps=300,
    ),
}


class Fit(NamedTuple):
    """A fitted density: `log_prob(rows [N, 2]) -> [N]`, with exact log Z, in nats."""

    log_prob: Callable[[Array], Array]
    num_free: int
    rule: str


_NUM_COMPONENTS = 5  # of the mixture: 29 free parameters


def fit_mixture(rng_key: Array, data: Event, num_restarts: int) -> Fit:
    """Fit a mixture of full Gaussians by EM to rows [N, 2]."""
    params, _ = pj.mixtures.fit_em(
        rng_key, data, _NUM_COMPONENTS, max_steps=500, tol=1e-6, num_restarts=num_restarts
    )
    log_prob = functools.partial(mixture_log_probs, params)
    return Fit(log_prob, 6 * _NUM_COMPONENTS - 1, "EM")


def fit_product(config: Config, family: Family, rng_key: Array, data: Event) -> Fit:
    """Fit a product to rows [N, 2] from several starts, and keep the best on these rows.

    Raises:
      FloatingPointError: if no start leads to finite parameters.
    """
    num_restarts = config.num_pcd_restarts if family.persistent else config.num_restarts
    keys = jax.random.split(rng_key, num_restarts)
    fitted = _train(config, family, keys, data)
    candidates = []
    for k in range(num_restarts):
        params = jax.tree.map(lambda leaf, k=k: leaf[k], fitted)
        if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            log_z = pj.exact.log_z(family.model, params)
            log_prob = functools.partial(_log_probs, family.model, params, log_z)
            candidates.append((float(jnp.mean(log_prob(data))), k, log_prob))
    if not candidates:
        raise FloatingPointError(f"{family.title!r}: no start led to finite parameters")
    rule = f"PCD-1, {config.num_chains} chains" if family.persistent else "exact gradient"
    return Fit(max(candidates)[2], family.num_free, rule)


@functools.partial(jax.jit, static_argnames=("config", "family"))
def _train(config: Config, family: Family, keys: Array, data: Event) -> Params:
    """Return parameters with a leading axis of starts."""
    model = family.model
    estimator: Any = pj.estimators.exact(model)
    if family.persistent:
        estimator = pj.estimators.pcd(model, config.num_chains)
    tx = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.num_steps))
    run = training.Run(estimator, tx, config.batch_size)

    def one(rng_key: Array) -> Params:
        start_key, run_key = jax.random.split(rng_key)
        state = run.init(run_key, data, family.start(start_key, data))
        return run.steps(state, data, config.num_steps)[0].params

    return jax.vmap(one)(keys)


def _log_probs(model: pj.Product, params: Params, log_z: Array, x: Array) -> Array:
    return log_densities(model, params, x) - log_z


def study_densities(config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Fit every family to every data set, seed by seed.

    Returns:
      `(rows, panels)`: a row for every data set and family with held-out log-likelihoods in nats
      per point, one per seed; and what `report.draw_densities` draws of the first seed.
    """
    rows: list[dict[str, Any]] = []
    panels = {}
    total = len(config.targets) * config.num_seeds * len(config.families)
    with runs.progress(total, "fitting", "fit") as bar:
        for name in config.targets:
            target, index = TARGETS[name], list(TARGETS).index(name)
            found: dict[str, dict[str, Any]] = {}
            for seed in range(config.num_seeds):
                keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), index), 3)
                data = target.sample(keys[0], config.num_train)
                test = target.sample(keys[1], config.num_test)
                region = report.Region.of(target, test)
                fits = {"truth": Fit(jax.vmap(target.log_prob), 0, "")}
                for family in config.families:
                    if family == "mixture":
                        fits[family] = fit_mixture(keys[2], data, config.num_restarts)
                    else:
                        fits[family] = fit_product(config, FAMILIES[family], keys[2], data)
                    bar.update()
                    bar.set_postfix({"data": name, "model": family}, refresh=False)
                for family, fit in fits.items():
                    row = found.setdefault(
                        family,
                        {"target": name, "family": family, "num_free": fit.num_free}
                        | {"rule": fit.rule, "log_likelihood": [], "mass_outside": []},
                    )
                    row["log_likelihood"].append(float(jnp.mean(fit.log_prob(test))))
                    row["mass_outside"].append(region.mass_outside(fit.log_prob))
                if seed == 0:
                    panels[name] = (target, data, {k: fit.log_prob for k, fit in fits.items()})
            rows += found.values()
    return rows, panels


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Run the three studies and draw them; returns the numbers that results.json holds.

    Raises:
      ValueError: if a data set or a family has no such name.
      FloatingPointError: if a fit diverges from every start.
    """
    for field, known in (("targets", TARGETS), ("families", {"mixture", *FAMILIES})):
        if unknown := set(getattr(config, field)) - set(known):
            raise ValueError(f"{field}: expected names of {sorted(known)}, got {sorted(unknown)}")
    start = time.perf_counter()
    rows, panels = study_densities(config)
    curve = theory.study_kl(config.max_components, config.num_seeds, config.kl_steps)
    expansion = theory.expand_product()
    results = {"densities": rows, "kl_against_k": curve, "expansion": expansion.summary()}
    titles = {name: family.title for name, family in FAMILIES.items()}
    titles |= {"truth": "data", "mixture": "mixture of\nGaussians"}
    plotting.save(report.draw_densities(rows, panels, titles), workdir / "densities.png")
    plotting.save(report.draw_kl(curve), workdir / "kl_against_k.png")
    plotting.save(report.draw_expansion(expansion), workdir / "expansion.png")
    return runs.write_results(workdir, config, results, start, report.table)


main = runs.main_of(PRESETS, __doc__, "toy_densities", train_and_evaluate, report.table)
