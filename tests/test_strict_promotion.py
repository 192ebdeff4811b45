"""Nothing relies on dtypes being promoted in silence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import estimators, evidence, mixtures, training

KEY = jax.random.key(0)
RBM = pj.models.rbm(3, 2)
REALS = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
BITS = jnp.asarray(REALS > 0)
FLOATS = BITS.astype(jnp.float32)


def learn():
    run = training.Run(estimators.pcd(RBM, 8), optax.sgd(0.1), 10, average=True)
    return run.steps(run.init(KEY, BITS), BITS, 3)


def anneal():
    base = evidence.base_rate(RBM, BITS)
    return evidence.ais(KEY, RBM, RBM.init(KEY), base, evidence.linear_betas(5), 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        lambda: mixtures.fit_em(KEY, REALS, 2),
        lambda: mixtures.fit_em(KEY, jnp.asarray(np.round(5 * REALS), jnp.int32), 2),
        lambda: mixtures.fit_em_bernoulli(KEY, BITS, 2),
        lambda: mixtures.kmeans(KEY, REALS, 2),
        lambda: pj.models.gaussian_rbm(3, 2).init_from(KEY, REALS),
        lambda: pj.exact.log_z(RBM, RBM.init(KEY)),
        lambda: pj.diagnostics.pseudo_log_likelihood(KEY, RBM, RBM.init(KEY), FLOATS[0]),
        lambda: pj.inference.denoise(
            KEY, RBM, RBM.init(KEY), FLOATS[:4], pj.inference.BitFlips(0.1), num_steps=2, burn_in=1
        ),
        learn,
        anneal,
    ],
)
def test_under_strict_promotion(call):
    with jax.numpy_dtype_promotion("strict"):
        call()
