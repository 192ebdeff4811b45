"""Points at which a density is summed or integrated: all its states, or a grid over its draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from poejax.testing._laws import flat
from poejax.types import Array

MAX_STATES = 2**10  # configurations that are summed over
_NODES = {1: 10, 2: 5}  # per panel and axis, for one and two real numbers
_ENDS = 2.0 ** -np.arange(10, 2, -2)  # fractions of the draws that bound the outer panels
_FRACTIONS = np.concatenate([_ENDS, np.arange(1, 8) / 8, 1 - _ENDS[::-1]])
_TAIL = 0.5 * (2.0 ** np.arange(1, 7) - 1)  # panels that double in width, beyond the outermost


def grid(draws: Any, log_density: Callable[[Any], Array]) -> Any:
    """Return points over draws of one or two real numbers, with log weights; None if more.

    Of numbers whose density is not finite below zero, the logarithm is integrated.

    Args:
      draws: of the density, [n, ...].
      log_density: of one point.
    """
    _, unflatten = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], draws))
    vectors = jax.vmap(flat)(draws)
    size = vectors.shape[1]
    if size not in _NODES:
        return None
    # Latents that live above zero are integrated over their logarithm.
    below = jax.vmap(lambda z: log_density(unflatten(z)))(-jnp.abs(vectors[:8]))
    positive = jnp.all(vectors > 0) & ~jnp.any(jnp.isfinite(below))
    # Gauss-Legendre panels between quantiles of the draws follow every scale of the posterior.
    q = jnp.quantile(jnp.where(positive, jnp.log(vectors), vectors), _FRACTIONS, axis=0)
    left = q[0] - _TAIL[::-1, None] * (q[1] - q[0])
    breaks = jnp.concatenate([left, q, q[-1] + _TAIL[:, None] * (q[-1] - q[-2])])
    # Densities with a kink have it at zero, as rectified units do: smooth on either side.
    breaks = jnp.sort(jnp.append(breaks, jnp.clip(0.0, breaks[:1], breaks[-1:]), axis=0), axis=0)
    node, weight = np.polynomial.legendre.leggauss(_NODES[size])
    center, half = (breaks[1:] + breaks[:-1]) / 2, (breaks[1:] - breaks[:-1]) / 2
    axes = (center[:, None] + half[:, None] * node[:, None]).reshape(-1, size).T
    weights = (half[:, None] * weight[:, None]).reshape(-1, size).T
    nodes, weights = (
        jnp.stack(jnp.meshgrid(*v), axis=-1).reshape(-1, size) for v in (axes, weights)
    )
    points = jnp.where(positive, jnp.exp(nodes), nodes).astype(vectors.dtype)
    log_weights = jnp.log(weights) + jnp.where(positive, nodes, 0)
    log_weights = jnp.where(positive & (points == 0), -jnp.inf, log_weights)  # underflown
    return jax.vmap(unflatten)(points), jnp.sum(log_weights, axis=-1)


def whole_numbers(draws: Any) -> Any:
    """Return all points of one or two whole numbers around draws [..., 1 or 2 numbers].

    From below the smallest to far beyond the largest: counts have tails that fall geometrically, or
    faster.
    """
    leaves = jax.tree.leaves(draws)
    _, unflatten = ravel_pytree(jax.tree.map(lambda leaf: leaf[0, 0], draws))
    low, high = (int(f([f(leaf) for leaf in leaves])) for f in (np.min, np.max))
    axis = np.arange(low - 2, high + 2 * (high - low) + 32)
    size = sum(math.prod(leaf.shape[2:]) for leaf in leaves)
    points = np.stack(np.meshgrid(*[axis] * size), axis=-1).reshape(-1, size)
    return jax.vmap(unflatten)(jnp.asarray(points, leaves[0].dtype))
