"""Sums of many terms and averages over many steps, against NumPy in float64."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import _numerics, training
from poejax.exact import _enumeration as enumeration
from poejax.inference import _posterior as posterior


@pytest.fixture
def four_states_at_a_time(monkeypatch):
    monkeypatch.setattr(enumeration, "_CHUNK_ROWS", 4)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize("field", [0.0, 300.0, 1e4])
def test_log_z_and_its_gradient_over_16384_chunks(field, four_states_at_a_time):
    # Folded one by one each chunk adds less than half an ulp of log Z: ½ comes out as 0.6 or 1.
    model = pj.models.rbm(20, 16)
    rng = np.random.default_rng(0)
    w, b = 0.3 * rng.standard_normal((20, 16)), rng.standard_normal(16)
    params = {"bias": {"field": np.full(20, field)}, "hidden": {"w": w, "b": b}}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    value, grads = jax.value_and_grad(lambda p: pj.exact.log_z(model, p))(params)
    z = ((np.arange(2**16)[:, None] >> np.arange(16)) & 1).astype(float)
    a, w, b = (np.asarray(v, float) for v in (params["bias"]["field"], *_bank(params)))
    pre = a + z @ w.T
    log_weight = z @ b + np.logaddexp(0, pre).sum(1)
    expected = np.logaddexp.reduce(log_weight)
    p, mean = np.exp(log_weight - expected), 1 / (1 + np.exp(-pre))
    assert abs(float(value) - expected) <= 2 * np.spacing(np.float32(expected))
    np.testing.assert_allclose(grads["bias"]["field"], p @ mean, atol=5e-6 + 4e-9 * field)
    np.testing.assert_allclose(grads["hidden"]["b"], p @ z, atol=5e-6 + 1e-7 * field)
    by_hand = np.einsum("s,si,sj->ij", p, mean, z)
    np.testing.assert_allclose(grads["hidden"]["w"], by_hand, atol=5e-6 + 1e-7 * field)


def _bank(params):
    return params["hidden"]["w"], params["hidden"]["b"]


def test_states_without_weight_carry_no_nan(four_states_at_a_time):
    table = jnp.array([1.0, -jnp.inf, 2.0] + 20 * [-jnp.inf])
    value, grad = jax.value_and_grad(
        lambda t: enumeration.log_sum_exp(lambda i: t[i], len(table), 1)
    )(table)
    assert float(value) == pytest.approx(np.logaddexp(1, 2), rel=1e-6)
    np.testing.assert_allclose(grad, np.exp(np.asarray(table) - np.logaddexp(1, 2)), rtol=1e-6)
    infinite = enumeration.log_sum_exp(lambda i: jnp.where(i == 7, jnp.inf, 0.0), 23, 1)
    assert float(infinite) == np.inf


@pytest.mark.parametrize("offset", [0.0, 300.0, 1e4, 1e6])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_moments_of_a_million_steps(offset, scale):
    # A slow drift, which a mean that has stalled does not follow.
    steps, noise = 2**20, np.random.default_rng(0)
    values = offset + 3 * np.arange(steps) / steps + noise.standard_normal(steps)
    values = (scale * values).astype(np.float32)
    observer = pj.chains.Moments(lambda params, state, info: state)
    start = observer.init(jnp.zeros(()))
    carry, _ = jax.jit(lambda v: jax.lax.scan(observer.update, start, v))(values)
    found, exact = observer.result(carry, None), values.astype(float)
    assert found.num_observed == steps
    np.testing.assert_allclose(found.mean, exact.mean(), rtol=2e-7, atol=1e-7 * scale)
    np.testing.assert_allclose(found.variance, exact.var(), rtol=1e-5)


def test_moments_count_beyond_the_integers_of_float32():
    observer = pj.chains.Moments(lambda params, state, info: state)
    _, *rest = observer.init(jnp.zeros(()))
    carry, _ = observer.update((jnp.asarray(2**24), *rest), jnp.ones(()))
    assert int(carry[0]) == 2**24 + 1


class Drift:
    """An estimator whose gradient is the same everywhere."""

    def init(self, rng_key, params, data):
        return ()

    def grad(self, rng_key, params, state, batch):
        grads = jax.tree.map(jnp.ones_like, params)
        return grads, state, pj.types.EstimatorInfo(jnp.zeros(()), jnp.zeros(()))


def averaged(dtype, rate, decay, step, num_steps):
    """The average of a run of constant updates from one; and that of its params in float64."""
    model, tx = pj.models.rbm(2, 2), optax.sgd(rate)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, dtype), model.init(jax.random.key(0)))
    estimator, data = Drift(), jnp.zeros((4, 2))
    state = training.init(
        jax.random.key(0), model, estimator, tx, data, params=params, average=True
    )
    state = state._replace(step=jnp.asarray(step, jnp.int32))
    state, _ = training.train_steps(estimator, tx, state, data, 4, num_steps, average_decay=decay)
    p, expected, update = params["bias"]["field"][0], 1.0, jnp.asarray(-rate, dtype)
    for t in range(step + 1, step + 1 + num_steps):
        p = np.asarray(p + update, p.dtype)
        weight = max(1 - decay, 9 / (10 + t))
        expected += weight * (float(p) - expected)
    return state.average["bias"]["field"], expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_average_follows_parameters_of_low_precision(dtype):
    # The parameters are right in all of these; of the average's updates bfloat16 loses most.
    found, expected = averaged(dtype, 2.0**-6, 0.999, 10**6, 190)
    assert expected < 0.8
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_average_with_a_decay_near_one_moves():
    # Each update is a hundredth of an ulp.
    found, expected = averaged(jnp.float32, 2.0**-14, 1 - 1e-8, 2**30, 2000)
    assert 1 - expected > 1e-7
    assert abs(float(found[0]) - expected) <= 1e-7
    found, expected = averaged(jnp.float32, 2.0**-14, 1 - 1e-6, 2**30, 2000)
    np.testing.assert_allclose(found - 1, expected - 1, rtol=2e-2)


class Counter(NamedTuple):
    x: jax.Array
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class Climb:
    """A kernel that takes a step of one upwards every eighth time."""

    def step(self, rng_key, params, state):
        count = state.count + 1
        return Counter(state.x + (count % 8 == 0), count), ()


def test_posterior_means_of_many_steps():
    visible = pj.units.GaussianDiag(1)
    model = pj.product(visible, bias=pj.experts.Bias(visible))
    steps, burn_in, start = 100_000, 1000, 2.0**23  # beyond it float32 holds integers
    states = Counter(jnp.full((2, 1), start), jnp.zeros(2, int))
    key = jax.random.key(0)
    found = posterior._average(key, Climb(), model, {}, states, steps, burn_in)
    exact = start + np.arange(burn_in + 1, steps + 1) // 8
    assert abs(float(found.mean[0]) - exact.mean()) <= 1
    assert float(found.std_err[0]) == 0


def test_log_weights_of_many_temperatures():
    # Zero weights: increments do not depend on x, and add up to H (softplus(b) - log 2).
    model = pj.models.rbm(2, 100)
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))
    params["hidden"]["b"] = jnp.full(100, 100.0)
    base = pj.evidence.base_rate(model, jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    betas = jnp.linspace(0, 1, 10_001)
    found = pj.evidence.ais(jax.random.key(0), model, params, base, betas, 2)
    expected = 2 * np.log(2) + 100 * np.logaddexp(0, 100.0)
    np.testing.assert_allclose(found.log_weights, expected, atol=2 * np.spacing(np.float32(1e4)))


def test_rows_are_mapped_in_pieces_with_the_same_derivatives():
    rows, weight = jnp.arange(14.0).reshape(7, 2), jnp.array([0.3, -0.2])

    def total(weight, max_numbers):
        return jnp.sum(
            _numerics.map_rows(lambda row: jnp.sin(row @ weight), rows, 2, max_numbers) ** 2
        )

    whole, pieces = (jax.value_and_grad(total)(weight, size) for size in (100, 4))
    np.testing.assert_allclose(pieces[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(pieces[1], whole[1], rtol=1e-5)


def test_gradients_of_means_over_many_rows():
    """A product of one row with a matrix, of a CPU, would lose 9e-4 of the biases' here."""
    num_rows, model = 400_000, pj.models.rbm(4, 2)
    rng = np.random.default_rng(0)
    x = (rng.random((num_rows, 4)) < 0.7).astype(np.float32)
    w, b = rng.normal(size=(4, 2)), rng.normal(size=2)
    params = model.init(jax.random.key(0))
    params["hidden"] = {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, jnp.float32)}

    def mean(params, x):
        return jax.vmap(model.log_density, in_axes=(None, 0))(params, x).mean()

    found = jax.grad(mean)(params, jnp.asarray(x))
    h = 1 / (1 + np.exp(-(x @ w + b)))
    expected = {"bias": {"field": x.mean(axis=0, dtype=float)}}
    expected["hidden"] = {"w": x.T.astype(float) @ h / num_rows, "b": h.mean(axis=0)}
    jax.tree.map(lambda v, e: np.testing.assert_allclose(v, e, rtol=5e-6), found, expected)
