"""Sums over all states of the visible units, in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from poejax.product import Product
from poejax.types import Array, Event, Params

MAX_TABLE = 2**24  # log weights that are held at once, for sampling and for probabilities
_CHUNK_NUMBERS = 2**21  # about 8 MiB of float32 in flight, so that a chunk stays in cache


def visible_log_z(model: Product, params: Params) -> Array:
    """Return log Z = logsumexp_x [log h(x) + Σ_k log f_k(x)]."""
    width = max(model.num_factors, model.visible.num_linear)
    return log_sum_exp(_visible_log_weight(model, params), _count(model), width)


def visible_table(model: Product, params: Params) -> Array:
    """Return the log densities of all visible events, [num_states]."""
    return table(_visible_log_weight(model, params), _count(model))


def visible_sample(rng_key: Array, model: Product, params: Params) -> Event:
    """Draw one event from all, by its probability."""
    return model.visible.state_at(draw_index(rng_key, visible_table(model, params)))


def log_sum_exp(log_weight: Callable[[Array], Array], count: int, width: int) -> Array:
    """Return logsumexp of `log_weight(i)` over i < count, in chunks of rows of `width` numbers.

    `log_weight` may return an array of any shape; each entry is summed on its own.
    """
    chunk = max(1, min(count, _CHUNK_NUMBERS // width))

    # Recomputing a chunk in the backward pass keeps the gradient's memory that of one chunk.
    @jax.checkpoint
    def body(total: Array, start: Array) -> tuple[Array, None]:
        index = start + jnp.arange(chunk)
        values = jax.vmap(log_weight)(jnp.minimum(index, count - 1))
        inside = (index < count).reshape(-1, *[1] * (values.ndim - 1))
        part = jax.nn.logsumexp(values, axis=0, where=inside)
        return jnp.logaddexp(total, part), None

    out = jax.eval_shape(log_weight, jax.ShapeDtypeStruct((), jnp.arange(1).dtype))
    starts = chunk * jnp.arange(-(-count // chunk))
    # The most negative finite number, not -inf: the latter has a NaN gradient in logaddexp.
    start = jnp.full(out.shape, jnp.finfo(out.dtype).min, out.dtype)
    total, _ = jax.lax.scan(body, start, starts)
    return total


def table(log_weight: Callable[[Array], Array], count: int) -> Array:
    """Return `log_weight(i)` for all i < count."""
    return jax.lax.map(log_weight, jnp.arange(count), batch_size=min(count, 4096))


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


def _count(model: Product) -> int:
    count = model.visible.num_states
    assert count is not None
    return count
