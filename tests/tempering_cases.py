"""Models of known masses, ladders over them, and how draws are held to their law."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import poejax as pj
from poejax import experts, units
from poejax.tempering import _ladder as rungs

NUM_CHAINS = 20_000


def small_rbm(seed=0, scale=1.0, visible=None, hidden=None):
    visible = units.Bernoulli(4) if visible is None else visible
    hidden = units.Bernoulli(3) if hidden is None else hidden
    parts = {"bias": experts.Bias(visible), "hidden": experts.HiddenBank(visible, hidden)}
    model = pj.product(visible, **parts)
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    rng = np.random.default_rng(seed)
    drawn = [jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return model, jax.tree.unflatten(tree, drawn)


def two_mode(seed, num_visible=16, num_hidden=12):
    """A spin RBM of two modes that block Gibbs does not leave, and which side is the first."""
    rng = np.random.default_rng(seed)
    visible, hidden = units.Spin(num_visible), units.Spin(num_hidden)
    parts = {"bias": experts.Bias(visible), "hidden": experts.HiddenBank(visible, hidden)}
    side = np.sign(rng.normal(size=num_visible))
    w = rng.uniform(0.2, 0.3) * np.outer(side, np.sign(rng.normal(size=num_hidden)))
    w = w + 0.02 * rng.normal(size=w.shape)
    field = rng.uniform(-0.04, 0.04) * side
    params = {"bias": {"field": field}, "hidden": {"w": w, "b": np.zeros(num_hidden)}}
    params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params)
    return pj.product(visible, **parts), params, side


def mass_of(model, params, side):
    """The exact probability that x lies on the first side."""
    states = np.asarray(jax.vmap(model.visible.state_at)(jnp.arange(model.visible.num_states)))
    p = np.asarray(pj.exact.probabilities(model, params), float)
    return p[states @ side > 0].sum() + 0.5 * p[states @ side == 0].sum()


def even_base(model):
    """Independent units, all values of equal odds."""
    rows = jax.vmap(model.visible.state_at)(jnp.array([0, model.visible.num_states - 1]))
    return pj.evidence.base_rate(model, rows)


def frequencies(model, x):
    """Counts of every state of small discrete units among events."""
    states = jax.vmap(model.visible.state_at)(jnp.arange(model.visible.num_states))
    flat = np.asarray(states).reshape(len(states), -1)
    rows = np.asarray(x).reshape(len(x), -1)
    return (rows[:, None] == flat).all(axis=-1).sum(axis=0)


def assert_drawn_from(counts, p):
    z = (counts - counts.sum() * p) / np.sqrt(np.maximum(counts.sum() * p * (1 - p), 1e-9))
    assert np.abs(z).max() < 5, z


def exchanged(model, members_of_rungs, num_steps=3, change=None):
    """Ladders that start at exact samples of every rung, after some steps, by rung [C, K, D]."""
    members = members_of_rungs
    keys = jax.random.split(jax.random.key(3), members.num_rungs)
    axes = members.axes
    exact = jax.vmap(
        lambda key, p: jax.vmap(lambda k: pj.exact.sample(k, members.model, p))(
            jax.random.split(key, NUM_CHAINS)
        ),
        (0, axes),
        1,
    )(keys, members.params)
    kernel = pj.kernels.block_gibbs(members.model)

    @jax.jit
    def go(exact):
        ladders = jax.vmap(lambda k, x: rungs.start(k, members, kernel, x))(
            jax.random.split(jax.random.key(4), NUM_CHAINS), exact
        )

        def step(key, ladder):
            return rungs.step(key, members, kernel, ladder)

        for number in range(num_steps):
            keys = jax.random.split(jax.random.key(5 + number), NUM_CHAINS)
            ladders, info, _ = jax.vmap(step)(keys, ladders)
        order = jnp.argsort(ladders.rung, axis=1)
        return jax.vmap(lambda x, o: x[o])(ladders.states.x, order), info, ladders

    return go(exact)


def ladders():
    model, params = small_rbm()
    base = even_base(model)
    betas = jnp.array([0.0, 0.3, 0.6, 1.0])
    yield "temperatures", rungs.at_temperatures(model, params, betas, base)
    yield "without a base", rungs.at_temperatures(model, params, betas)
    rows = [jax.tree.map(lambda v, b=b: b * v, params) for b in (0.2, 0.7, 1.0)]
    checkpoints = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    yield "checkpoints", rungs.along_training(model, checkpoints, base)
