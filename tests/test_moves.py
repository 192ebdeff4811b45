"""How far chains move: flip rate and autocorrelation, and the info of persistent chains."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import _moves, units
from poejax.diagnostics import autocorrelation, flip_rate


def test_flip_rate_is_a_share_of_sites():
    before = {"a": jnp.eye(4)[jnp.array([[0, 1, 2], [3, 0, 1]])], "b": jnp.zeros((2, 2))}
    after = {"a": jnp.eye(4)[jnp.array([[0, 2, 2], [3, 1, 0]])], "b": jnp.array([[0.0, 1], [0, 0]])}
    assert flip_rate(before, after) == pytest.approx(4 / 10)
    assert flip_rate(before, before) == 0


def test_so_many_sites_are_counted_to_the_last():
    # Beyond 2^24 a float32 that is counted up by ones stands still.
    before = jnp.zeros((20_000, 1_000))
    assert float(flip_rate(before, before + 1)) == 1
    after = before.at[::2].set(1)
    assert float(flip_rate(before, after)) == 0.5


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95])
def test_autocorrelation_is_that_of_the_chains(rho):
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.5, 2, size=20)
    x = rng.normal(size=(500, 20))
    y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=x.shape)
    found = float(autocorrelation(3 + scales * x, 3 + scales * y))
    weights = scales**2 / np.sum(scales**2)
    # Of 500 pairs a correlation has the error (1 - rho²) / √500; over sites it averages.
    error = (1 - rho**2) / np.sqrt(500) * np.sqrt(np.sum(weights**2))
    assert abs(found - rho) < 4 * error
    assert abs(found - (rho - 0.2)) > 4 * error


def test_chains_in_modes_of_their_own_keep_the_share_between_them():
    rng = np.random.default_rng(1)
    modes = rng.choice([-1, 1], size=(1000, 1))
    x, y = (2 * modes + rng.normal(size=(1000, 30)) for _ in range(2))
    assert float(autocorrelation(x, y)) == pytest.approx(0.8, abs=0.01)
    assert abs(float(autocorrelation(x, np.random.default_rng(2).permuted(y, axis=0)))) < 0.03


def test_what_does_not_differ_has_forgotten_nothing():
    assert autocorrelation(np.ones((5, 3)), np.ones((5, 3))) == 1
    assert autocorrelation(np.ones((1, 3)), np.zeros((1, 3))) == 1


@pytest.mark.parametrize("unit", [units.Bernoulli(7), units.Spin(7), units.Binomial(7, 1)])
def test_the_short_way_of_two_values_is_the_long_one(unit):
    keys = jax.random.split(jax.random.key(0), 40)
    before = jax.vmap(unit.random_event)(keys[:20])
    flips = jax.vmap(unit.random_event)(keys[20:])
    after = jnp.where(jnp.arange(7) < 3, flips, before)
    found = _moves.moved(unit, before, after)
    np.testing.assert_allclose(found[0], flip_rate(before, after), rtol=1e-5)
    np.testing.assert_allclose(found[1], autocorrelation(before, after), rtol=1e-5)
    assert 0 < found[0] < 1
    assert _moves.moved(unit, before, before) == (0, 1)


MODELS = {
    "bits": pj.models.rbm(9, 4),
    "spins": pj.product(
        units.Spin(9), hidden=pj.experts.HiddenBank(units.Spin(9), units.Bernoulli(4))
    ),
    "real": pj.models.gaussian_rbm(9, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("is_centered", [False, True])
def test_training_reports_its_persistent_chains(name, is_centered):
    model = MODELS[name]
    rule = pj.estimators.pcd(model, 50)
    if is_centered and name != "spins":
        rule = pj.estimators.centered(rule)
    data = jax.vmap(model.visible.random_event)(jax.random.split(jax.random.key(0), 32))
    run = pj.training.Run(rule, optax.sgd(1e-3), 8)
    state = run.init(jax.random.key(1), data)
    whole, metrics = run.steps(state, data, 6)
    info = metrics.info
    assert isinstance(info, pj.types.PersistentInfo)
    assert {f.shape for f in info} == {(6,)}
    xs = []
    for _ in range(6):
        inner = getattr(state.estimator_state, "inner", state.estimator_state)
        xs.append(inner.x)
        state, _ = run.steps(state, data, 1)
    xs.append(getattr(state.estimator_state, "inner", state.estimator_state).x)
    # One by one they are the same run, and what is reported is what happened to the chains.
    np.testing.assert_array_equal(
        xs[-1], getattr(whole.estimator_state, "inner", whole.estimator_state).x
    )
    for step, (x, y) in enumerate(itertools.pairwise(xs)):
        assert info.flip_rate[step] == pytest.approx(np.mean(np.asarray(x != y)), abs=1e-6)
        x, y = np.asarray(x, float), np.asarray(y, float)
        rho = 1 - np.sum((y - x) ** 2) / 50 / np.sum(x.var(axis=0) + y.var(axis=0))
        assert info.autocorrelation[step] == pytest.approx(rho, abs=1e-4)
    assert (info.flip_rate == 1).all() if name == "real" else (info.flip_rate < 1).all()


def test_chains_that_hardly_move_are_seen_in_the_info():
    model = MODELS["bits"]
    params = model.init(jax.random.key(0))
    strong = params | {
        "hidden": params["hidden"] | {"w": 9.0 * jnp.ones((9, 4)), "b": jnp.full(4, -40.0)}
    }
    strong |= {"bias": {"field": jnp.full(9, -18.0)}}
    x = jnp.concatenate([jnp.zeros((25, 9)), jnp.ones((25, 9))])
    rule = pj.estimators.pcd(model, 50)
    for given, slow in ((params, False), (strong, True)):
        state = rule.init(jax.random.key(1), given, x)
        info = rule.grad(jax.random.key(2), given, state, x)[2]
        assert (float(info.autocorrelation) > 0.9) == slow
        assert (float(info.flip_rate) < 0.05) == slow


def test_shapes_that_differ_and_missing_values_are_not_broadcast():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (8, 5)).astype(np.float32)
    for figure in (pj.diagnostics.flip_rate, pj.diagnostics.autocorrelation):
        for other in (x[:1], x[:, :1]):
            with pytest.raises(ValueError, match="after: expected shapes as of before"):
                figure(x, other)
        with pytest.raises(ValueError, match="before: expected at least one row"):
            figure(x[:0], x[:0])
        assert np.isnan(float(figure(x * np.nan, x)))


def test_what_lies_far_from_zero_is_centred_in_its_own_precision():
    rng = np.random.default_rng(0)
    x = 1e4 + 1e-3 * rng.normal(size=(200, 3))
    y = x + 3e-4 * rng.normal(size=x.shape)
    exact = 1 - ((y - x) ** 2).mean(axis=0).sum() / (x.var(axis=0) + y.var(axis=0)).sum()
    assert float(pj.diagnostics.autocorrelation(x, y)) == pytest.approx(exact, rel=1e-5)
