"""A precision that runs away in training is stopped and named, and the last good state kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import estimators, experts, training, units


def test_a_constant_column_under_a_wild_optimizer():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(100, 3))
    data[1:, 0], data[0, 0] = 0.0, 1e-30
    data = jnp.asarray(data, jnp.float32)
    visible = units.GaussianDiag(3)
    model = pj.product(visible, bias=experts.Bias(visible))
    # Plain steps along the log precision: none of a clipped gradient ever points back.
    tx = optax.chain(optax.clip(1.0), optax.sgd(5.0))
    estimator = estimators.exact(model)
    state = training.init(jax.random.key(0), model, estimator, tx, data)
    last_good = [state]

    def train():
        for _ in range(20):
            last_good.append(training.train_steps(estimator, tx, last_good[-1], data, 100, 5)[0])

    with pytest.raises(FloatingPointError, match=r"log_precision'\] has run away by step \d+"):
        train()
    state = last_good[-1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert int(state.step) % 5 == 0


@pytest.mark.slow
def test_what_is_scaled_runs_nowhere():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(100, 2)) * [1e-6, 10] + [0, 300]
    model = pj.models.gaussian_rbm(2, 2)
    params = model.init_from(jax.random.key(0), data)
    estimator, tx = estimators.pcd(model, 50), optax.sgd(0.05)
    state = training.init(jax.random.key(0), model, estimator, tx, data, params=params)
    state, _ = training.train_steps(estimator, tx, state, data, 50, 100)
    field = state.params["bias"]["field"]
    assert float(jnp.max(jnp.abs(field["log_precision"]))) < 2
