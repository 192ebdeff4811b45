"""Sums over all states of the visible units, in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from poejax._numerics import at_least_float32
from poejax._product import Product
from poejax.types import Array, Event, Params

MAX_TABLE = 2**24  # log weights that are held at once, for sampling and for probabilities
_CHUNK_NUMBERS = 2**21  # 8 MiB of float32 in flight, so that a chunk stays in cache
_CHUNK_ROWS = 2**12  # a chunk's own sums, in a matrix product, lose digits with its length


def max_count() -> int:
    """Return how many states can be numbered: half of what an index holds, 2**30 or 2**62.

    The other half is room for a last chunk that is part full.
    """
    return int(jnp.iinfo(jnp.result_type(int)).max) // 2 + 1


def visible_log_z(model: Product, params: Params) -> Array:
    """Return log Z = logsumexp_x [log h(x) + Σ_k log f_k(x)]."""
    return log_sum_exp(_visible_log_weight(model, params), _count(model), _width(model))


def visible_table(model: Product, params: Params) -> Array:
    """Return the log densities of all visible events, [num_states]."""
    return table(_visible_log_weight(model, params), _count(model), _width(model))


def visible_sample(rng_key: Array, model: Product, params: Params) -> Event:
    """Draw one event from all, by its probability."""
    return model.visible.state_at(draw_index(rng_key, visible_table(model, params)))


def log_sum_exp(log_weight: Callable[[Array], Array], count: int, width: int) -> Array:
    """Return logsumexp of `log_weight(i)` over i < count, in chunks of rows of `width` numbers.

    `log_weight` may return an array of any shape; each entry is summed on its own. Chunks are
    summed in blocks, and blocks at the end: folded one by one, terms below half an ulp of the total
    would be lost, and their gradients with them.
    """
    num_chunks = -(-count // _chunk_rows(count, width))
    num_inner = math.isqrt(num_chunks - 1) + 1
    num_blocks = -(-num_chunks // num_inner)
    chunk = -(-count // (num_blocks * num_inner))

    # Recomputing a chunk in the backward pass keeps the gradient's memory that of one chunk.
    @jax.checkpoint
    def add_chunk(start: Array) -> tuple[Array, Array]:
        index = start + jnp.arange(chunk)
        values = at_least_float32(jax.vmap(log_weight)(jnp.minimum(index, count - 1)))
        inside = (index < count).reshape(-1, *[1] * (values.ndim - 1))
        return _sum_exp(jnp.where(inside, values, -jnp.inf), jnp.ones_like(values))

    starts = chunk * jnp.arange(num_blocks * num_inner).reshape(num_blocks, num_inner)
    blocks = jax.lax.map(lambda block: _sum_exp(*jax.lax.map(add_chunk, block)), starts)
    top, share = _sum_exp(*blocks)
    return top + jnp.log(share)


def _sum_exp(tops: Array, shares: Array) -> tuple[Array, Array]:
    """Return (top, share) with share exp(top) = Σ shares exp(tops), over the first axis.

    Not their logarithms: of a large log Z each would be rounded to its last digit.
    """
    finite = jnp.finfo(tops.dtype)
    top = jax.lax.stop_gradient(jnp.clip(jnp.max(tops, axis=0), finite.min, finite.max))
    return top, jnp.sum(shares * jnp.exp(tops - top), axis=0)


def table(log_weight: Callable[[Array], Array], count: int, width: int) -> Array:
    """Return `log_weight(i)` for all i < count, in chunks of rows of `width` numbers."""
    return jax.lax.map(log_weight, jnp.arange(count), batch_size=_chunk_rows(count, width))


def draw_index(rng_key: Array, log_weights: Array) -> Array:
    """Draw i with probability softmax(log_weights)_i.

    By row and then by column of a square table: under `vmap` over keys the table is shared, and a
    draw costs the square root of its length.
    """
    count = log_weights.shape[0]
    num_columns = math.isqrt(count - 1) + 1
    num_rows = -(-count // num_columns)
    padding = (0, num_rows * num_columns - count)
    rows = jnp.pad(log_weights, padding, constant_values=-jnp.inf).reshape(num_rows, num_columns)
    row_key, column_key = jax.random.split(rng_key)
    row = jax.random.categorical(row_key, jax.nn.logsumexp(rows, axis=1))
    return row * num_columns + jax.random.categorical(column_key, rows[row])


def _visible_log_weight(model: Product, params: Params) -> Callable[[Array], Array]:
    return lambda index: model.log_density(params, model.visible.state_at(index))


def _chunk_rows(count: int, width: int) -> int:
    numbers = 4 * _CHUNK_NUMBERS // jnp.result_type(float).itemsize
    return max(1, min(count, _CHUNK_ROWS, numbers // width))


def _width(model: Product) -> int:
    return max(model.num_factors, model.visible.num_linear)


def _count(model: Product) -> int:
    count = model.visible.num_states
    assert count is not None
    return count
