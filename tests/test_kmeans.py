"""k-means against all partitions and scikit-learn."""

from __future__ import annotations

import itertools
import re

import jax
import numpy as np
import pytest
import reference
from mixture_cases import KEY, NUM_DRAWS, K, binomial_scores, gaussian_data
from sklearn.cluster import KMeans

from poejax import mixtures
from poejax.mixtures import _clusters as clusters


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


def assert_each_row_has_its_nearest(x, found, slack=0.0):
    x, centroids = np.asarray(x, float), np.asarray(found.centroids, float)
    distances = np.sqrt(((x[:, None] - centroids) ** 2).sum(axis=2))
    chosen = np.take_along_axis(distances, np.asarray(found.assignments)[:, None], axis=1)[:, 0]
    assert (chosen <= distances.min(axis=1) + slack).all()


@pytest.mark.parametrize("far", [300.0, 1e4, 1e6])
@pytest.mark.parametrize("num_dims", [1, 30])
def test_tight_clusters_far_apart_are_told_apart(far, num_dims):
    # More rows than are looked at again at a time; about no origin are all clusters near it.
    rng = np.random.default_rng(0)
    centres = np.repeat([-far, far - 1, far + 1], 200)[:, None] * np.ones(num_dims)
    noise = 0.1 * rng.choice([-1, 1], size=(600, num_dims))
    x = (centres + noise).astype(np.float32)
    found = mixtures.kmeans(KEY, x, 3, num_restarts=10)
    assert_each_row_has_its_nearest(x, found, slack=1e-6 * far)
    order = np.argsort(found.centroids[:, 0])
    for k, group in zip(order, (x[:200], x[200:400], x[400:]), strict=True):
        expected = group.mean(axis=0, dtype=float)
        np.testing.assert_allclose(found.centroids[k], expected, rtol=2e-7)


def test_kmeans_under_a_trace_at_any_offset():
    x = (np.repeat([-1e5, 1e5 - 1, 1e5 + 1], 50) + np.tile([-0.125, 0.125], 75)).astype(np.float32)
    found = jax.jit(lambda x: mixtures.kmeans(KEY, x, 3, num_restarts=10))(x[:, None])
    assert_each_row_has_its_nearest(x[:, None], found)
    np.testing.assert_allclose(np.sort(found.centroids[:, 0]), [-1e5, 1e5 - 1, 1e5 + 1], atol=0.02)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-6, 1e6, 1e18, 1e30])
def test_kmeans_in_any_unit(scale):
    x = gaussian_data().astype(float)
    expected = mixtures.kmeans(KEY, x, K)
    for data in (x * scale, (x * scale).astype(np.float32)):
        found = mixtures.kmeans(KEY, data, K)
        np.testing.assert_array_equal(found.assignments, expected.assignments)
        centroids = np.asarray(found.centroids, float) / scale
        np.testing.assert_allclose(centroids, expected.centroids, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.uint8, bool, ">i8"])
def test_kmeans_of_whole_numbers(dtype):
    size = {1: 1, 4: 100_000_000, 8: 3_000_000_000}[np.dtype(dtype).itemsize]
    x = np.concatenate([np.zeros(40), np.full(40, size)])
    x = (x + (np.arange(80) % 40 if size > 1 else 0)).astype(dtype)[:, None]
    found = mixtures.kmeans(KEY, x, 2)
    rest = 19.5 if size > 1 else 0
    np.testing.assert_allclose(np.sort(found.centroids[:, 0]), [rest, size + rest], rtol=1e-7)


@pytest.mark.parametrize("fill", [-9999.0, 1e15, 1e20])
def test_a_fill_value_is_a_cluster_of_its_own(fill):
    x = gaussian_data()
    x[5, 0] = fill
    found = mixtures.kmeans(KEY, x, 2, num_restarts=3)
    rest = np.delete(np.arange(len(x)), 5)
    which = np.asarray(found.assignments)
    assert (which[rest] == 1 - which[5]).all()
    expected = x[rest].mean(axis=0, dtype=float)
    np.testing.assert_allclose(found.centroids[1 - which[5]], expected, atol=1e-5)


def test_centroids_that_float32_cannot_say_are_refused():
    days = 2_460_000 + np.repeat([0.30, 0.31], 20)[:, None] + np.linspace(0, 1e-3, 40)[:, None]
    with pytest.raises(ValueError, match=r"x: .* column 0 of mean 2460000\.3.* steps by 0\.25"):
        mixtures.kmeans(KEY, days, 2)
    near = mixtures.kmeans(KEY, days - 2_460_000, 2)
    np.testing.assert_allclose(np.sort(near.centroids[:, 0]), [0.3, 0.31], atol=1e-3)
    with jax.enable_x64(True):
        found = mixtures.kmeans(KEY, days, 2)
        assert_each_row_has_its_nearest(days, found)
        assert found.centroids.dtype == np.float64
    for value in (1e39, 9.96921e36):
        x = gaussian_data().astype(float)
        x[3, 1] = value
        with pytest.raises(
            ValueError, match=rf"x: .* got {re.escape(f'{value:g}')}.* in row 3, column 1"
        ):
            mixtures.kmeans(KEY, x, 2)
    # A constant column tells nothing apart, so loses nothing.
    mixed = np.column_stack([np.full(40, 2_460_000.3), days[:, 0] - 2_460_000])
    np.testing.assert_array_equal(mixtures.kmeans(KEY, mixed, 2).assignments, near.assignments)
