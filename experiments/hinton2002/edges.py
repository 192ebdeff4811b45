"""Images of one edge, by a product of unigauss experts: a population code (Hinton 2002).

The second part of `experiments.hinton2002`.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import poejax as pj
from experiments.lab import runs, tables
from experiments.lab.encoders import reconstruct
from experiments.lab.ica import optimizer
from poejax import plotting, training
from poejax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Config:
    """Data, model and training."""

    side: int = 10  # Height and width of an image.
    edge_width: float = 0.5  # Scale of the sigmoid across the edge, in pixels.
    min_contrast: float = 0.2  # Least difference of the intensities on the two sides, in [0, 1).
    num_train: int = 5000  # Training images.
    num_test: int = 1000  # Held-out images.
    num_experts: int = 40  # Unigauss experts.
    initial_spread: float = 0.5  # SD of the noise in the initial means, in SDs of the pixels.
    initial_sd: float = 1.5  # Initial SD of every Gaussian, in SDs of the pixels: vague.
    num_steps: int = 6000  # Updates of CD-1 with Adam.
    learning_rate: float = 0.003  # Lowered to zero along a cosine.
    batch_size: int = 100  # Images per update.
    num_seeds: int = 1  # Seeds 0, 1, ... of data, initial experts and training.


@functools.partial(jax.jit, static_argnames=("num_images", "config"))
def draw_images(rng_key: Array, num_images: int, config: Config) -> Array:
    """Draw images [N, side²] of one edge: random orientation, position, polarity, intensities.

    pixel = low + (high - low) sigm((x cos φ + y sin φ - offset) / width), φ uniform in [0, 2π)
    """
    angle_key, offset_key, level_key, contrast_key = jax.random.split(rng_key, 4)
    shape = (num_images, 1)
    angle = jax.random.uniform(angle_key, shape, maxval=2 * jnp.pi)
    reach = 0.35 * config.side
    offset = jax.random.uniform(offset_key, shape, minval=-reach, maxval=reach)
    contrast = jax.random.uniform(contrast_key, shape, minval=config.min_contrast)
    low = (1 - contrast) * jax.random.uniform(level_key, shape)
    distance = _signed_distance(config.side, angle, offset)
    return low + contrast * jax.nn.sigmoid(distance / config.edge_width)


def _signed_distance(side: int, angle: Array, offset: Array) -> Array:
    line = jnp.arange(side) - (side - 1) / 2
    y, x = (grid.ravel() for grid in jnp.meshgrid(line, line, indexing="ij"))
    return jnp.cos(angle) * x + jnp.sin(angle) * y - offset


def build(config: Config) -> pj.Product:
    """Return unigauss experts beside one broad Gaussian."""
    visible = pj.units.GaussianDiag(config.side**2)
    unigauss = pj.experts.Unigauss(visible, config.num_experts)
    return pj.product(visible, broad=pj.experts.Gaussian(visible), unigauss=unigauss)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def initial_params(rng_key: Array, model: pj.Product, config: Config, x: Array) -> Params:
    """Vague Gaussians near the mean image, each of which speaks for half of the images.

    In 100 dimensions log N(x; μ, σ²) lies tens of nats from the uniform's log density, so at even
    mixing proportions every expert would speak always or never, and the latter learn nothing. Here
    logit π starts at minus the median over images of log N(x; μ, σ²) - log c.
    """
    drawn = model.init(rng_key)["unigauss"]
    pixel_sd = jnp.std(x)
    mean = jnp.mean(x, axis=0) + config.initial_spread * pixel_sd * drawn["mean"]
    sd = config.initial_sd * pixel_sd
    log_normal = jax.scipy.stats.norm.logpdf(x[:1000, None], mean, sd).sum(axis=-1)
    size = config.side**2
    return {
        "broad": {"mean": jnp.full(size, 0.5), "log_precision": jnp.zeros(size)},
        "unigauss": {
            "logit": -jnp.median(log_normal, axis=0),
            "mean": mean,
            "log_precision": jnp.full_like(drawn["log_precision"], -2 * jnp.log(sd)),
        },
    }


def edge_likeness(means: Array, side: int) -> np.ndarray:
    """Return the share of each image's variance that the best single sharp edge explains, [J].

    The largest squared correlation with an edge of 36 orientations and of offsets 0.5 pixels apart.
    """
    angles, offsets = np.meshgrid(np.arange(36) * np.pi / 36, np.arange(-side, side, 0.5))
    distance = _signed_distance(side, angles.reshape(-1, 1), offsets.reshape(-1, 1))
    bank = np.asarray(distance) > 0
    # Not one or two pixels in a corner: those would fit any outlier.
    kept = (bank.sum(axis=1) >= side) & (bank.sum(axis=1) <= side**2 - side)
    unit = [v - v.mean(axis=1, keepdims=True) for v in (np.asarray(means), bank[kept] * 1.0)]
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in unit]
    return np.max((unit[0] @ unit[1].T) ** 2, axis=1)


def evaluate(model: pj.Product, params: Params, test: Array, side: int) -> dict[str, float]:
    """Return the held-out reconstruction error, how the experts speak, and edge likeness."""
    residual = np.asarray(reconstruct(model, params, test)) - np.asarray(test)
    expert = model.experts["unigauss"]
    speaks = jax.jit(jax.vmap(expert.latent_mean, in_axes=(None, 0)))(params["unigauss"], test)
    likeness = edge_likeness(params["unigauss"]["mean"], side)
    sds = np.exp(-0.5 * np.asarray(params["unigauss"]["log_precision"]))
    return {
        "unexplained_variance": float(np.mean(residual**2) / np.mean(np.var(test, axis=0))),
        "share_of_experts_speaking": float(speaks.mean()),
        "least_speaking_expert": float(speaks.mean(axis=0).min()),
        "median_edge_likeness": float(np.median(likeness)),
        "share_edge_likeness_above_half": float(np.mean(likeness > 0.5)),
        "median_sd": float(np.median(sds)),
    }


def run(config: Config, figures: Path) -> dict[str, Any]:
    """Train by CD-1, seed by seed; returns figures of merit before and after, and draws."""
    model = build(config)
    tx = optimizer(config.learning_rate, config.num_steps, frozen=("broad",))
    run = training.Run(pj.estimators.cd(model), tx, config.batch_size)
    shape = (config.side, config.side)
    results: dict[str, Any] = {"before": [], "after": []}
    with runs.progress(config.num_seeds, "edges", "fit") as bar:
        for seed in range(config.num_seeds):
            data_key, init_key, train_key = jax.random.split(jax.random.key(seed), 3)
            images = draw_images(data_key, config.num_train + config.num_test, config)
            train, test = images[: config.num_train], images[config.num_train :]
            params = initial_params(init_key, model, config, train)
            results["before"].append(evaluate(model, params, test, config.side))
            state, _ = run.steps(run.init(train_key, train, params), train, config.num_steps)
            params = state.params
            results["after"].append(evaluate(model, params, test, config.side))
            bar.update()
            experts = params["unigauss"]
            sds = np.exp(-0.5 * np.asarray(experts["log_precision"]))
            columns = min(10, config.num_experts)
            title = f"standard deviations, white = {sds.max():.2f}"
            shown = test[:20], reconstruct(model, params, test[:20])
            drawn = {
                "images": plotting.grid(train[:40], shape, 10, "training images"),
                "means": plotting.grid(experts["mean"], shape, columns, "means of the experts"),
                "deviations": plotting.grid(sds / sds.max(), shape, columns, title),
                "reconstructions": plotting.reconstructions(*shown, shape, title="held-out images"),
            }
            for name, figure in drawn.items():
                plotting.save(figure, figures / f"edges-{name}-seed{seed}.png")
    return results


def table(results: dict[str, Any]) -> tables.Table:
    """Return the means over seeds, before and after training."""
    rows = {
        name.replace("_", " "): [np.mean([r[name] for r in results[k]]) for k in results]
        for name in results["after"][0]
    }
    return tables.table("edges, mean over seeds", ("", *results), rows, ".3f")
