"""Chains: observers against NumPy, keys, clear errors, and no second compilation."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import chains, units

SIZE, NUM_CHAINS = 3, 4


def build():
    visible = units.Bernoulli(SIZE)
    bank = pj.experts.HiddenBank(visible, units.Bernoulli(2))
    return pj.product(visible, bias=pj.experts.Bias(visible), hidden=bank)


def draw_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "bias": {"field": jnp.asarray(rng.normal(size=SIZE), jnp.float32)},
        "hidden": {
            "w": jnp.asarray(rng.normal(size=(SIZE, 2)), jnp.float32),
            "b": jnp.asarray(rng.normal(size=2), jnp.float32),
        },
    }


KERNEL = pj.kernels.block_gibbs(build())
PARAMS = draw_params()
KEY = jax.random.key(7)


def start(num_chains=NUM_CHAINS, seed=0):
    return chains.init(jax.random.key(seed), KERNEL, PARAMS, num_chains)


def visible_of(params, state, info):
    return state.x


def visible_and_latent(params, state, info):
    return {"x": state.x, "z": info.z["hidden"], "sum": jnp.sum(state.x)}


def test_moments_are_those_of_the_history():
    states, moments = chains.run(KEY, KERNEL, PARAMS, start(), 6, visible_and_latent)
    same, history = chains.run(KEY, KERNEL, PARAMS, start(), 6, chains.History(visible_and_latent))
    np.testing.assert_array_equal(states.x, same.x)
    np.testing.assert_array_equal(states.x, history["x"][-1])
    assert history["x"].shape == (6, NUM_CHAINS, SIZE)
    assert history["z"].shape == (6, NUM_CHAINS, 2)
    assert moments.num_observed == 6
    for name, values in history.items():
        values = np.asarray(values, float)
        np.testing.assert_allclose(moments.mean[name], values.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(moments.variance[name], values.var(axis=0), atol=1e-6)
    assert np.asarray(history["x"]).std() > 0


def test_a_function_is_observed_by_its_moments():
    _, implicit = chains.run(KEY, KERNEL, PARAMS, start(), 6, visible_of)
    _, explicit = chains.run(KEY, KERNEL, PARAMS, start(), 6, chains.Moments(visible_of))
    np.testing.assert_array_equal(implicit.mean, explicit.mean)


def test_moments_of_large_numbers_keep_their_variance():
    def shifted(params, state, info):
        return 1e4 + state.x[0]

    _, moments = chains.run(KEY, KERNEL, PARAMS, start(), 6, shifted)
    _, plain = chains.run(KEY, KERNEL, PARAMS, start(), 6, visible_of)
    # Sums of squares would leave nothing of a variance of ¼ beside 10⁸ in float32.
    np.testing.assert_allclose(moments.variance, plain.variance[:, 0], atol=2e-3)


def test_thinning_observes_every_thin_th_step():
    full_states, full = chains.run(KEY, KERNEL, PARAMS, start(), 6, chains.History(visible_of))
    states, thinned = chains.run(
        KEY, KERNEL, PARAMS, start(), 6, chains.History(visible_of), thin=3
    )
    np.testing.assert_array_equal(thinned, full[2::3])
    np.testing.assert_array_equal(states.x, full_states.x)
    _, moments = chains.run(KEY, KERNEL, PARAMS, start(), 6, visible_of, thin=3)
    assert moments.num_observed == 2
    np.testing.assert_allclose(moments.mean, np.asarray(full[2::3]).mean(axis=0), atol=1e-6)


def test_nothing_is_stored_unless_asked():
    states, observed = chains.run(KEY, KERNEL, PARAMS, start(), 6)
    assert observed is None
    assert jax.tree.map(jnp.shape, states) == jax.tree.map(jnp.shape, start())
    with_history, _ = chains.run(KEY, KERNEL, PARAMS, start(), 6, chains.History(visible_of))
    np.testing.assert_array_equal(states.x, with_history.x)


def test_a_run_is_a_function_of_its_key():
    runs = [
        chains.run(key, KERNEL, PARAMS, start(16), 6, chains.History(visible_of))[1]
        for key in (KEY, KEY, jax.random.key(8))
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.any(runs[0] != runs[2])


def test_steps_draw_from_their_own_key():
    # Step s of a run uses fold_in(rng_key, s): a run of 6 goes through the states of a run of 3,
    # and a second run with the same key repeats the draws of the first instead of going on.
    history = chains.History(visible_of)
    _, six = chains.run(KEY, KERNEL, PARAMS, start(16), 6, history)
    middle, three = chains.run(KEY, KERNEL, PARAMS, start(16), 3, history)
    np.testing.assert_array_equal(six[:3], three)
    _, again = chains.run(KEY, KERNEL, PARAMS, middle, 3, history)
    assert np.any(np.asarray(again) != np.asarray(six[3:]))
    states = start(16)
    for step in range(3):
        states, _ = chains.step_all(jax.random.fold_in(KEY, step), KERNEL, PARAMS, states)
    np.testing.assert_array_equal(states.x, three[-1])


def test_the_key_of_a_chain_does_not_depend_on_their_number():
    few, many = (jax.random.key_data(chains.chain_keys(KEY, n)) for n in (2, 5))
    np.testing.assert_array_equal(few, many[:2])
    assert len(np.unique(many, axis=0)) == 5


def test_random_starts_differ_and_given_starts_are_kept():
    assert len(np.unique(start(64).x, axis=0)) == 2**SIZE
    x = np.eye(NUM_CHAINS, SIZE)
    states = chains.init(KEY, KERNEL, PARAMS, NUM_CHAINS, x)
    np.testing.assert_array_equal(states.x, x)
    assert states.clamp is None


def test_clamps_are_shared_or_one_per_chain():
    x = np.ones((NUM_CHAINS, SIZE), np.float32)
    shared = jnp.array([True, False, False])
    per_chain = jnp.eye(NUM_CHAINS, SIZE) > 0
    states = chains.init(KEY, KERNEL, PARAMS, NUM_CHAINS, x, shared)
    assert states.clamp.shape == (NUM_CHAINS, SIZE)
    states, _ = chains.run(KEY, KERNEL, PARAMS, states, 6)
    assert np.all(states.x[:, 0] == 1)
    states = chains.init(KEY, KERNEL, PARAMS, NUM_CHAINS, x, per_chain)
    states, _ = chains.run(KEY, KERNEL, PARAMS, states, 6)
    assert np.all(np.asarray(states.x)[np.asarray(per_chain)] == 1)
    assert np.any(np.asarray(states.x) == 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps: expected an integer of at least 1, got 0"),
        ({"num_steps": 2.0}, ValueError, "num_steps: expected an integer of at least 1, got 2.0"),
        ({"thin": 0}, ValueError, "thin: expected an integer of at least 1, got 0"),
        ({"thin": 4}, ValueError, "num_steps: expected a multiple of thin=4, got 6"),
        (
            {"rng_key": jax.random.PRNGKey(0)},
            TypeError,
            r"rng_key: expected a typed key from jax\.random\.key\(seed\), got an array of dtype",
        ),
        ({"rng_key": 0}, TypeError, "rng_key: expected a typed key .*, got 0"),
        (
            {"rng_key": jax.random.split(KEY, 2)},
            ValueError,
            r"rng_key: expected one key, got keys of shape \(2,\)",
        ),
        (
            {"states": pj.types.ChainState(jnp.zeros((0, SIZE)))},
            ValueError,
            "states: expected at least one row, got an empty batch",
        ),
        (
            {"states": pj.types.ChainState(jnp.zeros((2, SIZE)), jnp.zeros((3, SIZE), bool))},
            ValueError,
            "states: expected arrays with one common leading axis",
        ),
    ],
)
def test_bad_runs(change, error, message):
    arguments = {"rng_key": KEY, "states": start(), "num_steps": 6, "thin": 1} | change
    with pytest.raises(error, match=message):
        chains.run(kernel=KERNEL, params=PARAMS, **arguments)


GOOD_X = np.zeros((NUM_CHAINS, SIZE), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_chains": 0}, ValueError, "num_chains: expected an integer of at least 1, got 0"),
        ({"rng_key": jax.random.PRNGKey(0)}, TypeError, "rng_key: expected a typed key"),
        ({"rng_key": jax.random.split(KEY, 2)}, ValueError, "rng_key: expected one key"),
        ({"x": GOOD_X[:2]}, ValueError, "x: expected 4 rows, one per chain, got 2"),
        ({"x": GOOD_X[0]}, ValueError, r"x: expected shape \(N, 3\)"),
        ({"x": GOOD_X + 0.5}, ValueError, r"x: expected values in \{0, 1\}"),
        ({"clamp": jnp.zeros(SIZE, bool)}, ValueError, "clamp: expected together with x"),
        (
            {"x": GOOD_X, "clamp": jnp.zeros(SIZE)},
            TypeError,
            "clamp: expected a boolean mask, got dtype float32",
        ),
        (
            {"x": GOOD_X, "clamp": jnp.zeros(SIZE + 1, bool)},
            ValueError,
            r"clamp: expected shape \(3,\) for Bernoulli\(size=3\), got \(4,\)",
        ),
        (
            {"x": GOOD_X, "clamp": jnp.zeros((NUM_CHAINS, SIZE + 1), bool)},
            ValueError,
            r"clamp: expected shape \(3,\) for Bernoulli\(size=3\), got \(4,\)",
        ),
        (
            {"x": GOOD_X, "clamp": jnp.zeros((NUM_CHAINS + 1, SIZE), bool)},
            ValueError,
            r"clamp: expected .*4",
        ),
        (
            {"x": GOOD_X, "clamp": {"pixels": jnp.zeros(SIZE, bool)}},
            (TypeError, ValueError),
            "clamp: expected",
        ),
    ],
)
def test_bad_starts(change, error, message):
    arguments = {"rng_key": KEY, "num_chains": NUM_CHAINS} | change
    with pytest.raises(error, match=message):
        chains.init(kernel=KERNEL, params=PARAMS, **arguments)


def test_new_params_keys_and_equal_models_compile_nothing(compiles_nothing):
    history = chains.History(visible_of)
    arguments = [
        (jax.random.key(seed), kernel, draw_params(seed), start(seed=seed), observe)
        for seed, kernel, observe in (
            (1, KERNEL, history),
            (2, pj.kernels.block_gibbs(build()), chains.History(visible_of)),
            (3, copy.deepcopy(KERNEL), copy.deepcopy(history)),
        )
    ]
    outputs = []
    for index, (key, kernel, params, states, observe) in enumerate(arguments):
        if index == 0:
            outputs.append(chains.run(key, kernel, params, states, 6, observe)[1])
            size = chains._run._cache_size()
            continue
        with compiles_nothing():
            outputs.append(chains.run(key, kernel, params, states, 6, observe)[1])
    assert chains._run._cache_size() == size
    assert np.any(outputs[0] != outputs[1])


def test_a_new_clamp_compiles_nothing(compiles_nothing):
    x = np.ones((NUM_CHAINS, SIZE), np.float32)
    first, second = (
        chains.init(KEY, KERNEL, PARAMS, NUM_CHAINS, x, jnp.arange(SIZE) == i) for i in range(2)
    )
    chains.run(KEY, KERNEL, PARAMS, first, 6)
    with compiles_nothing():
        states, _ = chains.run(KEY, KERNEL, PARAMS, second, 6)
    assert np.all(states.x[:, 1] == 1)


def test_temperatures_compile_once(compiles_nothing):
    model = KERNEL.model
    cold, hot = (model.temper(PARAMS, beta) for beta in (1.0, 0.25))
    states = start()
    chains.run(KEY, KERNEL, cold, states, 6)
    with compiles_nothing():
        chains.run(KEY, KERNEL, hot, states, 6)


def test_an_array_temperature_compiles_as_a_number_does(compiles_nothing):
    model, states = KERNEL.model, start()
    number, array = model.temper(PARAMS, 0.5), model.temper(PARAMS, jnp.float32(0.5))
    whole = model.temper(PARAMS, 1)
    chains.run(KEY, KERNEL, number, states, 6)
    with compiles_nothing():
        chains.run(KEY, KERNEL, array, states, 6)
        chains.run(KEY, KERNEL, whole, states, 6)


def test_runs_inside_jit_and_vmap():
    def final(key, params, states):
        states, moments = chains.run(key, KERNEL, params, states, 6, visible_of)
        return states.x, moments.mean

    states = start()
    expected = final(KEY, PARAMS, states)
    for found, want in zip(jax.jit(final)(KEY, PARAMS, states), expected, strict=True):
        np.testing.assert_allclose(found, want, atol=1e-6)
    ensemble = [draw_params(seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ensemble)
    keys = jax.random.split(jax.random.key(3), 2)
    x, mean = jax.vmap(final, in_axes=(0, 0, None))(keys, stacked, states)
    for i in range(2):
        want = final(keys[i], ensemble[i], states)
        np.testing.assert_allclose(x[i], want[0], atol=1e-6)
        np.testing.assert_allclose(mean[i], want[1], atol=1e-6)


def test_starts_inside_jit():
    x = np.ones((NUM_CHAINS, SIZE), np.float32)
    clamp = jnp.array([True, False, False])
    states = jax.jit(lambda key, x, c: chains.init(key, KERNEL, PARAMS, NUM_CHAINS, x, c))(
        KEY, x, clamp
    )
    np.testing.assert_array_equal(states.x, x)
    assert states.clamp.shape == (NUM_CHAINS, SIZE)
