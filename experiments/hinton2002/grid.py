"""Clusters on a grid with one missing, by a product of unigauss experts (Hinton 2002).

The first part of `experiments.hinton2002`. Lengths are in units of the grid's spacing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

import poejax as pj
from experiments.lab import runs, tables
from experiments.lab.figures import on_square
from experiments.lab.ica import optimizer
from poejax import chains, plotting, training
from poejax._product import log_densities
from poejax.types import Array, Params

SIDE, MISSING = 5, (1, 2)
"""Clusters in a row, and the column and row of the one that is missing."""
_BOX = 1.2 * SIDE  # side of the square that the uniform density stands for
_CELL = 100  # points of the quadrature along one cell


@dataclasses.dataclass(frozen=True)
class Config:
    """Data, model and training."""

    cluster_sd: float = 0.1  # Standard deviation of each cluster along both axes.
    num_train: int = 1200  # Training points.
    num_test: int = 4000  # Held-out points.
    num_experts: int = 15  # Unigauss experts.
    broad_sd: float = 5.0
    """Standard deviation of the fixed Gaussian expert that makes the product proper."""
    cd_steps: int = 20_000  # Updates of CD-1 with Adam.
    cd_learning_rate: float = 0.01  # Lowered to zero along a cosine.
    batch_size: int = 100  # Points per update of CD-1.
    exact_steps: int = 1000
    """Updates of the exact likelihood gradient that follow, each on all points."""
    exact_learning_rate: float = 0.02  # Lowered to zero along a cosine.
    num_chains: int = 1000  # Gibbs chains for the pictures, from a broad Gaussian.
    num_sweeps: int = 2000  # Sweeps of each chain.
    num_restarts: int = 10  # Starts of EM for the mixtures of Gaussians, of which the best is kept.
    num_seeds: int = 3  # Seeds 0, 1, ... of data, initial experts and training.


def centres() -> Array:
    """Return the centres of the clusters that exist, [SIDE² - 1, 2]."""
    middle = (SIDE - 1) / 2
    sites = [(i, j) for i in range(SIDE) for j in range(SIDE) if (i, j) != MISSING]
    return jnp.array(sites) - middle


@functools.partial(jax.jit, static_argnames=("num_points",))
def draw_points(rng_key: Array, num_points: int, cluster_sd: float) -> Array:
    """Draw points [N, 2] from the equal mixture of round clusters."""
    row_key, noise_key = jax.random.split(rng_key)
    rows = jax.random.randint(row_key, (num_points,), 0, SIDE**2 - 1)
    return centres()[rows] + cluster_sd * jax.random.normal(noise_key, (num_points, 2))


def build(config: Config) -> pj.Product:
    """Return unigauss experts beside one broad Gaussian."""
    visible = pj.units.GaussianDiag(2)
    unigauss = pj.experts.Unigauss(visible, config.num_experts, uniform_density=1 / _BOX**2)
    return pj.product(visible, broad=pj.experts.Gaussian(visible), unigauss=unigauss)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def initial_params(rng_key: Array, model: pj.Product, config: Config, x: Array) -> Params:
    """Random circular Gaussians as wide as the data, at even odds; the broad one at its place."""
    drawn, log_variance = model.init(rng_key)["unigauss"], jnp.log(jnp.var(x))
    mean = drawn["mean"] * jnp.exp(0.5 * log_variance)
    scale = jnp.full_like(drawn["log_precision"], -log_variance)
    broad = {"mean": jnp.zeros(2), "log_precision": jnp.full(2, -2 * math.log(config.broad_sd))}
    return {"broad": broad, "unigauss": drawn | {"mean": mean, "log_precision": scale}}


def cell_masses(log_prob: Any) -> np.ndarray:
    """Return the probability of the unit square about each grid point, [SIDE, SIDE].

    By the midpoint rule, whose error is negligible for densities as smooth as 3 / _CELL.
    """
    line = (np.arange(SIDE * _CELL, dtype=np.float32) + 0.5) / _CELL - SIDE / 2
    points = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(np.asarray(jax.jit(jax.vmap(log_prob))(points), np.float64))
    return density.reshape(SIDE, _CELL, SIDE, _CELL).mean((1, 3))


def figures_of_merit(masses: np.ndarray, log_likelihood: float) -> dict[str, float]:
    """Return the held-out log-likelihood, and the missing cluster against the mean of the rest."""
    present = np.delete(masses.ravel(), MISSING[0] * SIDE + MISSING[1])
    return {
        "test_log_likelihood": log_likelihood,
        "missing_over_present": float(masses[MISSING] / present.mean()),
        "least_present_over_mean": float(present.min() / present.mean()),
        "most_present_over_mean": float(present.max() / present.mean()),
        "mass_on_grid": float(masses.sum()),
    }


def evaluate(model: pj.Product, params: Params, test: Array) -> dict[str, Any]:
    """Return figures of merit, exact by enumeration of the latents, and the cells' masses."""
    log_z = pj.exact.log_z(model, params)
    values = pj.evidence.log_likelihood(model, params, test, log_z)
    masses = cell_masses(lambda x: model.log_density(params, x) - log_z)
    return figures_of_merit(masses, float(values.mean)) | {"masses": masses}


@functools.partial(jax.jit, static_argnames=("model", "config"))
def sample(rng_key: Array, model: pj.Product, params: Params, config: Config) -> Array:
    """Run Gibbs chains from a broad Gaussian; returns where they end, [C, 2]."""
    start_key, init_key, run_key = jax.random.split(rng_key, 3)
    starts = SIDE / 2 * jax.random.normal(start_key, (config.num_chains, 2))
    kernel = pj.kernels.block_gibbs(model)
    states = chains.init(init_key, kernel, params, config.num_chains, starts)
    return chains.run(run_key, kernel, params, states, config.num_sweeps)[0].x


