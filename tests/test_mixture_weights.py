"""Weights per example: the same as repeating rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from mixture_cases import (
    COVARIANCES,
    KEY,
    NUM_DRAWS,
    K,
    N,
    assert_same_params,
    bernoulli_data,
    binomial_scores,
    gaussian_data,
    random_bernoulli_mixture,
    random_mixture,
)

from poejax import mixtures
from poejax.mixtures import _clusters as clusters

COUNTS = np.random.default_rng(0).integers(0, 4, size=N)
RESPONSIBILITIES = np.random.default_rng(1).dirichlet(np.ones(K), size=N)


def repeated(*arrays):
    return [np.repeat(a, COUNTS, axis=0) for a in arrays]


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("start", ["params", "responsibilities"])
def test_weights_of_em_are_repeated_rows(covariance, start):
    x = gaussian_data()
    options = {"covariance": covariance, "ridge": 1e-3, "max_steps": 6, "tol": 0.0}
    if start == "params":
        given = repeating = {"params": random_mixture(covariance, 3)}
    else:
        given, repeating = ({"init": r} for r in (RESPONSIBILITIES, *repeated(RESPONSIBILITIES)))
    expected = mixtures.fit_em(KEY, *repeated(x), K, **repeating, **options)
    # Only their ratios count.
    for weights in (COUNTS, COUNTS * 1e-20, (COUNTS * 1e20).astype(np.float32)):
        found = mixtures.fit_em(KEY, x, K, weights=weights, **given, **options)
        assert_same_params(found[0], expected[0], 2e-4)
        np.testing.assert_allclose(
            found[1].log_likelihood, expected[1].log_likelihood, rtol=1e-5, atol=1e-5
        )
    if covariance == "diag":
        traced = jax.jit(lambda x, w: mixtures.fit_em(KEY, x, K, weights=w, **given, **options))
        assert_same_params(traced(x, jnp.asarray(COUNTS))[0], expected[0], 2e-4)
    unweighted, _ = mixtures.fit_em(KEY, x, K, **given, **options)
    assert np.abs(unweighted.means - found[0].means).max() > 1e-2


def test_weights_of_bernoulli_em_are_repeated_rows():
    x, _ = bernoulli_data(random_bernoulli_mixture(1, num_dims=6), N)
    start = random_bernoulli_mixture(2, num_dims=6)
    options = {"smoothing": 0.7, "max_steps": 6, "tol": 0.0}
    expected = mixtures.fit_em_bernoulli(KEY, *repeated(x), K, params=start, **options)
    found = mixtures.fit_em_bernoulli(KEY, x, K, params=start, weights=COUNTS, **options)
    assert_same_params(found[0], expected[0], 2e-4)
    for a, b in zip(found[1][:2], expected[1][:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    by_responsibilities = [
        mixtures.fit_em_bernoulli(KEY, rows, K, init=r, weights=w, **options)[0]
        for rows, r, w in (
            (x, RESPONSIBILITIES, COUNTS),
            (*repeated(x, RESPONSIBILITIES), None),
        )
    ]
    assert_same_params(*by_responsibilities, 2e-4)
    # Pseudo-counts are counts: here the size of the weights matters.
    small = mixtures.fit_em_bernoulli(
        KEY, x, K, params=start, weights=COUNTS * 1e-3, **options | {"smoothing": 0.7e-3}
    )
    assert_same_params(small[0], expected[0], 2e-4)


@pytest.mark.slow
def test_weights_of_all_ones_are_none():
    x = gaussian_data()
    ones = np.ones(N, int)
    a, b = (mixtures.fit_em(KEY, x, 1, covariance="diag", weights=w)[0] for w in (None, ones))
    assert_same_params(a, b, 1e-5)
    bits, _ = bernoulli_data(random_bernoulli_mixture(1), N)
    a, b = (mixtures.fit_em_bernoulli(KEY, bits, 1, weights=w)[0] for w in (None, ones))
    assert_same_params(a, b, 1e-5)


@pytest.mark.slow
def test_weights_of_kmeans_are_repeated_rows():
    x = gaussian_data()
    start = clusters.plus_plus(KEY, jnp.asarray(x), K)
    weights = jnp.asarray(COUNTS, jnp.float32)
    found = clusters.lloyd(jnp.asarray(x), start, 100, weights)
    again = clusters.Clusters(start.centroids, *map(jnp.asarray, repeated(start.assignments)))
    expected = clusters.lloyd(jnp.asarray(*repeated(x)), again, 100)
    np.testing.assert_allclose(found.centroids, expected.centroids, atol=1e-5)
    np.testing.assert_array_equal(*repeated(found.assignments), expected.assignments)
    # What is returned is a fixed point, of the weights and not of the rows.
    found = mixtures.kmeans(KEY, x, K, weights=COUNTS, num_restarts=3)
    for k in range(K):
        rows = found.assignments == k
        mean = np.average(x[rows], axis=0, weights=COUNTS[rows])
        np.testing.assert_allclose(found.centroids[k], mean, atol=1e-5)
        assert np.abs(mean - x[rows].mean(axis=0)).max() > 1e-3


def test_seeds_are_drawn_in_proportion_to_weight_and_squared_distance():
    x = np.array([[0.0], [1.0], [3.0], [7.0]], np.float32)
    weights = np.array([1.0, 4.0, 0.0, 2.0], np.float32)
    keys = jax.random.split(KEY, NUM_DRAWS)
    seed = jax.vmap(lambda key: clusters.plus_plus(key, jnp.asarray(x), 2, weights).centroids)
    seeds = np.asarray(jax.jit(seed)(keys))[:, :, 0]
    counts = ((seeds[:, :1] == x.T)[:, :, None] * (seeds[:, 1:] == x.T)[:, None, :]).sum(axis=0)
    second = weights * np.abs(x - x.T).astype(float) ** 2
    p = weights[:, None] / 7 * second / second.sum(axis=1, keepdims=True)
    possible = p > 0
    assert counts[~possible].sum() == 0
    z = binomial_scores(counts[possible], p[possible])
    assert np.abs(z).max() < reference.z_threshold(z.size)


@pytest.mark.slow
def test_rows_of_weight_zero_are_absent():
    x = gaussian_data()
    x[:50] = 1e3
    weights = np.where(np.arange(N) < 50, 0.0, 1.0)
    params, _ = mixtures.fit_em(KEY, x, K, covariance="diag", weights=weights, init="kmeans")
    assert np.abs(params.means).max() < 100
    found = mixtures.kmeans(KEY, x, K, weights=weights)
    assert np.abs(found.centroids).max() < 100
    assert found.assignments.shape == (N,)
    # All that is there coincides: what is absent is not taken instead.
    same = np.where(weights[:, None] == 0, x, 1.0)
    found = mixtures.kmeans(KEY, same, 2, weights=weights)
    np.testing.assert_array_equal(found.centroids, 1)


@pytest.mark.parametrize("fit", [mixtures.fit_em, mixtures.fit_em_bernoulli, mixtures.kmeans])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(5), r"weights: expected shape \(4,\)"),
        (np.array([1, -1, 1, 1]), "weights: expected finite numbers >= 0, got -1.0 in row 1"),
        (np.array([1, 1, np.nan, 1]), "weights: expected finite numbers >= 0, got nan in row 2"),
        (np.zeros(4), "weights: expected one above 0, got none"),
        (np.array([1, 0, 0, 0]), "num_.*: expected at most the 1 rows of x of a weight above 0"),
    ],
)
def test_weights_that_are_none_are_refused(fit, weights, message):
    x = np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
    with pytest.raises(ValueError, match=message):
        fit(KEY, x, 2, weights=weights)
