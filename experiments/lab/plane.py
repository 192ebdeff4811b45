"""Densities on the plane with exact samples: what toy models are fitted to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats

from poejax.types import Array


@dataclasses.dataclass(frozen=True)
class Target:
    """A density on the plane, normalised.

    sample: `(rng_key, num_rows) -> [num_rows, 2]`, exact draws.
    log_prob: `x [2] -> []`, in nats.
    extent: half side of a square about the origin in which nearly all of the mass lies.
    """

    sample: Callable[[Array, int], Array]
    log_prob: Callable[[Array], Array]
    extent: float


_GRID_MEANS = np.array([[-3.0, -1.7, 0.0, 1.4, 2.9], [-2.9, -1.5, -0.2, 1.5, 2.8]])
_GRID_WEIGHTS = np.array([[0.15, 0.25, 0.2, 0.15, 0.25], [0.2, 0.15, 0.3, 0.2, 0.15]])
_GRID_SCALE = 0.2


def _sample_grid(rng_key: Array, num_rows: int) -> Array:
    choice_key, noise_key = jax.random.split(rng_key)
    choice = jax.random.categorical(choice_key, jnp.log(_GRID_WEIGHTS), shape=(num_rows, 2))
    means = jnp.asarray(_GRID_MEANS)[jnp.arange(2), choice]
    return means + _GRID_SCALE * jax.random.normal(noise_key, (num_rows, 2))


def _grid_log_prob(x: Array) -> Array:
    log_normal = stats.norm.logpdf(x[:, None], _GRID_MEANS, _GRID_SCALE)
    return jnp.sum(jax.nn.logsumexp(jnp.log(_GRID_WEIGHTS) + log_normal, axis=1))


_PLUS_SCALES = np.array([[2.0, 0.15], [0.15, 2.0]])


def _sample_plus(rng_key: Array, num_rows: int) -> Array:
    choice_key, noise_key = jax.random.split(rng_key)
    choice = jax.random.randint(choice_key, (num_rows,), 0, 2)
    return jnp.asarray(_PLUS_SCALES)[choice] * jax.random.normal(noise_key, (num_rows, 2))


def _plus_log_prob(x: Array) -> Array:
    log_normal = jnp.sum(stats.norm.logpdf(x, 0.0, _PLUS_SCALES), axis=1)
    return jax.nn.logsumexp(log_normal) - jnp.log(2.0)


_RING_RADIUS, _RING_SCALE = 2.5, 0.2


def _sample_ring(rng_key: Array, num_rows: int) -> Array:
    radius_key, angle_key = jax.random.split(rng_key)
    radius = _RING_RADIUS + _RING_SCALE * jax.random.normal(radius_key, (num_rows, 1))
    angle = jax.random.uniform(angle_key, (num_rows, 1), maxval=2 * jnp.pi)
    return radius * jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)


def _ring_log_prob(x: Array) -> Array:
    # Negative radii, at 12 standard deviations, are left out, as is the pole at the origin.
    radius = jnp.maximum(jnp.linalg.norm(x), 1e-6)
    log_normal = stats.norm.logpdf(radius, _RING_RADIUS, _RING_SCALE)
    return log_normal - jnp.log(2 * jnp.pi * radius)


# Arms along three lines, 60 degrees apart: Student-t along, thin Gaussian across.
_STAR_ANGLES = np.pi / 3 * np.arange(3)
_STAR_ALONG = np.stack([np.cos(_STAR_ANGLES), np.sin(_STAR_ANGLES)], axis=1)
_STAR_ACROSS = np.stack([-np.sin(_STAR_ANGLES), np.cos(_STAR_ANGLES)], axis=1)
_STAR_DOF, _STAR_LENGTH, _STAR_WIDTH = 3.0, 0.8, 0.12


def _sample_star(rng_key: Array, num_rows: int) -> Array:
    choice_key, along_key, across_key = jax.random.split(rng_key, 3)
    choice = jax.random.randint(choice_key, (num_rows,), 0, 3)
    along = _STAR_LENGTH * jax.random.t(along_key, _STAR_DOF, (num_rows, 1))
    across = _STAR_WIDTH * jax.random.normal(across_key, (num_rows, 1))
    return along * jnp.asarray(_STAR_ALONG)[choice] + across * jnp.asarray(_STAR_ACROSS)[choice]


def _star_log_prob(x: Array) -> Array:
    along = stats.t.logpdf(_STAR_ALONG @ x, _STAR_DOF, scale=_STAR_LENGTH)
    across = stats.norm.logpdf(_STAR_ACROSS @ x, 0.0, _STAR_WIDTH)
    return jax.nn.logsumexp(along + across) - jnp.log(3.0)


TARGETS = {
    "grid": Target(_sample_grid, _grid_log_prob, 4.5),
    "plus": Target(_sample_plus, _plus_log_prob, 6.0),
    "ring": Target(_sample_ring, _ring_log_prob, 4.0),
    "star": Target(_sample_star, _star_log_prob, 6.0),
}


NUM_NODES = 300  # an even number, so that no node is the origin


def nodes(target: Target) -> Array:
    """Return the centres of 300 x 300 cells of the target's square, [90000, 2], rows from below."""
    step = 2 * target.extent / NUM_NODES
    axis = -target.extent + step * (jnp.arange(NUM_NODES) + 0.5)
    return jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
