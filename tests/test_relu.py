"""Rectified units: log partitions and moments in both tails, the sampler, fits and refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from scipy import special, stats

import poejax as pj
from poejax import units
from poejax.units import relu

FIELDS = np.concatenate(
    [-np.geomspace(1e-3, 1e4, 200), np.linspace(-12, 12, 481), np.geomspace(1e-3, 1e4, 200)]
)
ROOT_HALF_PI = np.sqrt(np.pi / 2)
NUM_DRAWS = 20_000


def moments(field):
    """A, E[z], Var[z] and the third cumulant in float64, from Mills' continued fraction or erfc."""
    u = np.maximum(-field, 1.0)
    ratios = [(np.sqrt(u**2 + 8000) - u) / 2]  # K_n = n / (u + K_{n+1}), from n = 2000
    for n in range(2000, 0, -1):
        ratios.append(n / (u + ratios[-1]))
    k3, k2, k1 = ratios[-3:]
    variance = k1 * (k2 - k1)
    below = [
        np.log(ROOT_HALF_PI * special.erfcx(u / np.sqrt(2))),
        k1,
        variance,
        k1 * (k2 - k1) ** 2 + k1 * (k2 * (k3 - k2) - variance),
    ]
    x = np.maximum(field, -1.0)
    hazard = np.exp(-0.5 * x**2) / (ROOT_HALF_PI * special.erfc(-x / np.sqrt(2)))
    variance = 1 - hazard * (x + hazard)
    above = [
        0.5 * x**2 + special.log_ndtr(x) + 0.5 * np.log(2 * np.pi),
        x + hazard,
        variance,
        hazard * ((x + hazard) ** 2 - variance),
    ]
    return [np.where(field > -1, a, b) for a, b in zip(above, below, strict=True)]


def derivatives(field):
    def log_partition(v):
        return units.ReLU(1).log_partition(v[None])

    first = jax.grad(log_partition)
    second = jax.grad(first)
    orders = (log_partition, first, second, jax.grad(second))
    return [np.asarray(jax.jit(jax.vmap(fn))(field), float) for fn in orders]


def relative_errors(found, expected, floor):
    """Largest error, relative to `expected` or `floor` where that is smaller."""
    return np.max(np.abs(found - expected) / np.maximum(np.abs(expected), floor))


@pytest.mark.slow
@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-5), (True, 1e-12)])
def test_log_partition_and_its_derivatives_in_both_tails(x64, tolerance):
    with jax.enable_x64(x64):
        field = jnp.asarray(FIELDS, float)
        value, first, second, third = derivatives(field)
        mean = np.asarray(jax.jit(units.ReLU(len(FIELDS)).mean)(field), float)
        wide = np.asarray(field, float)
    expected = moments(wide)
    assert relative_errors(value, expected[0], 0.1) < tolerance
    for found in (mean, first):
        assert relative_errors(found, expected[1], 0) < tolerance
    # The variance at -2 is a difference of numbers ten times its size, the next one again.
    assert relative_errors(second, expected[2], 0) < 3 * tolerance
    # The third cumulant vanishes like exp(-field²/2) above.
    below = wide <= 3
    assert relative_errors(third[below], expected[3][below], 0) < 20 * tolerance
    assert np.abs(third - expected[3]).max() < 3 * tolerance


def test_the_textbook_formula_would_not_do():
    # What the tests above must be able to see.
    def textbook(v):
        return 0.5 * v**2 + jax.scipy.special.log_ndtr(v) + 0.5 * np.log(2 * np.pi)

    field = jnp.asarray(FIELDS, jnp.float32)
    found = np.asarray(jax.vmap(jax.grad(textbook))(field), float)
    assert relative_errors(found, moments(np.asarray(field, float))[1], 0) > 1e-2


def draws(field, seed=0, sampler=units.ReLU.sample):
    unit, field = units.ReLU(NUM_DRAWS), jnp.full(NUM_DRAWS, field)
    return np.asarray(sampler(unit, jax.random.key(seed), field), float)


def p_value(z, field):
    def cdf(z):
        # log of P(Z > z), which keeps its digits where Φ has none left.
        if field > -5:
            log_survival = special.log_ndtr(field - z) - special.log_ndtr(field)
        else:
            ratio = special.erfcx((z - field) / np.sqrt(2)) / special.erfcx(-field / np.sqrt(2))
            log_survival = z * (field - z / 2) + np.log(ratio)
        return -np.expm1(log_survival)

    return stats.kstest(z, cdf).pvalue


KS_FIELDS = [-1000.0, -50.0, -5.0, -2.0, -0.3, 0.0, 0.3, 5.0, 50.0]


