"""The laws that tie a block of units' density, mean, sampler and fields together."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks
from poejax.testing._capabilities import check_abstract, check_capabilities
from poejax.testing._laws import (
    Laws,
    check_retrace,
    compile_once,
    flat_rows,
    noisy,
    rounding,
    rows_of,
)
from poejax.testing._points import MAX_STATES, grid, whole_numbers
from poejax.types import Array, Event, Params, PyTree
from poejax.units import Unit

_BETA = 0.37


def check_unit(
    unit: Unit,
    *,
    rng_key: Array,
    num_fields: int = 4,
    num_samples: int = 4096,
    level: float = 1e-5,
    tolerance: float | None = None,
) -> tuple[str, ...]:
    """Check a small block of units against the laws of p(x | field) = h(x) exp(<field, t(x)> - A).

    For random fields, free parameters of scale one, and events drawn from them:

    "shape":     mean and sample are shaped as an event and statistics as `num_linear` says, floats
    "states":    `states` are `num_states` different events that `check` takes; it refuses a NaN
    "linear":    <linear_field(v), t(x)> = vᵀ linear_statistic(x); `shift_linear` adds v to
                 `linear_part`, and to the field
    "combine":   <combine(fields), t(x)> adds, <scale(field, β), t(x)> = β <field, t(x)>, and
                 combine(()) is zero
    "partition": A = log ∫ h(x) exp<field, t(x)> dx, and the sum of `log_partitions`, whose
                 difference between two fields is `log_partition_change`
    "mean":      linear_statistic(mean(field)) is the gradient of A by a linear field
    "sample":    draws have that density where it can be summed, and else the mean and variances
                 that A's derivatives give
    "fit":       the field of `fit_field` has the mean of the batch, weighted or not
    "clamp":     `sample_clamped` keeps the sites of the mask, leaves p(x | field) invariant and has
                 the mean that `mean_clamped` says
    "values", "closed form", "reach", "tails": what the unit states of its values, its noise, where
                 events may lie and how a bank of it grows is true; what it does not state passes
    "jit", "vmap", "retrace": compiled = eager, batched = one by one, an equal unit compiles nothing

    Up to 1024 states are summed over; one or two real numbers, or counts, are integrated on a grid
    that follows the draws. With more of them "partition" is skipped.

    Args:
      unit: any unit; a Joint is one.
      rng_key: one typed key; the verdict is a function of it.
      num_fields: number of random fields.
      num_samples: draws per field.
      level: probability, per law, that a right sampler fails by chance.
      tolerance: rounding allowed, relative to the largest term; 64 units in the last place if None.

    Returns:
      The names of the laws that were checked.

    Raises:
      AssertionError: at the first law that fails, with its name, expected and found values.
    """
    _checks.rng_key("rng_key", rng_key)
    _checks.positive_int("num_fields", num_fields)
    _checks.positive_int("num_samples", num_samples)
    start = unit.init_field()
    laws = Laws(unit, "unit", "", tolerance or rounding(start), level)
    keys = jax.random.split(rng_key, 4)
    draw = jax.vmap(lambda key: noisy(key, start))
    params, others = (draw(jax.random.split(key, num_fields)) for key in keys[:2])
    v = jax.random.normal(keys[2], (num_fields, unit.num_linear))
    draw_keys = jax.random.split(keys[3], (num_fields, num_samples))
    first = (rows_of(params, 0), rows_of(others, 0), v[0], draw_keys[0, 0])
    try:
        _check_shapes(laws, first[0], first[-1])
        check_retrace("unit", unit, _said, *first)
        with jax.default_matmul_precision("highest"):
            found = jax.device_get(_evaluate(unit, params, others, v, draw_keys))
            _check_one(laws, found, first)
            _check_fields(laws, found)
            checked = _check_density(laws, found, params)
            _check_clamp(laws, found)
            _check_fit(laws, rows_of(found["sample"], 0))
    except jax.errors.JAXTypeError as error:
        what = f"law 'jit' fails: expected {unit} to compile, found {error}"
        raise AssertionError(what) from error
    draws = jax.tree.map(jnp.asarray, rows_of(found["sample"], 0))
    _check_events(laws, draws)
    check_abstract(laws, draws)
    check_capabilities(laws, rows_of(params, 0), draws, keys[2])
    return (
        *checked,
        "shape",
        "states",
        "linear",
        "combine",
        "fit",
        "clamp",
        "values",
        "closed form",
        "reach",
        "tails",
        "jit",
        "vmap",
        "retrace",
    )


def _said(unit: Unit, params: Params, other: Params, v: Array, key: Array) -> dict[str, Any]:
    """Everything that a unit says about one field, another one, and one draw."""
    field, second = unit.field(params), unit.field(other)
    sample_key, clamp_key = jax.random.split(key)
    x = unit.sample(sample_key, field)
    mask, shifted = every_other(unit), unit.shift_linear(params, v)
    clamped = unit.sample_clamped(clamp_key, field, x, mask)
    return {
        "sample": x,
        "mean": unit.mean(field),
        "statistic": unit.linear_statistic(x),
        "mean_statistic": unit.linear_statistic(unit.mean(field)),
        "log_base": unit.log_base(x),
        "log_partition": unit.log_partition(field),
        "log_partitions": unit.log_partitions(field),
        "change": unit.log_partition_change(field, second),
        "change_by_hand": jnp.sum(unit.log_partitions(second) - unit.log_partitions(field)),
        "part": unit.linear_part(params),
        "part_shifted": unit.linear_part(shifted),
        "inner": unit.inner(field, x),
        "inner_linear": unit.inner(unit.linear_field(v), x),
        "inner_second": unit.inner(second, x),
        "inner_both": unit.inner(unit.combine([field, second]), x),
        "inner_none": unit.inner(unit.combine([]), x),
        "inner_scaled": unit.inner(unit.scale(field, _BETA), x),
        "inner_shifted": unit.inner(unit.field(shifted), x),
        "clamped": clamped,
        "clamped_statistic": unit.linear_statistic(clamped),
        "clamped_mean": unit.linear_statistic(unit.mean_clamped(field, x, mask)),
        "held": held(mask, x),
        "held_when_clamped": held(mask, clamped),
    }


_said_compiled = compile_once(_said)


@compile_once
def _evaluate(unit: Unit, params: PyTree, others: PyTree, v: Array, keys: Array) -> dict[str, Any]:
    """All that is compared, for fields [F, ...] and keys [F, n]."""

    def at(params: Params, other: Params, v: Array, keys: Array) -> dict[str, Any]:
        def log_partition(v: Array) -> Array:
            return unit.log_partition(unit.combine([unit.field(params), unit.linear_field(v)]))

        zero = jnp.zeros_like(v)
        said = jax.vmap(_said, (None, None, None, None, 0))(unit, params, other, v, keys)
        return said | {
            "v_statistic": said["statistic"] @ v,
            "part_sum": said["part"] + v,
            "gradient": jax.grad(log_partition)(zero),
            "curvature": jnp.diagonal(jax.hessian(log_partition)(zero)),
        }

    return jax.vmap(at)(params, others, v, keys)


@compile_once
def _tabulate(unit: Unit, params: PyTree, points: PyTree) -> Array:
    """log h(x) + <field, t(x)> for fields [F, ...] and points [F, S, ...], [F, S]."""

    def at(params: Params, points: PyTree) -> Array:
        field = unit.field(params)
        return jax.vmap(lambda x: unit.log_base(x) + unit.inner(field, x))(points)

    return jax.vmap(at)(params, points)


@compile_once
def _grids(unit: Unit, params: PyTree, draws: PyTree) -> Any:
    """Grids over draws [F, n, ...] of one or two real numbers, with log weights."""

    def at(params: Params, draws: PyTree) -> Any:
        field = unit.field(params)
        return grid(draws, lambda x: unit.log_base(x) + unit.inner(field, x))

    return jax.vmap(at)(params, draws)


def every_other(unit: Unit) -> PyTree:
    """A mask of every other site, counted within each block."""
    return unit.each_block(lambda block: jnp.arange(block.num_sites) % 2 == 0)


def held(mask: PyTree, x: Event) -> Event:
    """Return an event that is zero at the sites that a mask does not hold."""

    def at(mask: Array, x: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, 0)

    return jax.tree.map(at, mask, x)


def _check_shapes(laws: Laws, params: Params, key: Array) -> None:
    """Check the shapes of events, before anything is made of them."""
    unit = laws.subject
    for name, fn in (("mean", unit.mean), ("sample", lambda f: unit.sample(key, f))):
        found = jax.eval_shape(lambda p, fn=fn: fn(unit.field(p)), params)
        shape = jax.tree.map(jnp.shape, found)
        laws.require("shape", f"shape of {name}", unit.event_shape, shape)


def _check_one(laws: Laws, found: Any, arguments: tuple[PyTree, ...]) -> None:
    """Check the shapes of what is said of one field, and that it does not depend on how."""
    unit = laws.subject
    eager, compiled = _said(unit, *arguments), _said_compiled(unit, *arguments)
    laws.alike("shape", "a sample", eager["mean"], eager["sample"])
    laws.require("shape", "shape of statistic", (unit.num_linear,), eager["statistic"].shape)
    laws.require("shape", "number of axes of log_partitions", 1, eager["log_partitions"].ndim)
    laws.require("shape", "shape of log_partition", (), eager["log_partition"].shape)
    for name, value in eager.items():
        laws.trees("jit", name, value, compiled[name])
        laws.trees("vmap", name, value, jax.tree.map(jnp.asarray, rows_of(found[name], (0, 0))))


def _check_fields(laws: Laws, found: Any) -> None:
    """Check what fields do to <field, t(x)>."""
    inner = found["inner"]
    slack = laws.tolerance * max(np.abs(v).max() for k, v in found.items() if "inner" in k)
    linear, both = found["v_statistic"], inner + found["inner_second"]
    laws.equal("linear", "<linear_field(v), t(x)>", linear, found["inner_linear"], slack)
    shifted = inner + linear
    laws.equal("linear", "<field shifted by v, t(x)>", shifted, found["inner_shifted"], slack)
    laws.equal("linear", "linear_part shifted by v", found["part_sum"], found["part_shifted"])
    laws.equal("combine", "<combine(a, b), t(x)>", both, found["inner_both"], slack)
    laws.equal("combine", "<combine(), t(x)>", 0 * inner, found["inner_none"])
    laws.equal("combine", "<scale(a, β), t(x)>", _BETA * inner, found["inner_scaled"], slack)


def _check_density(laws: Laws, found: Any, params: PyTree) -> list[str]:
    """Check partition function, mean and draws against the density, and one another."""
    unit, (num_fields, n) = laws.subject, found["inner"].shape
    log_z, mean = found["log_partition"][:, 0], found["mean_statistic"][:, 0].astype(float)
    laws.equal("partition", "Σ log_partitions", log_z, found["log_partitions"][:, 0].sum(-1))
    laws.equal("partition", "log_partition_change", found["change_by_hand"], found["change"])
    laws.equal("mean", "mean, as the gradient of A", found["gradient"], mean)
    t = found["statistic"].astype(float)
    laws.sampled("sample", "mean of draws", mean, t.mean(axis=1), t.std(axis=1) / n**0.5)
    squares = (t - mean[:, None]) ** 2
    std_err = squares.std(axis=1) / n**0.5
    laws.sampled("sample", "variance of draws", found["curvature"], squares.mean(axis=1), std_err)
    points, log_weights, is_finite = _points(unit, params, found["sample"])
    if points is None:
        return ["mean", "sample"]
    table = np.asarray(_tabulate(unit, params, points) + log_weights, float)
    table = np.where(np.isnan(table), -np.inf, table)
    log_sum = np.logaddexp.reduce(table, axis=1)
    laws.equal("partition", "log ∫ h exp<field, t>", log_sum, log_z)
    p, states = np.exp(table - log_sum[:, None]), np.asarray(flat_rows(points, table.shape))
    draws = np.asarray(flat_rows(found["sample"], (num_fields, n)))
    (laws.frequencies if is_finite else laws.waves)("sample", p, states, draws)
    return ["partition", "mean", "sample"]


def _points(unit: Unit, params: PyTree, draws: PyTree) -> tuple[Any, Any, bool]:
    """Return points [F, S, ...] to sum over, log weights [F, S], and whether they are states."""
    rows = jax.tree.leaves(draws)[0].shape[:2]
    if unit.num_states is not None:
        if unit.num_states > MAX_STATES:
            return None, None, True
        states = unit.states()
    elif flat_rows(draws, rows).shape[-1] > 2:
        return None, None, False
    elif all(np.array_equal(leaf, np.round(leaf)) for leaf in jax.tree.leaves(draws)):
        states = whole_numbers(draws)
    else:
        return *_grids(unit, params, draws), False
    repeat = lambda leaf: jnp.broadcast_to(leaf, (rows[0], *leaf.shape))  # noqa: E731
    return jax.tree.map(repeat, states), 0.0, True


def _check_clamp(laws: Laws, found: Any) -> None:
    """Check that sites that are held stay, and that the others are drawn given those."""
    laws.trees("clamp", "sites that are held", found["held"], found["held_when_clamped"])
    gap = (found["clamped_statistic"] - found["clamped_mean"]).astype(float)
    num_fields, n = gap.shape[:2]
    what, std_err = "draws less mean_clamped", gap.std(axis=1) / n**0.5
    laws.sampled("clamp", what, 0 * std_err, gap.mean(axis=1), std_err)
    each = dataclasses.replace(laws, level=laws.level / num_fields)
    before, after = (flat_rows(found[k], (num_fields, n)) for k in ("sample", "clamped"))
    for k in range(num_fields):  # halves, so that the two are independent
        each.same_law("clamp", np.asarray(before[k, : n // 2]), np.asarray(after[k, n // 2 :]))


def _check_fit(laws: Laws, x: Event) -> None:
    """Check the field fitted to a batch [n, ...]."""
    unit = laws.subject
    t = np.asarray(jax.vmap(unit.linear_statistic)(x), float)
    for weights in (None, 1.0 + np.arange(len(t)) % 2):
        fitted = unit.fit_field(x, 0.0, None if weights is None else jnp.asarray(weights))
        mean = unit.linear_statistic(unit.mean(unit.field(fitted)))
        expected = np.average(t, axis=0, weights=weights)
        laws.equal("fit", "mean of the fitted field", expected, mean)


def _check_events(laws: Laws, x: Event) -> None:
    """Check that the unit knows its events."""
    unit = laws.subject
    batches = {"draws": x}
    if unit.num_states is not None and unit.num_states <= MAX_STATES:
        batches["states"] = states = unit.states()
        rows = flat_rows(states, (unit.num_states,))
        laws.require("states", "different states", unit.num_states, len(np.unique(rows, axis=0)))
    for name, batch in batches.items():
        try:
            unit.check("x", batch)
        except ValueError as error:
            laws.fail("states", name, "events of the unit", error)
    try:
        unit.check("x", jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), x))
    except ValueError:
        return
    laws.fail("states", "check of NaN", "a ValueError", "none")
