"""Mixtures of Bernoullis: EM against float64 NumPy, planted mixtures, monotone climbs."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from mixture_cases import (
    KEY,
    K,
    N,
    assert_same_params,
    bernoulli_data,
    numpy_em,
    posteriors,
    random_bernoulli_mixture,
)
from scipy import optimize, special

from poejax import mixtures


def test_bernoulli_em_against_numpy_step_by_step():
    x, _ = bernoulli_data(random_bernoulli_mixture(1, num_dims=6), N)
    start, s = random_bernoulli_mixture(2, num_dims=6), 0.7

    def update(x, r):
        counts = r.sum(axis=0)
        p = (r.T @ x + s) / (counts[:, None] + 2 * s)
        return mixtures.BernoulliMixtureParams(np.log(counts / len(x)), special.logit(p))

    expected, log_likelihoods = numpy_em(start, x, 15, update)
    params, report = mixtures.fit_em_bernoulli(
        KEY, x, K, params=start, smoothing=s, max_steps=15, tol=0.0
    )
    assert int(report.num_steps) == 15
    np.testing.assert_allclose(report.log_likelihood, log_likelihoods, rtol=2e-5)
    assert_same_params(params, expected, 2e-4)
    p = special.expit(np.asarray(params.logits, float))
    prior = s / N * np.sum(np.log(p) + np.log1p(-p))
    np.testing.assert_allclose(report.objective[-1], log_likelihoods[-1] + prior, rtol=2e-5)


def test_bernoulli_em_recovers_a_planted_mixture():
    rng = np.random.default_rng(0)
    p = rng.choice([0.1, 0.9], size=(K, 40))
    weights = np.array([0.2, 0.3, 0.5])
    planted = mixtures.BernoulliMixtureParams(np.log(weights), special.logit(p))
    x, labels = bernoulli_data(planted, 3000)
    params, report = mixtures.fit_em_bernoulli(KEY, x, K, smoothing=1e-3)
    assert report.converged
    distance = ((special.expit(params.logits)[:, None] - p) ** 2).sum(axis=2)
    rows, order = optimize.linear_sum_assignment(distance)
    assert (rows == np.arange(K)).all()
    # So well apart that the labels are as good as known: errors are those of counting.
    counts = np.bincount(labels)[order][:, None]
    z = (special.expit(params.logits) - p[order]) / np.sqrt(p[order] * (1 - p[order]) / counts)
    assert np.abs(z).max() < reference.z_threshold(z.size)
    z = (np.exp(params.log_weights) - weights[order]) / np.sqrt(weights * (1 - weights) / 3000)[
        order
    ]
    assert np.abs(z).max() < reference.z_threshold(K)
    r = posteriors(params, x)
    assert (order[np.argmax(r, axis=1)] == labels).mean() > 0.999


@pytest.mark.parametrize("smoothing", [1e-3, 1.0])
def test_the_bernoulli_objective_never_falls(smoothing):
    x, _ = bernoulli_data(random_bernoulli_mixture(1, num_dims=20), 200)
    # One unit always on, one always off, and rows that coincide.
    always = np.concatenate([x, np.ones((200, 1)), np.zeros((200, 1))], axis=1)[np.arange(200) // 3]
    for data in (always, always[::-1]):
        params, report = mixtures.fit_em_bernoulli(KEY, data, 6, smoothing=smoothing)
        assert all(np.isfinite(leaf).all() for leaf in (*params, *report))
        assert (np.diff(report.objective) >= 0).all()
        assert report.num_steps > 1


def test_storage_of_binary_data_does_not_matter():
    x, _ = bernoulli_data(random_bernoulli_mixture(1, num_dims=6), N)
    start = random_bernoulli_mixture(2, num_dims=6)
    fits = [
        mixtures.fit_em_bernoulli(KEY, x.astype(dtype), K, max_steps=15, params=start)[0]
        for dtype in (np.uint8, bool, np.float32)
    ]
    for fit in fits[1:]:
        assert_same_params(fit, fits[0], 1e-6)


def test_an_unused_bernoulli_component_goes_to_one_half():
    x, _ = bernoulli_data(random_bernoulli_mixture(1), 50)
    r = np.stack([np.ones(50), np.zeros(50)], axis=1)
    params, _ = mixtures.fit_em_bernoulli(KEY, x, 2, init=r, max_steps=5)
    np.testing.assert_allclose(params.logits[1], 0, atol=1e-3)
    np.testing.assert_allclose(np.exp(params.log_weights), [1, 0], atol=1e-6)
