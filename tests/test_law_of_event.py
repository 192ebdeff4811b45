"""A ladder that is one chain leaves the law of all its replicas invariant, not that of x alone."""

import jax
import jax.numpy as jnp
import pytest

import poejax as pj

KEY = jax.random.key(0)
MODEL = pj.models.rbm(4, 3)
PARAMS = MODEL.init(KEY)
DATA = jnp.asarray(jax.random.bernoulli(KEY, 0.4, (20, 4)), float)
BASE = pj.evidence.base_rate(MODEL, DATA)
LADDER = pj.tempering.replica_exchange(MODEL, (0.6, 0.8, 1.0))
BETAS = pj.evidence.linear_betas(4)

DRIVERS = {
    "ais": lambda kernel: pj.evidence.ais(KEY, MODEL, PARAMS, BASE, BETAS, 4, kernel=kernel),
    "reverse_ais": lambda kernel: pj.evidence.reverse_ais(
        KEY, MODEL, PARAMS, BASE, BETAS, DATA[:4], kernel=kernel
    ),
    "smc": lambda kernel: pj.evidence.smc(
        KEY, MODEL, PARAMS, BASE, num_chains=20, betas=BETAS, kernel=kernel
    ),
    "sample": lambda kernel: pj.tempering.sample(
        KEY, MODEL, PARAMS, BASE, num_chains=2, num_steps=4, betas=BETAS, kernel=kernel
    ),
    "ptt": lambda kernel: pj.estimators.ptt(MODEL, 4, kernel),
    "jarzynski": lambda kernel: pj.estimators.jarzynski(MODEL, 4, kernel=kernel),
    "a ladder of ladders": lambda kernel: pj.tempering.replica_exchange(
        MODEL, (0.5, 1.0), kernel=kernel
    ),
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_weighs_or_replaces_events_refuses_it(driver):
    words = "kernel: expected a kernel that leaves the law of x alone invariant.*ReplicaExchange"
    with pytest.raises(ValueError, match=words):
        DRIVERS[driver](LADDER)


def test_chains_take_it():
    chains = pj.chains.init(KEY, LADDER, PARAMS, num_chains=2)
    chains, _ = pj.chains.run(KEY, LADDER, PARAMS, chains, num_steps=2)
    assert chains.x.shape == (2, 4)
    assert pj.estimators.pcd(MODEL, 4, LADDER).kernel == LADDER
