"""Parallel trajectory tempering: jumps, log Z along a run, clusters, resume, rollback."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import bitwise
from ptt_cases import BARS, KEY, MODEL, PTT, START
from scipy import stats

import poejax as pj
from poejax import checkpoint, datasets, evidence, experts, units
from poejax._paths import path_params
from poejax.estimators import _exchange
from poejax.estimators._exchange import Heights, Population, exchange
from poejax.training import Rollback, Run

# Jumps.

SMALL = pj.models.rbm(4, 3)
REPLICAS, CHAINS, ROWS = 4000, 2, 20


def ends():
    """A checkpoint and a model that overlap by halves, on the path from a base."""
    keys = jax.random.split(jax.random.key(5), 2)
    near, far = (
        jax.tree.map(lambda leaf, key=key: jax.random.normal(key, leaf.shape), SMALL.init(key))
        for key in keys
    )
    data = jnp.asarray([[0.0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 1, 1]])
    base = evidence.base_rate(SMALL, data)
    pair = exchange(SMALL, base, pj.kernels.block_gibbs(SMALL), 1)
    one = jnp.ones(())
    points = [path_params(pair.path, params, base, one) for params in (near, far)]
    return pair, points, [pj.exact.probabilities(SMALL, params) for params in (near, far)]


def largest_z(pair, points, laws, num_turns=6):
    """Largest deviations of frequencies of chains and of rows, in standard errors."""
    near, far = points

    def replica(key):
        row_key, chain_key, start_key, turn_key = jax.random.split(key, 4)
        states = jax.vmap(SMALL.visible.state_at)(jnp.arange(16))
        rows = states[jax.random.choice(row_key, 16, (ROWS,), p=laws[0])]
        x = states[jax.random.choice(chain_key, 16, (CHAINS,), p=laws[1])]
        population = Population(pair.start(start_key, far, x, CHAINS), rows)
        population, _ = pair.turns(turn_key, near, far, population, num_turns)
        # One of each: those of a replica depend on one another.
        return population.rows[0], population.chains.x[0]

    found = jax.jit(jax.vmap(replica))(jax.random.split(jax.random.key(6), REPLICAS))
    worst = []
    for x, law in zip(found, laws, strict=True):
        number = np.asarray(x) @ (2 ** np.arange(4))
        counts = np.bincount(number.astype(int), minlength=16)
        p = np.asarray(law, float)
        worst.append(np.abs(counts - REPLICAS * p) / np.sqrt(REPLICAS * p * (1 - p)))
    return [w.max() for w in worst]


@pytest.mark.slow
def test_jumps_leave_the_laws_of_chains_and_reservoir_as_they_are():
    pair, points, laws = ends()
    bound = stats.norm.isf(1e-3 / (2 * 32))
    assert max(largest_z(pair, points, laws)) < bound


@pytest.mark.slow
@pytest.mark.parametrize("mutation", ["sign", "always", "other end"])
def test_a_wrong_jump_is_seen(mutation, monkeypatch):
    pair, points, laws = ends()
    heights = _exchange.Exchange.heights
    if mutation == "sign":
        monkeypatch.setattr(_exchange.Exchange, "heights", lambda *a: -heights(*a))
    elif mutation == "always":
        monkeypatch.setattr(_exchange.Exchange, "heights", lambda *a: 0 * heights(*a))
    else:
        points = points[::-1]
    assert max(largest_z(pair, points, laws)) > 6


def test_the_ratio_is_right_at_any_guess():
    pair, (near, far), laws = ends()
    states = jax.vmap(SMALL.visible.state_at)(jnp.arange(16))
    u = np.asarray(pair.heights(near, far, states), float)
    exact = np.log(np.sum(np.asarray(laws[0], float) * np.exp(u)))
    key_a, key_b = jax.random.split(KEY)
    up, down = (
        jnp.asarray(u)[jax.random.choice(key, 16, (200_000,), p=law)]
        for key, law in zip((key_a, key_b), laws, strict=True)
    )
    for guess in (exact - 1, exact, exact + 1):
        assert Heights(up, down).log_ratio(guess) == pytest.approx(exact, abs=0.02)


# The state it starts from.


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_start_far_from_the_base_is_bridged(scale, random_params):
    params = jax.tree.map(jnp.add, START, random_params(MODEL, 3, scale))
    rule = pj.estimators.ptt(MODEL, 200)
    state = rule.init(KEY, params, BARS)
    found, exact = rule.log_z(params, state), float(pj.exact.log_z(MODEL, params))
    assert (int(state.num_checkpoints) > 0) == (scale > 0)
    assert abs(float(found.log_z) - exact) < 4 * float(found.std_err)
    assert float(found.std_err) < 0.1
    assert found.ci_low < found.log_z < found.ci_high
    assert jax.nn.logsumexp(found.log_weights) - jnp.log(2000) == pytest.approx(exact, abs=0.2)


@pytest.mark.slow
def test_its_error_bar_is_that_of_independent_runs(random_params):
    params, rule = random_params(MODEL, 3, 1.2), pj.estimators.ptt(MODEL, 100)
    exact, scores = float(pj.exact.log_z(MODEL, params)), []
    for seed in range(100):
        found = rule.log_z(params, rule.init(jax.random.key(seed), params, BARS))
        scores.append((float(found.log_z) - exact) / float(found.std_err))
    assert abs(np.mean(scores)) < 0.4
    # The square of a standard normal's sample deviation, of 100, within four of its own.
    assert np.var(scores, ddof=1) == pytest.approx(1, abs=4 * np.sqrt(2 / 99))


def exact_or_quadrature(model, params):
    """Log Z by enumeration, or over the plane."""
    if model.visible.num_states is not None:
        return float(pj.exact.log_z(model, params))
    v = jnp.linspace(-9, 9, 901)
    x = jnp.stack(jnp.meshgrid(jnp.sinh(v), jnp.sinh(v), indexing="ij"), -1).reshape(-1, 2)
    log_f = jax.lax.map(lambda row: model.log_density(params, row), x, batch_size=2**15)
    total = log_f.reshape(901, 901) + jnp.log(jnp.cosh(v))[:, None] + jnp.log(jnp.cosh(v))
    return float(jax.nn.logsumexp(total)) + 2 * np.log(float(v[1] - v[0]))


def spins():
    visible = units.Spin(6)
    model = pj.product(
        visible, bias=experts.Bias(visible), hidden=experts.HiddenBank(visible, units.Spin(4))
    )
    return model, 2 * jax.random.bernoulli(KEY, 0.3, (40, 6)).astype(jnp.float32) - 1, None


def joint():
    visible = units.Joint(a=units.Bernoulli(4), b=units.Categorical(1, 3))
    model = pj.product(
        visible, bias=experts.Bias(visible), hidden=experts.HiddenBank(visible, units.Bernoulli(4))
    )
    a = jax.random.bernoulli(KEY, 0.3, (40, 4)).astype(jnp.float32)
    label = jax.nn.one_hot(jnp.arange(40) % 3, 3)[:, None]
    return model, {"a": a, "b": label}, None


def real():
    x = jax.random.normal(KEY, (60, 2)) * jnp.asarray([1.0, 3.0]) + jnp.asarray([50.0, -1.0])
    return pj.models.gaussian_rbm(2, 3), x, None


def heavy():
    x = jax.random.t(KEY, 4.0, (60, 2))
    visible = units.Gaussian(2)
    model = pj.product(visible, heavy=experts.StudentT(visible, 3))
    return model, x, lambda model, data, params: evidence.student_t_base(model, params)


@pytest.mark.slow
@pytest.mark.parametrize("case", [spins, joint, real, heavy])
def test_any_product_with_a_base_is_learned(case):
    model, x, base_fn = case()
    rule = pj.estimators.ptt(model, 100, base_fn=base_fn)
    run = Run(rule, optax.sgd(0.02), 20, rollback=Rollback())
    state = run.init(KEY, x, model.init_from(jax.random.key(1), x))
    state, metrics = run.steps(state, x, 200)
    own = rule.freeze(jax.random.key(2), state.params, state.estimator_state)
    found = rule.log_z(state.params, own)
    exact = exact_or_quadrature(model, state.params)
    assert abs(float(found.log_z) - exact) < 0.1
    assert np.isfinite(np.asarray(metrics.info.log_z)).all()
    likelihood = metrics.info.data_log_density - metrics.info.log_z
    assert float(likelihood[-50:].mean()) > float(likelihood[:50].mean()) - 0.1
    model.visible.check("samples", rule.samples(state.params, own))


@pytest.mark.slow
def test_masked_experts_stay_absent():
    params = MODEL.mask(START, hidden=False)
    state = PTT.init(KEY, params, BARS)
    grads, state, _ = PTT.grad(KEY, params, state, BARS)
    assert not np.any(np.asarray(grads["hidden"]["w"]))
    exact = float(jax.nn.softplus(START["bias"]["field"]).sum())
    assert float(PTT.log_z(params, state).log_z) == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_chains": 1}, ValueError, "num_chains: expected at least 2"),
        ({"reject_below": 0.4}, ValueError, "reject_below: expected at most freeze_below=0.3"),
        ({"freeze_below": 1.0}, ValueError, "freeze_below"),
        ({"rows_per_chain": 0}, ValueError, "rows_per_chain"),
        ({"base_fn": 3}, TypeError, "base_fn: expected a function"),
        ({"kernel": pj.kernels.block_gibbs(SMALL)}, ValueError, "kernel"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        pj.estimators.ptt(MODEL, **({"num_chains": 10} | change))


def test_a_base_function_returns_a_base():
    rule = pj.estimators.ptt(MODEL, 10, base_fn=lambda model, data, params: 3)
    with pytest.raises(TypeError, match="base_fn: expected it to return a Base"):
        rule.init(KEY, START, BARS)


# Runs.

OFTEN = pj.estimators.ptt(MODEL, 20, num_thermal=4, thin=2, freeze_below=0.9)
FAST = Run(OFTEN, optax.sgd(0.5), 5, average=True, rollback=Rollback(patience=3))


@pytest.mark.slow
def test_three_and_three_steps_are_six_bitwise_and_so_is_a_restored_run(tmp_path):
    start = FAST.init(KEY, BARS, START)
    warm, metrics = FAST.steps(start, BARS, 60)
    assert int(metrics.info.num_checkpoints[-1]) > 0  # so that what is frozen is resumed
    six, _ = FAST.steps(warm, BARS, 6)
    three, _ = FAST.steps(warm, BARS, 3)
    checkpoint.save(tmp_path, three)
    restored = checkpoint.restore(tmp_path, jax.eval_shape(lambda: start))
    both, _ = FAST.steps(restored, BARS, 3)
    assert bitwise(both, six)


@pytest.mark.slow
def test_a_run_compiles_once(compiles_nothing):
    state, _ = FAST.steps(FAST.init(KEY, BARS, START), BARS, 6)
    with compiles_nothing():
        model = pj.models.rbm(9, 6)
        rule = pj.estimators.ptt(model, 20, num_thermal=4, thin=2, freeze_below=0.9)
        run = Run(rule, optax.sgd(0.5), 5, average=True, rollback=Rollback(patience=3))
        run.steps(state, BARS, 6)


# Real runs.


@functools.cache
def digits(*classes):
    split = datasets.mnist5k().train
    keep = np.isin(split.labels, classes) if classes else slice(None)
    return jnp.asarray(split.images[keep] > 127, jnp.float32), split.labels[keep]


@pytest.mark.slow
def test_log_z_is_that_of_enumeration_at_every_checkpoint():
    x, _ = digits()
    model = pj.models.rbm(784, 20)
    rule = pj.estimators.ptt(model, 200)
    run, errors = Run(rule, optax.sgd(0.01), 100, rollback=Rollback()), {}
    state = run.init(KEY, x, model.init_from(jax.random.key(1), x))

    def look(state, metrics):
        point = state.estimator_state.checkpoint
        number = int(state.estimator_state.num_checkpoints)
        if number not in errors and float(point.beta) == 1:
            exact = float(pj.exact.log_z(model, point.params))
            errors[number] = float(point.log_z) - exact

    state, metrics = run.steps(state, x, 2000, look, every=20)
    assert len(errors) >= 3
    assert max(map(abs, errors.values())) < 0.1
    exact = pj.exact.log_z(model, state.params)
    found = rule.log_z(state.params, state.estimator_state)
    assert abs(float(found.log_z - exact)) < 4 * float(found.std_err)
    live = metrics.info.data_log_density - metrics.info.log_z
    density = jax.vmap(model.log_density, (None, 0))(state.params, x).mean()
    assert float(live[-100:].mean()) == pytest.approx(float(density - exact), abs=2)


@pytest.mark.slow
def test_chains_jump_between_clusters_as_often_as_data_lie_there():
    rows, labels = digits(0, 1)
    x = jnp.concatenate([rows[labels == 0][:120], rows[labels == 1][:280]])
    zeros, ones = x[:120].mean(axis=0), x[120:].mean(axis=0)
    model = pj.models.rbm(784, 12)

    def is_one(x):
        return (x - (zeros + ones) / 2) @ (ones - zeros) > 0

    def share_of_ones(params):
        """By draws of the model that are exact, as its latent states can be enumerated."""
        z = jax.vmap(units.Bernoulli(12).state_at)(jnp.arange(2**12))
        fields = params["bias"]["field"] + z @ params["hidden"]["w"].T
        log_p = z @ params["hidden"]["b"] + jax.nn.softplus(fields).sum(axis=1)
        drawn = fields[jax.random.categorical(jax.random.key(3), log_p, shape=(2000,))]
        return float(is_one(jax.random.bernoulli(KEY, jax.nn.sigmoid(drawn))).mean())

    tx = optax.sgd(optax.cosine_decay_schedule(0.02, 1500))
    seen, jumps = {}, {}
    for name, rule in (
        ("ptt", pj.estimators.ptt(model, 200)),
        ("pcd", pj.estimators.pcd(model, 200)),
    ):
        run = Run(rule, tx, 100)
        state = run.init(KEY, x, model.init_from(jax.random.key(1), x))
        state, _ = run.steps(state, x, 1500)

        def go_on(own, key, rule=rule, params=state.params):
            _, own, _ = rule.grad(key, params, own, x)
            chains = getattr(own, "population", own)
            return own, is_one(getattr(chains, "chains", chains).x)

        keys = jax.random.split(jax.random.key(2), 50)
        _, visited = jax.lax.scan(go_on, state.estimator_state, keys)
        seen[name] = share_of_ones(state.params)
        jumps[name] = float((visited[1:] != visited[:-1]).mean())
    assert jumps["ptt"] > 0.1
    assert jumps["pcd"] < 0.01
    # The chains of PCD, 70 % of them ones for ever, do not see that the model makes ones alone.
    assert abs(seen["ptt"] - 0.7) < 0.1
    assert abs(seen["pcd"] - 0.7) > 0.2
    assert float(visited.mean()) == pytest.approx(0.7, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "rate", "num_steps"),
    [(datasets.bars_and_stripes(4), 0.2, 8_000), (datasets.labelled_shifter(4), 0.5, 15_000)],
)
def test_it_learns_to_within_a_twentieth_of_a_nat_of_the_ceiling(rows, rate, num_steps):
    _, counts = np.unique(rows, axis=0, return_counts=True)
    x = jnp.asarray(rows, jnp.float32)
    model = pj.models.rbm(x.shape[1], 30)
    tx = optax.sgd(optax.cosine_decay_schedule(rate, num_steps))
    run = Run(pj.estimators.ptt(model, 200), tx, len(x), rollback=Rollback())
    state = run.init(KEY, x, model.init_from(jax.random.key(100), x))
    state, _ = run.steps(state, x, num_steps)
    log_z = pj.exact.log_z(model, state.params)
    found = evidence.log_likelihood(model, state.params, x, log_z).mean
    assert -0.05 < float(found) + stats.entropy(counts) <= 0
