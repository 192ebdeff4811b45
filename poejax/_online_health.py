"""What chains say about their mixing while they run, in a memory that does not grow."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax._health import superchains
from poejax._numerics import add
from poejax.chains import ObserveFn
from poejax.types import Array, Params, PyTree


class OnlineHealthResult(NamedTuple):
    """How well chains have mixed, by batch means, for every entry [...] of what was observed.

    r_hat: split R-hat of the values themselves, not of their ranks.
    nested_r_hat: R-hat between superchains.
    ess: effective number of draws, of all chains together, for the mean.
    autocorrelation_time: in observed steps.
    num_observed: steps seen, []; at most a 1 / (num_batches / 2) of them, the last, is in none of
      the figures.

    What is constant, or stands still in every chain, is told as in `Health`. Of fewer than four
    steps nothing is known: R-hats and time are infinite, ESS is 0.
    """

    r_hat: PyTree
    nested_r_hat: PyTree
    ess: PyTree
    autocorrelation_time: PyTree
    num_observed: Array


class _Leaf(NamedTuple):
    """Of values less the chain's first one, in units of `scale`: what is kept of a leaf, [C, ...].

    scale: how far first values lie apart, or the first step that any chain took, lest squares leave
      the range of their dtype; 0 as long as nothing has moved, [...].
    mean and square: of the batch that is being filled, with what is below their last digits.
    within: sum of squares about their means of all full batches.
    batches: means of full batches, [num_batches, C, ...].
    """

    first: Array
    mean: Array
    mean_rest: Array
    square: Array
    square_rest: Array
    within: Array
    within_rest: Array
    batches: Array
    scale: Array


class OnlineHealthState(NamedTuple):
    """Summary of the steps so far.

    num_observed: steps seen, [].
    length: steps of a batch, [].
    num_full: batches filled, [].
    leaves: the tree that is observed, with a `_Leaf` for each of its leaves.
    """

    num_observed: Array
    length: Array
    num_full: Array
    leaves: PyTree


@dataclasses.dataclass(frozen=True)
class OnlineHealth:
    """Observe `fn(params, state, info)` of chains for their health, without a history.

        states, found = chains.run(rng_key, kernel, params, states, 10**6, OnlineHealth(fn))

    Every chain's steps are cut into batches of L steps. As soon as `num_batches` are full, pairs of
    them become one and L doubles: of any number of steps there are between half as many batches and
    all of them, and numbers of the size of `num_batches` + 7 values are kept, and no more. With
    means b over stretches of L' steps, a fourth of the chain or less, but at least 64 in all,

    τ = L' Var(b) / σ²,  ESS = C T / τ

    where Var(b) is taken about the mean of all chains, so that chains in different places count as
    slow ones. R̂, nR̂ and σ², the numerator of R̂², are those of `health`, but for ranks; halves and
    superchains are put together of batches. τ comes out low by a share of about τ / 2L', and never
    above L': stretches are to be longer than τ.

    Where a run goes on by hand: `carry = h.init(v)`, `carry, _ = h.update(carry, v)` with values
    [C, ...], `h.result(carry)`. A carry can be checkpointed.

    fn: `(params, state, info) -> statistics` of one chain, any tree of arrays.
    num_superchains: see `health`.
    num_batches: largest number of batches, even and at least 8.

    Source: Flegal & Jones (2010), Batch means and spectral variance estimators in Markov chain
    Monte Carlo; Chan, Golub & LeVeque (1983) for moments put together; `health` for the rest.
    """

    fn: ObserveFn
    num_superchains: int | None = None
    num_batches: int = 32

    def __post_init__(self) -> None:
        """Refuse what is no function, or numbers that cannot be."""
        if not callable(self.fn):
            raise TypeError(f"fn: expected a function, got {_checks.describe(self.fn)}")
        _checks.positive_int("num_batches", self.num_batches)
        if self.num_batches < 8 or self.num_batches % 2:
            raise ValueError(
                f"num_batches: expected an even number of at least 8, got {self.num_batches}"
            )

    def value(self, params: Params, state: Any, info: Any) -> PyTree:
        """Return what is observed of one chain."""
        return jax.tree.map(_widen, self.fn(params, state, info))

    def init(self, value: PyTree) -> OnlineHealthState:
        """Return the summary of no steps; `value` [C, ...] has shapes only."""
        value = jax.tree.map(_widen, value)
        superchains(_checks.leading_axis("value", value), self.num_superchains)

        def zeros(v: Array) -> _Leaf:
            zero = jnp.zeros_like(v)
            batches = jnp.zeros((self.num_batches, *v.shape), v.dtype)
            return _Leaf(*7 * (zero,), batches, zero[0])

        zero, one = jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32)
        return OnlineHealthState(zero, one, zero, jax.tree.map(zeros, value))

    def update(self, carry: OnlineHealthState, value: PyTree) -> tuple[OnlineHealthState, None]:
        """Take in one step of all chains, [C, ...]."""
        count, length, num_full, leaves = carry
        inside = count - num_full * length + 1

        def one(leaf: _Leaf, v: Array) -> _Leaf:
            return _seen(leaf, _widen(v), count == 0, inside)

        leaves = jax.tree.map(one, leaves, value, is_leaf=_is_leaf)
        carry = OnlineHealthState(count + 1, length, num_full, leaves)
        # Loops, of one turn at most, leave what they do not touch where it is.
        carry = jax.lax.while_loop(_is_full, _closed, carry)
        whole = self.num_batches
        return jax.lax.while_loop(lambda c: c.num_full == whole, self._halved, carry), None

    def _halved(self, carry: OnlineHealthState) -> OnlineHealthState:
        """Make one batch of every two."""
        count, length, num_full, leaves = carry

        def merged(leaf: _Leaf) -> _Leaf:
            first, second = leaf.batches[0::2], leaf.batches[1::2]
            between = length.astype(leaf.within.dtype) * jnp.sum((second - first) ** 2, axis=0) / 2
            within, rest = add(leaf.within, leaf.within_rest, between)
            batches = leaf.batches.at[: len(first)].set(first + (second - first) / 2)
            return leaf._replace(within=within, within_rest=rest, batches=batches)

        leaves = jax.tree.map(merged, leaves, is_leaf=_is_leaf)
        return OnlineHealthState(count, 2 * length, num_full // 2, leaves)

    def result(self, carry: OnlineHealthState, emitted: PyTree = None) -> OnlineHealthResult:
        """Return the figures of the steps so far."""
        leaves, tree = jax.tree.flatten(carry.leaves, is_leaf=_is_leaf)
        figures = [self._figures(leaf, carry.length, carry.num_full) for leaf in leaves]
        r_hat, nested, ess, time = (
            jax.tree.unflatten(tree, field) for field in zip(*figures, strict=True)
        )
        return OnlineHealthResult(r_hat, nested, ess, time, carry.num_observed)

    def _figures(self, leaf: _Leaf, length: Array, num_full: Array) -> tuple[Array, ...]:
        """Return R̂, nR̂, ESS and τ of one leaf, [...] each."""
        num_chains = leaf.first.shape[0]
        half, index = num_full // 2, jnp.arange(self.num_batches, dtype=num_full.dtype)
        dtype = leaf.within.dtype
        steps_of_batch, number_full, number_half = (
            n.astype(dtype) for n in (length, num_full, half)
        )
        # Differences of first values are exact, or nearly so, however far from zero they lie. They
        # are added last: of chains that stand still nothing but zeros is to be left within.
        means, places = leaf.batches, (leaf.first - leaf.first[0]) / _unit(leaf.scale)
        halves = jnp.stack([index < half, (index >= num_full - half) & (index < num_full)])
        half_means, half_squares = _pooled(halves, half, means)
        half_means = half_means + places
        half_squares = steps_of_batch * half_squares + leaf.within * number_half / number_full
        steps = number_half * steps_of_batch
        within = jnp.mean(half_squares, axis=(0, 1)) / (steps - 1)
        between = _variance(jnp.concatenate(half_means))
        variance = within * (steps - 1) / steps + between
        r_hat = _root_ratio(variance, within)

        if num_chains == 1:
            own = half_squares[:, 0] / (steps - 1)
            by_superchain, inside = half_means[:, :1], jnp.mean(own, axis=0)
        else:
            (chain_means,), (squares,) = _pooled((index < num_full)[None], num_full, means)
            own = (steps_of_batch * squares + leaf.within) / (number_full * steps_of_batch - 1)
            number = superchains(num_chains, self.num_superchains)
            chain_means = chain_means + places
            by_superchain = chain_means.reshape(number, -1, *chain_means.shape[1:])
            inside = jnp.mean(own, axis=0)
        if by_superchain.shape[1] > 1:
            inside = inside + jnp.mean(jax.vmap(_variance)(by_superchain), axis=0)
        nested = _root_ratio(inside + _variance(jnp.mean(by_superchain, axis=1)), inside)

        # Longer stretches than batches where there are chains enough: what is left of correlation
        # between neighbours is lost to Var(b).
        most = min(self.num_batches, max(4, -(-64 // num_chains)))
        size = jnp.maximum(num_full // most, 1)
        stretches = (index // size == jnp.arange(most, dtype=index.dtype)[:, None]) & (
            index < num_full
        )
        b = _pooled(stretches, size, means)[0] + places
        is_one = jnp.arange(most, dtype=num_full.dtype) < num_full
        is_one = is_one.reshape(-1, *(1,) * (b.ndim - 1)).astype(dtype)
        count = num_chains * jnp.minimum(most, num_full).astype(dtype)
        gaps = b - jnp.sum(b * is_one, axis=(0, 1)) / count
        spread = jnp.sum(is_one * gaps**2, axis=(0, 1)) / (count - 1)
        draws = num_chains * number_full * steps_of_batch
        time = size.astype(dtype) * steps_of_batch * spread / jnp.where(variance > 0, variance, 1)
        time = jnp.maximum(time, 1 / jnp.log10(draws))  # as blackjax and Stan have it
        is_known = (num_full >= 4) & (within > 0)
        few = num_full < 4
        return (
            jnp.where(few, jnp.inf, r_hat),
            jnp.where(few, jnp.inf, nested),
            jnp.where(is_known, draws / time, 0.0),
            jnp.where(is_known, time, jnp.inf),
        )


def _seen(leaf: _Leaf, v: Array, is_first: Array, inside: Array) -> _Leaf:
    """Take the value of a step into the batch that is being filled."""
    first = jnp.where(is_first, v, leaf.first)
    scale = jnp.where(is_first, jnp.max(jnp.abs(v - v[0]), axis=0), leaf.scale)
    scale = jnp.where(scale > 0, scale, jnp.max(jnp.abs(v - first), axis=0))
    v = (v - first) / _unit(scale)
    gap = (v - leaf.mean) - leaf.mean_rest
    mean, mean_rest = add(leaf.mean, leaf.mean_rest, gap / inside.astype(gap.dtype))
    term = gap * ((v - mean) - mean_rest)
    square, square_rest = add(leaf.square, leaf.square_rest, term)
    return leaf._replace(
        first=first,
        mean=mean,
        mean_rest=mean_rest,
        square=square,
        square_rest=square_rest,
        scale=scale,
    )


def _is_full(carry: OnlineHealthState) -> Array:
    return carry.num_observed - carry.num_full * carry.length == carry.length


def _closed(carry: OnlineHealthState) -> OnlineHealthState:
    """Put the batch that is full with the others, and start another."""

    def one(leaf: _Leaf) -> _Leaf:
        zero = jnp.zeros_like(leaf.mean)
        within, within_rest = add(leaf.within, leaf.within_rest, leaf.square)
        batches = leaf.batches.at[carry.num_full].set(leaf.mean + leaf.mean_rest)
        return _Leaf(leaf.first, zero, zero, zero, zero, within, within_rest, batches, leaf.scale)

    leaves = jax.tree.map(one, carry.leaves, is_leaf=_is_leaf)
    return carry._replace(num_full=carry.num_full + 1, leaves=leaves)


def _pooled(groups: Array, size: Array, means: Array) -> tuple[Array, Array]:
    """Return means [G, ...] of groups [G, N] of `size` batches [N, ...], and squares about them."""
    groups = groups.reshape(*groups.shape, *(1,) * (means.ndim - 1))
    found = jnp.sum(jnp.where(groups, means, 0), axis=1) / size.astype(means.dtype)
    gaps = jnp.where(groups, means - found[:, None], 0)
    return found, jnp.sum(gaps**2, axis=1)


def _variance(x: Array) -> Array:
    """Return the variance over the first axis."""
    return jnp.var(x, axis=0, ddof=1)


def _root_ratio(above: Array, below: Array) -> Array:
    """Return √(above / below), 1 where both are 0, infinite where only what is below is."""
    root = jnp.sqrt(above / jnp.where(below == 0, 1, below))
    return jnp.where(below == 0, jnp.where(above > 0, jnp.inf, 1.0), root)


def _unit(scale: Array) -> Array:
    return jnp.where(scale > 0, scale, 1)


def _is_leaf(node: Any) -> bool:
    return isinstance(node, _Leaf)


def _widen(v: Any) -> Array:
    return jnp.asarray(v, jnp.result_type(float))
