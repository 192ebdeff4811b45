"""Words of sites: uniform, uncorrelated, the same in any batch; and what is drawn from them."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import generator
from poejax import _random

GOLDEN = [1901395182, 204426168, 82908776]
CONFIG = generator.Config(num_chains=64)
NUM_SITES = CONFIG.num_sites


def p_values(drawn: jax.Array) -> dict[str, float]:
    """Return p-values of chi-square, serial and cross-correlation tests, bit plane by bit plane."""
    words, found = np.asarray(drawn), {}
    for plane in (31, 30, 24, 16, 0):
        bits = (words >> np.uint32(plane) & 1).astype(np.int64)
        signs = 2.0 * bits - 1
        for axis, name in enumerate(("steps", "chains", "sites")):
            for lag in (1, 2, 7):
                moved = np.roll(signs, lag, axis)
                # Each product is ±1 with mean 0; its sum is normal to within any use here.
                z = float((signs * moved).sum()) / np.sqrt(signs.size)
                found[f"plane {plane}, lag {lag} over {name}"] = 2 * stats.norm.sf(abs(z))
        four = sum(np.roll(bits, lag, 2) << lag for lag in range(4))[..., ::4]
        counts = np.bincount(four.ravel(), minlength=16)
        found[f"plane {plane}, runs of 4 sites"] = stats.chisquare(counts).pvalue
        # Sums over an event of independent bits are binomial.
        sums = bits.sum(axis=2).ravel()
        dispersion = ((sums - NUM_SITES / 2) ** 2).sum() / (NUM_SITES / 4)
        tail = stats.chi2.cdf(dispersion, sums.size)
        found[f"plane {plane}, sums of events"] = 2 * min(tail, 1 - tail)
    for shift in (24, 12):
        counts = np.bincount((words >> np.uint32(shift) & 255).ravel(), minlength=256)
        found[f"bits {shift} to {shift + 7}"] = stats.chisquare(counts).pvalue
    return found


def test_words_are_uniform_and_uncorrelated():
    found = p_values(generator.drawn(_random.mix, 0, 32, CONFIG))
    worst = min(found, key=found.__getitem__)
    assert found[worst] * len(found) > 0.001, (worst, found[worst])


def test_a_weak_generator_is_found_out():
    found = p_values(generator.drawn(generator.weak, 0, 32, CONFIG))
    assert sum(p * len(found) < 1e-6 for p in found.values()) > 5


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_those_of_jax(impl):
    key = jax.random.key(3, impl=impl)
    for data in (0, 1, np.uint32(2**31), np.uint32(2**32 - 1)):
        ours, theirs = (fn(key, data) for fn in (_random.fold_in, jax.random.fold_in))
        np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))
    keys = jax.random.split(key, 5)
    ours, theirs = (
        jax.vmap(fn)(keys, jnp.arange(5)) for fn in (_random.fold_in, jax.random.fold_in)
    )
    np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))


def test_a_word_depends_on_its_key_and_its_number_alone():
    keys = jax.random.split(jax.random.key(0), 8)
    batch = jax.jit(jax.vmap(lambda key: _random.words(key, (6, 2))))(keys)
    for key, row in zip(keys, batch, strict=True):
        np.testing.assert_array_equal(_random.words(key, (12,)).reshape(6, 2), row)
        np.testing.assert_array_equal(_random.words(key, (5,)), row.ravel()[:5])
    assert _random.words(jax.random.key(0), (3,)).tolist() == GOLDEN, "runs would not be repeated"


def test_neighbouring_seeds_are_unrelated():
    words = np.stack([_random.words(jax.random.key(seed), (4096,)) for seed in range(40)])
    flips = np.bitwise_count(words[1:] ^ words[:-1]).astype(int).sum(axis=1)
    z = (flips - 4096 * 16) / np.sqrt(4096 * 8)
    assert np.abs(z).max() < 4.5


@pytest.mark.slow
@pytest.mark.parametrize("a", [-20.0, -15.0, -3.0, -0.1, 0.0, 0.1, 3.0, 15.0, 20.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_have_their_odds_in_both_tails(monkeypatch, a, dtype):
    # All words near the one where the bit turns, counted: no draws, so no standard error.
    expected = 2.0**32 / (1 + np.exp(-np.float64(a)))
    turn = int(np.clip(expected, 2**15, 2**32 - 2**15))
    window = np.arange(turn - 2**15, turn + 2**15, dtype=np.uint64)
    with jax.enable_x64(dtype == "float64"):
        monkeypatch.setattr(_random, "words", lambda key, shape: jnp.asarray(window, jnp.uint32))
        bits = np.asarray(_random.bernoulli(jax.random.key(0), jnp.full(2**16, a, dtype)))
    rarer = min(expected, 2**32 - expected)
    count = int(bits.sum()) + int(window[0])
    assert abs(count - expected) <= 1 + rarer * 3 * float(jnp.finfo("float32").eps)
    assert (np.diff(bits.astype(int)) <= 0).all(), "not monotone in the word"


def test_bits_are_monotone_in_their_odds():
    odds = jnp.linspace(-5, 5, 301)
    draws = jax.vmap(lambda a: _random.bernoulli(jax.random.key(1), jnp.full(500, a)))(odds)
    assert (np.diff(np.asarray(draws).astype(int), axis=0) >= 0).all()


@pytest.mark.slow
def test_bits_at_the_ends_of_the_range():
    odds = jnp.asarray([-jnp.inf, jnp.inf, -200.0, 200.0, jnp.nan])
    draws = jax.vmap(lambda key: _random.bernoulli(key, odds))(
        jax.random.split(jax.random.key(0), 100)
    )
    np.testing.assert_array_equal(draws.mean(axis=0), [0, 1, 0, 1, 0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_normal_draws(dtype):
    with jax.enable_x64(True):
        x = np.asarray(_random.normal(jax.random.key(4), (1_000_000,), jnp.dtype(dtype)), float)
    if dtype != "bfloat16":  # whose steps are wider than what this test sees
        assert stats.kstest(x, "norm").pvalue > 0.001
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        slack = 2e-3 if dtype == "bfloat16" else 0
        assert abs((x**power).mean() - mean) < 4 * np.sqrt(variance / len(x)) + slack * mean


def test_normal_draws_are_symmetric_and_finite(monkeypatch):
    ends = jnp.asarray([0, 2**32 - 1, 2**31 - 1, 2**31], jnp.uint32)
    monkeypatch.setattr(_random, "words", lambda key, shape: ends)
    for dtype, most in (("float32", 5.42), ("float64", 8.3)):
        with jax.enable_x64(dtype == "float64"):
            x = np.asarray(_random.normal(jax.random.key(0), (4,), jnp.dtype(dtype)))
        assert most - 0.15 < x[1] < most + 0.15
        assert x[1] == -x[0]
        if dtype == "float32":
            assert x[3] == -x[2] > 0


def test_too_many_sites_are_refused():
    with pytest.raises(ValueError, match=r"^shape: expected at most 2\*\*32 sites, got"):
        jax.eval_shape(lambda: _random.words(jax.random.key(0), (2**17, 2**16)))


def test_categories_have_their_frequencies():
    logits = jnp.log(jnp.asarray([0.6, 0.3, 0.0999, 1e-4])) + 300
    rows = jnp.broadcast_to(logits, (1_000_000, 4))
    counts = np.bincount(_random.categorical(jax.random.key(2), rows), minlength=4)
    assert stats.chisquare(counts, 1e6 * np.asarray([0.6, 0.3, 0.0999, 1e-4])).pvalue > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 4097])
def test_a_permutation_takes_every_value_once(size):
    order = _random.permuted(jax.random.key(0), jnp.arange(size), size)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_all_permutations_are_as_likely():
    keys = jax.random.split(jax.random.key(5), 120_000)
    orders = jax.jit(jax.vmap(lambda key: _random.permuted(key, jnp.arange(5), 5)))(keys)
    counts = np.unique(np.asarray(orders) @ 10 ** np.arange(5), return_counts=True)[1]
    assert len(counts) == 120
    assert stats.chisquare(counts).pvalue > 0.001


def test_generator_streams_are_what_chains_draw():
    config = generator.Config(num_chains=3, num_sites=5)
    words = {}
    for name, reading in generator.READINGS.items():
        chunk = next(generator.stream(_random.mix, reading, config))
        words[name] = np.frombuffer(chunk, np.uint32)
    shape = (-1, 3, 5)
    key = _random.fold_in(_random.fold_in(jax.random.key(0), 2), 1)
    event = _random.words(key, (5,))
    np.testing.assert_array_equal(words["across sites"].reshape(shape)[2, 1], event)
    np.testing.assert_array_equal(words["across chains"].reshape(-1, 5, 3)[2, :, 1], event)
    np.testing.assert_array_equal(words["across steps"].reshape(3, 5, -1)[1, :, 2], event)
    highest = np.unpackbits(words["highest bits"].view(np.uint8)).reshape(shape)
    np.testing.assert_array_equal(highest[2, 1], event >> 31)


def test_generator_needs_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="dieharder: expected the command, found none"):
        generator.train_and_evaluate(generator.PRESETS["smoke"], tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dieharder") is None, reason="dieharder is not installed")
def test_generator_small(tmp_path):
    config = dataclasses.replace(generator.PRESETS["smoke"], tests=(8, 15))
    failed = generator.train_and_evaluate(config, tmp_path)["failed_tests"]
    assert not any(failed["words of poejax"].values())
    assert any(failed["weak on purpose"].values())
