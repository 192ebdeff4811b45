"""What a unit states besides its density: values, noise, closed forms and tails."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from poejax.testing._laws import Laws
from poejax.types import Array, Event, Params
from poejax.units import Unit

_FAR = 100.0  # along a direction, where what is bounded no longer counts


def check_capabilities(laws: Laws, params: Params, x: Event, rng_key: Array) -> None:
    """Check what a unit can do, for one field's parameters and a batch of draws `x` [n, ...]."""
    unit: Unit = laws.subject
    blocks = jax.tree.leaves(unit.each_block(lambda block: block))
    for block, leaf in zip(blocks, jax.tree.leaves(x), strict=True):
        if block.num_values is not None:
            _check_values(laws, block, leaf, rng_key)
        if block.is_quadratic:
            _check_normal_field(laws, block, leaf)
    _check_reach(laws, x)
    _check_bank(laws, params, rng_key)
    if unit.is_standard_gaussian:
        v = jax.random.normal(rng_key, (unit.num_linear,))
        field, none = (unit.linear_field(u) for u in (v, 0 * v))
        growth = unit.log_partition(field) - unit.log_partition(none)
        laws.equal("closed form", "mean of a standard Gaussian", v, unit.mean(field))
        laws.equal("closed form", "A of a standard Gaussian, above A(0)", v @ v / 2, growth)


def _check_values(laws: Laws, unit: Unit, x: Array, rng_key: Array) -> None:
    count = unit.num_values
    assert count is not None
    values = unit.value_at(jnp.arange(count), x.dtype)
    index = jax.vmap(unit.value_index)(x)
    laws.equal("values", "value_at(value_index(x))", x, unit.value_at(index, x.dtype))
    different = len(np.unique(np.asarray(values).reshape(count, -1), axis=0))
    laws.require("values", "different values", count, different)
    if unit.num_states is not None:
        laws.require("values", "num_values ** num_sites", unit.num_states, count**unit.num_sites)
    slope = jax.random.normal(rng_key, x.shape[1:])
    scores = jnp.tensordot(
        slope.reshape(unit.num_sites, -1), values.reshape(count, -1), axes=((1,), (1,))
    )
    laws.equal("values", "value_scores", scores, unit.value_scores(slope))
    y, log_odds = x[0], jnp.asarray(1.3)
    free = unit.value_field(y, log_odds)
    if free is None:
        return
    field = unit.field(free)
    for site in range(unit.num_sites):
        others = [v for k, v in enumerate(values) if k != int(index[0, site])]
        fall = [unit.inner(field, y) - unit.inner(field, y.at[site].set(v)) for v in others]
        laws.equal(
            "values", "value_field", np.full(count - 1, log_odds), np.asarray(jnp.stack(fall))
        )


def _check_normal_field(laws: Laws, unit: Unit, x: Array) -> None:
    log_scale = jnp.asarray(0.4)
    free = unit.normal_field(x[0], log_scale)
    if free is None:
        laws.fail("closed form", "normal_field", "free parameters of a field", None)
    field = unit.field(free)
    fall = unit.inner(field, x[0]) - unit.inner(field, x[1])
    expected = 0.5 * jnp.sum((x[0] - x[1]) ** 2) * jnp.exp(-2 * log_scale)
    laws.equal("closed form", "mean of normal_field", x[0], unit.mean(field))
    laws.equal("closed form", "fall of normal_field", expected, fall)


def _check_reach(laws: Laws, x: Event) -> None:
    unit: Unit = laws.subject
    reach = unit.reach()
    if reach is None:
        return
    t = np.asarray(jax.vmap(unit.linear_statistic)(x))
    shapes = ((unit.num_linear,), (unit.num_linear,), unit.num_linear)
    found = (reach.is_real.shape, reach.is_count.shape, reach.decay.shape[1])
    laws.require("reach", "shapes of is_real, is_count, rows of decay", shapes, found)
    is_whole = (t == np.round(t)).all(axis=0)
    is_far = reach.is_real | reach.is_count
    laws.require("reach", "whether anything is far", unit.num_states is None, bool(is_far.any()))
    laws.require("reach", "is_real where not whole", True, bool((reach.is_real | is_whole).all()))
    counts = t[:, reach.is_count]
    is_right = bool((counts >= 0).all() and (counts == np.round(counts)).all())
    laws.require("reach", "whether counts are counts", True, is_right)


def _check_bank(laws: Laws, params: Params, rng_key: Array) -> None:
    """Compare how A(Wᵀy + b) grows with y with what `bank_tails` says."""
    unit: Unit = laws.subject
    weights = jax.random.normal(rng_key, (2, unit.num_linear))
    tails = unit.bank_tails(np.asarray(weights, np.float64)) if unit.has_proper_base else None
    if tails is None:
        return
    field = unit.field(params)
    angles = 0.3 + np.pi / 4 * np.arange(8)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def a(y: Array, r: float) -> Array:
        return unit.log_partition(unit.combine([field, unit.linear_field(r * (y @ weights))]))

    growth = jax.vmap(lambda y: jnp.stack([a(y, r) for r in (0.0, _FAR, 2 * _FAR)]))
    near, far, farther = np.asarray(growth(jnp.asarray(directions, weights.dtype)), float).T
    square = ((directions @ tails.square.T) ** 2).sum(axis=1)
    square += (np.maximum(directions @ tails.half_square.T, 0) ** 2).sum(axis=1)
    found = (farther - 2 * far + near) / _FAR**2
    if not np.allclose(found, square, rtol=0.05, atol=0.05):
        laws.fail("tails", "growth like a square along y", square, found)
    if tails.square.size or tails.half_square.size:
        return
    slope = (farther - far) / _FAR - directions @ tails.tilt
    most = np.abs(directions @ tails.spread.T).sum(axis=1)
    if not ((slope > -0.05) & (slope < most + 0.05)).all():
        laws.fail("tails", "growth along y, less its tilt", f"0 to {most}", slope)


def check_abstract(laws: Laws, x: Event) -> None:
    """Check that the unit knows the shape of its events where they have no values."""
    unit: Unit = laws.subject
    rows = jax.tree.leaves(x)[0].shape[0]
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), x)
    try:
        unit.check("x", shapes)
    except (TypeError, ValueError) as error:
        laws.fail("states", "check of shapes without values", "that it passes", error)
    longer = jax.tree.map(
        lambda v: jax.ShapeDtypeStruct((rows, v.shape[1] + 1, *v.shape[2:]), v.dtype), x
    )
    try:
        unit.check("x", longer)
    except ValueError:
        return
    laws.fail("states", "check of events of another size", "a ValueError", "none")