@pytest.mark.parametrize("field", KS_FIELDS)
def test_draws_follow_the_truncated_gaussian(field):
    z = draws(field, seed=KS_FIELDS.index(field))
    assert (z >= 0).all()
    assert p_value(z, field) > 1e-4 / len(KS_FIELDS)


def untruncated(unit, rng_key, field):
    return jnp.abs(field + jax.random.normal(rng_key, field.shape))


def stock(unit, rng_key, field):
    return field + jax.random.truncated_normal(rng_key, -field, jnp.inf, field.shape)


def exponential(unit, rng_key, field):
    return jax.random.exponential(rng_key, field.shape) / jnp.abs(field)


@pytest.mark.parametrize(
    ("field", "sampler"),
    [
        (-1000.0, stock),
        (-50.0, stock),
        (-5.0, exponential),
        (0.3, untruncated),
        (5.0, exponential),
        (50.0, lambda unit, key, field: 1.02 * field + 0 * untruncated(unit, key, field)),
    ],
)
def test_the_same_statistic_sees_a_wrong_sampler(field, sampler):
    with np.errstate(invalid="ignore"):
        z = draws(field, sampler=sampler)
    assert not np.isfinite(z).all() or p_value(z, field) < 1e-8


@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-6), (True, 1e-13)])
def test_the_tail_is_inverted_to_rounding(x64, tolerance):
    with jax.enable_x64(x64):
        eps = float(jnp.finfo(jnp.result_type(float)).eps)
        w = jnp.concatenate([jnp.linspace(0, 1, 200)[:-1], 1 - eps * 2.0 ** jnp.arange(20)])
        u = jnp.asarray([0.0, 0.1, 1.0, 1.9, 2.1, 5.0, 30.0, 1000.0])[:, None]
        z = np.asarray(jax.jit(relu._tail_quantile)(u, w), float)
        u, w = np.asarray(u, float), np.asarray(w, float)
    ratio = special.erfcx((u + z) / np.sqrt(2)) / special.erfcx(u / np.sqrt(2))
    log_survival = -z * (u + z / 2) + np.log(ratio)
    expected = np.log1p(-w) + 0 * u
    assert relative_errors(log_survival, expected, 1.0) < tolerance
    assert (z >= 0).all()


@pytest.mark.slow
def test_draws_are_in_float32_for_a_lower_field():
    unit = units.ReLU(2)
    field = jnp.array([-1000.0, 0.5], jnp.bfloat16)
    keys = jax.random.split(jax.random.key(0), 8)
    z = jax.vmap(unit.sample, in_axes=(0, None))(keys, field)
    assert z.dtype == unit.mean(field).dtype == unit.log_partitions(field).dtype == jnp.float32
    same = jax.vmap(unit.sample, in_axes=(0, None))(keys, field.astype(jnp.float32))
    np.testing.assert_array_equal(z, same)


def test_fitted_fields_have_the_mean_of_the_data():
    target = np.geomspace(1e-3, 1e3, 25)
    unit = units.ReLU(25)
    x = jnp.asarray(np.stack([0.5 * target, 1.5 * target]), jnp.float32)
    np.testing.assert_allclose(unit.mean(unit.fit_field(x, 0.0)), target, rtol=1e-5)
    smoothed = 0.9 * target + 0.1 * np.sqrt(2 / np.pi)
    np.testing.assert_allclose(unit.mean(unit.fit_field(x, 0.1)), smoothed, rtol=1e-5)
    silent = units.ReLU(1)
    assert jnp.isneginf(silent.fit_field(jnp.zeros((4, 1)), 0.0)).all()
    assert jnp.isfinite(silent.fit_field(jnp.zeros((4, 1)), 0.1)).all()


@pytest.mark.slow
def test_gibbs_sampling_leaves_a_rectified_bank_invariant():
    visible = units.Bernoulli(4)
    bank = pj.experts.HiddenBank(visible, units.ReLU(2), init_scale=0.5)
    model = pj.product(visible, bias=pj.experts.Bias(visible), hidden=bank)
    params = model.init(jax.random.key(0))
    # Chains started at exact samples stay there in distribution.
    p = pj.exact.probabilities(model, params)
    index = jax.random.categorical(jax.random.key(1), jnp.log(p), shape=(NUM_DRAWS,))
    kernel = pj.kernels.block_gibbs(model)
    states = pj.types.ChainState(jax.vmap(visible.state_at)(index))
    states, _ = pj.chains.run(jax.random.key(2), kernel, params, states, 3)
    found = np.asarray(states.x @ 2 ** jnp.arange(4), int)
    z = reference.count_z_scores(np.bincount(found, minlength=16), p)
    assert np.abs(z).max() < reference.z_threshold(z.size)
