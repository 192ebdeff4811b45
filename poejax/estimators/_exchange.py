"""Chains of one point of a path from base to model, that jump to samples of an earlier one."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poejax import _meshes, _random, chains
from poejax._bases import Base
from poejax._paths import path_of
from poejax._product import Product
from poejax._weights import effective_size
from poejax.chains import ModelKernel
from poejax.estimators._common import advance
from poejax.kernels._binding import bound_to
from poejax.tempering import LogRatio, bennett
from poejax.types import Array, Event, Kernel, Params, PyTree

_MIN_ESS = 0.5  # of the rows' weights at the next point, for one jump in two
_NUM_HALVINGS = 12


class Population(NamedTuple):
    """Samples of two points of a path, the near and the far end, in coordinates.

    chains: kernel states of the far end, [C].
    rows: events of the near end, the reservoir, [R, ...].
    """

    chains: Any
    rows: Event


class Heights(NamedTuple):
    """What jumps saw of u = log f_far - log f_near: at rows of the reservoir and at chains, [C].

    The latter before they jumped, so that they are samples of either end.
    """

    up: Array
    down: Array

    def acceptance(self) -> Array:
        """Return the mean probability of a jump, []."""
        return jnp.mean(jnp.exp(jnp.minimum(0, self.up - self.down)))

    def log_ratio(self, guess: Array) -> Array:
        """Return log Z_far - log Z_near, []: right at any guess, at least error near the truth.

        Source: Bennett (1976), equation 10.
        """
        rises = jax.nn.logsumexp(jax.nn.log_sigmoid(self.up - guess))
        return guess + rises - jax.nn.logsumexp(jax.nn.log_sigmoid(guess - self.down))


@dataclasses.dataclass(frozen=True)
class Exchange:
    """How both ends move, and the far one jumps; static. Build with `exchange`.

    path: base times model, of which both ends are points: parameters without coordinates.
    kernel: a kernel of the path.
    num_steps: its steps between two jumps.
    """

    path: Product
    kernel: Kernel
    num_steps: int

    def start(self, rng_key: Array, far: Params, x: Event, num_chains: int) -> Any:
        """Return chains at the first rows of events [N, ...], N >= C."""
        x = jax.tree.map(lambda leaf: leaf[:num_chains], x)
        keys = chains.chain_keys(rng_key, num_chains)
        return jax.vmap(self.kernel.init, in_axes=(0, None, 0))(keys, far, x)

    def heights(self, near: Params, far: Params, x: Event) -> Array:
        """Return u at a batch of events [N, ...], [N]."""
        return jax.vmap(functools.partial(self.path.log_change, near, far))(x)

    def jump(
        self, rng_key: Array, near: Params, far: Params, population: Population
    ) -> tuple[Any, Heights, Array]:
        """Let every chain x try to go where a row y of its own is: chains, heights, which rows.

        min(1, exp(u(y) - u(x))), which leaves the far end's law as it is. The row stays: were x to
        take its place, rows and chains together could only hold as much of any mode as they began
        with, and both ends would lag behind a model whose modes change weight.
        """
        row_key, accept_key, init_key = (_random.fold_in(rng_key, i) for i in range(3))
        states, rows = population
        num_chains, size = _length(states.x), _length(rows)
        # Without regard to who was where before, or chains would only ever meet the same few rows.
        which = _random.permuted(row_key, jnp.arange(num_chains), size)
        y = _take(rows, which)
        seen = Heights(self.heights(near, far, y), self.heights(near, far, states.x))
        u = _random.uniform(_random.words(accept_key, (num_chains,)), seen.up.dtype)
        accepted = jnp.log(u) <= seen.up - seen.down
        keys = chains.chain_keys(init_key, num_chains)
        fresh = jax.vmap(self.kernel.init, in_axes=(0, None, 0))(keys, far, y)
        return _choose(accepted, fresh, states), seen, which

    def turn(
        self, rng_key: Array, near: Params, far: Params, population: Population
    ) -> tuple[Population, Heights]:
        """Advance the chains, let them jump, and advance the rows they met.

        The latter so that a row that is met again is another. Rows are chains of the near end, on
        which nothing that becomes of the far one has any influence.
        """
        move_key, jump_key, row_key, start_key = (_random.fold_in(rng_key, i) for i in range(4))
        states, rows = population
        states = advance(move_key, self.kernel, far, states, self.num_steps)
        states, seen, which = self.jump(jump_key, near, far, Population(states, rows))
        met = self.start(start_key, near, _take(rows, which), which.size)
        met = advance(row_key, self.kernel, near, met, self.num_steps).x
        return Population(states, _put(rows, which, met)), seen

    def turns(
        self, rng_key: Array, near: Params, far: Params, population: Population, count: int
    ) -> tuple[Population, Heights]:
        """Take `count` turns; heights are [count, C]."""

        def body(population: Population, index: Array) -> tuple[Population, Heights]:
            return self.turn(_random.fold_in(rng_key, index), near, far, population)

        population = _meshes.settled(lambda p: body(p, jnp.zeros((), int))[0], population)
        return jax.lax.scan(body, population, jnp.arange(count))

    def gather(
        self,
        rng_key: Array,
        near: Params,
        far: Params,
        population: Population,
        num_thermal: int,
        thin: int,
    ) -> tuple[Population, LogRatio]:
        """Gather as many rows of the far end as there are of the near one, in whose place they go.

        `num_thermal` turns, made a multiple of `thin`, and then the chains' events after every
        `thin` more; by the heights of the latter, how log Z of the two ends differ.
        """
        num_chains, size = _length(population.chains.x), _length(population.rows)
        num_kept, num_dropped = size // num_chains, -(-num_thermal // thin)

        def body(population: Population, index: Array) -> tuple[Population, Any]:
            key = _random.fold_in(rng_key, index)
            population, seen = self.turns(key, near, far, population, thin)
            return population, (population.chains.x, seen)

        population = _meshes.settled(lambda p: body(p, jnp.zeros((), int))[0], population)
        # One loop for both, as programs with two take half as long again to compile.
        population, found = jax.lax.scan(body, population, jnp.arange(num_dropped + num_kept))
        x, seen = jax.tree.map(lambda leaf: leaf[num_dropped:], found)
        up, down = (leaf.reshape(-1, num_chains) for leaf in seen)
        rows = jax.tree.map(
            lambda new, old: new.reshape(old.shape).astype(old.dtype), x, population.rows
        )
        return Population(population.chains, rows), bennett(up, down)


def exchange(model: Product, base: Base, kernel: ModelKernel, num_steps: int) -> Exchange:
    """Return the exchange between points of the path from a base to a model."""
    path = path_of(model, base)
    return Exchange(path, bound_to(path, kernel), num_steps)


def reach(heights: Any, beta: Array) -> Array:
    """Return the largest next temperature, at most 1, at which rows of `beta` are worth enough, [].

    `heights` gives u at the rows of a temperature, [R]; enough is an ESS of half of them.
    """

    def is_near(other: Array) -> Array:
        u = heights(other)
        return effective_size(u) >= _MIN_ESS * u.size

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        near = is_near(middle)
        return jnp.where(near, middle, low), jnp.where(near, high, middle)

    one = jnp.ones_like(beta)
    least = (one - beta) * 2.0**-_NUM_HALVINGS  # to get on, whatever the weights say
    low = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, (beta, one))[0]
    return jnp.where(is_near(one), one, jnp.maximum(low, beta + least))


def _length(tree: PyTree) -> int:
    return int(jax.tree.leaves(tree)[0].shape[0])


def _take(tree: PyTree, which: Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[which], tree)


def _put(tree: PyTree, which: Array, new: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf, v: leaf.at[which].set(v.astype(leaf.dtype), unique_indices=True), tree, new
    )


def _choose(accepted: Array, new: PyTree, old: PyTree) -> PyTree:
    """Return rows of `new` where accepted [C], else of `old`, whose dtypes stay."""

    def one(is_new: Array, a: Array, b: Array) -> Array:
        return jnp.where(is_new, a if a.dtype == b.dtype else a.astype(b.dtype), b)

    return jax.vmap(lambda is_new, a, b: jax.tree.map(functools.partial(one, is_new), a, b))(
        accepted, new, old
    )
