"""k-means: the start of EM, and prototypes to hold learned parts against."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks, _meshes
from poejax.mixtures import _checks as checks
from poejax.mixtures import _frame as frames
from poejax.mixtures._em import matmul, restart_keys
from poejax.mixtures._frame import Frame
from poejax.types import Array

_CHUNK = 256  # rows whose distances are taken again, at a time


class Clusters(NamedTuple):
    """Centroids [K, D] and, for each row, the index of its nearest centroid, [N] int32."""

    centroids: Array
    assignments: Array


def kmeans(
    rng_key: Array,
    x: Array,
    num_clusters: int,
    *,
    weights: Array | None = None,
    max_steps: int = 100,
    num_restarts: int = 1,
) -> Clusters:
    """Cluster a batch [N, D] by Lloyd's algorithm from a k-means++ start.

    Lowers Σ_n w_n min_k ‖x_n - c_k‖² until no row changes its cluster. A cluster that loses all
    its rows keeps its centroid; with fewer distinct rows than clusters some centroids coincide.
    Values that the host can look at are centred and scaled in float64 first, so offsets cost no
    digits; where the centroids themselves would lose what sets them apart, they are refused.

    Args:
      rng_key: one typed key.
      x: batch [N, D], real or integer.
      num_clusters: K, in 1 ... N.
      weights: [N] >= 0, not all 0; a row of weight 2 counts as two such rows, one of weight 0 as
        none (but must be finite, and is assigned all the same). 1 when None.
      max_steps: upper limit of the number of steps.
      num_restarts: independent starts, of which the best is kept; more are never worse.

    Returns:
      Clusters(centroids [K, D], assignments [N]); each row's centroid is its nearest.

    Raises:
      ValueError: naming the argument, if `x` is empty, not [N, D], not finite or out of the range
        and resolution of the result's precision (float32 unless jax_enable_x64), if `weights` are
        none, or a number is out of range.

    Source: Lloyd (1982), "Least squares quantization in PCM"; start: Arthur & Vassilvitskii
    (2007), "k-means++: the advantages of careful seeding".
    """
    rows: Any = checks.fit(
        rng_key, x, "num_clusters", num_clusters, max_steps, num_restarts, weights
    )
    every = rows
    rows, weights, counts = checks.counted(rows, weights)
    frame = frames.measure(rows)
    frames.check_values(rows, frame)
    weights, _ = checks.mean_one(weights, frames.working_dtype(rows))
    y = frames.coordinates(rows, frame, frame.shared_unit)
    found = _kmeans(rng_key, y, weights, num_clusters, max_steps, num_restarts)
    assignments = found.assignments
    if counts is not None:
        assigned = np.empty(len(every), np.int32)
        assigned[counts] = assignments
        others = np.asarray(frames.coordinates(every[~counts], frame, frame.shared_unit))
        assigned[~counts] = _nearest(others, np.asarray(found.centroids))
        assignments = jnp.asarray(assigned)
    return Clusters(_back(rows, frame, found.centroids), assignments)


def _nearest(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return which centroid is nearest to each row, on the host; any row has numbers there."""
    squares = [((x.astype(float) - c.astype(float)) ** 2).sum(axis=1) for c in centroids]
    return np.argmin(squares, axis=0)


