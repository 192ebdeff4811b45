"""Machines and estimators that need no samples; exact events of a real machine."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import poejax as pj
from poejax import estimators, units
from poejax.experts import Bias, HiddenBank


def bank_over(visible, hidden=None):
    bank = HiddenBank(visible, hidden or units.Bernoulli(2))
    return pj.product(visible, bias=Bias(visible), hidden=bank)


BINARY = bank_over(units.Bernoulli(4))
SPIN = bank_over(units.Spin(3))
ONE_HOT = bank_over(units.Categorical(2, 3))
REAL = pj.models.gaussian_rbm(2, 3)
DISCRETE = {
    "pseudo": estimators.pseudo_likelihood(BINARY),
    "pseudo-spin": estimators.pseudo_likelihood(SPIN),
    "pseudo-one-hot": estimators.pseudo_likelihood(ONE_HOT),
    "flow": estimators.minimum_probability_flow(BINARY),
    "flow-spin": estimators.minimum_probability_flow(SPIN),
    "flow-one-hot": estimators.minimum_probability_flow(ONE_HOT),
    "ratio": estimators.ratio_matching(BINARY),
    "ratio-spin": estimators.ratio_matching(SPIN),
}
NOISE = 0.6
CONTINUOUS = {
    "exact": estimators.score_matching(REAL),
    "sliced": estimators.score_matching(REAL, 1),
    "sliced-gaussian": estimators.score_matching(REAL, 2, "gaussian"),
    "denoising": estimators.denoising_score_matching(REAL, NOISE),
}


def random_params(model, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(scale * rng.normal(size=s.shape), float), shapes)


@functools.partial(jax.jit, static_argnums=0)
def gradient(estimator, rng_key, params, x):
    """Gradient as one vector, and the loss."""
    grads, state, info = estimator.grad(rng_key, params, (), x)
    assert state == ()
    return ravel_pytree(grads)[0], info


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float)


TRUTH = jax.tree.map(lambda v: 0.7 * v, random_params(REAL, 5))
NUM_EVENTS = 20_000


def exact_events(params, variance=0.0):
    """Draw from the machine, or from what becomes it when noise of `variance` is added."""

    def log_weight(z):
        latents = {"bias": (), "hidden": z}
        field = REAL.visible_field(params, latents)
        return REAL.latent_log_weight(params, latents) + REAL.visible.log_partition(field), field

    log_p, field = jax.vmap(log_weight)(units.Bernoulli(3).states())
    index = jax.random.categorical(jax.random.key(0), log_p, shape=(NUM_EVENTS,))
    noise = jax.random.normal(jax.random.key(1), (NUM_EVENTS, 2))
    scale = jnp.sqrt(1 / field["precision"] - variance)
    mean = field["linear"] / field["precision"]
    return mean[index] + scale[index] * noise
