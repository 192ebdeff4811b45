"""Replica exchange: laws of its rungs, masses of modes, log Z."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tempering_cases import (
    NUM_CHAINS,
    assert_drawn_from,
    even_base,
    exchanged,
    frequencies,
    ladders,
    mass_of,
    small_rbm,
    two_mode,
)

import poejax as pj
from poejax import tempering, units
from poejax.tempering import _ladder as rungs


@pytest.mark.parametrize(("name", "members"), list(ladders()))
def test_every_rung_keeps_its_law(name, members):
    x, info, _ = exchanged(members.model, members)
    assert members.moves_numbers(jnp.zeros(4)) == (name != "checkpoints")
    for rung in range(members.num_rungs):
        own = members.take(lambda leaf, rung=rung: leaf[rung])
        p = np.asarray(pj.exact.probabilities(members.model, own), float)
        assert_drawn_from(frequencies(members.model, x[:, rung]), p)
    assert float(jnp.mean(info.is_accepted)) > 0.1


def test_a_wrong_sign_would_be_seen(monkeypatch):
    _, members = next(ladders())
    right = rungs._by_number
    monkeypatch.setattr(rungs, "_by_number", lambda *args: right(*args)[::-1])
    x, _, _ = exchanged(members.model, members)
    own = members.take(lambda leaf: leaf[-1])
    p = np.asarray(pj.exact.probabilities(members.model, own), float)
    with pytest.raises(AssertionError):
        assert_drawn_from(frequencies(members.model, x[:, -1]), p)


def test_numbers_and_configurations_move_alike(monkeypatch):
    # The same swaps on either representation: equal acceptance, in law.
    _, members = next(ladders())
    by_number = exchanged(members.model, members)[1]
    monkeypatch.setattr(rungs.Members, "moves_numbers", lambda self, event: False)
    by_configuration = exchanged(members.model, members)[1]
    gap = jnp.mean(by_number.acceptance_rate, 0) - jnp.mean(by_configuration.acceptance_rate, 0)
    tried = by_number.is_tried[0]
    assert float(jnp.max(jnp.abs(jnp.where(tried, gap, 0)))) < 5 * 0.5 / np.sqrt(NUM_CHAINS)


@pytest.mark.slow
def test_rungs_stay_a_permutation_and_trips_are_counted():
    _, members = next(ladders())
    *_, replicas = exchanged(members.model, members, num_steps=12)
    np.testing.assert_array_equal(
        jnp.sort(replicas.rung, axis=1), jnp.tile(jnp.arange(4), (NUM_CHAINS, 1))
    )
    trips = jnp.sum(replicas.num_trips, axis=1)
    assert 0.2 < float(jnp.mean(trips)) < 12 / 2


def test_weights_are_shared_by_temperatures():
    model, params = small_rbm()
    members = rungs.at_temperatures(model, params, jnp.linspace(0, 1, 5), even_base(model))
    assert members.params["target"]["hidden"]["w"] is params["hidden"]["w"]
    assert members.num_rungs == 5


@pytest.mark.slow
def test_masses_of_a_model_of_two_modes():
    model, params, side = two_mode(0)
    exact = mass_of(model, params, side)
    start = jnp.tile(-side, (2000, 1))
    x, report = tempering.sample(
        jax.random.key(0), model, params, even_base(model), num_chains=2000, num_steps=100, x=start
    )
    found = float(np.mean(np.asarray(x) @ side > 0))
    assert abs(found - exact) < 3.5 * np.sqrt(exact * (1 - exact) / 2000)
    assert abs(float(report.log_z.log_z - pj.exact.log_z(model, params))) < 4 * float(
        report.log_z.std_err
    )
    # Block Gibbs alone stays where it started.
    kernel = pj.kernels.block_gibbs(model)
    states = pj.chains.init(jax.random.key(1), kernel, params, 200, start[:200])
    states, _ = pj.chains.run(jax.random.key(2), kernel, params, states, 500)
    assert float(np.mean(np.asarray(states.x) @ side > 0)) < 0.05


@pytest.mark.slow
def test_log_z_over_many_models():
    # One program for all of them; the interval covers 95 %.
    errors, inside = [], 0
    betas = jnp.linspace(0, 1, 6)
    for seed in range(100):
        model, params = small_rbm(seed, 1.5)
        _, report = tempering.sample(
            jax.random.key(seed),
            model,
            params,
            even_base(model),
            num_chains=20,
            num_steps=64,
            betas=betas,
        )
        exact = float(pj.exact.log_z(model, params))
        errors.append((float(report.log_z.log_z) - exact) / float(report.log_z.std_err))
        inside += float(report.log_z.ci_low) <= exact <= float(report.log_z.ci_high)
    assert abs(np.mean(errors)) < 3.5 * np.std(errors) / 10
    assert inside >= 95 - 3 * np.sqrt(100 * 0.95 * 0.05)


@pytest.mark.slow
def test_rungs_are_placed_at_equal_rejection():
    model, params = small_rbm(2, 4.0, units.Bernoulli(10), units.Bernoulli(6))
    _, report = tempering.sample(
        jax.random.key(0), model, params, even_base(model), num_chains=200, num_steps=400
    )
    assert float(report.betas[0]) == 0
    assert float(report.betas[-1]) == 1
    assert np.all(np.diff(report.betas) > 0)
    assert np.ptp(np.asarray(report.acceptance)) < 0.2
    assert float(jnp.min(report.acceptance)) > 0.4
    assert float(report.barrier) == pytest.approx(float(jnp.sum(1 - report.acceptance)))
    assert np.all(np.diff(report.flow) < 0.05)
    assert report.flow[0] == 1
    assert report.flow[-1] == 0


def test_a_trajectory_of_checkpoints_is_a_ladder():
    model, params, side = two_mode(1)
    grid = jnp.linspace(0.1, 1, 8)
    trajectory = jax.tree.map(lambda v: grid.reshape(-1, *[1] * v.ndim) * v, params)
    x, report = tempering.sample_trajectory(
        jax.random.key(0), model, trajectory, even_base(model), num_chains=1000, num_steps=100
    )
    exact = mass_of(model, params, side)
    found = float(np.mean(np.asarray(x) @ side > 0))
    assert abs(found - exact) < 3.5 * np.sqrt(exact * (1 - exact) / 1000)
    assert abs(float(report.log_z.log_z - pj.exact.log_z(model, params))) < 4 * float(
        report.log_z.std_err
    )


def test_it_is_a_kernel():
    model, params, side = two_mode(0)
    kernel = tempering.replica_exchange(model, np.linspace(0, 1, 8), even_base(model))
    again = tempering.replica_exchange(model, np.linspace(0, 1, 8), even_base(model))
    assert kernel == again
    assert hash(kernel) == hash(again)
    assert kernel != tempering.replica_exchange(model, np.linspace(0, 1, 8))
    states = pj.chains.init(jax.random.key(0), kernel, params, 1000, jnp.tile(-side, (1000, 1)))
    states, _ = pj.chains.run(jax.random.key(1), kernel, params, states, 500)
    exact = mass_of(model, params, side)
    found = float(np.mean(np.asarray(states.x) @ side > 0))
    assert abs(found - exact) < 3.5 * np.sqrt(exact * (1 - exact) / 1000)


@pytest.mark.slow
def test_persistent_chains_learn_through_it_and_resume_bitwise():
    model, params, _ = two_mode(0)
    data = jax.vmap(lambda k: pj.exact.sample(k, model, params))(
        jax.random.split(jax.random.key(0), 500)
    )
    kernel = tempering.replica_exchange(model, np.linspace(0, 1, 5))
    import optax

    run = pj.training.Run(pj.estimators.pcd(model, 20, kernel=kernel), optax.sgd(0.01), 50)
    state = run.init(jax.random.key(1), data)
    whole, _ = run.steps(state, data, 6)
    half, _ = run.steps(state, data, 3)
    half, _ = run.steps(half, data, 3)
    jax.tree.map(np.testing.assert_array_equal, whole.params, half.params)
    jax.tree.map(np.testing.assert_array_equal, whole.estimator_state.x, half.estimator_state.x)


@pytest.mark.slow
def test_masses_of_a_hundred_models_of_two_modes():
    # All ladders start in one mode; they are independent, so the errors are binomial.
    squares = []
    for seed in range(100):
        model, params, side = two_mode(100 + seed)
        exact = mass_of(model, params, side)
        x, _ = tempering.sample(
            jax.random.key(seed),
            model,
            params,
            even_base(model),
            num_chains=200,
            num_steps=128,
            x=jnp.tile(-side, (200, 1)),
        )
        found = float(np.mean(np.asarray(x) @ side > 0))
        squares.append((found - exact) ** 2 / (exact * (1 - exact) / 200))
    assert abs(np.mean(squares) - 1) < 3 * np.sqrt(2 / 100)


def test_rungs_that_see_nothing_of_each_other_leave_log_z_open():
    visible = units.Bernoulli(200)
    model = pj.product(visible, bias=pj.experts.Bias(visible))
    params = {"bias": {"field": jnp.where(jnp.arange(200) % 2, 4.0, -4.0)}}
    halves = jnp.arange(4)[:, None] % 2 * jnp.ones(200)
    base = pj.evidence.base_rate(model, halves)
    with pytest.warns(UserWarning, match="exchange with probability"):
        _, report = tempering.sample(
            jax.random.key(0),
            model,
            params,
            base,
            num_chains=4,
            num_steps=8,
            betas=jnp.array([0.0, 1.0]),
        )
    assert np.isfinite(report.log_z.log_z)
    assert np.isfinite(report.log_z.log_weights).all()
    assert (float(report.log_z.ci_low), float(report.log_z.ci_high)) == (-np.inf, np.inf)