def plus_plus(
    rng_key: Array, x: Array, num_clusters: int, weights: Array | None = None, exact: bool = True
) -> Clusters:
    """Choose K rows of `x` [N, D], each with probability ∝ squared distance to those chosen.

    Times their `weights` [N]. When all rows coincide with those chosen, some row is taken again.
    Without `exact`, distances are by a matmul: of whole numbers, which it does not round.
    """
    first_key, rest_key = jax.random.split(rng_key)
    log_weights = None if weights is None else jnp.log(weights)
    square_norms = jnp.einsum("nd,nd->n", x, x, precision="highest")

    def lower(nearest: Array, row: Array) -> Array:
        if exact:
            distances = jnp.sum((x - x[row]) ** 2, axis=1)
        else:
            distances = square_norms - 2 * matmul(x, x[row]) + square_norms[row]
        return jnp.minimum(nearest, jnp.maximum(distances, 0)).at[row].set(0)

    def body(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, nearest = carry
        logits = jnp.log(nearest)
        if log_weights is not None:
            logits = logits + log_weights
            logits = jnp.where((logits > -jnp.inf).any(), logits, log_weights)
        row = jax.random.categorical(jax.random.fold_in(rest_key, k), logits).astype(jnp.int32)
        return rows.at[k].set(row), lower(nearest, row)

    if log_weights is None:
        first = jax.random.randint(first_key, (), 0, x.shape[0])
    else:
        first = jax.random.categorical(first_key, log_weights)
    first = first.astype(jnp.int32)
    start = (
        jnp.zeros(num_clusters, jnp.int32).at[0].set(first),
        lower(jnp.full(x.shape[0], jnp.inf, x.dtype), first),
    )
    start = _meshes.settled(lambda carry: body(jnp.ones((), jnp.int32), carry), start)
    rows, _ = jax.lax.fori_loop(1, num_clusters, body, start)
    return Clusters(x[rows], _assign(x, x[rows], exact))


def lloyd(
    x: Array, start: Clusters, max_steps: int, weights: Array | None = None, exact: bool = True
) -> Clusters:
    """Move each centroid to the mean of its rows and reassign, until nothing changes."""

    def body(carry: Any) -> Any:
        step, _, (centroids, assignments) = carry
        # As a matmul: scatter-adds on an accelerator sum in an order that varies between runs.
        membership = jax.nn.one_hot(assignments, centroids.shape[0], dtype=x.dtype)
        if weights is not None:
            membership = membership * weights[:, None]
        counts = membership.sum(axis=0)[:, None]
        shares = jnp.where(counts > 0, counts, 1)
        if exact:  # measured from the old centroid: a tight cluster far off keeps its digits
            moves = matmul(membership.T, x - centroids[assignments]) / shares
            centroids = centroids + moves
        else:
            sums = matmul(membership.T, x)
            centroids = jnp.where(counts > 0, sums / shares, centroids)
        new = _assign(x, centroids, exact)
        return step + 1, (new != assignments).any(), Clusters(centroids, new)

    carry = _meshes.settled(body, (jnp.zeros((), jnp.int32), jnp.ones((), bool), start))
    _, _, clusters = jax.lax.while_loop(lambda c: c[1] & (c[0] < max_steps), body, carry)
    return clusters


def named_start(
    init: str,
    rng_key: Array,
    x: Array,
    num_clusters: int,
    max_steps: int = 100,
    weights: Array | None = None,
    exact: bool = True,
) -> Clusters:
    """Return the clusters that `init`, "kmeans++" or "kmeans", stands for."""
    start = plus_plus(rng_key, x, num_clusters, weights, exact)
    return lloyd(x, start, max_steps, weights, exact) if init == "kmeans" else start


@functools.partial(jax.jit, static_argnames=("num_clusters", "max_steps", "num_restarts"))
def _kmeans(
    rng_key: Array,
    x: Array,
    weights: Array | None,
    num_clusters: int,
    max_steps: int,
    num_restarts: int,
) -> Clusters:
    def one(key: Array) -> tuple[Clusters, Array]:
        clusters = named_start("kmeans", key, x, num_clusters, max_steps, weights)
        squares = (x - clusters.centroids[clusters.assignments]) ** 2
        return clusters, jnp.sum(squares if weights is None else weights[:, None] * squares)

    all_clusters, spread = jax.lax.map(one, restart_keys(rng_key, num_restarts))
    return jax.tree.map(lambda leaf: leaf[jnp.argmin(spread)], all_clusters)


def _assign(x: Array, centroids: Array, exact: bool) -> Array:
    # ‖x - c‖² less ‖x‖², which all centroids share: by a matmul, which is fast.
    square_norms = jnp.sum(centroids**2, axis=1)
    distances = square_norms - 2 * matmul(x, centroids.T)
    nearest = jnp.argmin(distances, axis=1).astype(jnp.int32)
    if not exact:
        return nearest
    # Far from the origin it cancels; rows of which rounding may have chosen the centroid are few
    # unless clusters are tight beside their distance from it.
    eps = float(jnp.finfo(x.dtype).eps) * (4 + x.shape[1] ** 0.5)
    sizes = jnp.sqrt(jnp.einsum("nd,nd->n", x, x, precision="highest"))
    rounding = eps * (sizes[:, None] + jnp.sqrt(square_norms)) ** 2
    possible = distances - rounding <= (distances + rounding).min(axis=1, keepdims=True)

    def by_differences(rows: Array) -> Array:
        squares = jnp.sum((x[rows][:, None] - centroids) ** 2, axis=-1)
        return jnp.argmin(squares, axis=1).astype(jnp.int32)

    return _redo(nearest, possible.sum(axis=1) > 1, by_differences)


def _redo(values: Array, doubtful: Array, again: Callable[[Array], Array]) -> Array:
    """Replace values [N] where doubtful [N] by `again(row numbers [M])`, some rows at a time."""
    num_rows = len(values)

    def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        values, left = carry
        (rows,) = jnp.nonzero(left, size=min(num_rows, _CHUNK), fill_value=num_rows)
        values = values.at[rows].set(again(rows), mode="drop")
        return values, left.at[rows].set(False, mode="drop")

    start = _meshes.settled(body, (values, doubtful))
    return jax.lax.while_loop(lambda carry: carry[1].any(), body, start)[0]


def _back(x: Any, frame: Frame, centroids: Array) -> Array:
    if not (isinstance(x, np.ndarray) and _checks.is_concrete(centroids)):
        return (frame.origin + frame.shared_unit * centroids).astype(centroids.dtype)
    scaled = np.asarray(centroids, np.float64)
    wide = frame.origin + frame.shared_unit * scaled
    narrow = wide.astype(centroids.dtype)
    lost = np.where(frame.is_constant, 0, abs(narrow.astype(np.float64) - wide))
    suspects = np.flatnonzero(lost.max(axis=1) > 1e-6 * frame.shared_unit)
    for k in suspects:
        # The nearest other centroid; nearer ones than the fit itself resolves are the same.
        apart = frame.shared_unit * np.sqrt(((scaled - scaled[k]) ** 2).sum(axis=1))
        others = apart[apart > 1e-5 * frame.shared_unit]
        column = int(np.argmax(lost[k]))
        if len(others) and lost[k, column] > 0.1 * others.min() and frames.is_lossy(x, column):
            what = f"and a centroid {others.min():.3g} from the next"
            frames.refuse_unsayable(x, frame, column, what)
    return jnp.asarray(narrow)
