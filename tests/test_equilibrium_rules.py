"""Rules that keep their samples those of the model: weights on chains, ladders, fast weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ptt_cases import BARS, KEY, MODEL, START

import poejax as pj
from poejax import estimators, experts, units


def modes(seed=0, num_visible=8, num_hidden=4):
    """Bits of two far modes, of masses 0.7 and 0.3."""
    rng = np.random.default_rng(seed)
    side = rng.integers(0, 2, num_visible)
    which = rng.random(2000) < 0.7
    rows = np.where(which[:, None], side, 1 - side)
    rows = np.where(rng.random(rows.shape) < 0.03, 1 - rows, rows)
    visible, hidden = units.Bernoulli(num_visible), units.Bernoulli(num_hidden)
    parts = {"bias": experts.Bias(visible), "hidden": experts.HiddenBank(visible, hidden)}
    return pj.product(visible, **parts), jnp.asarray(rows, jnp.float32)


def trained(estimator, data, num_steps, rate=0.1, seed=0):
    run = pj.training.Run(estimator, optax.sgd(rate), 50)
    state = run.init(jax.random.key(seed), data)
    return run.steps(state, data, num_steps)


@pytest.mark.slow
def test_log_z_along_training_by_weights():
    # The chains of plain PCD lag behind such a rate; weighted they are the model's at every step.
    model, data = modes()
    rule = estimators.jarzynski(model, 2000)
    state, metrics = trained(rule, data, 400)
    exact = float(pj.exact.log_z(model, state.params))
    found = rule.log_z(state.params, state.estimator_state)
    assert abs(float(found.log_z) - exact) < 0.1
    # The info is of the params before the last update.
    assert abs(float(metrics.info.log_z[-1]) - exact) < 0.2
    assert float(metrics.info.log_z[0]) == pytest.approx(12 * np.log(2), abs=0.2)


@pytest.mark.slow
def test_the_weighted_gradient_is_nearer_the_exact_one_than_that_of_chains_left_behind():
    model, data = modes()
    data = data[:500]
    exact = estimators.exact(model)
    errors = {"jarzynski": [], "pcd": []}
    for name in errors:
        rule = getattr(estimators, name)(model, 1000)
        state, _ = trained(rule, data, 200, 0.3)
        for number in range(20):
            key = jax.random.key(number)
            state_of, params = state.estimator_state, state.params
            found = jax.jit(rule.grad)(key, params, state_of, data)[0]
            truth = exact.grad(key, params, (), data)[0]
            gap = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), found, truth)
            errors[name].append(float(sum(jax.tree.leaves(gap))))
    # What is left of the first is noise of 1,000 chains that weights make fewer.
    assert np.mean(errors["jarzynski"]) < np.mean(errors["pcd"])


@pytest.mark.slow
def test_few_effective_chains_are_resampled():
    model, data = modes()
    rule = estimators.jarzynski(model, 200, threshold=0.9)
    _, metrics = trained(rule, data, 100, 0.3)
    never = estimators.jarzynski(model, 200, threshold=0.0)
    _, others = trained(never, data, 100, 0.3)
    assert float(jnp.min(metrics.info.ess[50:])) > float(jnp.min(others.info.ess[50:]))
    with pytest.raises(ValueError, match="threshold"):
        estimators.jarzynski(model, 200, threshold=1.0)


@pytest.mark.slow
def test_fast_weights_drive_chains_off():
    model, data = modes()
    flips = {}
    for rate in (0.0, 0.5):
        rule = estimators.fast_pcd(model, 50, fast_rate=rate)
        state, _ = trained(rule, data, 300, 0.02)
        before = state.estimator_state
        key = jax.random.key(1)
        for number in range(20):
            _, after, _ = jax.jit(rule.grad)(
                jax.random.fold_in(key, number), state.params, before, data[:50]
            )
            flips.setdefault(rate, []).append(
                float(jnp.mean(jnp.abs(after.chains.x - before.chains.x)))
            )
            before = after
    assert np.mean(flips[0.5]) > np.mean(flips[0.0])
    # Without a rate it is persistent contrastive divergence.
    plain, _ = trained(estimators.pcd(model, 50), data, 30)
    same, _ = trained(estimators.fast_pcd(model, 50, fast_rate=0.0), data, 30)
    jax.tree.map(np.testing.assert_array_equal, plain.params, same.params)
    with pytest.raises(ValueError, match="fast_rate"):
        estimators.fast_pcd(model, 50, fast_rate=-1)


@pytest.mark.slow
def test_ladders_learn_two_modes_at_their_masses():
    model, data = modes()
    kernel = pj.tempering.replica_exchange(model, np.linspace(0, 1, 5))
    state, _ = trained(estimators.pcd(model, 100, kernel), data, 2000, 0.05)
    log_z = pj.exact.log_z(model, state.params)
    ceiling = trained(estimators.exact(model), data, 2000, 0.05)[0].params
    ours, best = (
        float(pj.evidence.log_likelihood(model, params, data, z).mean)
        for params, z in [(state.params, log_z), (ceiling, pj.exact.log_z(model, ceiling))]
    )
    assert ours > best - 0.1


def test_hidden_units_are_as_rare_as_wanted():
    model, data = modes()
    activity = {}
    for cost in (0.0, 1.0):
        rule = estimators.sparse(estimators.pcd(model, 50), target=0.1, cost=cost)
        state, _ = trained(rule, data, 1000, 0.05)
        means = jax.vmap(lambda x, p=state.params: model.latent_mean(p, x)["hidden"])(data)
        activity[cost] = np.mean(np.asarray(means), axis=0)
        np.testing.assert_allclose(
            state.estimator_state.activity["hidden"], activity[cost], atol=0.1
        )
    assert np.abs(activity[1.0] - 0.1).mean() < 0.5 * np.abs(activity[0.0] - 0.1).mean()
    for bad in ({"target": -1}, {"cost": np.inf}, {"decay": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            estimators.sparse(estimators.pcd(model, 50), **bad)


def test_weights_by_muon_and_biases_by_adam():
    model, data = modes()
    run = pj.training.Run(estimators.exact(model), optax.contrib.muon(0.02), 50)
    state, _ = run.steps(run.init(jax.random.key(0), data), data, 500)
    log_z = pj.exact.log_z(model, state.params)
    ours = float(pj.evidence.log_likelihood(model, state.params, data, log_z).mean)
    independent = data.mean(axis=0)
    entropy = -np.sum(
        independent * np.log(independent) + (1 - independent) * np.log1p(-independent)
    )
    assert ours > -entropy + 1


def test_spectral_norms_are_largest_singular_values():
    params = {"inner": {"hidden": {"w": jnp.diag(jnp.array([3.0, -7.0])), "b": jnp.zeros(2)}}}
    found = pj.diagnostics.spectral_norms(params)
    assert list(found) == ["inner.hidden"]
    assert float(found["inner.hidden"]) == pytest.approx(7)


def test_log_z_is_open_where_the_reservoir_lost_the_model():
    rule = pj.estimators.ptt(MODEL, 100, freeze_below=0.0, reject_below=0.0)
    run = pj.training.Run(rule, optax.sgd(0.5), 14)
    state, _ = run.steps(run.init(KEY, BARS, START), BARS, 4000)
    found = rule.log_z(state.params, state.estimator_state)
    assert float(found.ess) < 10
    assert (float(found.ci_low), float(found.ci_high)) == (-np.inf, np.inf)
    exact = float(pj.exact.log_z(MODEL, state.params))
    assert abs(float(found.log_z) - exact) > 5 * float(found.std_err)  # as it would have claimed
