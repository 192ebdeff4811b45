"""Replica exchange: what it leaves invariant, what it finds, and what it says of itself."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import experts, tempering, units
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


def gaussian_rbm():
    model = pj.models.gaussian_rbm(3, 2)
    data = 1e4 + 2 * jax.random.normal(jax.random.key(0), (200, 3))
    params = model.init_from(jax.random.key(1), data)
    params["hidden"]["w"] = jnp.array([[0.8, -0.3], [0.2, 0.6], [-0.5, 0.4]])
    return model, params, pj.evidence.gaussian_base(model, data, 1.2, params=params), None


def student_t():
    visible = units.Gaussian(2)
    model = pj.product(visible, heavy=experts.StudentT(visible, 2))
    params = model.init(jax.random.key(0))
    params["heavy"]["log_exponent"] = jnp.log(jnp.array([1.5, 2.0]))
    return model, params, pj.evidence.student_t_base(model, params), None


def joint():
    visible = units.Joint(pixels=units.Bernoulli(3), label=units.Categorical(1, 3))
    model, params = small_rbm(0, 1.0, visible, units.Bernoulli(4))
    rows = {"pixels": jnp.array([[0.0, 1, 1], [1, 0, 0]]), "label": jnp.eye(3)[:2, None]}
    return model, params, pj.evidence.base_rate(model, rows), None


def masked():
    model, params = small_rbm(5)
    params = model.mask(params, hidden=False)
    return model, params, even_base(model), None


def opaque():
    from kernel_cases import opaque as build

    model = build(units.Bernoulli(4))
    return model, model.init(jax.random.key(0)), even_base(model), pj.kernels.gibbs_with_gradients


@pytest.mark.slow
@pytest.mark.parametrize("case", [gaussian_rbm, student_t, joint, masked, opaque])
def test_any_model_on_a_ladder(case):
    model, params, base, kernel = case()
    kernel = None if kernel is None else kernel(model)
    x, report = tempering.sample(
        jax.random.key(0),
        model,
        params,
        base,
        num_chains=50,
        num_steps=200,
        betas=jnp.linspace(0, 1, 6),
        kernel=kernel,
    )
    exact = float(pj.exact.log_z(model, params))
    assert abs(float(report.log_z.log_z) - exact) < 4 * float(report.log_z.std_err) + 1e-5 * abs(
        exact
    )
    assert 0 < float(report.log_z.std_err) < 0.2

    model.visible.check("x", x)


@pytest.mark.slow
def test_another_model_and_key_compile_nothing(compiles_nothing):
    def go(seed):
        model, params = small_rbm(seed)
        return tempering.sample(
            jax.random.key(seed),
            model,
            params,
            even_base(model),
            num_chains=3,
            num_steps=10,
            betas=jnp.linspace(0, 1, 3),
        )

    go(0), go(1)
    with compiles_nothing():
        go(2)


@pytest.mark.slow
def test_rungs_that_never_exchange_are_named():
    model, params, _ = two_mode(0)
    params = jax.tree.map(lambda v: 20 * v, params)
    with pytest.warns(UserWarning, match="rungs 0 and 1 .* exchange with probability"):
        _, report = tempering.sample(
            jax.random.key(0),
            model,
            params,
            even_base(model),
            num_chains=5,
            num_steps=20,
            betas=jnp.array([0.0, 1.0]),
        )
    assert not np.isfinite(report.log_z.ci_high)


def test_refusals():
    model, params = small_rbm()
    base = even_base(model)
    go = functools.partial(tempering.sample, num_chains=5, num_steps=5)
    key = jax.random.key(0)
    for error, match, call in [
        (
            ValueError,
            "num_chains: expected at least 2",
            lambda: tempering.sample(key, model, params, base, num_chains=1, num_steps=5),
        ),
        (
            ValueError,
            "num_steps",
            lambda: tempering.sample(key, model, params, base, num_chains=2, num_steps=0),
        ),
        (ValueError, "betas", lambda: go(key, model, params, base, betas=jnp.array([0.1, 1.0]))),
        (TypeError, "base: expected a base", lambda: go(key, model, params, None)),
        (
            ValueError,
            "base: expected units",
            lambda: go(key, model, params, even_base(small_rbm(visible=units.Bernoulli(5))[0])),
        ),
        (
            ValueError,
            "kernel",
            lambda: go(
                key,
                model,
                params,
                base,
                kernel=pj.kernels.block_gibbs(small_rbm(visible=units.Bernoulli(5))[0]),
            ),
        ),
        (
            ValueError,
            "x: expected 5 rows",
            lambda: go(key, model, params, base, x=jnp.zeros((4, 4))),
        ),
        (ValueError, "betas", lambda: tempering.replica_exchange(model, [0.0, 0.5])),
        (ValueError, "betas", lambda: tempering.replica_exchange(model, [[0.0, 1.0]])),
        (TypeError, "base", lambda: tempering.replica_exchange(model, [0.0, 1.0], params)),
    ]:
        with pytest.raises(error, match=match):
            call()


def test_under_an_outer_jit_betas_are_needed():
    model, params = small_rbm()
    base = even_base(model)
    go = functools.partial(tempering.sample, num_chains=3, num_steps=8)
    with pytest.raises(ValueError, match="betas: expected to be given"):
        jax.jit(lambda p: go(jax.random.key(0), model, p, base))(params)
    inside = jax.jit(lambda p: go(jax.random.key(0), model, p, base, betas=jnp.linspace(0, 1, 3)))
    outside = go(jax.random.key(0), model, params, base, betas=jnp.linspace(0, 1, 3))
    np.testing.assert_allclose(inside(params)[1].log_z.log_z, outside[1].log_z.log_z, rtol=1e-5)


def test_bennett_between_gaussians():
    # log Z of exp(-½ x² / s²) is ½ log 2π s².
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(100):
        a, b = rng.normal(0, 1, 400), rng.normal(1, 0.5, 100)

        def u(x):
            return -0.5 * ((x - 1) / 0.5) ** 2 + 0.5 * x**2 + 300

        found = tempering.bennett(jnp.asarray(u(a)), jnp.asarray(u(b)))
        errors.append((float(found.log_ratio) - 300 - np.log(0.5)) / float(found.std_err))
    assert abs(np.mean(errors)) < 3.5 * np.std(errors) / 10
    assert 0.8 < np.std(errors) < 1.25


def test_bennett_knows_chains_from_samples():
    # Chains that do not move are one sample each.
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 50), rng.normal(0.5, 1, 50)
    u = (
        jnp.asarray(0.5 * a**2 - 0.5 * (a - 0.5) ** 2),
        jnp.asarray(0.5 * b**2 - 0.5 * (b - 0.5) ** 2),
    )
    one = tempering.bennett(*u)
    many = tempering.bennett(*(jnp.tile(v, (100, 1)) for v in u))
    assert float(many.log_ratio) == pytest.approx(float(one.log_ratio), abs=1e-5)
    assert 0.7 < float(many.std_err) / float(one.std_err) < 1.4


def test_no_warning_where_all_is_well():
    model, params = small_rbm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tempering.sample(
            jax.random.key(0), model, params, even_base(model), num_chains=20, num_steps=50
        )


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


def test_bennett_is_differentiated_by_its_equation_and_sums_in_float32():
    rng = np.random.default_rng(0)
    up, down = (jnp.asarray(rng.normal(size=8), jnp.float32) for _ in range(2))

    def ratio(s):
        return tempering.bennett(up + s * jnp.arange(8.0), down).log_ratio

    assert float(jax.grad(ratio)(0.0)) == pytest.approx(
        float(ratio(1e-2) - ratio(-1e-2)) / 2e-2, rel=1e-2
    )
    many = rng.normal(size=70_000)
    half = tempering.bennett(*(jnp.asarray(v, jnp.float16) for v in (many, many[:50])))
    single = tempering.bennett(many, many[:50])
    assert float(half.std_err) == pytest.approx(float(single.std_err), rel=1e-2)
    for bad in (np.zeros((0, 3)), np.zeros(1)):
        with pytest.raises(ValueError, match="up, down: expected"):
            tempering.bennett(bad, bad)
    with pytest.raises(TypeError, match="up: expected an array of real numbers"):
        tempering.bennett("a", many)


@pytest.mark.slow
def test_a_model_that_is_its_base_and_a_list_of_checkpoints():
    model, params = small_rbm()
    same = jax.tree.map(jnp.zeros_like, params)
    with jax.debug_nans(True):
        _, report = tempering.sample(
            jax.random.key(0),
            model,
            same,
            even_base(model),
            num_chains=4,
            num_steps=20,
            betas=[0, 1],
        )
    assert float(report.log_z.log_z) == pytest.approx(7 * np.log(2), abs=1e-4)
    _, report = tempering.sample_trajectory(
        jax.random.key(0), model, [same, params], even_base(model), num_chains=4, num_steps=20
    )
    assert float(report.acceptance[0]) == 1
    with pytest.raises(ValueError, match="num_steps: expected at least 4"):
        tempering.sample(
            jax.random.key(0), model, params, even_base(model), num_chains=4, num_steps=3
        )


@pytest.mark.slow
def test_under_strict_promotion():
    model, params = small_rbm()
    data = jnp.eye(4)
    with jax.numpy_dtype_promotion("strict"):
        kernel = tempering.replica_exchange(model, [0, 0.5, 1])
        states = pj.chains.init(jax.random.key(0), kernel, params, 4)
        pj.chains.run(jax.random.key(1), kernel, params, states, 3)
        rule = pj.estimators.jarzynski(model, 10)
        rule.grad(jax.random.key(1), params, rule.init(jax.random.key(0), params, data), data)
        pj.evidence.smc(jax.random.key(0), model, params, even_base(model), np.int64(20), 100)
