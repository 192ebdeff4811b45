"""What a chain draws and what a run learns does not depend on the number of devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import poejax as pj
from poejax import training

MODEL = pj.models.rbm(24, 16)
KERNEL = pj.kernels.block_gibbs(MODEL)


@pytest.fixture
def over_chains():
    assert len(jax.devices()) == 8, "tests/conftest.py asks for 8 virtual devices"
    return NamedSharding(Mesh(np.array(jax.devices()), ("chains",)), PartitionSpec("chains"))


@pytest.mark.slow
def test_chains_are_bitwise_the_same_on_1_and_8_devices(random_params, over_chains):
    params = random_params(MODEL)
    one = pj.chains.init(jax.random.key(1), KERNEL, params, 64)
    eight = jax.device_put(one, over_chains)
    a, _ = pj.chains.run(jax.random.key(2), KERNEL, params, one, 20)
    b, _ = pj.chains.run(jax.random.key(2), KERNEL, params, eight, 20)
    assert len(b.x.sharding.device_set) == 8
    np.testing.assert_array_equal(a.x, b.x)


def test_clamped_chains_too(random_params, over_chains):
    params = random_params(MODEL)
    mask = jnp.arange(24) < 8
    x = jnp.ones((64, 24))
    one = pj.chains.init(jax.random.key(1), KERNEL, params, 64, x=x, clamp=mask)
    a, _ = pj.chains.run(jax.random.key(2), KERNEL, params, one, 5)
    b, _ = pj.chains.run(jax.random.key(2), KERNEL, params, jax.device_put(one, over_chains), 5)
    np.testing.assert_array_equal(a.x, b.x)
    assert bool((b.x[:, :8] == 1).all())


@pytest.mark.slow
def test_training_with_sharded_chains_learns_the_same(over_chains):
    x = jax.random.bernoulli(jax.random.key(0), 0.3, (64, 24)).astype(jnp.uint8)
    estimator = pj.estimators.pcd(MODEL, 64)
    tx = optax.sgd(0.05)
    state = training.init(jax.random.key(1), MODEL, estimator, tx, x)
    sharded = state._replace(estimator_state=jax.device_put(state.estimator_state, over_chains))
    a, _ = training.train_steps(estimator, tx, state, x, 16, 5)
    b, _ = training.train_steps(estimator, tx, sharded, x, 16, 5)
    # Sums over chains run in another order on 8 devices, so the last bits may differ.
    for left, right in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-6)


@pytest.mark.slow
def test_ais_with_sharded_chains_gives_the_same_weights(random_params, over_chains):
    params = random_params(MODEL, scale=0.3)
    x = jax.random.bernoulli(jax.random.key(0), 0.3, (64, 24)).astype(float)
    base, betas = pj.evidence.base_rate(MODEL, x), pj.evidence.linear_betas(50)
    one = pj.evidence.ais_init(jax.random.key(3), MODEL, params, base, betas, 16)
    eight = one._replace(
        chains=jax.device_put(one.chains, over_chains),
        log_weights=jax.device_put(one.log_weights, over_chains),
    )
    a = pj.evidence.ais_steps(one, MODEL, params, base, betas, 50)
    b = pj.evidence.ais_steps(eight, MODEL, params, base, betas, 50)
    np.testing.assert_allclose(a.log_weights, b.log_weights, atol=1e-4)
    np.testing.assert_array_equal(a.chains.x, b.chains.x)
