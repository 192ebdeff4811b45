"""Health of chains without a history: against the history's, over any number of steps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

import poejax as pj
from poejax import chains
from poejax.diagnostics import OnlineHealth, has_mixed, health


def values_of(params, state, info):
    return state


@functools.partial(jax.jit, static_argnums=0)
def observed(observer, values):
    carry = jax.lax.scan(observer.update, observer.init(values[0]), values)[0]
    return observer.result(carry), carry


def online(values, **options):
    return observed(OnlineHealth(values_of, **options), jnp.asarray(values, jnp.float32))[0]


def ar(rng, num_steps, num_chains, phi, num_entries=1):
    noise = rng.normal(size=(num_steps, num_chains, num_entries))
    noise[1:] *= np.sqrt(1 - phi**2)
    return signal.lfilter([1], [1, -phi], noise, axis=0)


def split_r_hat(x):
    half = len(x) // 2
    x = np.concatenate([x[:half], x[-half:]], axis=1)
    within, between = x.var(axis=0, ddof=1).mean(axis=0), x.mean(axis=0).var(axis=0, ddof=1)
    return np.sqrt((half - 1) / half + between / within)


@pytest.mark.parametrize("num_steps", [4, 5, 8, 31, 32, 64, 100, 256])
@pytest.mark.parametrize("num_chains", [1, 6])
def test_r_hats_are_those_of_the_full_batches(num_steps, num_chains):
    x = ar(np.random.default_rng(num_steps), num_steps, num_chains, 0.8, 3)
    found, carry = observed(OnlineHealth(values_of), jnp.asarray(x, jnp.float32))
    length, num_full = int(carry.length), int(carry.num_full)
    assert num_steps - length < length * num_full <= num_steps
    assert found.num_observed == num_steps
    x = x[: length * num_full]
    half = num_full // 2 * length
    halves = np.concatenate([x[:half], x[len(x) - half :]])
    # Of an odd number of batches the middle one is in neither half, but in the variance within.
    rtol = 3e-3 if num_full % 2 and length > 1 else 1e-4
    np.testing.assert_allclose(found.r_hat, split_r_hat(halves), rtol=rtol)
    if num_chains > 1:
        groups = x.reshape(len(x), 3, 2, 3)
        within = groups.mean(axis=0).var(axis=1, ddof=1) + groups.var(axis=0, ddof=1).mean(axis=1)
        between = groups.mean(axis=(0, 2)).var(axis=0, ddof=1)
        wanted = np.sqrt(1 + between / within.mean(axis=0))
        np.testing.assert_allclose(found.nested_r_hat, wanted, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("phi", [0.0, 0.8, 0.95])
def test_it_agrees_with_the_history_on_chains_of_known_time(phi):
    pytest.importorskip("blackjax")
    num_steps, num_chains, entries = 4000, 16, 30
    x = ar(np.random.default_rng(1), num_steps, num_chains, phi, entries)
    found, history = online(x), health(x)
    tau = (1 + phi) / (1 - phi)
    np.testing.assert_allclose(found.r_hat, history.r_hat, atol=tau / num_steps)
    np.testing.assert_allclose(found.nested_r_hat, history.nested_r_hat, atol=0.3 * tau / num_steps)
    for mean_of in (found, history):
        # Over entries, which are independent: the mean's own standard error. Batches of a
        # quarter of a chain lose a share tau / 2000 at most.
        times = np.asarray(mean_of.autocorrelation_time, float)
        error = times.std(ddof=1) / entries**0.5
        assert abs(times.mean() - tau) < 4 * error + tau**2 / 2000
    # A slower chain is told from this one by far more than the allowance.
    slower = ar(np.random.default_rng(2), num_steps, num_chains, 0.5 + phi / 2, entries)
    times = np.asarray(online(slower).autocorrelation_time, float)
    assert times.mean() - tau > 8 * times.std(ddof=1) / entries**0.5


def test_memory_does_not_grow():
    observer = OnlineHealth(values_of, num_batches=8)
    shapes = []
    for num_steps in (3, 1000):
        x = jnp.zeros((num_steps, 4, 5))
        shapes.append(jax.tree.map(jnp.shape, observed(observer, x)[1]))
    assert shapes[0] == shapes[1]
    numbers = sum(
        np.prod(shape)
        for shape in jax.tree.leaves(
            shapes[0].leaves, is_leaf=lambda s: isinstance(s, tuple) and not hasattr(s, "_fields")
        )
    )
    assert numbers == (8 + 7) * 20 + 5


def test_batches_double_in_length():
    observer = OnlineHealth(values_of, num_batches=8)
    seen = [observed(observer, jnp.zeros((n, 4)))[1] for n in (7, 8, 15, 16, 64, 1000)]
    assert [int(c.length) for c in seen] == [1, 2, 2, 4, 16, 128]
    assert [int(c.num_full) for c in seen] == [7, 4, 7, 4, 4, 7]


@pytest.mark.parametrize("places", [[0.0, 0, 3, 3], [0.0, 0.5, 1, 1.5]])
def test_stuck_chains_are_told(places):
    x = ar(np.random.default_rng(3), 2000, 4, 0.5)[..., 0]
    assert has_mixed(online(x))
    assert not has_mixed(online(x + np.array(places)))
    # In one mode with the others of the superchain they are told all the same.
    assert not has_mixed(online(x + np.array(places)[[0, 2, 1, 3]]))


def test_a_drift_that_all_chains_share_is_told():
    x = ar(np.random.default_rng(4), 2000, 4, 0.5)[..., 0]
    assert not has_mixed(online(x + np.linspace(0, 3, 2000)[:, None]))


def test_far_from_zero_and_over_many_steps_nothing_is_lost():
    x = np.round(ar(np.random.default_rng(5), 5000, 4, 0.5)[..., 0] * 64) / 64
    # float32 holds the sum to the digit: offsets cost what they cost the values, no more.
    for a, b in zip(online(x + 65536), online(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_what_stands_still_and_what_is_too_short():
    x = np.zeros((100, 4, 2)) + 0.1
    x[..., 1] = [0.1, 0.2, 0.3, 0.4]
    found = online(x)
    np.testing.assert_array_equal(found.r_hat, [1, np.inf])
    assert found.nested_r_hat[0] == 1
    np.testing.assert_array_equal(found.ess, [0, 0])
    np.testing.assert_array_equal(found.autocorrelation_time, [np.inf, np.inf])
    assert not has_mixed(found)
    short = online(ar(np.random.default_rng(6), 3, 4, 0.0))
    assert np.isinf(short.r_hat).all()
    assert np.isinf(short.nested_r_hat).all()
    assert not has_mixed(short)


def both(params, state, info):
    return {"bits": state.x > 0.5, "mean": jnp.mean(state.x)}


@pytest.mark.slow
def test_it_observes_a_run_of_chains():
    model = pj.models.rbm(6, 3)
    params = model.init(jax.random.key(0))
    kernel = pj.kernels.block_gibbs(model)
    states = chains.init(jax.random.key(1), kernel, params, 12)
    args = (jax.random.key(2), kernel, params, states, 600)
    after, found = chains.run(*args, OnlineHealth(both))
    same, history = chains.run(*args, chains.History(both))
    np.testing.assert_array_equal(after.x, same.x)
    assert found.r_hat["bits"].shape == (6,)
    assert found.ess["mean"].shape == ()
    for name, values in history.items():
        by_hand = online(np.asarray(values, np.float32))
        np.testing.assert_allclose(found.r_hat[name], by_hand.r_hat, rtol=1e-5)
        np.testing.assert_allclose(found.ess[name], by_hand.ess, rtol=1e-4)
    assert has_mixed(found)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fn": 3}, TypeError, "fn: expected a function, got 3"),
        ({"num_batches": 7}, ValueError, "num_batches: expected an even number of at least 8"),
        ({"num_batches": 6}, ValueError, "num_batches: expected an even number of at least 8"),
        ({"num_superchains": 3}, ValueError, "num_superchains: expected a divisor >= 2 of the 4"),
    ],
)
def test_slips_are_named(options, error, message):
    with pytest.raises(error, match=message):
        OnlineHealth(**{"fn": values_of} | options).init(jnp.zeros((4, 2)))


def over(values):
    online = pj.diagnostics.OnlineHealth(lambda params, state, info: state)
    carry = online.init(jnp.asarray(values[0]))
    carry, _ = jax.lax.scan(lambda c, v: online.update(c, v), carry, jnp.asarray(values))
    return online.result(carry)


def test_a_missing_value_is_no_constant():
    values = np.random.default_rng(0).normal(size=(400, 8, 2)).astype(np.float32)
    values[200, 3, 1] = np.nan
    found = over(values)
    assert np.isnan(float(found.r_hat[1]))
    assert not pj.diagnostics.has_mixed(found)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_the_scale_of_values_does_not_matter(scale):
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(400, 8)), axis=0)
    values = np.stack([rng.normal(size=(400, 8)), walk], axis=-1) * scale
    found = over(values.astype(np.float32))
    plain = over((values / scale).astype(np.float32))
    np.testing.assert_allclose(found.r_hat, plain.r_hat, rtol=1e-3)
    assert float(found.r_hat[1]) > 1.2
    assert not pj.diagnostics.has_mixed(found)
