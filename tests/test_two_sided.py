"""Data in, a two-sided log-likelihood out."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import evidence
from tests.bracket_cases import SMALL, bars, modes, trained

KEY = jax.random.key(0)
SHORT = {"betas": 100, "num_sweeps": 100, "num_chains": 100}
ESTIMATED = SHORT | {"max_states": 0}


@pytest.fixture(scope="module")
def params():
    return trained(SMALL, bars(), 0)


def exact_mean(model, params, x):
    density = jax.vmap(lambda row: model.log_density(params, row))(x)
    return float(jnp.mean(density) - pj.exact.log_z(model, params))


def report(params, x=None, key=KEY, **options):
    x = bars() if x is None else x
    return evidence.test_log_likelihood(key, SMALL, params, x, **(ESTIMATED | options))


def test_models_that_can_be_enumerated_are_exact(params):
    found = report(params, max_states=2**20)
    assert found.is_exact
    assert found.verdict.endswith("nats per example; log Z is exact")
    assert float(found.mean) == float(found.low) == float(found.high)
    assert float(found.mean) == pytest.approx(exact_mean(SMALL, params, bars()), abs=1e-5)
    assert np.isnan(found.ess)
    assert np.isnan(found.pareto_k)
    assert float(found.forward.mean) == float(found.reverse.ci_low) == float(found.mean)
    values = np.asarray(found.values, float)
    assert float(found.example_std_err) == pytest.approx(
        values.std(ddof=1) / np.sqrt(len(values)), rel=1e-4
    )


@pytest.mark.slow
def test_intervals_hold_the_truth_and_are_narrow():
    inside, widths, scores = [], [], []
    for seed in range(40):
        params = trained(SMALL, bars(), seed)
        found = report(params, key=jax.random.key(seed))
        truth = exact_mean(SMALL, params, bars())
        inside.append(float(found.low) <= truth <= float(found.high))
        widths.append(float(found.high - found.low))
        scores.append((float(found.mean) - truth) / float(found.bracket.std_err))
    assert np.mean(inside) >= 0.95
    assert np.median(widths) < 0.2
    assert abs(np.mean(scores)) < 3.5 / np.sqrt(40)


def test_both_directions_are_in_the_report(params):
    found = report(params)
    for side in ("forward", "reverse"):
        by_hand = evidence.log_likelihood(SMALL, params, bars(), getattr(found.bracket, side))
        for ours, theirs in zip(getattr(found, side), by_hand, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert float(found.ess) == min(float(found.forward.ess), float(found.reverse.ess))
    assert "the sides agree" in found.verdict
    assert found.verdict.startswith("log-likelihood -")
    assert 0 < float(found.pareto_k) < 0.7 or float(found.pareto_k) <= 0


@pytest.mark.parametrize("every", [None, 7, 1000])
def test_progress_is_told_and_changes_nothing(params, every):
    seen = []
    found = report(params, callback=seen.append, every=every)
    np.testing.assert_array_equal(found.low, report(params).low)
    stages = [p.stage for p in seen]
    assert list(dict.fromkeys(stages)) == ["sampling", "forward", "reverse"]
    for stage in dict.fromkeys(stages):
        steps = [p.step for p in seen if p.stage == stage]
        assert steps == sorted(set(steps))
        assert steps[-1] == 100 == next(p.num_steps for p in seen if p.stage == stage)
    assert all(np.isnan(p.ess) == (p.stage == "sampling") for p in seen)
    assert all(1 <= p.ess <= 100 for p in seen if p.stage != "sampling")


@pytest.mark.slow
def test_samples_given_are_taken_as_they_are(params):
    log_p = jnp.log(pj.exact.probabilities(SMALL, params))
    index = jax.random.categorical(KEY, log_p, shape=(100,))
    samples = jax.vmap(SMALL.visible.state_at)(index)
    found = report(params, starts=samples, num_sweeps=0)
    assert not bool(found.bracket.disagrees)
    # Chains that never leave one row are no samples, and the report says so.
    model, far, x, _ = modes(8.0)
    options = ESTIMATED | {"num_sweeps": 0, "starts": jnp.zeros((100, 12))}
    with pytest.warns(UserWarning, match="test_log_likelihood: the sides disagree"):
        stuck = evidence.test_log_likelihood(KEY, model, far, x, **options)
    assert bool(stuck.bracket.disagrees)
    assert "better samples" in stuck.verdict
    truth = exact_mean(model, far, x)
    assert float(stuck.low) <= truth <= float(stuck.high)


def test_few_examples_and_other_data(params):
    one = report(params, bars()[:1], data=bars())
    assert np.isnan(one.example_std_err)
    truth = exact_mean(SMALL, params, bars()[:1])
    assert float(one.low) <= truth <= float(one.high)
    base = evidence.base_rate(SMALL, bars())
    given = report(params, bars()[:1], data=bars(), base=base, betas=evidence.linear_betas(50))
    assert float(given.low) <= truth <= float(given.high)


@pytest.mark.slow
def test_real_units_far_from_zero():
    model = pj.models.gaussian_rbm(3, 4)
    data = 1e4 + 3 * jax.random.normal(KEY, (300, 3))
    params = model.init_from(KEY, data)
    params["hidden"]["w"] = 0.5 * jax.random.normal(KEY, (3, 4))
    exact = evidence.test_log_likelihood(KEY, model, params, data)
    assert exact.is_exact
    found = evidence.test_log_likelihood(KEY, model, params, data, **ESTIMATED)
    assert float(found.low) <= float(exact.mean) <= float(found.high)
    assert float(found.high - found.low) < 0.3


@pytest.mark.slow
def test_heavy_tails_get_a_heavy_base():
    visible = pj.units.Gaussian(3)
    model = pj.product(visible, heavy=pj.experts.StudentT(visible, 3))
    params = model.init(KEY)
    params["heavy"]["log_exponent"] = jnp.zeros(3)
    data = jax.vmap(lambda key: pj.exact.sample(key, model, params))(jax.random.split(KEY, 200))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as a light base would warn
        found = evidence.test_log_likelihood(KEY, model, params, data, **ESTIMATED)
    assert float(found.low) <= exact_mean(model, params, data) <= float(found.high)
    assert float(found.high - found.low) < 0.5


def test_new_params_compile_nothing(params, compiles_nothing):
    report(params, betas=evidence.linear_betas(30))
    report(trained(SMALL, bars(), 1), betas=evidence.linear_betas(30))
    other = trained(SMALL, bars(), 2)
    with compiles_nothing():
        report(other, betas=evidence.linear_betas(30), key=jax.random.key(4))


def test_bad_arguments(params):
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 9\)"):
        report(params, jnp.zeros((3, 8)))
    with pytest.raises(ValueError, match=r"starts: expected values in \{0, 1\}"):
        report(params, starts=jnp.full((3, 9), 0.5))
    with pytest.raises(ValueError, match="num_sweeps: expected at least 1 from data"):
        report(params, num_sweeps=0)
    with pytest.raises(ValueError, match="max_states: expected an integer of at least 0, got -1"):
        report(params, max_states=-1)
    with pytest.raises(ValueError, match="every: expected an integer of at least 1, got 0"):
        report(params, every=0)
    with pytest.raises(TypeError, match="callback: expected a function, got 3"):
        report(params, callback=3)
    with pytest.raises(ValueError, match="num_chains: expected at least 2"):
        report(params, num_chains=1, betas=evidence.linear_betas(3))


def test_pytest_does_not_collect_it():
    assert evidence.test_log_likelihood.__test__ is False


def test_copies_are_no_independent_samples(params):
    few = jnp.asarray(bars()[:5], float)
    with pytest.raises(ValueError, match="starts: expected at least num_chains = 100 samples"):
        evidence.test_log_likelihood(
            KEY, SMALL, params, few, starts=few, **ESTIMATED | {"num_sweeps": 0}
        )
