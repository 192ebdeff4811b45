"""A ladder: K members of one model, of which those next to one another exchange configurations.

A ladder is a batch of parameters: leaves that differ lead with K, and the others are shared, so
that members at K temperatures share one matrix product. What moves in an exchange is the smaller of
two: the number of the rung where members differ by a few numbers, such as temperatures, and the
configuration where they differ by their weights, such as checkpoints of a training run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poejax import _random, chains
from poejax._bases import Base
from poejax._paths import path_of, path_params
from poejax._product import Product
from poejax.types import Array, Event, Kernel, Params, PyTree


class Members(NamedTuple):
    """A model's parameters, K times.

    params: leaves that differ lead with K.
    axes: 0 for those leaves and None for the others, as `jax.vmap` takes it.
    """

    model: Product
    params: Params
    axes: PyTree

    @property
    def num_rungs(self) -> int:
        return len(self._differing()[0])

    def _differing(self) -> list[Array]:
        axes = jax.tree.leaves(self.axes, is_leaf=lambda axis: axis is None)
        leaves = jax.tree.leaves(self.params)
        return [leaf for axis, leaf in zip(axes, leaves, strict=True) if axis == 0]

    def moves_numbers(self, event: Event) -> bool:
        """Whether what tells members apart is smaller than an event."""
        own = sum(leaf.size for leaf in self._differing()) // self.num_rungs
        return own < sum(leaf.size for leaf in jax.tree.leaves(event))

    def take(self, fn: Callable[[Array], Array]) -> Params:
        """Return parameters with `fn` applied to the leaves that differ."""
        axes = jax.tree.leaves(self.axes, is_leaf=lambda axis: axis is None)
        leaves, tree = jax.tree.flatten(self.params)
        taken = [fn(leaf) if axis == 0 else leaf for axis, leaf in zip(axes, leaves, strict=True)]
        return jax.tree.unflatten(tree, taken)


def at_temperatures(
    model: Product, params: Params, betas: Array, base: Base | None = None
) -> Members:
    """Return base(x)^(1-β_k) temper(model, β_k)(x), k = 1..K; without a base the latter alone."""
    betas = jnp.asarray(betas)
    whole = model if base is None else path_of(model, base)

    def at(beta: Array) -> Params:
        if base is None:
            return model.temper(params, beta)
        return path_params(whole, params, base, beta)

    # What `temper` hands on as it came is the same object twice; the rest depends on beta.
    one, other = at(betas[0]), at(betas[-1])
    leaves, tree = jax.tree.flatten(one)
    differ = [a is not b for a, b in zip(leaves, jax.tree.leaves(other), strict=True)]

    def only_differing(beta: Array) -> list[Array]:
        return [
            leaf for leaf, is_own in zip(jax.tree.leaves(at(beta)), differ, strict=True) if is_own
        ]

    own = iter(jax.vmap(only_differing)(betas))
    ladder = [next(own) if is_own else leaf for leaf, is_own in zip(leaves, differ, strict=True)]
    axes = jax.tree.unflatten(tree, [0 if is_own else None for is_own in differ])
    return Members(whole, jax.tree.unflatten(tree, ladder), axes)


def along_training(model: Product, checkpoints: Params, base: Base) -> Members:
    """Return the base and then every one of `checkpoints`, whose leaves lead with their number."""
    path = path_of(model, base)

    def at(beta: Array, params: Params) -> Params:
        return path_params(path, params, base, beta)

    number = jnp.arange(-1, jax.tree.leaves(checkpoints)[0].shape[0])
    params = jax.tree.map(lambda leaf: leaf[jnp.maximum(number, 0)], checkpoints)
    ladder = jax.vmap(at)((number >= 0).astype(jnp.result_type(float)), params)
    return Members(path, ladder, jax.tree.map(lambda _: 0, ladder))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "base", "betas"],
    meta_fields=["model"],
)
@dataclasses.dataclass(frozen=True)
class Ladder:
    """What a ladder is made of: a path from base to model, or checkpoints where betas are None."""

    model: Product
    params: Params
    base: Base
    betas: Array | None

    @property
    def members(self) -> Members:
        if self.betas is None:
            return along_training(self.model, self.params, self.base)
        return at_temperatures(self.model, self.params, self.betas, self.base)

    @property
    def num_rungs(self) -> int:
        if self.betas is None:
            return 1 + len(jax.tree.leaves(self.params)[0])
        return len(self.betas)


class Replicas(NamedTuple):
    """K replicas of a ladder, in slots.

    states: of the kernel, [K, ...].
    rung: on which rung the replica of each slot sits, [K].
    came_from: 1 if it was last at the bottom, -1 if since at the top, 0 if at neither, [K].
    num_trips: how often it went from bottom to top and back, [K].
    parity: 0 if rungs 0 and 1, 2 and 3, ... are next to exchange, 1 if 1 and 2, ..., [].
    """

    states: Any
    rung: Array
    came_from: Array
    num_trips: Array
    parity: Array


class ExchangeInfo(NamedTuple):
    """What one round of exchanges saw of the pairs of rungs k and k + 1, [K - 1] each.

    is_tried: whether the pair's turn was now; where it was not, the rest means nothing.
    up: log f_(k+1) - log f_k at the configuration of rung k, in nats.
    down: the same at the configuration of rung k + 1.
    acceptance_rate: min(1, exp(up - down)).
    is_accepted: whether the two exchanged.
    """

    is_tried: Array
    up: Array
    down: Array
    acceptance_rate: Array
    is_accepted: Array


def start(
    rng_key: Array, members: Members, kernel: Kernel, x: Event, clamp: Any = None
) -> Replicas:
    """Return replicas at the events `x` [K, ...], one for each rung."""
    size = members.num_rungs
    keys = chains.chain_keys(rng_key, size)
    states = jax.vmap(lambda key, p, x: kernel.init(key, p, x, clamp), (0, members.axes, 0))(
        keys, members.params, x
    )
    none, rung = jnp.zeros(size, jnp.int32), jnp.arange(size, dtype=jnp.int32)
    return Replicas(states, rung, _last_end(rung, none), none, jnp.zeros((), jnp.int32))


def step(
    rng_key: Array, members: Members, kernel: Kernel, replicas: Replicas
) -> tuple[Replicas, ExchangeInfo, Any]:
    """Exchange neighbours, then move every replica by its own rung's kernel."""
    swap_key, move_key = _random.split(rng_key)
    replicas, info = exchange(swap_key, members, replicas)
    params = members.params
    if members.moves_numbers(_first(replicas.states.x)):
        params = members.take(lambda leaf: leaf[replicas.rung])
    keys = chains.chain_keys(move_key, members.num_rungs)
    states, moved = jax.vmap(kernel.step, (0, members.axes, 0))(keys, params, replicas.states)
    return replicas._replace(states=states), info, moved


