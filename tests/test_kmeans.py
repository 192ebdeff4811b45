"""k-means against all partitions and scikit-learn."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import reference
from mixture_cases import KEY, NUM_DRAWS, K, binomial_scores, gaussian_data
from sklearn.cluster import KMeans

from poejax import mixtures
from poejax.mixtures import clusters


def test_seeds_are_drawn_in_proportion_to_the_squared_distance():
    x = np.array([[0.0], [1.0], [3.0], [7.0]], np.float32)
    keys = jax.random.split(KEY, NUM_DRAWS)
    seed = jax.vmap(lambda key, x: clusters.plus_plus(key, x, 2).centroids, (0, None))
    seeds = jax.jit(seed)(keys, x)
    first, second = np.asarray(seeds)[:, 0], np.asarray(seeds)[:, 1]
    counts = ((first == x.T)[:, :, None] * (second == x.T)[:, None, :]).sum(axis=0)

    def scores(power):
        p = np.abs(x - x.T).astype(float) ** power
        p /= 4 * p.sum(axis=1, keepdims=True)
        off = ~np.eye(4, dtype=bool)
        assert counts[~off].sum() == 0
        return binomial_scores(counts[off], p[off])

    assert np.abs(scores(2)).max() < reference.z_threshold(12)
    # The test has power: distances that are not squared fail.
    assert np.abs(scores(1)).max() > reference.z_threshold(12)


def test_kmeans_finds_the_best_of_all_partitions():
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)

    def spread(labels):
        groups = [x[labels == k] for k in range(2)]
        return sum(((g - g.mean(axis=0)) ** 2).sum() for g in groups if len(g))

    best = min(spread(np.array(labels)) for labels in itertools.product((0, 1), repeat=9))
    found = mixtures.kmeans(KEY, x, 2, num_restarts=10)
    np.testing.assert_allclose(spread(np.asarray(found.assignments)), best, rtol=1e-5)
    for k in range(2):
        np.testing.assert_allclose(
            found.centroids[k], x[found.assignments == k].mean(axis=0), atol=1e-6
        )


def test_kmeans_against_scikit_learn_and_far_from_the_origin():
    x = np.round(gaussian_data() * 256) / 256
    found = mixtures.kmeans(KEY, x, K)
    distances = ((x[:, None] - np.asarray(found.centroids)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(found.assignments, distances.argmin(axis=1))
    # What scikit-learn makes of our result is our result: nothing is left to improve.
    theirs = KMeans(K, init=np.asarray(found.centroids), n_init=1, algorithm="lloyd", tol=0).fit(x)
    np.testing.assert_allclose(theirs.cluster_centers_, found.centroids, atol=1e-4)
    far = mixtures.kmeans(KEY, x + 4096, K)
    np.testing.assert_array_equal(far.assignments, found.assignments)


def test_kmeans_with_fewer_distinct_rows_than_clusters():
    x = np.repeat(np.array([[0, 1], [5, 5]]), 4, axis=0)
    found = mixtures.kmeans(KEY, x, 4)
    assert np.isfinite(found.centroids).all()
    np.testing.assert_allclose(found.centroids[found.assignments], x, atol=1e-6)
