"""One value for a run: its model, equality by value, callbacks, and parameters of no product."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import bitwise
from test_training import BARS, MODEL, PCD, TX

import poejax as pj
from poejax import _by_value, datasets, estimators, training

KEY = jax.random.key(0)
RATE = 0.1


def schedule(rate, num_steps):
    return lambda count: rate * (1 - count / num_steps)


def builders():
    """Optimizers, each built anew by every call."""
    return {
        "adam": lambda rate: optax.adam(rate),
        "chain": lambda rate: optax.chain(
            optax.add_decayed_weights(rate, mask=training.weights_only), optax.sgd(rate)
        ),
        "joined": lambda rate: optax.sgd(
            optax.join_schedules([optax.constant_schedule(rate), schedule(rate, 9)], [3])
        ),
        "injected": lambda rate: optax.inject_hyperparams(optax.sgd)(learning_rate=rate),
        "of the loss": lambda rate: optax.chain(
            optax.sgd(rate), optax.contrib.reduce_on_plateau(factor=0.5)
        ),
        "lambda": lambda rate: optax.stateless(lambda g, p: jax.tree.map(lambda v: -rate * v, g)),
    }


@pytest.mark.parametrize("name", builders())
def test_runs_are_equal_by_what_they_do(name):
    build = builders()[name]

    def run(rate=0.1, size=8, **options):
        return training.Run(estimators.pcd(pj.models.rbm(9, 6), 20), build(rate), size, **options)

    assert run() == run()
    assert hash(run()) == hash(run())
    others = [run(0.2), run(size=4), run(average=True), run(average_decay=0.9)]
    others += [run(preprocess=datasets.stochastic)]
    assert all(run() != other for other in others)
    assert run() != "run"


def test_functions_count_as_their_code_closure_and_globals(monkeypatch):
    def scaled(factor):
        def apply(x):
            return [factor * RATE * v for v in x]

        return apply

    assert _by_value.of(scaled(2.0)) == _by_value.of(scaled(2.0))
    assert _by_value.of(scaled(2.0)) != _by_value.of(scaled(2))
    assert _by_value.of(functools.partial(scaled, 1)) == _by_value.of(functools.partial(scaled, 1))
    before = _by_value.of(scaled(2.0))
    monkeypatch.setitem(globals(), "RATE", 0.2)
    assert _by_value.of(scaled(2.0)) != before
    array = jnp.ones(3)
    assert _by_value.of(scaled(array)) == _by_value.of(scaled(array))
    assert _by_value.of(scaled(array)) != _by_value.of(scaled(jnp.ones(3)))

    def recursive(n):
        return recursive(n - 1) if n else undefined

    assert _by_value.of(recursive) == _by_value.of(recursive)
    undefined = 1


@pytest.mark.slow
def test_equal_runs_compile_nothing(compiles_nothing):
    def go(seed):
        run = training.Run(
            estimators.centered(estimators.pcd(pj.models.rbm(9, 6), 20)),
            optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(schedule(0.1, 10))),
            8,
            preprocess=lambda key, rows: rows.astype(jnp.float32),
            average=True,
        )
        return run.steps(run.init(jax.random.key(seed), BARS), BARS, 3)

    go(0)
    go(1)
    with compiles_nothing():
        go(2)


def test_the_model_need_not_be_named_again():
    rule = estimators.centered(PCD)
    assert rule == estimators.centered(PCD, MODEL)
    assert estimators.imputed(rule) == estimators.imputed(rule, MODEL)
    assert estimators.imputed(rule).model == MODEL
    states = [
        training.init(KEY, rule, TX, BARS, average=True),
        training.init(KEY, MODEL, rule, TX, BARS, average=True),
        training.init(KEY, model=MODEL, estimator=rule, tx=TX, data=BARS, average=True),
        training.Run(rule, TX, 8, average=True).init(KEY, BARS),
    ]
    assert all(bitwise(states[0], state) for state in states[1:])
    with pytest.raises(ValueError, match="estimator: expected one of"):
        training.init(KEY, pj.models.rbm(9, 7), rule, TX, BARS)
    with pytest.raises(TypeError, match="model: expected a product of experts, got"):
        training.init(KEY, rule, MODEL, TX, BARS)
    with pytest.raises(TypeError, match=r"init: expected \(rng_key, estimator, tx, data\) or"):
        training.init(KEY, rule, TX)
    with pytest.raises(ValueError, match="expected an estimator of a model, got one that names no"):
        estimators.centered(estimators.from_loss(lambda key, params, x: 0.0))


def test_every_rule_knows_its_model_and_its_rows():
    real = pj.models.gaussian_rbm(4, 3)
    rules = [PCD, estimators.cd(MODEL), estimators.exact(MODEL), estimators.centered(PCD)]
    rules += [estimators.pseudo_likelihood(MODEL), estimators.score_matching(real)]
    rules += [estimators.blend(MODEL, a=(PCD, 1.0))]
    assert all(rule.check_data is None and rule.model in (MODEL, real) for rule in rules)
    assert callable(estimators.imputed(PCD).check_data)


@pytest.mark.slow
def test_chunks_and_their_callbacks_change_nothing():
    run, seen = training.Run(PCD, TX, 5, average=True), []
    whole, metrics = run.steps(run.init(KEY, BARS), BARS, 7)

    def look(state, metrics):
        seen.append((int(state.step), metrics.grad_norm.shape[0]))

    pieces, others = run.steps(run.init(KEY, BARS), BARS, 7, look, every=3)
    assert seen == [(3, 3), (6, 3), (7, 1)]
    assert bitwise(whole, pieces)
    assert bitwise(metrics, others)
    with pytest.raises(ValueError, match="every: expected an integer of at least 1, got 0"):
        run.steps(whole, BARS, 2, every=0)


@pytest.mark.slow
def test_a_bare_network_learns_by_the_same_loop():
    x = jax.random.normal(KEY, (64, 3))
    rows = {"x": x, "y": x @ jnp.array([1.0, -2.0, 0.5]) + 0.3}

    def loss(rng_key, params, batch):
        noise = 1e-3 * jax.random.normal(rng_key, batch["y"].shape)
        return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"] + noise) ** 2)

    run = training.Run(estimators.from_loss(loss), optax.adam(0.1), 16, average=True)
    start = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    state, metrics = run.steps(run.init(KEY, rows, start), rows, 200)
    np.testing.assert_allclose(state.params["w"], [1, -2, 0.5], atol=0.02)
    assert metrics.info.loss[-1] < 1e-3 * metrics.info.loss[0]
    six, _ = run.steps(run.init(KEY, rows, start), rows, 6)
    three, _ = run.steps(run.init(KEY, rows, start), rows, 3)
    assert bitwise(six, run.steps(three, rows, 3)[0])
    with pytest.raises(ValueError, match="params: expected some to start from"):
        run.init(KEY, rows)
    with pytest.raises(ValueError, match=r"data\['x'\]: expected finite values, got nan at"):
        run.init(KEY, rows | {"x": x.at[3, 1].set(jnp.nan)}, start)
    diverging = dataclasses.replace(run, optimizer=optax.sgd(1e30))
    with pytest.raises(FloatingPointError, match=r"params\['[bw]'\] is not finite at step"):
        diverging.steps(diverging.init(KEY, rows, start), rows, 50)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1, got 0"),
        ({"average_decay": 1.0}, ValueError, r"average_decay: expected a number in \[0, 1\)"),
        ({"estimator": "pcd"}, TypeError, "estimator: expected an estimator such as"),
        ({"optimizer": 0.1}, TypeError, "tx: expected an optimizer such as"),
        ({"preprocess": 3}, TypeError, "preprocess: expected a function"),
        ({"model": pj.models.rbm(9, 2)}, ValueError, "estimator: expected one of"),
    ],
)
def test_what_makes_no_run_is_refused_at_once(change, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(training.Run(PCD, TX, 8), **change)
