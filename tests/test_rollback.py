"""Rollback: runs that go on from the last good point where an update went wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import bitwise
from ptt_cases import BARS, KEY, MODEL, PTT, START

import poejax as pj
from poejax.training import Rollback, Run


@pytest.mark.slow
def test_an_update_that_loses_overlap_is_taken_back():
    def leap(step):
        return jnp.where(step == 20, 300.0, 0.05)

    run = Run(PTT, optax.sgd(leap), 16, rollback=Rollback(patience=10))
    start = run.init(KEY, BARS, START)
    state, metrics = run.steps(start, BARS, 60)
    rejected = np.flatnonzero(metrics.is_rejected)
    # The optimizer goes back too, so that the leap is tried again, half as far each time.
    assert rejected[0] == 21
    assert rejected.size == int(state.rollback.num_rejected) < 20
    wild, metrics = Run(PTT, optax.sgd(leap), 16).steps(start, BARS, 60)
    assert metrics.is_rejected is None
    assert bool(metrics.info.is_rejected[21])
    careful, reckless = (np.abs(s.params["hidden"]["w"]).max() for s in (state, wild))
    assert careful < 0.1 * reckless
    log_z, exact = (
        f(state.params)
        for f in (
            lambda p: PTT.log_z(p, state.estimator_state).log_z,
            lambda p: pj.exact.log_z(MODEL, p),
        )
    )
    assert float(log_z) == pytest.approx(float(exact), abs=0.5)


def poisoned(step_of_nan):
    """Plain descent, but for one update that is not finite."""

    def init(params):
        return jnp.zeros((), jnp.int32)

    def update(grads, count, params=None):
        del params
        rate = jnp.where(count == step_of_nan, jnp.nan, -0.05)
        return jax.tree.map(lambda g: rate * g, grads), count + 1

    return optax.GradientTransformation(init, update)


class NaNOnce:
    """Contrastive divergence, whose gradient is not finite at one update."""

    model = MODEL

    def init(self, rng_key, params, data):
        return jnp.zeros((), jnp.int32)

    def grad(self, rng_key, params, state, batch):
        grads, _, info = pj.estimators.cd(MODEL).grad(rng_key, params, (), batch)
        bad = jnp.where(jax.random.uniform(rng_key) < 0.1, jnp.nan, 1.0)
        return jax.tree.map(lambda g: bad * g, grads), state + 1, info


@pytest.mark.slow
def test_steps_that_are_not_finite_raise_unless_rollback_is_asked_for():
    plain = Run(NaNOnce(), optax.adam(0.01), 8)
    state = plain.init(KEY, BARS, START)
    with pytest.raises(FloatingPointError, match="is not finite at step"):
        plain.steps(state, BARS, 50)
    run = Run(NaNOnce(), optax.adam(0.01), 8, average=True, rollback=Rollback(patience=5))
    state, metrics = run.steps(run.init(KEY, BARS, START), BARS, 50)
    num_bad = int(np.isnan(np.asarray(metrics.grad_norm)).sum())
    assert num_bad > 0
    assert np.array_equal(metrics.is_rejected, np.isnan(metrics.grad_norm))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.average)))
    # What was rejected left no trace in the estimator, nor in the count of the optimizer.
    assert int(state.estimator_state) == 50 - num_bad
    assert 50 - 2 * num_bad <= int(state.opt_state[0].count) <= 50 - num_bad
    assert 0 < int(state.rollback.level) <= num_bad


def test_a_run_without_a_way_on_raises():
    run = Run(pj.estimators.cd(MODEL), poisoned(3), 8, rollback=Rollback(limit=4))
    state = run.init(KEY, BARS, START)
    with pytest.raises(FloatingPointError, match="more than 4 updates were taken back"):
        run.steps(state, BARS, 20)


@pytest.mark.slow
def test_rollback_that_is_not_needed_changes_nothing_and_may_begin_and_end():
    plain, careful = (
        Run(pj.estimators.pcd(MODEL, 20), optax.adam(0.01), 8, rollback=rollback)
        for rollback in (None, Rollback())
    )
    start = plain.init(KEY, BARS, START)
    assert start.rollback is None
    end, metrics = plain.steps(start, BARS, 12)
    assert metrics.is_rejected is None
    six, _ = careful.steps(start, BARS, 6)
    both, _ = plain.steps(six, BARS, 6)
    assert both.rollback is None
    assert bitwise(both, end)


@pytest.mark.slow
def test_rollback_in_a_stream_is_that_in_memory():
    rows = np.asarray(BARS)
    run = Run(NaNOnce(), optax.adam(0.01), 8, rollback=Rollback())
    state = run.init(KEY, BARS, START)
    expected, _ = run.steps(state, BARS, 20)
    found, _ = run.steps(state, pj.streams.Rows(rows), 20)
    assert bitwise(found, expected)


@pytest.mark.parametrize("change", [{"factor": 1.0}, {"factor": 0}, {"patience": 0}, {"limit": 0}])
def test_bad_rollback(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Rollback(**change)
    with pytest.raises(TypeError, match="rollback: expected a Rollback or None"):
        Run(PTT, optax.sgd(0.1), 5, rollback=0.5)
