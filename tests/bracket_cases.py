"""Trained models small enough to enumerate, and brackets of them from exact samples."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import poejax as pj
from poejax import evidence

SMALL = pj.models.rbm(9, 6)


def exact_events(key, model, params, count):
    log_p = jnp.log(pj.exact.probabilities(model, params))
    return jax.vmap(model.visible.state_at)(jax.random.categorical(key, log_p, shape=(count,)))


def trained(model, data, seed, num_steps=1000, rate=0.1):
    """Parameters by persistent contrastive divergence."""
    run = pj.training.Run(pj.estimators.pcd(model, 100), optax.sgd(rate), batch_size=20)
    state = run.init(jax.random.key(seed), data)
    return run.steps(state, data, num_steps)[0].params


@functools.cache
def bars():
    data = pj.datasets.bars_and_stripes(3)
    return jnp.asarray(np.concatenate([data] * 2), jnp.float32)


def bracket_of(seed, model, params, x, betas, data=None, num_chains=100):
    """Anneal both ways, from a base of `data` and from the samples `x`."""
    forward_key, reverse_key = jax.random.split(jax.random.key(seed))
    base = evidence.base_rate(model, x if data is None else data)
    return evidence.bracket(
        evidence.ais(forward_key, model, params, base, betas, num_chains),
        evidence.reverse_ais(reverse_key, model, params, base, betas, x[:num_chains]),
    )


def modes(strength):
    """A model of two modes, all zeros and all ones, samples of it, and a base."""
    model = pj.models.rbm(12, 1)
    params = {
        "bias": {"field": jnp.full(12, -strength / 2)},
        "hidden": {"w": jnp.full((12, 1), strength), "b": jnp.array([-6 * strength])},
    }
    x = exact_events(jax.random.key(0), model, params, 200)
    return model, params, x, evidence.base_rate(model, x)
