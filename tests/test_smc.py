"""Population annealing: unbiased weights, exact samples, error bars between groups."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import poejax as pj
from poejax import _weights, evidence
from tests.bracket_cases import SMALL, bars, exact_events, trained

KEY = jax.random.key(0)
RBM = pj.models.rbm(8, 5)
BETAS = evidence.linear_betas(20)


def case(random_params, seed, scale=1.0):
    params = random_params(RBM, seed, scale)
    base = evidence.base_rate(RBM, exact_events(jax.random.key(seed), RBM, params, 200))
    return params, base, float(pj.exact.log_z(RBM, params))


@pytest.mark.slow
def test_weights_are_unbiased_over_200_random_rbms(random_params):
    # Few temperatures and few chains, so that groups resample often and differ.
    gaps, errors, scores = [], [], []
    for seed in range(200):
        params, base, truth = case(random_params, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            _, found = evidence.smc(
                jax.random.key(seed), RBM, params, base, evidence.linear_betas(5), 200
            )
        gaps.append(np.mean(np.exp(np.asarray(found.log_weights) - truth)) - 1)
        errors.append(float(found.log_z) - truth)
        scores.append(errors[-1] / float(found.std_err))
    gaps = np.array(gaps)
    assert abs(gaps.mean()) < 3 * gaps.std(ddof=1) / np.sqrt(200)
    # The error bar between ten groups: scores follow Student's t of nine degrees, nearly.
    t = stats.t(9)
    assert np.mean(np.abs(scores) < t.isf(0.025)) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)
    assert abs(np.mean(np.square(scores)) - 9 / 7) < 4 * np.sqrt(t.moment(4) / 200)
    with pytest.raises(AssertionError):  # that a lost factor would be seen
        assert abs((1.05 * (gaps + 1) - 1).mean()) < 3 * gaps.std(ddof=1) / np.sqrt(200)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_samples_have_the_model_s_probabilities(threshold, random_params):
    params, base, truth = case(random_params, 3)
    keys = jax.random.split(jax.random.key(5), 40)
    p = np.asarray(pj.exact.probabilities(RBM, params))
    shares = []
    for key in keys:
        x, found = evidence.smc(key, RBM, params, base, BETAS, 500, threshold=threshold)
        index = np.asarray(x @ (2.0 ** jnp.arange(8)), int)
        order = np.asarray(RBM.visible.states() @ (2.0 ** jnp.arange(8)), int)
        shares.append(np.bincount(index, minlength=256)[order] / 500)
        assert abs(float(found.log_z) - truth) < 5 * float(found.std_err)
    # Samples of a run depend on each other, runs do not: standard errors are between runs.
    shares = np.array(shares)
    common = p > 2e-3
    std_err = shares.std(axis=0, ddof=1) / np.sqrt(len(shares))
    scores = ((shares.mean(axis=0) - p) / np.maximum(std_err, 1e-4))[common]
    limit = stats.t(len(shares) - 1).isf(0.5e-4 / common.sum())
    assert np.abs(scores).max() < limit
    wrong = ((shares.mean(axis=0) - np.roll(p, 1)) / np.maximum(std_err, 1e-4))[common]
    assert np.abs(wrong).max() > limit


@pytest.mark.slow
def test_modes_that_part_early_keep_their_shares():
    params = trained(SMALL, bars(), 1, num_steps=2000)
    base = evidence.base_rate(SMALL, bars())
    x, found = evidence.smc(KEY, SMALL, params, base, 100, 5000, num_groups=20)
    truth = float(pj.exact.log_z(SMALL, params))
    assert abs(float(found.log_z) - truth) < 3.5 * float(found.std_err) < 0.1
    assert float(found.ci_low) <= truth <= float(found.ci_high)
    density = jax.vmap(lambda row: SMALL.log_density(params, row))
    p = np.asarray(pj.exact.probabilities(SMALL, params))
    mean = p @ np.asarray(density(SMALL.visible.states()))
    assert abs(float(density(x).mean()) - mean) < 0.05


@pytest.mark.slow
def test_composition_of_trained_models_at_inference_time(random_params):
    a, b = pj.models.rbm(8, 3), pj.models.rbm(8, 4)
    model = pj.product(RBM.visible, a=a, b=b)
    params = {"a": random_params(a, 1, 0.8), "b": random_params(b, 2, 0.8)}
    truth = float(pj.exact.log_z(model, params))
    x = exact_events(KEY, model, params, 200)
    x, found = evidence.smc(KEY, model, params, evidence.base_rate(model, x), 40, 2000)
    assert x.shape == (2000, 8)
    assert abs(float(found.log_z) - truth) < 3.5 * float(found.std_err) < 0.2
    p = np.asarray(pj.exact.probabilities(model, params))
    mean = p @ np.asarray(RBM.visible.states())
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=4 * 0.5 / np.sqrt(500))


@pytest.mark.slow
def test_real_units_far_from_zero():
    model = pj.models.gaussian_rbm(3, 4)
    data = 1e4 + 3 * jax.random.normal(KEY, (500, 3))
    params = model.init_from(KEY, data)
    params["hidden"]["w"] = 0.5 * jax.random.normal(KEY, (3, 4))
    base = evidence.base_rate(model, data, params=params)
    x, found = evidence.smc(jax.random.key(1), model, params, base, 30, 2000)
    truth = float(pj.exact.log_z(model, params))
    assert abs(float(found.log_z) - truth) < 3.5 * float(found.std_err) < 0.2
    exact = jax.vmap(lambda key: pj.exact.sample(key, model, params))(jax.random.split(KEY, 2000))
    error = float(exact.std()) * np.sqrt(2 / 1000)
    np.testing.assert_allclose(x.mean(axis=0), exact.mean(axis=0), atol=4 * error)


def test_kernels_of_all_kinds_carry_their_states():
    model = pj.models.gaussian_rbm(2, 3)
    params = model.init(KEY)
    data = jax.random.normal(KEY, (200, 2))
    base = evidence.base_rate(model, data, smoothing=0.5)
    truth = float(pj.exact.log_z(model, params))
    kernel = pj.kernels.hmc(model, 0.3, 5)
    _, found = evidence.smc(KEY, model, params, base, BETAS, 1000, kernel)
    assert abs(float(found.log_z) - truth) < 4 * float(found.std_err) + 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_systematic_resampling_keeps_expectations(seed):
    log_w = 2 * jax.random.normal(jax.random.key(seed), (13,))
    w = np.asarray(jax.nn.softmax(log_w), float)
    chosen = jax.vmap(_weights.systematic, (0, None))(jax.random.split(KEY, 20_000), log_w)
    counts = np.stack([np.bincount(row, minlength=13) for row in np.asarray(chosen)])
    assert (counts >= np.floor(13 * w - 1e-4)).all()
    assert (counts <= np.ceil(13 * w + 1e-4)).all()
    error = counts.std(axis=0) / np.sqrt(len(counts)) + 1e-6
    assert (np.abs(counts.mean(axis=0) - 13 * w) < 4 * error + 1e-4).all()


def test_new_params_compile_nothing(random_params, compiles_nothing):
    def go(model, seed):
        params, base, _ = case(random_params, seed)
        return evidence.smc(jax.random.key(seed), model, params, base, 30, 200)

    go(RBM, 0)
    go(RBM, 1)
    with compiles_nothing():
        go(pj.models.rbm(8, 5), 2)


def test_groups_that_differ_widely_open_the_interval(random_params):
    params = random_params(RBM, 0, 6.0)
    base = evidence.base_rate(RBM, jnp.ones((4, 8)))
    truth = float(pj.exact.log_z(RBM, params))
    with pytest.warns(
        UserWarning, match="smc: the groups have an ESS of .* more chains in a group"
    ):
        _, found = evidence.smc(KEY, RBM, params, base, evidence.linear_betas(1), 20)
    assert float(found.ci_low) <= truth < float(found.ci_high) == np.inf


def test_bad_arguments(random_params):
    params, base, _ = case(random_params, 0)

    def call(betas=BETAS, num_chains=100, **options):
        return evidence.smc(KEY, RBM, params, base, betas, num_chains, **options)

    with pytest.raises(ValueError, match="num_chains: expected a multiple of num_groups = 10"):
        call(num_chains=101)
    with pytest.raises(ValueError, match="num_groups: expected at least 2"):
        call(num_groups=1)
    with pytest.raises(ValueError, match=r"threshold: expected a number in \[0, 1\], got 1.5"):
        call(threshold=1.5)
    with pytest.raises(ValueError, match="betas: expected to rise from 0 to 1"):
        call(betas=jnp.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="num_steps: expected an integer of at least 1, got 0"):
        call(betas=0)
