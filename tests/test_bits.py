"""Enumerated sets have their published sizes and entropies; bits have the right odds."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from poejax import _random, datasets


def entropy(rows: np.ndarray) -> float:
    counts = np.unique(rows, axis=0, return_counts=True)[1] / len(rows)
    return float(-(counts * np.log(counts)).sum())


@pytest.mark.parametrize(
    ("make", "rows", "distinct", "columns", "nats"),
    [
        (lambda: datasets.bars_and_stripes(3), 16, 14, 9, 2.5993),
        (lambda: datasets.bars_and_stripes(4), 32, 30, 16, 3.3791),
        (lambda: datasets.labelled_shifter(4), 48, 48, 11, 3.8712),
        (lambda: datasets.labelled_shifter(8), 768, 768, 19, 6.6438),
        (lambda: datasets.shifting_bar(9, 1), 9, 9, 9, 2.1972),
        (lambda: datasets.shifting_bar(9, 4), 9, 9, 9, 2.1972),
    ],
)
def test_enumerated_sets_have_the_published_sizes_and_entropies(
    make: Callable[[], np.ndarray], rows: int, distinct: int, columns: int, nats: float
):
    found = make()
    assert found.shape == (rows, columns)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 1}
    assert len(np.unique(found, axis=0)) == distinct
    assert entropy(found) == pytest.approx(nats, abs=5e-5)


def test_bars_and_stripes_are_exactly_the_images_with_constant_rows_or_columns():
    side = 3
    every = ((np.arange(2 ** (side * side))[:, None] >> np.arange(side * side)) & 1).astype(
        np.uint8
    )
    square = every.reshape(-1, side, side)
    constant = (np.ptp(square, axis=1) == 0).all(1) | (np.ptp(square, axis=2) == 0).all(1)
    expected = np.unique(every[constant], axis=0)
    found, counts = np.unique(datasets.bars_and_stripes(side), axis=0, return_counts=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(counts, np.where(np.ptp(found, axis=1) == 0, 2, 1))


def test_labelled_shifter_labels_its_shift():
    n = 5
    for row in datasets.labelled_shifter(n):
        first, second, label = row[:n], row[n : 2 * n], row[2 * n :]
        assert label.sum() == 1
        shift = int(label.argmax()) - 1
        assert all(second[(i + shift) % n] == first[i] for i in range(n))


def test_shifting_bar_is_one_unbroken_bar_and_checks_its_width():
    found = datasets.shifting_bar(7, 3)
    for start, row in enumerate(found):
        assert set(np.flatnonzero(row)) == {(start + i) % 7 for i in range(3)}
    for width in (0, 7, 8):
        with pytest.raises(ValueError, match="width"):
            datasets.shifting_bar(7, width)


def test_stochastic_bits_have_the_frequency_of_their_intensity():
    draws = 40_000
    images = jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8), (draws, 256))
    bits = np.asarray(datasets.binarize(jax.random.key(3), images))
    assert bits.dtype == np.float32
    assert set(np.unique(bits)) == {0.0, 1.0}
    counts = bits.sum(axis=0)
    assert counts[0] == 0
    assert counts[255] == draws
    p = np.arange(1, 255) / 255
    z = (counts[1:255] - draws * p) / np.sqrt(draws * p * (1 - p))
    assert np.abs(z).max() < stats.norm.isf(0.01 / 2 / 254)
    # The mean over all intensities is far more sensitive: it would see v / 256 or (v + 1) / 256.
    total = (counts[1:255] - draws * p).sum() / np.sqrt(draws * (p * (1 - p)).sum())
    assert abs(total) < 4


def test_stochastic_probabilities_are_exact_where_sampling_cannot_see(monkeypatch):
    # Feed the extreme random words: the number of words below the bound is P(1) * 2**32.
    v = np.arange(256, dtype=np.uint8)
    for v_k in (1, 2, 127, 128, 254):
        bound = v_k * 2**32 // 255
        for word, expected in ((bound - 1, 1.0), (bound, 0.0)):
            fake = jnp.full(v.shape, word, jnp.uint32)
            monkeypatch.setattr(_random, "words", lambda key, shape, fake=fake: fake)
            assert datasets.binarize(jax.random.key(0), v)[v_k] == expected
    for word in (0, 2**32 - 1):
        fake = jnp.full(v.shape, word, jnp.uint32)
        monkeypatch.setattr(_random, "words", lambda key, shape, fake=fake: fake)
        bits = datasets.binarize(jax.random.key(0), v)
        assert bits[0] == 0
        assert bits[255] == 1


def test_threshold_is_above_one_half_and_needs_no_randomness():
    v = np.arange(256, dtype=np.uint8)
    for key in (jax.random.key(0), jax.random.key(1)):
        np.testing.assert_array_equal(datasets.binarize(key, v, "threshold"), v / 255 > 0.5)
        np.testing.assert_array_equal(datasets.threshold(key, v), v / 255 > 0.5)


def test_binarize_is_the_same_jitted_and_works_under_vmap():
    images = datasets.digits().train.images[:6]
    key = jax.random.key(1)
    eager = datasets.binarize(key, images)
    jitted = jax.jit(datasets.binarize, static_argnames="mode")(key, images, mode="stochastic")
    np.testing.assert_array_equal(eager, jitted)
    np.testing.assert_array_equal(eager, datasets.stochastic(key, images))
    keys = jax.random.split(key, 6)
    mapped = jax.vmap(datasets.stochastic)(keys, images)
    looped = jnp.stack([datasets.stochastic(k, v) for k, v in zip(keys, images, strict=True)])
    np.testing.assert_array_equal(mapped, looped)
    assert not np.array_equal(eager, datasets.stochastic(jax.random.key(2), images))


def test_the_named_modes_are_static_arguments_that_do_not_retrace():
    traces = []

    def driver(key, images, preprocess):
        traces.append(preprocess)
        return preprocess(key, images)

    jitted = jax.jit(driver, static_argnames="preprocess")
    for seed in (0, 1):
        for preprocess in (datasets.stochastic, datasets.threshold):
            jitted(jax.random.key(seed), jnp.full((2, 3), seed, jnp.uint8), preprocess=preprocess)
    assert len(traces) == 2


@pytest.mark.parametrize(
    "images", [np.zeros((2, 4)), np.zeros(4, bool), np.zeros(4, np.int32), jnp.zeros(4), [0, 255]]
)
def test_binarize_takes_nothing_but_intensities(images):
    for mode in ("stochastic", "threshold"):
        with pytest.raises(TypeError, match=r"intensities 0\.\.255 of dtype uint8, got"):
            datasets.binarize(jax.random.key(0), images, mode)


def test_binarize_refuses_unknown_modes_and_old_keys():
    images = np.zeros(4, np.uint8)
    with pytest.raises(ValueError, match="'stochastic' or 'threshold', got 'random'"):
        datasets.binarize(jax.random.key(0), images, "random")
    with pytest.raises(TypeError, match="rng_key"):
        datasets.binarize(jax.random.PRNGKey(0), images)
