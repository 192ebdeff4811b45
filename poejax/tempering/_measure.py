"""What ladders of replicas are run for: sums over sweeps, in fixed memory."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax import _meshes, _random, chains
from poejax._bases import Base
from poejax._numerics import add
from poejax._product import Product
from poejax.tempering._ladder import (
    ExchangeInfo,
    Replicas,
    at_temperatures,
    on_rung,
    start,
    step,
)
from poejax.types import Array, Event, Kernel, Params


class Means(NamedTuple):
    """Of C ladders, means over the sweeps in which a pair of rungs had its turn, [C, 2, K - 1].

    The middle axis: the first and the second half of the sweeps.

    up, down: log f_(k+1) - log f_k at the lower and at the upper rung, in nats.
    rises, falls: σ(up - c) and σ(c - down), of which Bennett's ratio is made.
    acceptance: min(1, exp(up - down)).
    upwards, labelled: share of the sweeps in which the replica on rung k came from the bottom, or
      from either end, [C, 2, K].
    """

    up: Array
    down: Array
    rises: Array
    falls: Array
    acceptance: Array
    upwards: Array
    labelled: Array


@functools.partial(jax.jit, static_argnames=("model", "kernel"))
def begin(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base | None,
    betas: Array,
    x: Event,
    kernel: Kernel,
) -> Replicas:
    """Return ladders at the events `x` [C, K, ...], in coordinates."""
    members = at_temperatures(model, params, betas, base)
    keys = chains.chain_keys(rng_key, jax.tree.leaves(x)[0].shape[0])
    return jax.vmap(lambda key, x: start(members, kernel, key, x))(keys, x)


@functools.partial(jax.jit, static_argnames=("model", "kernel"))
def run(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base | None,
    betas: Array,
    ladders: Replicas,
    num_steps: Array,
    centres: Array,
    kernel: Kernel,
) -> tuple[Replicas, Means]:
    """Advance ladders; another number of steps compiles nothing. `centres` [K - 1] are the c."""
    members = at_temperatures(model, params, betas, base)
    num_chains = ladders.rung.shape[0]

    def once(index: Array, ladders: Replicas) -> tuple[Replicas, ExchangeInfo]:
        keys = chains.chain_keys(_random.fold_in(rng_key, index), num_chains)
        ladders, info, _ = jax.vmap(lambda key, ladder: step(key, members, kernel, ladder))(
            keys, ladders
        )
        return ladders, info

    def seen(index: Array, ladders: Replicas, info: ExchangeInfo) -> tuple[Array, Means]:
        half = jnp.arange(2) == (2 * index >= num_steps)
        dtype = info.up.dtype
        values = (
            info.up,
            info.down,
            jax.nn.sigmoid(info.up - centres),
            jax.nn.sigmoid(centres - info.down),
            info.acceptance_rate,
        )
        values = (jnp.where(info.is_tried, v, 0) for v in values)
        flow = jax.vmap(lambda rung, v: jnp.zeros_like(v).at[rung].set(v))(
            ladders.rung, ladders.came_from
        )
        means = Means(*values, (flow == 1).astype(dtype), (flow != 0).astype(dtype))
        tried = half[:, None] * info.is_tried[0]
        return tried.astype(dtype), jax.tree.map(lambda v: half[:, None] * v[:, None], means)

    def body(index: Array, carry: tuple) -> tuple:
        ladders, count, sums, rests = carry
        ladders, info = once(index, ladders)
        tried, values = seen(index, ladders, info)
        added = jax.tree.map(add, sums, rests, values)
        sums, rests = jax.tree.transpose(jax.tree.structure(sums), None, added)
        return ladders, count + tried, sums, rests

    shapes = jax.eval_shape(
        lambda lad: seen(jnp.zeros((), int), *once(jnp.zeros((), int), lad)), ladders
    )
    count, sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    carry = (ladders, count, sums, sums)
    carry = _meshes.settled(lambda c: body(jnp.zeros((), int), c), carry)
    ladders, count, sums, _ = jax.lax.fori_loop(0, num_steps, body, carry)
    half = jnp.stack([(num_steps + 1) // 2, num_steps // 2])[:, None]
    sizes = Means(*[jnp.maximum(count, 1)] * 5, *[jnp.maximum(half, 1)] * 2)
    return ladders, jax.tree.map(lambda s, n: s / n, sums, sizes)


@jax.jit
def top(ladders: Replicas) -> Event:
    """Return the events on the last rungs, [C, ...]."""
    num_rungs = ladders.rung.shape[1]
    return jax.vmap(lambda ladder: on_rung(ladder, num_rungs - 1, ladder.states.x))(ladders)


@jax.jit
def by_rung(ladders: Replicas) -> Event:
    """Return the events of ladders in order of their rungs, [C, K, ...]."""
    order = jnp.argsort(ladders.rung, axis=1)
    return jax.tree.map(lambda leaf: jax.vmap(lambda v, o: v[o])(leaf, order), ladders.states.x)


def on_all(x: Event, num_rungs: int) -> Event:
    """Return events [C, ...] on every rung, [C, K, ...]."""
    return jax.tree.map(
        lambda v: jnp.broadcast_to(v[:, None], (v.shape[0], num_rungs, *v.shape[1:])), x
    )
