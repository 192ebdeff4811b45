"""Dtypes, long sums and large intermediates: what stands in more than one room."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from poejax.types import Array, PyTree

T = TypeVar("T", bound=PyTree)

HALF_LOG_2PI = 0.9189385332046727
WEIGHTS = 1e-20, 1e20  # between which the largest of many may lie, to be added up in float32
_BLOCK = 256


def as_float(x: Array) -> Array:
    """Return `x` in a floating dtype: events may be stored as bool or small integers."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def at_least_float32(v: Array) -> Array:
    """Return `v` in float32 or wider: in bfloat16 an event of odds 0.001 would fire at 0.008."""
    is_wide = jnp.issubdtype(v.dtype, jnp.floating) and jnp.finfo(v.dtype).bits >= 32
    return v if is_wide else v.astype(jnp.float32)


def relative_weights(weights: Any) -> Any:
    """Return weights [N], of which only ratios matter, as numbers that can be added up.

    Integers wrap and float16 overflows in a sum, and float64 may hold what float32 cannot: on the
    host very large or small ones are scaled, by the power of two that brings the largest below 1.
    """
    if isinstance(weights, jax.Array):
        return at_least_float32(as_float(weights))
    host = np.asarray(weights, np.float64)
    if not WEIGHTS[0] < (largest := host.max(initial=0.0)) < WEIGHTS[1]:
        host = np.ldexp(host, -np.frexp(largest)[1])
    return host.astype(jnp.result_type(float))


def total(v: Array) -> Array:
    """Return the sum of a vector [n], [].

    By a product with ones, which takes a CPU a tenth of the time of XLA's sum, but loses digits
    where it is long: after a few additions, which fuse with what comes before, and in blocks.
    """
    return total_of_few(functools.reduce(operator.add, jnp.split(jnp.pad(v, (0, -len(v) % 8)), 8)))


def total_of_few(v: Array) -> Array:
    """Return the sum of a vector [n] that others were added up to, []; see `total`."""
    if len(v) > _BLOCK:
        # Filling up costs more than short blocks do.
        block = next((b for b in range(_BLOCK, 0, -64) if len(v) % b == 0), _BLOCK)
        v = jnp.pad(v, (0, -len(v) % block)).reshape(-1, block)
    return jnp.sum(jnp.matmul(v, jnp.ones(v.shape[-1], v.dtype), precision="highest"))


def sum_of_squares(v: Array) -> Array:
    """Return Σ v², [], in float32 or wider; see `total`."""
    # Along the last axis: a matrix may be spread over devices by its columns, or by its rows.
    rows = jnp.atleast_2d(at_least_float32(v)) ** 2
    return jnp.sum(jax.vmap(total)(rows.reshape(-1, rows.shape[-1])))


def mean_of_rows(x: Array, weights: Array | None = None) -> Array:
    """Return the mean [...] of a batch [N, ...], weighted or not, in float32 or wider."""
    x = at_least_float32(as_float(x))
    if weights is None:
        return jnp.mean(x, axis=0)
    weights = relative_weights(weights)
    return jnp.tensordot(jnp.asarray(weights / jnp.sum(weights), x.dtype), x, 1)


def always(bits: Array) -> Array:
    """Return True, [], of unsigned integers, without XLA seeing that it always is.

    What a condition on it returns is written down, where XLA would else fuse it with what follows,
    or turn it into something else. For CPUs, whose barriers are gone before XLA fuses.
    """
    return bits[(0,) * bits.ndim] | 1 != 0


def widen(tree: PyTree) -> PyTree:
    """Return the tree with every leaf in float32 or wider, whatever it is stored in."""
    return jax.tree.map(lambda leaf: at_least_float32(jnp.asarray(leaf)), tree)


def add(total: Array, rest: Array, term: Array) -> tuple[Array, Array]:
    """Add a term to a running total of many without losing what is below its last digit.

    (total, rest) stands for the number total + rest: the rest is what rounding took off so far, and
    is added with the next term. Start with rest = 0.

    Returns:
      The new total and rest.

    Source: Kahan (1965), Further remarks on reducing truncation errors.
    """
    term = term + rest
    new = total + term
    return new, term - (new - total)


def map_rows(
    fn: Callable[[T], Array], rows: T, numbers_per_row: int, max_numbers: int = 2**16
) -> Array:
    """Apply `fn` to every row of `rows` [N, ...], as many at once as keep to `max_numbers`.

    Pieces are computed anew in the backward pass, so that its memory is that of one piece too.

    Args:
      fn: a function of one row.
      rows: arrays with one common leading axis.
      numbers_per_row: how many numbers `fn` holds at once.
      max_numbers: how many may be held; every `jax.vmap` around multiplies them.

    Returns:
      The results, stacked, [N, ...].
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    size = max(1, max_numbers // numbers_per_row)
    if num_rows <= size:
        return jax.vmap(fn)(rows)
    return jax.lax.map(jax.checkpoint(fn), rows, batch_size=size)


def tempered_logsumexp(beta: Array | float, v: Array, axis: int = -1) -> Array:
    """Return log Σ exp(beta v) along an axis.

    The largest is taken off before beta is multiplied on: compilers contract beta v - max to one
    rounding, which for |v| beyond 1e7 no longer cancels with that of the maximum.
    """
    top = jax.lax.stop_gradient(jnp.max(v, axis=axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    rest = jnp.log(jnp.sum(jnp.exp(beta * (v - top)), axis=axis))
    return beta * jnp.squeeze(top, axis) + rest
