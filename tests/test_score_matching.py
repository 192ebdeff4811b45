"""Score matching: zero at the truth, unbiased when sliced, right about Gaussians."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.flatten_util import ravel_pytree
from loss_cases import (
    CONTINUOUS,
    NOISE,
    NUM_EVENTS,
    REAL,
    TRUTH,
    bank_over,
    exact_events,
    gradient,
    random_params,
)
from scipy import optimize

import poejax as pj
from poejax import estimators, training, units
from poejax.estimators._score_matching import DenoisingScoreMatching, ScoreMatching
from poejax.experts import Bias


def truth_z_scores(estimator, variance=0.0):
    x = exact_events(TRUTH, variance)
    keys = jax.random.split(jax.random.key(2), NUM_EVENTS)

    per_event = jax.vmap(lambda key, x: gradient(estimator, key, TRUTH, x[None])[0])
    return reference.mean_z_scores(per_event(keys, x), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_score_gradient_averages_to_zero_at_the_truth(name):
    z = truth_z_scores(CONTINUOUS[name], NOISE**2 if name == "denoising" else 0.0)
    assert np.abs(z).max() < reference.z_threshold(z.size)


class HalfTheTrace(ScoreMatching):
    def _directions(self, rng_key, x):
        return super()._directions(rng_key, x) / np.sqrt(2)


class NoiseOfAnotherScale(DenoisingScoreMatching):
    def loss(self, rng_key, params, x):
        double = DenoisingScoreMatching(self.model, 2 * self.noise_scale)
        return double.loss(rng_key, params, x)


@pytest.mark.parametrize(
    ("mutant", "variance"),
    [
        (HalfTheTrace(REAL, None, "rademacher"), 0.0),
        (HalfTheTrace(REAL, 1, "rademacher"), 0.0),
        (NoiseOfAnotherScale(REAL, NOISE), NOISE**2),
        (CONTINUOUS["denoising"], 0.0),  # learns the blurred density, not that of its data
    ],
)
def test_the_same_statistic_sees_a_wrong_loss(mutant, variance):
    assert np.abs(truth_z_scores(mutant, variance)).max() > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sliced", "sliced-gaussian"])
def test_sliced_is_unbiased_for_exact(name):
    x = exact_events(TRUTH)[:20]
    keys = jax.random.split(jax.random.key(6), 4000)
    expected = np.asarray(gradient(CONTINUOUS["exact"], keys[0], TRUTH, x)[0])
    draws = np.asarray(jax.vmap(lambda k: gradient(CONTINUOUS[name], k, TRUTH, x)[0])(keys))
    # What does not enter the trace, or its diagonal when v_i² = 1, is the same in every draw.
    random = draws.std(0) > 1e-4
    assert random.any()
    np.testing.assert_allclose(draws[0, ~random], expected[~random], atol=1e-4)
    z = reference.mean_z_scores(draws[:, random], expected[random])
    assert np.abs(z).max() < reference.z_threshold(z.size)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_score_matching_of_a_gaussian_inverts_the_sample_covariance(full):
    visible = units.Gaussian(3) if full else units.GaussianDiag(3)
    model = pj.product(visible, bias=Bias(visible))
    rng = np.random.default_rng(0)
    mixing = np.eye(3) + 0.3 * rng.normal(size=(3, 3))
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(50, 3)) @ mixing + 1.0)
        start, unflatten = ravel_pytree(random_params(model, 0, 0.1))
        estimator, key = estimators.score_matching(model), jax.random.key(0)

        def objective(vector):
            grads, info = gradient(estimator, key, unflatten(jnp.asarray(vector)), x)
            return float(info.loss), np.asarray(grads)

        found = optimize.minimize(objective, np.asarray(start), jac=True, method="BFGS", tol=1e-9)
        field = visible.field(unflatten(jnp.asarray(found.x))["bias"]["field"])
        mean = np.asarray(visible.mean(field))
    field = jax.tree.map(np.asarray, field)
    precision = field["rows"].T @ field["rows"] if full else np.diag(field["precision"])
    covariance = np.cov(np.asarray(x).T, bias=True)
    expected = np.linalg.inv(covariance if full else np.diag(np.diag(covariance)))
    np.testing.assert_allclose(precision, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mean, np.asarray(x).mean(0), rtol=1e-6, atol=1e-6)


def kl_on_a_grid(params, other):
    axis = jnp.linspace(-10, 10, 201)
    points = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    density = jax.vmap(REAL.log_density, (None, 0))
    log_p, log_q = (jax.nn.log_softmax(density(p, points)) for p in (params, other))
    return float(jnp.exp(log_p) @ (log_p - log_q))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exact", "sliced", "denoising"])
def test_training_on_exact_samples_of_a_real_machine_approaches_the_truth(name):
    estimator = CONTINUOUS[name]
    x = exact_events(TRUTH, NOISE**2 if name == "denoising" else 0.0)
    tx = optax.adam(optax.cosine_decay_schedule(0.03, 1500))
    state = training.init(jax.random.key(1), REAL, estimator, tx, x)
    before = kl_on_a_grid(TRUTH, state.params)
    state, _ = training.train_steps(estimator, tx, state, x, 500, 1500)
    assert before > 0.2
    assert kl_on_a_grid(TRUTH, state.params) < 0.01


@pytest.mark.slow
def test_third_derivatives_of_rectified_banks():
    # Score matching differentiates the log partition three times.
    visible = units.GaussianDiag(2)
    model = bank_over(visible, units.ReLU(2))
    estimator = estimators.score_matching(model)
    x, key = np.array([[0.3, -8.0], [2.0, 1.0]]), jax.random.key(0)
    with jax.enable_x64(True):
        params = random_params(model, 1)
        vector, unflatten = ravel_pytree(params)
        x = jnp.asarray(x)

        def loss(vector):
            return float(gradient(estimator, key, unflatten(vector), x)[1].loss)

        h = 1e-5 * jnp.eye(len(vector))
        differences = [(loss(vector + e) - loss(vector - e)) / 2e-5 for e in h]
        found = np.asarray(gradient(estimator, key, params, x)[0])
        np.testing.assert_allclose(found, differences, rtol=1e-6, atol=1e-7)
        params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, x))
    single = gradient(estimator, key, params, x)[0]
    np.testing.assert_allclose(single, found, rtol=1e-4, atol=1e-4)
