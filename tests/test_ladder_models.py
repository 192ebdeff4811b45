"""Replica exchange over any model, and what it refuses."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tempering_cases import even_base, small_rbm, two_mode

import poejax as pj
from poejax import experts, tempering, units


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


def test_no_warning_where_all_is_well():
    model, params = small_rbm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tempering.sample(
            jax.random.key(0), model, params, even_base(model), num_chains=20, num_steps=50
        )


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
