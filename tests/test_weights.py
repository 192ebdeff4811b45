"""Importance weights: effective sizes, tails of known shape, and intervals that open when lost."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import poejax as pj
from poejax import _weights as weights
from poejax import evidence, experts, units

KEY = jax.random.key(0)
summarize = jax.jit(weights.summarize)
OFFSETS = (0.0, 300.0, -1e4, 1e7, -1e7)


def run_of(log_weights, direction=1, is_heavy=False):
    """A finished run with these log weights."""
    log_weights = jnp.asarray(log_weights, jnp.float32)
    return evidence.AISState(
        step=jnp.asarray(1, jnp.int32),
        direction=jnp.asarray(direction, jnp.int32),
        chains=(),
        log_weights=log_weights,
        rng_key=KEY,
        rest=jnp.zeros_like(log_weights),
        is_heavy=jnp.asarray(is_heavy),
    )


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 30.0, 1e4])
def test_effective_size_lies_between_one_and_the_number_of_weights(offset, spread):
    log_w = (offset + spread * np.random.default_rng(0).normal(size=200)).astype(np.float32)
    found = summarize(log_w)
    exact = log_w.astype(float) - log_w.max()
    w = np.exp(exact)
    assert 1 <= float(found.ess) <= 200
    assert float(found.ess) == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-4)
    error = np.std(w, ddof=1) / w.mean() / np.sqrt(200)
    assert float(found.std_err) == pytest.approx(error, rel=1e-3, abs=1e-5)
    assert float(found.log_mean) == pytest.approx(
        log_w.max() + np.log(w.mean()), rel=1e-6, abs=1e-6
    )


@pytest.mark.parametrize("size", [2, 24, 25, 1000])
def test_equal_weights_and_a_single_one_are_the_two_ends(size):
    equal = summarize(jnp.full(size, 7.25))
    assert float(equal.ess) == pytest.approx(size, rel=1e-6)
    assert float(equal.std_err) < 1e-6
    single = summarize(jnp.full(size, -400.0).at[size // 2].set(0.0))
    assert float(single.ess) == pytest.approx(1, rel=1e-6)
    assert not bool(equal.is_degenerate)
    assert bool(single.is_degenerate) == (size > 2)  # of two weights nothing can be told
    assert np.isnan(float(equal.pareto_k)) == (size < 25)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [-1.0, 0.0, 0.3, 0.5, 0.8, 1.5])
def test_the_tail_has_the_shape_that_it_was_drawn_with(shape):
    rng = np.random.default_rng(3)
    num_weights, num_runs = 4000, 40
    # A generalised Pareto law throughout: 1 + ((u^-k) - 1) / k, exponential at 0, uniform at -1.
    u = rng.random((num_runs, num_weights))
    w = 1 - np.log(u) if shape == 0 else 1 + (u**-shape - 1) / shape
    found = np.asarray(jax.vmap(weights.pareto_k)(jnp.asarray(np.log(w), jnp.float32)))
    size = int(np.ceil(3 * np.sqrt(num_weights)))
    expected = (size * shape + 10 * 0.5) / (size + 10)
    std_err = (1 + abs(shape)) / np.sqrt(size)  # that of one run
    assert found.mean() == pytest.approx(expected, abs=0.25 * std_err + 0.02)
    assert found.std() < 1.5 * std_err
    shifted = jax.vmap(weights.pareto_k)(jnp.asarray(np.log(w) + 300, jnp.float32))
    np.testing.assert_allclose(shifted, found, atol=5e-3)


@pytest.mark.slow
def test_tails_without_a_scale():
    assert float(weights.pareto_k(jnp.zeros(100))) == 0
    few = jnp.full(100, -300.0).at[:3].set(0.0)
    assert float(weights.pareto_k(few)) == np.inf


@pytest.mark.parametrize("direction", [1, -1])
def test_lost_weights_warn_and_open_the_side_that_is_missed(direction):
    rng = np.random.default_rng(0)
    for log_w in (8 * rng.normal(size=100), 1e7 + 300 * rng.normal(size=100), [0.0, 0, 0, 50]):
        log_w = np.asarray(log_w, np.float32)
        if np.abs(log_w).max() > 1e6:
            with pytest.raises(ValueError, match="log Z that float32 resolves"):
                evidence.ais_result(run_of(log_w, direction))
            continue
        with pytest.warns(UserWarning, match="error bar means nothing.*take more temperatures"):
            found = evidence.ais_result(run_of(log_w, direction))
        low, high = float(found.log_z - found.ci_low), float(found.ci_high - found.log_z)
        if direction < 0:
            low, high = high, low
        assert high == np.inf
        assert low == pytest.approx(-np.log(0.025), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("size", [2, 10, 30, 400])
def test_healthy_weights_keep_their_interval(direction, size):
    log_w = 0.3 * np.random.default_rng(size).normal(size=size) - 300
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evidence.ais_result(run_of(log_w, direction))
    wide = stats.t.ppf(0.975, len(log_w) - 1) * float(found.std_err)
    assert float(found.ci_high - found.log_z) == pytest.approx(wide, rel=1e-2)
    assert float(found.log_z - found.ci_low) == pytest.approx(wide, rel=1e-2)


@pytest.mark.parametrize("num_chains", [3, 5, 10, 100])
def test_intervals_of_few_chains_are_students(num_chains):
    # Of unbiased weights that hardly vary log Z is 0, and its error nearly normal.
    rng, repetitions = np.random.default_rng(num_chains), 4000
    log_w = 0.05 * rng.normal(size=(repetitions, num_chains)) - 0.05**2 / 2
    found = jax.vmap(lambda v: weights.estimate(v, 1))(jnp.asarray(log_w))
    closed = np.isfinite(found.ci_low) & np.isfinite(found.ci_high)
    covered = ((found.ci_low < 0) & (found.ci_high > 0))[closed].mean()
    assert closed.mean() > 0.9
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / closed.sum())


# Bases that would anneal from a number made of rounding.

DIAGONAL, FULL = units.GaussianDiag(3), units.Gaussian(3)
MODELS = {
    unit: pj.product(unit, bias=experts.Bias(unit), gaussian=experts.Gaussian(unit))
    for unit in (DIAGONAL, FULL)
}
BASES = {"base_rate": evidence.base_rate, "gaussian_base": evidence.gaussian_base}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("unit", MODELS, ids=str)
@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 300.7, 1e6])
def test_a_constant_column_is_refused_whatever_the_constant(constant, unit, base):
    for num_rows, dtype in ((100, np.float32), (300, np.float64)):
        x = np.random.default_rng(0).normal(size=(num_rows, 3)).astype(dtype)
        x[:, 1] = constant
        with pytest.raises(
            ValueError, match="data: expected variance in every column, got column 1"
        ):
            BASES[base](MODELS[unit], x)
    with pytest.raises(ValueError, match="column 1"):
        MODELS[unit].init_from(KEY, x)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("offset", [0.0, 300.0, 1e4])
def test_columns_that_add_up_are_refused_by_full_units_alone(base, offset):
    for seed in range(12):
        two = offset + np.random.default_rng(seed).normal(size=(200, 2))
        x = np.column_stack([two, two.sum(1)])
        with pytest.raises(ValueError, match=r"columns \[0, 1, 2\] depend on each other linearly"):
            BASES[base](MODELS[FULL], x)
        BASES[base](MODELS[DIAGONAL], x)
    few = np.random.default_rng(0).normal(size=(3, 3))
    with pytest.raises(ValueError, match="data: expected variance in every direction, got 3 rows"):
        BASES[base](MODELS[FULL], few)


@pytest.mark.slow
def test_a_student_t_base_leaves_out_exponents_next_to_one_half():
    visible = units.Gaussian(2)
    model = pj.product(visible, heavy=experts.StudentT(visible, 3))
    params = {
        "heavy": {
            "w": jnp.array([[1.0, 0.0, 0.7071], [0.0, 1.0, 0.7071]]),
            "log_scale": jnp.log(jnp.array([1.0, 1.0, 0.01])),
            "log_exponent": jnp.log(jnp.array([2.0, 2.0, 0.505])),
        }
    }
    base = evidence.student_t_base(model, params)
    np.testing.assert_allclose(jnp.exp(base.params["heavy"]["log_exponent"]), 1.25, rtol=1e-5)
    draws = jax.vmap(base.sample)(jax.random.split(KEY, 1000))
    assert bool(jnp.isfinite(draws).all())
    found = evidence.ais(KEY, model, params, base, evidence.linear_betas(100), 200)
    # log Z by quadrature in float64 over the plane, 4001 by 4001 points even in arcsinh.
    assert abs(float(found.log_z) - 2.01373) < 3 * float(found.std_err) + 0.01


# A tail's shape among weights that are all alike.


def test_noise_among_weights_that_are_alike_opens_no_interval():
    rng = np.random.default_rng(0)
    log_w = jnp.asarray(0.045 * rng.normal(size=(2000, 25)), jnp.float32)
    found = jax.vmap(weights.summarize)(log_w)
    assert float(jnp.mean(found.pareto_k > 0.7)) > 0.05  # of five weights no shape can be told
    assert float(jnp.mean(found.is_degenerate)) < 0.02
    # An ESS of 99.8 of 100 with k̂ = 0.73, as was seen.
    bulk = rng.normal(size=80) * 0.01
    tail = 0.02 + 0.01 * (np.linspace(0.02, 0.98, 20) ** -0.9 - 1)
    found = evidence.ais_result(run_of(np.concatenate([bulk, tail])))
    assert float(found.ess) > 99
    assert float(found.pareto_k) > 0.7
    assert float(found.ci_high) < np.inf


def test_an_infinite_variance_that_is_known_opens_the_interval_whatever_was_drawn():
    log_w = 0.1 * np.random.default_rng(0).standard_normal(200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closed = evidence.ais_result(run_of(log_w))
    with pytest.warns(UserWarning, match="Pareto k of 0.5.*error bar means nothing"):
        opened = evidence.ais_result(run_of(log_w, is_heavy=True))
    assert float(closed.pareto_k) < 0.5 == float(opened.pareto_k)
    assert float(closed.ci_high) < np.inf == float(opened.ci_high)
    assert float(opened.log_z) == float(closed.log_z)
    with pytest.warns(UserWarning, match="ESS of"):
        few = evidence.ais_result(run_of(log_w[:20], is_heavy=True))
    assert float(few.pareto_k) == 0.5


@pytest.mark.slow
def test_a_tail_of_infinite_variance_is_named_along_fine_ladders_too():
    visible = units.Gaussian(1)
    model = pj.product(visible, heavy=experts.StudentT(visible, 1))
    one = jnp.ones((1, 1))
    params = {"heavy": {"w": one, "log_scale": jnp.zeros(1), "log_exponent": jnp.zeros(1)}}
    base = evidence.gaussian_base(model, jnp.linspace(-1.7, 1.7, 200)[:, None], scale=1.5)
    betas = evidence.linear_betas(200)
    with pytest.warns(UserWarning, match="error bar means nothing"):
        found = evidence.ais(KEY, model, params, base, betas, 400)
    with pytest.warns(UserWarning, match="error bar means nothing"):
        _, groups = evidence.smc(KEY, model, params, base, betas, 400)
    for side in (found, groups):
        assert float(side.pareto_k) >= 0.5
        assert float(side.ci_low) <= np.log(np.pi) < float(side.ci_high) == np.inf
    heavy = evidence.student_t_base(model, params)
    x = jax.vmap(heavy.sample)(jax.random.split(KEY, 400))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(evidence.ais(KEY, model, params, heavy, betas, 400).ci_high) < np.inf
        back = evidence.ais_init(KEY, model, params, heavy, betas, 400, x)
    assert not bool(back.is_heavy)


@pytest.mark.slow
def test_a_tail_of_infinite_variance_is_named_from_a_base_that_is_too_light():
    # Weights (1 + x²)^-1 / N(x; 0, σ²), whose mean square is infinite, though their ESS looks well.
    visible = units.Gaussian(1)
    model = pj.product(visible, heavy=experts.StudentT(visible, 1))
    one = jnp.ones((1, 1))
    params = {"heavy": {"w": one, "log_scale": jnp.zeros(1), "log_exponent": jnp.zeros(1)}}
    x = jnp.linspace(-1.7, 1.7, 200)[:, None]
    base = evidence.gaussian_base(model, x, scale=1.5)
    errors = []
    for seed in range(5):
        with warnings.catch_warnings(record=True, action="always") as caught:
            found = evidence.ais(
                jax.random.key(seed), model, params, base, evidence.linear_betas(1), 4000
            )
        messages = [str(w.message) for w in caught]
        assert any("tails are lighter" in m for m in messages)
        assert any("Pareto k of" in m and "error bar means nothing" in m for m in messages)
        assert float(found.pareto_k) > 0.7
        assert float(found.ci_low) <= np.log(np.pi) < float(found.ci_high) == np.inf
        errors.append(abs(float(found.log_z) - np.log(np.pi)) / float(found.std_err))
    assert np.max(errors) > 4  # standard errors, so called