def total_variation(samples: Array, masses: np.ndarray) -> float:
    """Return half the L1 distance of the samples' cell frequencies from the exact masses."""
    ends = (-SIDE / 2, SIDE / 2)
    x, y = np.asarray(samples, np.float64).T
    counts, _, _ = np.histogram2d(x, y, bins=SIDE, range=[ends, ends])
    inside = counts / len(samples)
    outside = abs(inside.sum() - masses.sum())
    return float(0.5 * (np.abs(inside - masses).sum() + outside))


def run(config: Config, figures: Path) -> dict[str, Any]:
    """Train seed by seed, by CD-1 and on by the exact gradient, beside mixtures of Gaussians."""
    model = build(config)
    entropy = math.log(SIDE**2 - 1) + math.log(2 * math.pi * math.e * config.cluster_sd**2)
    results: dict[str, Any] = {"ceiling": -entropy, "models": {}}
    cd_tx = optimizer(config.cd_learning_rate, config.cd_steps, frozen=("broad",))
    exact_tx = optimizer(config.exact_learning_rate, config.exact_steps, frozen=("broad",))
    cd = training.Run(pj.estimators.cd(model), cd_tx, config.batch_size)
    exact = training.Run(pj.estimators.exact(model), exact_tx, config.num_train)
    rules = {"CD-1": (cd, config.cd_steps), "CD-1, then exact": (exact, config.exact_steps)}
    found = results["models"]
    with runs.progress(config.num_seeds * (len(rules) + 2), "grid", "fit") as bar:
        for seed in range(config.num_seeds):
            keys = jax.random.split(jax.random.key(seed), 5)
            data_key, init_key, train_key, gmm_key, chain_key = keys
            data = draw_points(data_key, config.num_train + config.num_test, config.cluster_sd)
            train, test = data[: config.num_train], data[config.num_train :]
            params = initial_params(init_key, model, config, train)
            drawn = []
            for name, (run, num_steps) in rules.items():
                state, _ = run.steps(run.init(train_key, train, params), train, num_steps)
                params = state.params
                result = evaluate(model, params, test)
                samples = sample(chain_key, model, params, config)
                masses = result.pop("masses")
                result["gibbs_total_variation"] = total_variation(samples, masses)
                drawn.append((name, params, samples, result["missing_over_present"]))
                found.setdefault(name, []).append(result)
                bar.update()
            for num_components in (config.num_experts, SIDE**2 - 1):
                restarts = config.num_restarts
                mixture, _ = pj.mixtures.fit_em(
                    gmm_key, train, num_components, covariance="diag", num_restarts=restarts
                )
                log_prob = functools.partial(pj.mixtures.log_prob, mixture)
                value = float(jnp.mean(jax.vmap(log_prob)(test)))
                name = f"mixture of {num_components} Gaussians"
                result = figures_of_merit(cell_masses(log_prob), value)
                found.setdefault(name, []).append(result)
                bar.update()
            plotting.save(draw(model, train, drawn), figures / f"grid-seed{seed}.png")
    return results


def draw(model: pj.Product, train: Array, drawn: list[Any]) -> Figure:
    """Draw data with the experts' ellipses, Gibbs samples and the density, one column per rule."""
    figure = Figure((4.2 * len(drawn), 11.4), layout="constrained")
    panels = figure.subplots(3, len(drawn), squeeze=False)
    end = SIDE / 2 + 0.25
    line = np.linspace(-end, end, 300, dtype=np.float32)
    points = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    hole = (MISSING[0] - (SIDE - 1) / 2, MISSING[1] - (SIDE - 1) / 2)
    for column, (name, params, samples, share) in zip(panels.T, drawn, strict=True):
        experts = jax.tree.map(np.asarray, params["unigauss"])
        sds = np.exp(-0.5 * experts["log_precision"])
        weights = np.asarray(jax.nn.sigmoid(experts["logit"]))
        column[0].plot(*np.asarray(train[:300]).T, ".", ms=2, color="k")
        for mean, (width, height), weight in zip(experts["mean"], 2 * sds, weights, strict=True):
            style = {"fill": False, "color": "C0", "alpha": max(0.15, weight)}
            column[0].add_patch(Ellipse(tuple(mean), width, height, **style))
        column[0].set_title(f"{name}: data and experts (1 SD)", fontsize="medium")
        column[1].plot(*np.asarray(samples[:300]).T, ".", ms=2, color="C3")
        column[1].set_title("300 Gibbs samples", fontsize="medium")
        picture = np.asarray(log_densities(model, params, points))
        on_square(column[2], picture - picture.max(), end, vmin=-10, cmap="viridis")
        column[2].set_title(f"log density, missing / present {share:.2f}", fontsize="medium")
        for axes in column:
            axes.add_patch(Ellipse(hole, 0.8, 0.8, fill=False, color="C1", ls="--"))
            axes.set(xlim=(-end, end), ylim=(-end, end), aspect="equal")
    figure.suptitle("24 clusters; the dashed circle marks the missing one")
    return figure


def table(results: dict[str, Any]) -> tables.Table:
    """Return the figures of merit of every model, seed by seed."""
    keys = ("test_log_likelihood", "missing_over_present")
    rows = {
        name: [" ".join(f"{r[key]:.3f}" for r in by_seed) for key in keys]
        for name, by_seed in results["models"].items()
    }
    caption = f"grid, nats per held-out point, seed by seed; ceiling {results['ceiling']:.4f}"
    heads = ("model", "log-likelihood", "missing cluster / mean present")
    return tables.table(caption, heads, rows)
