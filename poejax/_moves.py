"""How far steps have moved a batch of chains, seen from its events before and after."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from poejax import _border, _checks
from poejax._numerics import at_least_float32, sum_of_squares
from poejax.types import Array, Event
from poejax.units import Unit


def flip_rate(before: Event, after: Event) -> Array:
    """Share of the sites of a batch of chains whose value is another after some steps than before.

    Args:
      before: events of the chains, [C, ...].
      after: events of the same chains, later.

    Returns:
      A share in [0, 1], []: 0 for chains that stand still, 1 for real sites drawn anew; NaN where a
      value is.

    Raises:
      ValueError: if there is no chain, or the shapes differ.
    """
    pairs = _pairs(before, after)
    changed = [
        jnp.any(a != b, axis=tuple(range(2, b.ndim)))  # of a categorical site two components do
        for a, b in pairs
    ]
    flags = [c.astype(jnp.result_type(float)) for c in changed]
    share = jnp.asarray(sum(map(sum_of_squares, flags)) / sum(c.size for c in flags))
    unknown = sum(jnp.sum(0 * b) for _, b in pairs)  # NaN where one is
    return share + unknown


def autocorrelation(before: Event, after: Event) -> Array:
    """Correlation of what chains are with what they were, all sites together.

    ρ = 1 - Σ_i E(x'_i - x_i)² / Σ_i (Var x_i + Var x'_i)

    Means and variances are over chains. It is the autocorrelation at this lag, where the law of the
    chains has not changed in between; a change of their mean lowers it. Sites weigh as they vary,
    real ones in the units they come in. Chains that keep to modes of their own have one that stays
    above 0 however long the lag, at the share of variance between the modes; others forget.

    Args:
      before: events of the chains, [C, ...].
      after: events of the same chains, later.

    Returns:
      A number <= 1, []; 1 too if the chains do not differ, as of one chain alone. Over C chains
      that have forgotten its standard deviation is about 1/√C, less with many independent sites.

    Raises:
      ValueError: if there is no chain, or the shapes differ.
    """
    gaps, spreads = [], []
    for x, y in _pairs(before, after):
        gaps.append(sum_of_squares(y - x))
        spreads += [sum_of_squares(v - jnp.mean(v, axis=0)) for v in (x, y)]
    return _correlation(jnp.asarray(sum(gaps)), jnp.asarray(sum(spreads)))


def moved(visible: Unit, before: Event, after: Event) -> tuple[Array, Array]:
    """Return `flip_rate` and `autocorrelation` of events of `visible`, [] each."""
    if visible.num_values != 2 or getattr(after, "ndim", 0) != 2:
        return flip_rate(before, after), autocorrelation(before, after)
    # The same of two values, at a third of the time: a square tells of a flip, a mean of the
    # variance. An update of a small model is done soon.
    x, y = at_least_float32(before), at_least_float32(after)
    low, high = visible.value_at(jnp.arange(2), y.dtype)
    gap = sum_of_squares(y - x)
    means = jnp.stack([jnp.mean(x, axis=0), jnp.mean(y, axis=0)])
    spread = y.shape[0] * jnp.sum((means - low) * (high - means))
    return gap / (high - low) ** 2 / y.size, _correlation(gap, spread)


def _correlation(gap: Array, spread: Array) -> Array:
    return jnp.where(spread == 0, 1.0, 1 - gap / jnp.where(spread == 0, 1, spread))


def _pairs(before: Event, after: Event) -> list[tuple[Array, Array]]:
    """Return leaves in pairs, in float32 or wider, less a mean taken in their own precision."""
    before, after = _border.tree("before", before), _border.tree("after", after)
    _checks.leading_axis("before", before)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"after: expected shapes as of before, {shapes[0]}, got {shapes[1]}")

    def pair(a: Any, b: Any) -> tuple[Array, Array]:
        if jnp.issubdtype(a.dtype, jnp.floating) and a.dtype.itemsize > 2:
            origin = a.mean(axis=0)
            a, b = a - origin, b - origin
        return at_least_float32(jnp.asarray(a)), at_least_float32(jnp.asarray(b))

    return list(map(pair, jax.tree.leaves(before), jax.tree.leaves(after)))
