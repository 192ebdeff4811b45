"""Gibbs with gradients: a locally informed proposal for discrete visible units."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax import _checks, _meshes, _random
from poejax._numerics import at_least_float32
from poejax._product import Product
from poejax.kernels._base import EventKernel
from poejax.types import Array, ChainState, Event, MetropolisInfo, Params, PyTree
from poejax.units import Unit


class Proposal(NamedTuple):
    """What is known at one event: its log density, [], and log q of every move, [M]."""

    log_density: Array
    log_q: Array


@dataclasses.dataclass(frozen=True)
class GibbsWithGradients(EventKernel):
    """Change one site at a time, where the gradient says so. Build with `gibbs_with_gradients`.

    A move gives one site one of its values: there are M = Σ sites x values of them, numbered block
    by block in the order in which JAX flattens an event. The value a site has is never proposed.
    """

    num_flips: int

    def step(
        self, rng_key: Array, params: Params, state: ChainState
    ) -> tuple[ChainState, MetropolisInfo]:
        """Propose `num_flips` moves, one after the other; the info holds one entry for each."""

        def flip(
            carry: tuple[Event, Proposal], index: Array
        ) -> tuple[tuple[Event, Proposal], MetropolisInfo]:
            x, here = carry
            move_key, accept_key = jax.random.split(_random.fold_in(rng_key, index))
            move = jax.random.categorical(move_key, here.log_q)
            there, log_ratio = self.consider(params, x, here, move, state.clamp)
            # NaN where all sites are clamped, and where the density is: stay.
            rate = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
            accept = jax.random.bernoulli(accept_key, rate)
            carry = jax.tree.map(lambda new, old: jnp.where(accept, new, old), there, carry)
            return carry, MetropolisInfo(rate, accept)

        # The parameters are fixed within a step, so that what is known at x carries over.
        start = (state.x, self.proposal(params, state.x, state.clamp))
        start = _meshes.settled(lambda carry: flip(carry, jnp.zeros((), int))[0], start)
        (x, _), info = jax.lax.scan(flip, start, jnp.arange(self.num_flips))
        return ChainState(x, state.clamp), info

    def proposal(self, params: Params, x: Event, clamp: PyTree = None) -> Proposal:
        """Return the log density at `x` and q(move | x) ∝ exp(½ ∇log f(x)·(x' - x))."""
        params, relaxed = _meshes.alike(params, jax.tree.map(at_least_float32, x))
        value, gradient = jax.value_and_grad(self.model.log_density, argnums=1)(params, relaxed)
        blocks, weights = _blocks(self.model.visible), []
        masks = [None] * len(blocks) if clamp is None else jax.tree.leaves(clamp)
        trees = jax.tree.leaves(relaxed), jax.tree.leaves(gradient), masks
        for unit, leaf, slope, mask in zip(blocks, *trees, strict=True):
            gains, current = unit.value_scores(slope), _current(unit, leaf)
            gains = gains - jnp.sum(jnp.where(current, gains, 0.0), axis=1, keepdims=True)
            excluded = current if mask is None else current | mask[:, None]
            weights.append(jnp.where(excluded, -jnp.inf, 0.5 * gains).reshape(-1))
        return Proposal(value, jax.nn.log_softmax(jnp.concatenate(weights)))

    def consider(
        self, params: Params, x: Event, here: Proposal, move: Array, clamp: PyTree = None
    ) -> tuple[tuple[Event, Proposal], Array]:
        """Return (x', its proposal) after `move`, and the log acceptance ratio.

        log f(x') - log f(x) + log q(x | x') - log q(x' | x)
        """
        moved, reverse = self.move(x, move)
        there = self.proposal(params, moved, clamp)
        log_ratio = there.log_density - here.log_density + there.log_q[reverse] - here.log_q[move]
        return (moved, there), log_ratio

    def move(self, x: Event, move: Array) -> tuple[Event, Array]:
        """Return the event after `move`, and the number of the move that undoes it."""
        leaves, tree = jax.tree.flatten(x)
        moved, reverse, offset = [], jnp.asarray(move), 0
        for unit, leaf in zip(_blocks(self.model.visible), leaves, strict=True):
            current = _current(unit, leaf)
            num_moves, num_values = current.size, current.shape[1]
            is_here = (move >= offset) & (move < offset + num_moves)
            site, value = jnp.divmod(jnp.clip(move - offset, 0, num_moves - 1), num_values)
            new = leaf.at[site].set(unit.value_at(value, leaf.dtype))
            moved.append(jnp.where(is_here, new, leaf))
            back = offset + site * num_values + jnp.argmax(current[site])
            reverse = jnp.where(is_here, back, reverse)
            offset += num_moves
        return jax.tree.unflatten(tree, moved), reverse


def gibbs_with_gradients(model: Product, num_flips: int = 1) -> GibbsWithGradients:
    """Locally informed Metropolis steps for discrete visible units.

    A site and a new value for it are proposed with
    q(x' | x) ∝ exp(½ ∇log f(x)·(x' - x)), f = exp(log_density) on real numbers,
    and accepted with probability min(1, f(x') q(x | x') / (f(x) q(x' | x)))

    Needs the density only, so it samples opaque experts too. Where the first-order difference is
    poor, moves are refused more often; the kernel stays exact. Its info holds acceptance_rate and
    is_accepted, [num_flips]. Reversible in x.

    Args:
      model: a product over visible units of finitely many values (Bernoulli, Spin, Categorical,
        Binomial or a Joint of those), whose `log_density` has a gradient at float events.
      num_flips: proposals per step, one gradient each (and one more per step). A sweep of block
        Gibbs moves all sites; of the order of their number of flips compares with it.

    Returns:
      A kernel for one chain; `chains.run` runs many.

    Raises:
      ValueError: if a visible unit is not discrete, or `num_flips` is not a positive integer.

    Source: Grathwohl et al. (2021), Oops I took a gradient; Zanella (2020), on balanced proposals.
    """
    _checks.model("model", model)
    for unit in _blocks(model.visible):
        if unit.num_values is None:
            raise ValueError(
                "gibbs_with_gradients: expected visible units of finitely many values, got "
                f"{model.visible}; for real units use kernels.mala or hmc"
            )
    return GibbsWithGradients(model, _checks.positive_int("num_flips", num_flips))


def _blocks(unit: Unit) -> list[Unit]:
    """Return the units of the leaves of an event, in the order in which JAX flattens it."""
    return jax.tree.leaves(unit.each_block(lambda block: block))


def _current(unit: Unit, x: Array) -> Array:
    """Return which value each site has, [size, num_values]."""
    return unit.value_index(x)[:, None] == jnp.arange(unit.num_values)
