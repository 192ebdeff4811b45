"""k-means: the start of EM, and prototypes to hold learned parts against."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poejax.mixtures.em import as_float, check_fit, matmul, restart_keys
from poejax.types import Array


class Clusters(NamedTuple):
    """Centroids [K, D] and, for each row, the index of its nearest centroid, [N] int32."""

    centroids: Array
    assignments: Array


def kmeans(
    rng_key: Array,
    x: Array,
    num_clusters: int,
    *,
    max_steps: int = 100,
    num_restarts: int = 1,
) -> Clusters:
    """Cluster a batch [N, D] by Lloyd's algorithm from a k-means++ start.

    Lowers Σ_n min_k ‖x_n - c_k‖² until no row changes its cluster. A cluster that loses all its
    rows keeps its centroid; with fewer distinct rows than clusters some centroids coincide.

    Args:
      rng_key: one typed key.
      x: batch [N, D], real or integer.
      num_clusters: K, in 1 ... N.
      max_steps: upper limit of the number of steps.
      num_restarts: independent starts, of which the best is kept; more are never worse.

    Returns:
      Clusters(centroids [K, D], assignments [N]); each row's centroid is its nearest.

    Raises:
      ValueError: naming the argument, if `x` is empty, not [N, D] or not finite, or a number is
        out of range.

    Source: Lloyd (1982), "Least squares quantization in PCM"; start: Arthur & Vassilvitskii
    (2007), "k-means++: the advantages of careful seeding".
    """
    check_fit(rng_key, x, "num_clusters", num_clusters, max_steps, num_restarts)
    return _kmeans(rng_key, x, num_clusters, max_steps, num_restarts)


def plus_plus(rng_key: Array, x: Array, num_clusters: int) -> Clusters:
    """Choose K rows of `x` [N, D], each with probability ∝ squared distance to those chosen.

    When all rows coincide with those chosen, some row is taken again.
    """
    first_key, rest_key = jax.random.split(rng_key)
    square_norms = jnp.einsum("nd,nd->n", x, x, precision="highest")

    def lower(nearest: Array, row: Array) -> Array:
        # By a matmul, since XLA's reductions along a row are some ten times slower on a CPU; so
        # that a chosen row's distance to itself is not quite 0, and has to be set.
        distances = square_norms - 2 * matmul(x, x[row]) + square_norms[row]
        return jnp.minimum(nearest, jnp.maximum(distances, 0)).at[row].set(0)

    def body(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, nearest = carry
        row = jax.random.categorical(jax.random.fold_in(rest_key, k), jnp.log(nearest))
        return rows.at[k].set(row), lower(nearest, row)

    first = jax.random.randint(first_key, (), 0, x.shape[0])
    start = (
        jnp.zeros(num_clusters, jnp.int32).at[0].set(first),
        lower(jnp.full(x.shape[0], jnp.inf, x.dtype), first),
    )
    rows, _ = jax.lax.fori_loop(1, num_clusters, body, start)
    return Clusters(x[rows], _assign(x, x[rows]))


def lloyd(x: Array, start: Clusters, max_steps: int) -> Clusters:
    """Move each centroid to the mean of its rows and reassign, until nothing changes."""

    def body(carry: Any) -> Any:
        step, _, (centroids, assignments) = carry
        # As a matmul: scatter-adds on an accelerator sum in an order that varies between runs.
        membership = jax.nn.one_hot(assignments, centroids.shape[0], dtype=x.dtype)
        counts = membership.sum(axis=0)[:, None]
        sums = matmul(membership.T, x)
        centroids = jnp.where(counts > 0, sums / jnp.maximum(counts, 1), centroids)
        new = _assign(x, centroids)
        return step + 1, (new != assignments).any(), Clusters(centroids, new)

    carry = (jnp.zeros((), jnp.int32), jnp.ones((), bool), start)
    _, _, clusters = jax.lax.while_loop(lambda c: c[1] & (c[0] < max_steps), body, carry)
    return clusters


def named_start(
    init: str, rng_key: Array, x: Array, num_clusters: int, max_steps: int = 100
) -> Clusters:
    """Return the clusters that `init`, "kmeans++" or "kmeans", stands for."""
    start = plus_plus(rng_key, x, num_clusters)
    return lloyd(x, start, max_steps) if init == "kmeans" else start


@functools.partial(jax.jit, static_argnames=("num_clusters", "max_steps", "num_restarts"))
def _kmeans(
    rng_key: Array, x: Array, num_clusters: int, max_steps: int, num_restarts: int
) -> Clusters:
    x = as_float(x)
    # Distances are taken by a matmul, which cancels badly far from the origin.
    origin = x.mean(axis=0)
    x = x - origin

    def one(key: Array) -> tuple[Clusters, Array]:
        clusters = named_start("kmeans", key, x, num_clusters, max_steps)
        return clusters, jnp.sum((x - clusters.centroids[clusters.assignments]) ** 2)

    all_clusters, spread = jax.lax.map(one, restart_keys(rng_key, num_restarts))
    clusters = jax.tree.map(lambda leaf: leaf[jnp.argmin(spread)], all_clusters)
    return Clusters(clusters.centroids + origin, clusters.assignments)


def _assign(x: Array, centroids: Array) -> Array:
    # ‖x - c‖² less ‖x‖², which all centroids share.
    distances = jnp.sum(centroids**2, axis=1) - 2 * matmul(x, centroids.T)
    return jnp.argmin(distances, axis=1).astype(jnp.int32)