def exchange(rng_key: Array, members: Members, replicas: Replicas) -> tuple[Replicas, ExchangeInfo]:
    """Let every second pair of neighbours exchange, the others the next time.

    Pairs take turns without chance, so that replicas keep their direction for a while: round trips
    take of the order of K steps rather than K².

    Source: Okabe, Kawata, Okamoto & Mikami (2001); Syed, Bouchard-Côté, Deligiannidis & Doucet
    (2022), Non-reversible parallel tempering.
    """
    size = members.num_rungs
    pair = jnp.arange(size - 1, dtype=jnp.int32)
    is_tried = pair % 2 == replicas.parity
    by_number = members.moves_numbers(_first(replicas.states.x))
    up, down = (_by_number if by_number else _by_configuration)(members, replicas, is_tried)
    w = _random.words(rng_key, (size - 1,))
    log_rate = jnp.minimum(0, up - down)
    is_accepted = is_tried & (jnp.log(_random.uniform(w, up.dtype)) <= log_rate)
    rises = jnp.pad(is_accepted, (0, 1)).astype(jnp.int32)
    falls = jnp.pad(is_accepted, (1, 0)).astype(jnp.int32)
    goes_to = jnp.arange(size, dtype=jnp.int32) + rises - falls  # its own inverse
    rung, came_from, trips = replicas.rung, replicas.came_from, replicas.num_trips
    states = replicas.states
    if by_number:
        rung = goes_to[rung]
    else:
        states, came_from, trips = jax.tree.map(
            lambda leaf: leaf[goes_to], (states, came_from, trips)
        )
    trips = trips + ((rung == 0) & (came_from == -1)).astype(trips.dtype)
    came_from = _last_end(rung, came_from)
    info = ExchangeInfo(is_tried, up, down, jnp.exp(log_rate), is_accepted)
    return Replicas(states, rung, came_from, trips, 1 - replicas.parity), info


def _by_number(members: Members, replicas: Replicas, is_tried: Array) -> tuple[Array, Array]:
    """Each replica looks at the one rung that it may go to: two densities, one product."""
    size = members.num_rungs
    number = jnp.arange(size, dtype=jnp.int32)
    partner = number + jnp.pad(is_tried, (0, 1)).astype(jnp.int32)
    partner = partner - jnp.pad(is_tried, (1, 0)).astype(jnp.int32)
    rung = replicas.rung
    here = members.take(lambda leaf: leaf[rung])
    there = members.take(lambda leaf: leaf[partner[rung]])
    axes = members.axes
    change = jax.vmap(members.model.log_change, (axes, axes, 0))(here, there, replicas.states.x)
    of_rung = change[jnp.zeros(size, jnp.int32).at[rung].set(number)]
    return of_rung[:-1], -of_rung[1:]


def _by_configuration(members: Members, replicas: Replicas, is_tried: Array) -> tuple[Array, Array]:
    """Both rungs of every pair, by slices: weights gathered for every ladder would be copies."""
    del is_tried
    below, above = members.take(lambda leaf: leaf[:-1]), members.take(lambda leaf: leaf[1:])
    change = jax.vmap(members.model.log_change, (members.axes, members.axes, 0))
    x = replicas.states.x
    up = change(below, above, jax.tree.map(lambda leaf: leaf[:-1], x))
    return up, change(below, above, jax.tree.map(lambda leaf: leaf[1:], x))


def on_rung(replicas: Replicas, rung: int, tree: PyTree) -> PyTree:
    """Return of what belongs to slots, [K, ...], that of one rung's."""
    slot = jnp.argmax(replicas.rung == rung)
    return jax.tree.map(lambda leaf: leaf[slot], tree)


def _last_end(rung: Array, came_from: Array) -> Array:
    is_top = (rung == len(rung) - 1) & (came_from != 0)
    return jnp.where(rung == 0, 1, jnp.where(is_top, -1, came_from))


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], tree)
