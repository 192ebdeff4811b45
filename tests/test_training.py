"""The training loop: optimizers, shuffling, bitwise resume, divergence, no recompilation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import bitwise

import poejax as pj
from poejax import datasets, training

BARS = jnp.asarray(datasets.bars_and_stripes(3))
MODEL = pj.models.rbm(9, 6)
PCD = pj.estimators.pcd(MODEL, 20)
CENTERED = pj.estimators.centered(pj.estimators.cd(MODEL), MODEL)
TX = optax.adam(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [PCD, CENTERED, pj.estimators.exact(MODEL)])
def test_training_lowers_the_exact_nll(estimator):
    # At most one bar: unlike the full set, no plateau of symmetry to leave first.
    rows = BARS[BARS.sum(axis=1) <= 3]
    tx = optax.sgd(0.1)
    state = training.init(jax.random.key(0), MODEL, estimator, tx, rows)

    def nll(params):
        log_z = pj.exact.log_z(MODEL, params)
        return float(log_z - jax.vmap(MODEL.log_density, (None, 0))(params, rows).mean())

    before = nll(state.params)
    state, metrics = training.train_steps(estimator, tx, state, rows, 8, 300)
    assert nll(state.params) < before - 1.0
    assert metrics.grad_norm.shape == (300,)
    assert int(state.step) == 300


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [PCD, CENTERED])
def test_three_and_three_steps_are_six_bitwise(estimator):
    # Batches of 5 of 16 rows: three steps end in the middle of the second epoch's order.
    start = training.init(jax.random.key(1), MODEL, estimator, TX, BARS, average=True)
    six, _ = training.train_steps(estimator, TX, start, BARS, 5, 6)
    three, _ = training.train_steps(estimator, TX, start, BARS, 5, 3)
    both, _ = training.train_steps(estimator, TX, three, BARS, 5, 3)
    four, _ = training.train_steps(estimator, TX, start, BARS, 5, 4)
    uneven, _ = training.train_steps(estimator, TX, four, BARS, 5, 2)
    assert bitwise(both, six)
    assert bitwise(uneven, six)


def test_each_epoch_visits_every_row_once_in_a_new_order():
    rows = jnp.arange(12.0)[:, None] * jnp.ones((12, 9))
    seen: list[np.ndarray] = []

    class Spy:
        def init(self, rng_key, params, data):
            return ()

        def grad(self, rng_key, params, state, batch):
            jax.debug.callback(lambda b: seen.append(np.asarray(b[:, 0])), batch, ordered=True)
            zeros = jax.tree.map(jnp.zeros_like, params)
            return zeros, state, pj.types.EstimatorInfo(jnp.zeros(()), jnp.zeros(()))

    spy, tx = Spy(), optax.sgd(0.1)
    params = MODEL.init(jax.random.key(0))
    state = training.TrainState(
        jnp.zeros((), jnp.int32), params, tx.init(params), (), None, jax.random.key(3)
    )
    training.train_steps(spy, tx, state, rows, 4, 9)
    jax.effects_barrier()
    orders = np.stack(seen).reshape(3, 12)
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[1], orders[2])


@pytest.mark.slow
def test_sgd_on_the_gradient_is_the_lectures_update(random_params):
    # W ← W + γ (<x z>_data - <x z>_model), written out by hand for exact expectations.
    params = random_params(MODEL)
    x = BARS.astype(jnp.float32)
    grads, _, _ = pj.estimators.exact(MODEL).grad(jax.random.key(0), params, (), x)
    tx = optax.sgd(0.1)
    updates, _ = tx.update(grads, tx.init(params))
    found = optax.apply_updates(params, updates)

    def correlations(x, weights):
        hidden = jax.nn.sigmoid(x @ params["hidden"]["w"] + params["hidden"]["b"])
        return jnp.einsum("n,ni,nj->ij", weights, x, hidden)

    data = correlations(x, jnp.full(len(x), 1 / len(x)))
    model = correlations(MODEL.visible.states(), pj.exact.probabilities(MODEL, params))
    expected = params["hidden"]["w"] + 0.1 * (data - model)
    np.testing.assert_allclose(found["hidden"]["w"], expected, atol=2e-6)


@pytest.mark.slow
def test_preprocess_is_drawn_anew_at_every_step():
    grey = jnp.full((16, 9), 128, jnp.uint8)
    state = training.init(jax.random.key(0), MODEL, PCD, TX, grey, preprocess=datasets.stochastic)
    _, metrics = training.train_steps(
        PCD,
        optax.sgd(0.0),
        state._replace(opt_state=optax.sgd(0.0).init(state.params)),
        grey,
        16,
        8,
        preprocess=datasets.stochastic,
    )
    # With frozen parameters only a new binarisation can change the data's density.
    assert len(np.unique(np.asarray(metrics.info.data_log_density))) == 8


def test_average_is_a_running_mean_of_the_parameters():
    state = training.init(jax.random.key(0), MODEL, PCD, TX, BARS, average=True)
    expected = jax.tree.map(np.asarray, state.params)
    for t in range(1, 6):
        state, _ = training.train_steps(PCD, TX, state, BARS, 8, 1, average_decay=0.9)
        decay = min(0.9, (1 + t) / (10 + t))
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, expected, state.params)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state.average), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_weight_decay_spares_biases():
    params = MODEL.init(jax.random.key(0))
    params["hidden"]["b"] = jnp.ones(6)
    tx = optax.add_decayed_weights(0.1, mask=training.weights_only)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert not updates["hidden"]["b"].any()
    assert not updates["bias"]["field"].any()
    np.testing.assert_allclose(updates["hidden"]["w"], 0.1 * params["hidden"]["w"])


@pytest.mark.slow
def test_divergence_names_leaf_and_step_and_keeps_the_last_state():
    tx = optax.sgd(lambda count: jnp.where(count == 5, jnp.inf, 0.1))
    state = training.init(jax.random.key(0), MODEL, PCD, tx, BARS)
    with pytest.raises(FloatingPointError, match=r"parameter params\['bias'\].*at step 6.*step 0"):
        training.train_steps(PCD, tx, state, BARS, 8, 10)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params))


def test_a_new_key_data_or_equal_estimator_compiles_nothing(compiles_nothing):
    def go(seed, rows, estimator):
        state = training.init(jax.random.key(seed), MODEL, estimator, TX, rows)
        return training.train_steps(estimator, TX, state, rows, 8, 5)

    rebuilt = pj.estimators.pcd(pj.models.rbm(9, 6), 20)
    assert rebuilt == PCD
    go(0, BARS, PCD)
    go(1, BARS, PCD)
    others = 1 - BARS
    with compiles_nothing():
        go(2, others, rebuilt)


@pytest.mark.slow
def test_runs_under_an_outer_jit_and_vmap():
    def run(key):
        state = training.init(key, MODEL, PCD, TX, BARS)
        state, _ = training.train_steps(PCD, TX, state, BARS, 8, 3)
        return state.params["hidden"]["w"]

    keys = jax.random.split(jax.random.key(0), 3)
    batched = jax.jit(jax.vmap(run))(keys)
    np.testing.assert_allclose(batched[1], run(keys[1]), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch_size": 17}, ValueError, "batch_size: expected at most 16 rows of data, got 17"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1, got 0"),
        ({"num_steps": 0}, ValueError, "num_steps: expected an integer of at least 1, got 0"),
        ({"data": BARS[:0]}, ValueError, "data: expected at least one row, got an empty batch"),
        ({"average_decay": 1.0}, ValueError, r"average_decay: expected a number in \[0, 1\)"),
    ],
)
def test_bad_arguments_of_train_steps(change, error, message):
    state = training.init(jax.random.key(0), MODEL, PCD, TX, BARS)
    arguments = {"data": BARS, "batch_size": 8, "num_steps": 2, "average_decay": 0.9} | change
    with pytest.raises(error, match=message):
        training.train_steps(PCD, TX, state, **arguments)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BARS[:0], "data: expected at least one row"),
        (BARS[:, :8], r"data: expected shape \(N, 9\) for Bernoulli\(size=9\), got \(16, 8\)"),
        (2 * BARS, r"data: expected values in \{0, 1\} .* got 2 in row 1, column 0"),
        (
            BARS.astype(float).at[3, 4].set(jnp.nan),
            "data: expected finite values, got nan in row 3, column 4",
        ),
        (BARS / 2, r"data: expected values in \{0, 1\}"),
    ],
)
def test_bad_data_of_init(data, message):
    with pytest.raises(ValueError, match=message):
        training.init(jax.random.key(0), MODEL, PCD, TX, data)


@pytest.mark.slow
def test_bad_key_and_params_of_init(random_params):
    with pytest.raises(TypeError, match=r"rng_key: expected a typed key from jax.random.key"):
        training.init(0, MODEL, PCD, TX, BARS)
    other = random_params(pj.models.rbm(9, 7))
    with pytest.raises(ValueError, match=r"params\['hidden'\]\['b'\]: expected shape \(6,\), got"):
        training.init(jax.random.key(0), MODEL, PCD, TX, BARS, params=other)
    broken = random_params(MODEL)
    broken["hidden"]["w"] = broken["hidden"]["w"].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"params\['hidden'\]\['w'\]: expected finite values"):
        training.init(jax.random.key(0), MODEL, PCD, TX, BARS, params=broken)
