"""What replicas of replicas are run for: sums over sweeps, in fixed memory."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax import _meshes, _random, chains
from poejax._numerics import add
from poejax.tempering._ladder import (
    ExchangeInfo,
    Ladder,
    Replicas,
    on_rung,
    start,
    step,
)
from poejax.types import Array, Event, Kernel


class Means(NamedTuple):
    """Of C replicas, means over the sweeps in which a pair of rungs had its turn, [C, 2, K - 1].

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


@functools.partial(jax.jit, static_argnames="kernel")
def begin(
    rng_key: Array,
    ladder: Ladder,
    x: Event,
    kernel: Kernel,
) -> Replicas:
    """Return replicas at the events `x` [C, K, ...], in coordinates."""
    members = ladder.members
    keys = chains.chain_keys(rng_key, jax.tree.leaves(x)[0].shape[0])
    return jax.vmap(lambda key, x: start(key, members, kernel, x))(keys, x)


@functools.partial(jax.jit, static_argnames="kernel")
def run(
    rng_key: Array,
    ladder: Ladder,
    replicas: Replicas,
    num_steps: Array,
    centres: Array,
    kernel: Kernel,
) -> tuple[Replicas, Means]:
    """Advance replicas; another number of steps compiles nothing. `centres` [K - 1] are the c."""
    members = ladder.members
    num_chains = replicas.rung.shape[0]

    def once(index: Array, replicas: Replicas) -> tuple[Replicas, ExchangeInfo]:
        keys = chains.chain_keys(_random.fold_in(rng_key, index), num_chains)
        replicas, info, _ = jax.vmap(lambda key, replicas: step(key, members, kernel, replicas))(
            keys, replicas
        )
        return replicas, info

    def seen(index: Array, replicas: Replicas, info: ExchangeInfo) -> tuple[Array, Means]:
        dtype, is_tried = info.up.dtype, info.is_tried
        half = jax.nn.one_hot((2 * index >= num_steps).astype(int), 2, dtype=dtype)
        flow = jax.vmap(lambda rung, v: jnp.zeros_like(v).at[rung].set(v))(
            replicas.rung, replicas.came_from
        )
        means = Means(
            up=jnp.where(is_tried, info.up, 0),
            down=jnp.where(is_tried, info.down, 0),
            rises=jnp.where(is_tried, jax.nn.sigmoid(info.up - centres), 0),
            falls=jnp.where(is_tried, jax.nn.sigmoid(centres - info.down), 0),
            acceptance=jnp.where(is_tried, info.acceptance_rate, 0),
            upwards=(flow == 1).astype(dtype),
            labelled=(flow != 0).astype(dtype),
        )
        tried = half[:, None] * is_tried[0].astype(dtype)
        return tried, jax.tree.map(lambda v: half[:, None] * v[:, None], means)

    def body(index: Array, carry: tuple) -> tuple:
        replicas, count, sums, rests = carry
        replicas, info = once(index, replicas)
        tried, values = seen(index, replicas, info)
        added = jax.tree.map(add, sums, rests, values)
        sums, rests = jax.tree.transpose(jax.tree.structure(sums), None, added)
        return replicas, count + tried, sums, rests

    shapes = jax.eval_shape(
        lambda lad: seen(jnp.zeros((), int), *once(jnp.zeros((), int), lad)), replicas
    )
    count, sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    carry = (replicas, count, sums, sums)
    carry = _meshes.settled(lambda c: body(jnp.zeros((), int), c), carry)
    replicas, count, sums, _ = jax.lax.fori_loop(0, num_steps, body, carry)
    half = jnp.stack([(num_steps + 1) // 2, num_steps // 2])[:, None].astype(count.dtype)

    def mean(name: str, total: Array) -> Array:
        return total / jnp.maximum(half if name in ("upwards", "labelled") else count, 1)

    return replicas, Means(**{name: mean(name, total) for name, total in sums._asdict().items()})


@jax.jit
def top(replicas: Replicas) -> Event:
    """Return the events on the last rungs, [C, ...]."""
    num_rungs = replicas.rung.shape[1]
    return jax.vmap(lambda r: on_rung(r, num_rungs - 1, r.states.x))(replicas)


@jax.jit
def by_rung(replicas: Replicas) -> Event:
    """Return the events of replicas in order of their rungs, [C, K, ...]."""
    order = jnp.argsort(replicas.rung, axis=1)
    return jax.tree.map(lambda leaf: jax.vmap(lambda v, o: v[o])(leaf, order), replicas.states.x)


def on_all(x: Event, num_rungs: int) -> Event:
    """Return events [C, ...] on every rung, [C, K, ...]."""
    return jax.tree.map(
        lambda v: jnp.broadcast_to(v[:, None], (v.shape[0], num_rungs, *v.shape[1:])), x
    )
