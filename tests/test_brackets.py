"""Two-sided estimates of log Z against enumeration."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import evidence
from tests.bracket_cases import SMALL, bars, bracket_of, exact_events, modes, trained

KEY = jax.random.key(0)
RBM = pj.models.rbm(10, 6)
BETAS = evidence.linear_betas(100)


def check(brackets, truths):
    """Coverage at least 95 % within its standard error, and scores of the point estimate."""
    n = len(brackets)
    inside = [float(b.low) <= t <= float(b.high) for b, t in zip(brackets, truths, strict=True)]
    assert np.mean(inside) >= 0.95, np.mean(inside)
    errors = np.array([float(b.log_z) - t for b, t in zip(brackets, truths, strict=True)])
    scores = errors / np.array([float(b.std_err) for b in brackets])
    assert abs(scores.mean()) < 3 / np.sqrt(n)
    assert abs(np.mean(scores**2) - 1) < 3.5 * np.sqrt(2 / n)
    # Bennett's ratio is better than either mean.
    for side in ("forward", "reverse"):
        single = np.array(
            [float(getattr(b, side).log_z) - t for b, t in zip(brackets, truths, strict=True)]
        )
        assert np.mean(errors**2) < np.mean(single**2)
    # False alarms of a test at three standard errors.
    assert np.mean([bool(b.disagrees) for b in brackets]) <= 0.02


@pytest.mark.slow
def test_brackets_hold_log_z_of_200_random_rbms(random_params):
    brackets, truths = [], []
    for seed in range(200):
        params = random_params(RBM, seed, 0.8)
        x = exact_events(jax.random.key(seed), RBM, params, 200)
        brackets.append(bracket_of(seed, RBM, params, x, BETAS))
        truths.append(float(pj.exact.log_z(RBM, params)))
    check(brackets, truths)
    with pytest.raises(AssertionError):  # that the check can fail: a twentieth of a nat
        check(brackets, [truth + 0.05 for truth in truths])


@pytest.mark.slow
def test_brackets_hold_log_z_of_50_trained_rbms():
    brackets, truths = [], []
    for seed in range(50):
        params = trained(SMALL, bars(), seed)
        x = exact_events(jax.random.key(seed), SMALL, params, 200)
        brackets.append(bracket_of(seed, SMALL, params, x, BETAS, bars()))
        truths.append(float(pj.exact.log_z(SMALL, params)))
    check(brackets, truths)


@pytest.mark.slow
def test_brackets_of_digits_are_narrow():
    model = pj.models.rbm(64, 12)
    images = pj.datasets.digits().train.images
    data = pj.datasets.stochastic(KEY, jnp.asarray(images))
    widths = []
    for seed in range(3):
        params = trained(model, data, seed, num_steps=2000, rate=0.05)
        keys = jax.random.split(jax.random.key(seed), 100)
        x = jax.vmap(lambda key, p=params: pj.exact.sample(key, model, p))(keys)
        found = bracket_of(seed, model, params, x, evidence.linear_betas(500), data)
        assert float(found.low) <= float(pj.exact.log_z(model, params)) <= float(found.high)
        widths.append(float(found.high - found.low))
    assert np.median(widths) < 0.2, widths


@pytest.fixture(scope="module")
def two_modes():
    return modes(8.0)


def both(two_modes, x, betas, num_chains=100):
    model, params, _, base = two_modes
    forward = evidence.ais(jax.random.key(1), model, params, base, betas, num_chains)
    reverse = evidence.reverse_ais(jax.random.key(2), model, params, base, betas, x)
    return forward, reverse


@pytest.mark.slow
def test_good_samples_agree(two_modes):
    found = evidence.bracket(*both(two_modes, two_modes[2], BETAS))
    assert not bool(found.disagrees)
    assert found.verdict.startswith("the sides agree; log Z = ")
    assert 0 < float(found.ess) <= 1
    assert float(found.forward.log_z) <= float(found.high)


def test_samples_that_miss_a_mode_put_the_sides_in_the_wrong_order(two_modes):
    x = two_modes[2]
    few = jnp.sum(x, axis=1) < 6  # the mode of zeros alone
    found = evidence.bracket(*both(two_modes, x[few], BETAS))
    truth = float(pj.exact.log_z(*two_modes[:2]))
    assert bool(found.disagrees)
    assert "forward is above reverse" in found.verdict
    assert "better samples" in found.verdict
    assert float(found.low) <= truth <= float(found.high)


@pytest.mark.slow
def test_walks_of_different_temperatures_do_not_belong_together():
    near = modes(3.0)
    forward, _ = both(near, near[2], evidence.linear_betas(5), 1000)
    _, reverse = both(near, near[2], evidence.linear_betas(100))
    found = evidence.bracket(forward, reverse)
    assert bool(found.disagrees)
    assert "same temperatures" in found.verdict


@pytest.mark.slow
def test_degenerate_weights_ask_for_more_temperatures_and_stay_honest(random_params):
    params = random_params(RBM, 0, 3.0)
    truth = float(pj.exact.log_z(RBM, params))
    base = evidence.base_rate(RBM, jnp.ones((4, 10)))
    x = exact_events(KEY, RBM, params, 50)
    betas = evidence.linear_betas(1)
    with pytest.warns(UserWarning, match="ESS"):
        found = evidence.bracket(
            evidence.ais(KEY, RBM, params, base, betas, 50),
            evidence.reverse_ais(KEY, RBM, params, base, betas, x),
        )
    assert "take more temperatures" in found.verdict
    assert float(found.low) <= truth <= float(found.high)
    assert float(found.high - found.low) > 3.6


def test_heavy_weights_where_the_sides_meet_leave_the_interval_closed(random_params):
    # A few temperatures from a base that knows nothing: k̂ and ESS open most single intervals.
    inside, closed, is_open = [], [], []
    for seed in range(100):
        params = random_params(RBM, seed, 3.0)
        x = exact_events(jax.random.key(seed), RBM, params, 100)
        data = jax.random.bernoulli(jax.random.key(seed), 0.5, (4, 10)).astype(float)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = bracket_of(seed, RBM, params, x, evidence.linear_betas(16), data)
        sides = (found.forward, found.reverse)
        is_open.append(any(np.isinf(float(s.ci_high - s.ci_low)) for s in sides))
        inside.append(float(found.low) <= float(pj.exact.log_z(RBM, params)) <= float(found.high))
        closed.append(float(found.high - found.low) < 3.6)
        assert bool(found.is_sound) == (not bool(found.disagrees) and float(found.overlap) > 0.2)
    assert np.mean(is_open) > 0.3
    assert np.mean(np.array(closed)[is_open]) > 0.8
    assert np.mean(inside) >= 0.95


def test_likelihoods_pass_on_both_ends(two_modes):
    model, params, x, _ = two_modes
    found = evidence.bracket(*both(two_modes, x, BETAS))
    scored = evidence.log_likelihood(model, params, x, found)
    density = float(jnp.mean(jax.vmap(lambda row: model.log_density(params, row))(x)))
    np.testing.assert_allclose(scored.mean, density - found.log_z, atol=1e-4)
    np.testing.assert_allclose(scored.ci_low, density - found.high, atol=1e-4)
    np.testing.assert_allclose(scored.ci_high, density - found.low, atol=1e-4)
    assert float(scored.ess) == min(float(found.forward.ess), float(found.reverse.ess))


def test_brackets_are_arrays_that_jit_and_vmap_take(two_modes, compiles_nothing):
    forward, reverse = both(two_modes, two_modes[2], BETAS)
    found = evidence.bracket(forward, reverse)
    jitted = jax.jit(evidence.bracket)(forward, reverse)
    np.testing.assert_allclose(jitted.log_z, found.log_z, rtol=1e-6)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), (forward, reverse))
    np.testing.assert_allclose(jax.vmap(evidence.bracket)(*stacked).low, found.low, rtol=1e-6)
    with compiles_nothing():
        evidence.bracket(forward, reverse)
    with pytest.raises(TypeError, match="verdict: expected a bracket with values"):
        jax.jit(lambda f, r: len(evidence.bracket(f, r).verdict))(forward, reverse)


def test_bad_arguments(two_modes):
    forward, reverse = both(two_modes, two_modes[2], BETAS)
    with pytest.raises(ValueError, match=r"reverse: expected a LogZ of evidence.reverse_ais.*got"):
        evidence.bracket(forward, forward)
    with pytest.raises(ValueError, match=r"forward: expected a LogZ of evidence.ais.*got log_z"):
        evidence.bracket(reverse, forward)
    with pytest.raises(TypeError, match=r"forward: expected a LogZ of evidence.ais, got 1.0"):
        evidence.bracket(1.0, reverse)
    with pytest.raises(TypeError, match=r"reverse: expected a LogZ of evidence.ais, got None"):
        evidence.bracket(forward, None)
    with pytest.raises(TypeError, match=r"log_z: expected a LogZ of evidence.ais, a Bracket, or"):
        evidence.log_likelihood(*two_modes[:3], (forward, reverse))


def test_equal_weights_have_no_width():
    model = pj.product(pj.units.Bernoulli(5), bias=pj.experts.Bias(pj.units.Bernoulli(5)))
    params = {"bias": {"field": jnp.arange(5.0)}}
    x = exact_events(KEY, model, params, 30)
    base = evidence.Base(model, params, pj.exact.log_z(model, params))
    betas = evidence.linear_betas(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evidence.bracket(
            evidence.ais(KEY, model, params, base, betas, 30),
            evidence.reverse_ais(KEY, model, params, base, betas, x),
        )
    assert not bool(found.disagrees)
    assert float(found.log_z) == pytest.approx(float(base.log_z), abs=1e-5)
