"""A minute's walk through the library; also run on a second Python by .ci/run."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import poejax as pj
from poejax import datasets, training


def test_train_evaluate_and_restore(tmp_path):
    x = jnp.asarray(datasets.bars_and_stripes(3))
    model = pj.models.rbm(9, 8)
    estimator = pj.estimators.centered(pj.estimators.pcd(model, num_chains=50), model)
    tx = optax.adam(0.02)
    state = training.init(jax.random.key(0), model, estimator, tx, x)
    state, _ = training.train_steps(estimator, tx, state, x, batch_size=16, num_steps=500)
    base = pj.evidence.base_rate(model, x)
    betas = pj.evidence.linear_betas(500)
    log_z = pj.evidence.ais(jax.random.key(1), model, state.params, base, betas, num_chains=100)
    truth = pj.exact.log_z(model, state.params)
    assert abs(float(log_z.log_z - truth)) < 4 * float(log_z.std_err)
    pj.checkpoint.save(tmp_path, state)
    restored = pj.checkpoint.restore(tmp_path, state)
    np.testing.assert_array_equal(restored.params["hidden"]["w"], state.params["hidden"]["w"])


def test_importing_poejax_is_cheap():
    # In a fresh process: none of the optional rooms' packages, and little beyond jax itself.
    code = """
import time
import jax
start = time.process_time()  # of this process, whatever else the machine does
import poejax
seconds = time.process_time() - start
import sys
heavy = {"flax", "orbax", "matplotlib", "sklearn", "mlxtend", "pooch", "scipy.stats", "tqdm"}
heavy |= {"blackjax", "grain", "h5py"}
print(seconds, sorted(heavy & sys.modules.keys()))
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
assert seconds < 0.5, seconds
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attribute_is_an_attribute_error():
    assert not hasattr(pj, "nonsense")
    assert "training" in dir(pj)
