"""Log partition functions, and their changes, which annealing adds up by the thousand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import experts, units
from poejax._numerics import add, total
from poejax._run_steps import _norm

RULES = {
    units.Bernoulli: lambda f: np.logaddexp(0, f),
    units.Spin: lambda f: np.logaddexp(f, -f),
}


def fields(scale, step, size):
    """Return two fields about `step` of their size apart, in float32."""
    rng = np.random.default_rng(0)
    old = scale * rng.standard_normal(size)
    new = old * (1 + step) + 0.1 * step * scale * rng.standard_normal(size)
    return old.astype(np.float32), new.astype(np.float32)


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("size", [1, 7, 8, 501])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1, 30, 1e4, 1e6])
def test_a_change_is_that_in_float64(kind, size, scale):
    for step in (1e-5, 1e-2, 1.0, -2.5):
        old, new = fields(scale, step, size)
        expected = np.sum(RULES[kind](new.astype(float)) - RULES[kind](old.astype(float)))
        found = kind(size).log_partition_change(jnp.asarray(old), jnp.asarray(new))
        # Each difference is rounded once relative to itself, each exponential relative to one.
        rounding = np.abs(new.astype(float) - old).sum() + np.sqrt(size)
        assert abs(float(found) - expected) < 4 * np.finfo(np.float32).eps * rounding


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1, 30, 1e4, 1e6])
def test_a_partition_function_is_that_in_float64(kind, scale):
    for size in (1, 7, 8, 501, 2_500, 5_000):
        field, _ = fields(scale, 0.0, size)
        each = RULES[kind](field.astype(float))
        found = kind(size).log_partition(jnp.asarray(field))
        assert float(found) == pytest.approx(each.sum(), rel=1e-6)
        slope = jax.grad(kind(size).log_partition)(jnp.asarray(field))
        expected = kind(size).mean(jnp.asarray(field))
        # The slope of spins is of sigmoids, rounded beside one, times two, less one.
        np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=np.finfo(np.float32).eps)
    # The tail of a unit that is nearly off keeps its digits, and infinite fields are no NaN.
    off = np.full(9, -20.0 if kind is units.Bernoulli else 0.0, np.float32)
    found = kind(9).log_partition(jnp.asarray(off))
    assert float(found) == pytest.approx(RULES[kind](off.astype(float)).sum(), rel=1e-6)
    ends = jnp.array([-jnp.inf, 0.0, 1.0])
    assert np.isfinite(float(kind(3).log_partition(ends))) == (kind is units.Bernoulli)
    assert float(kind(3).log_partition(-ends)) == np.inf


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", RULES)
def test_half_precision_rounds_a_partition_function_once(kind, dtype):
    field = jnp.linspace(-3, 3, 200).astype(dtype)
    found = kind(200).log_partition(field)
    each = RULES[kind](np.asarray(field, float))
    assert found.dtype == dtype
    assert float(found) == pytest.approx(each.sum(), rel=2 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("kind", RULES)
def test_curvature_at_field_zero(kind):
    variance, unit = 0.25 if kind is units.Bernoulli else 1.0, kind(3)
    for fn in (unit.log_partition, functools.partial(unit.log_partition_change, jnp.ones(3))):
        np.testing.assert_allclose(jax.hessian(fn)(jnp.zeros(3)), variance * np.eye(3), atol=1e-6)


def test_integer_fields_lose_no_fraction():
    field = jnp.array([1, 0, 2])
    assert float(units.Bernoulli(3).log_partition(field)) == pytest.approx(4.13334, abs=1e-4)
    assert float(units.Spin(3).log_partition(field)) == pytest.approx(3.83822, abs=1e-4)


def test_large_changes_in_half_precision():
    visible = units.Bernoulli(6)
    bank = experts.HiddenBank(visible, units.Bernoulli(500), compute_dtype="bfloat16")
    model = pj.product(visible, hidden=bank)
    params = jax.tree.map(lambda v: v.astype(jnp.bfloat16), model.init(jax.random.key(0)))
    moved = {"hidden": params["hidden"] | {"b": params["hidden"]["b"] - 30}}
    x = jnp.ones(6, jnp.bfloat16)
    found, slope = jax.value_and_grad(model.log_change, argnums=1)(params, moved, x)
    assert float(found) == pytest.approx(-500 * np.log(2), rel=0.02)
    assert slope["hidden"]["b"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(slope["hidden"]["b"], float), 0, atol=1e-6)
    with jax.numpy_dtype_promotion("strict"):
        assert float(units.Bernoulli(3).log_partition(x[:3])) == pytest.approx(3.94, abs=0.02)


def test_a_change_in_coordinates():
    visible = units.Gaussian(3)
    bank = experts.HiddenBank(visible, units.Bernoulli(9))
    model = pj.product(visible, bias=experts.Gaussian(visible), hidden=bank)
    data = 50 + 10 * jax.random.normal(jax.random.key(0), (100, 3))
    old = model.init_from(jax.random.key(1), data)
    new = old | {"hidden": old["hidden"] | {"w": old["hidden"]["w"] + 0.3}}
    expected = model.log_product(new, data[0]) - model.log_product(old, data[0])
    found = model.log_change(old, new, data[0])
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


class Change:
    """A mixin."""

    def log_change(self, old, new, x):
        fields = self.latent_field(old, x), self.latent_field(new, x)
        return self.hidden.log_partition_change(*fields)


class MixedIn(Change, experts.HiddenBank):
    pass


class Own(experts.HiddenBank):
    log_change = Change.log_change


@pytest.mark.parametrize("kind", [Own, MixedIn])
def test_a_family_that_states_its_change_need_not_think_of_being_absent(kind):
    visible = units.Bernoulli(4)
    model = pj.product(visible, hidden=kind(visible, units.Bernoulli(3)))
    params, x = model.init(jax.random.key(0)), jnp.ones(4)
    gone = model.mask(params, hidden=False)
    value = float(model.log_product(params, x))
    assert float(model.log_change(params, gone, x)) == pytest.approx(-value)
    assert float(model.log_change(gone, params, x)) == pytest.approx(value)


@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 784, 10_000, 65_537])
def test_totals_keep_their_digits_at_any_length(size):
    rng = np.random.default_rng(size)
    rows = (rng.standard_normal((4, size)) - 3).astype(np.float32)
    exact = rows.astype(float).sum(axis=1)
    one = np.array([jax.jit(total)(row) for row in jnp.asarray(rows)])
    for found in (one, jax.jit(jax.vmap(total))(rows)):
        assert np.abs(found / exact - 1).max() < 4 * np.finfo(np.float32).eps


@pytest.mark.parametrize("shape", [(), (5,), (10**6,), (2, 300_000), (300_000, 2), (784, 500)])
def test_norms_keep_their_digits(shape):
    leaf = np.random.default_rng(0).standard_normal(shape).astype(np.float32) + 1
    found = jax.jit(_norm)({"leaf": jnp.asarray(leaf), "other": jnp.full((2, 3, 4), 2.0)})
    exact = np.sqrt(np.sum(leaf.astype(float) ** 2) + 96)
    assert float(found) == pytest.approx(exact, rel=3e-7)


@pytest.mark.parametrize("kind", RULES)
def test_many_small_changes_add_up_to_the_large_one(kind):
    _, end = fields(3.0, 1.0, 500)
    betas = jnp.linspace(0, 1, 10_001)

    def step(total, pair):
        change = kind(500).log_partition_change(pair[0] * end, pair[1] * end)
        return add(*total, change), None

    (found, _), _ = jax.lax.scan(step, (jnp.zeros(()), jnp.zeros(())), (betas[:-1], betas[1:]))
    expected = np.sum(RULES[kind](end.astype(float)) - RULES[kind](np.zeros(500)))
    assert float(found) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("kind", RULES)
def test_the_derivative_of_a_change_is_the_mean(kind):
    new = jnp.array([0.0, 1e-3, -2.0, 40.0, -300.0])
    unit = kind(5)
    found = jax.grad(lambda f: unit.log_partition_change(jnp.ones(5), f))(new)
    np.testing.assert_allclose(found, unit.mean(new), rtol=1e-6, atol=3e-7)


def test_an_absent_bank_changes_nothing_and_shows_nothing():
    visible = units.Bernoulli(4)
    bank = experts.HiddenBank(visible, units.Bernoulli(3))
    model = pj.product(visible, bias=experts.Bias(visible), hidden=bank)
    params = model.init(jax.random.key(0))
    params["hidden"]["w"] = jnp.full((4, 3), jnp.nan)
    x = jnp.array([1.0, 0, 1, 1])
    masked = model.mask(params, hidden=False)
    half = model.temper(masked, 0.5)
    change = jax.jit(model.log_change)(masked, half, x)
    assert float(change) == pytest.approx(-0.5 * float(x @ params["bias"]["field"]))


def test_a_mixed_block_changes_as_its_parts_do():
    unit = units.Joint(bits=units.Bernoulli(9), spins=units.Spin(3), real=units.StandardGaussian(2))
    old, new = (
        unit.combine([unit.linear_field(jnp.linspace(-a, 2.0, unit.num_linear))])
        for a in (1.0, 4.0)
    )
    expected = jnp.sum(unit.log_partitions(new) - unit.log_partitions(old))
    assert float(unit.log_partition_change(old, new)) == pytest.approx(float(expected), abs=1e-5)
