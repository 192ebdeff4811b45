"""Kernels by gradients in annealing, learning, on several devices, in every precision."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from kernel_cases import BLOCKS, MIXED, PLANE, Case, Energy, bank, opaque

import poejax as pj
from poejax import evidence, experts, kernels, training, units

RBM = pj.models.rbm(8, 4)
GAUSSIAN_RBM = pj.models.gaussian_rbm(2, 3)


def by_gradients(path):
    return kernels.gibbs_with_gradients(path, 4)


def by_hmc(path):
    return kernels.hmc(path, 0.5, 5)


def by_mala(path):
    return kernels.mala(path, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("make", [by_gradients, by_hmc, by_mala])
def test_annealing_both_ways_against_exact_log_z(make, random_params):
    if make is by_gradients:
        model, params = RBM, random_params(RBM, 2, 0.7)
        truth = float(pj.exact.log_z(model, params))
        log_p = jnp.log(pj.exact.probabilities(model, params))
        x = RBM.visible.states()[jax.random.categorical(jax.random.key(0), log_p, shape=(400,))]
    else:
        case = Case("gaussian", 1.0)
        model, params, truth = case.model, case.params, 0.0
        x = jnp.asarray(case.draw(np.random.default_rng(0))[:400], jnp.float32)
    base, betas = evidence.base_rate(model, x, 0.3), evidence.linear_betas(50)
    forward = evidence.ais(jax.random.key(2), model, params, base, betas, 400, make(model))
    reverse = evidence.reverse_ais(jax.random.key(3), model, params, base, betas, x, make(model))
    for found in (forward, reverse):
        assert abs(float(found.log_z) - truth) < 4 * float(found.std_err)
        assert float(found.std_err) < 0.1


def nll(model, params, data):
    log_p = jax.vmap(model.log_density, (None, 0))(params, data)
    return float(pj.exact.log_z(model, params) - jnp.mean(log_p))


FULL = pj.product(PLANE, one=experts.Gaussian(PLANE, "full"))
HIDDEN = opaque(units.Bernoulli(4))
LEARNERS = {
    "pcd, opaque, gradients": pj.estimators.pcd(
        HIDDEN, 50, kernels.gibbs_with_gradients(HIDDEN, 4)
    ),
    "pcd, hmc": pj.estimators.pcd(FULL, 50, kernels.hmc(FULL, 0.3, 5)),
    "cd, mala": pj.estimators.cd(FULL, kernels.mala(FULL, 0.1), num_steps=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_learning_lowers_the_exact_nll(name):
    estimator, tx = LEARNERS[name], optax.adam(0.03)
    model = estimator.model
    rng = np.random.default_rng(0)
    if model is FULL:
        data = jnp.asarray(rng.normal(size=(200, 2)) @ [[1.5, 0.8], [0.0, 0.6]] + [1, -1])
    else:
        size = model.visible.size
        data = jnp.asarray((rng.random((200, 1)) < 0.5) ^ (rng.random((200, size)) < 0.1), float)
    state = training.init(jax.random.key(0), model, estimator, tx, data)
    before = nll(model, state.params, data)
    state, _ = training.train_steps(estimator, tx, state, data, 50, 300)
    assert nll(model, state.params, data) < before - 0.5


def test_chains_are_bitwise_the_same_on_1_and_8_devices(random_params):
    # Discrete ones: pre-activations may differ in the last bit, which real events would show.
    mesh = Mesh(np.array(jax.devices()), ("chains",))
    params, kernel = random_params(RBM), by_gradients(RBM)
    one = pj.chains.init(jax.random.key(0), kernel, params, 16)
    eight = jax.device_put(one, NamedSharding(mesh, PartitionSpec("chains")))
    a, _ = pj.chains.run(jax.random.key(1), kernel, params, one, 3)
    b, _ = pj.chains.run(jax.random.key(1), kernel, params, eight, 3)
    assert len(b.x.sharding.device_set) == 8
    assert (a.x != one.x).any()
    np.testing.assert_array_equal(a.x, b.x)


@pytest.mark.slow
@pytest.mark.parametrize("make", [by_gradients, by_hmc])
def test_an_equal_kernel_rebuilt_compiles_nothing(make, random_params, compiles_nothing):
    build = functools.partial(
        *((pj.models.rbm, 8, 4) if make is by_gradients else (pj.models.gaussian_rbm, 2, 3))
    )
    params, other = random_params(build(), 0), random_params(build(), 1)
    states = pj.chains.init(jax.random.key(0), make(build()), params, 5)
    pj.chains.run(jax.random.key(1), make(build()), params, states, 3)
    with compiles_nothing():
        pj.chains.run(jax.random.key(2), make(build()), other, states, 3)


@pytest.mark.parametrize("make", [by_gradients, by_hmc, by_mala])
def test_every_precision_can_be_mixed(make):
    model = RBM if make is by_gradients else GAUSSIAN_RBM
    kernel, key = make(model), jax.random.key(0)
    with jax.enable_x64(True):
        for x_type in (jnp.float32, jnp.float64, jnp.bfloat16):
            for params_type in (jnp.float32, jnp.float64):
                params = jax.tree.map(
                    lambda s, dtype=params_type: jnp.zeros(s.shape, dtype), model.init(key)
                )
                x = jnp.zeros(model.visible.event_shape, x_type)
                state = kernel.init(key, params, x)
                after, _ = jax.eval_shape(kernel.step, key, params, state)
                assert after.x.dtype == state.x.dtype
                wide = make is not by_gradients and x_type == jnp.bfloat16
                assert after.x.dtype == (jnp.float32 if wide else x_type)


def test_block_gibbs_refuses_what_it_cannot_sample():
    inner = pj.product(PLANE, bias=experts.Bias(PLANE), energy=Energy(PLANE))
    model = pj.product(PLANE, outer=inner, other=Energy(PLANE))
    for build in (kernels.block_gibbs, pj.estimators.cd):
        with pytest.raises(ValueError, match=r"experts \['outer.energy', 'other'\]; sample .*hmc"):
            build(model)
    assert kernels.mala(model, 0.1).model == model
    # As on an annealing path.
    path = pj.product(PLANE, base=inner.experts["bias"], target=model)
    with pytest.raises(ValueError, match=r"experts \['target.outer.energy', 'target.other'\]"):
        kernels.block_gibbs(path)


REAL, BITS = bank(PLANE, units.Bernoulli(1)), RBM


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: kernels.mala(BITS, 0.1), "mala: expected real visible units .* got Bernoulli"),
        (lambda: kernels.hmc(opaque(MIXED), 0.1), "hmc: expected real visible units"),
        (lambda: kernels.mala(REAL, 0.0), "step_size: expected a positive finite number, got 0"),
        (lambda: kernels.hmc(REAL, float("nan")), "step_size: expected a positive finite"),
        (lambda: kernels.hmc(REAL, 0.1, 0), "num_leapfrog: expected an integer of at least 1"),
        (lambda: kernels.hmc(REAL, 0.1, jitter=1.0), r"jitter: expected a number in \[0, 1\)"),
        (
            lambda: kernels.hmc(REAL, 0.1, inverse_mass=[1.0]),
            r"inverse_mass: expected shape \(N, 2\)",
        ),
        (
            lambda: kernels.hmc(REAL, 0.1, inverse_mass=[1.0, 0.0]),
            "inverse_mass: expected positive numbers, got 0",
        ),
        (
            lambda: kernels.hmc(opaque(BLOCKS), 0.1, inverse_mass={"late": [1.0]}),
            r"inverse_mass: expected a dict of \['early', 'late'\]",
        ),
        (
            lambda: kernels.gibbs_with_gradients(REAL),
            "gibbs_with_gradients: expected visible units of finitely",
        ),
        (lambda: kernels.gibbs_with_gradients(BITS, 0), "num_flips: expected an integer"),
        (
            lambda: kernels.tune_step_size(
                jax.random.key(0), by_mala(REAL), REAL.init(jax.random.key(0)), (), target=1.0
            ),
            r"target: expected a number in \(0, 1\)",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_types():
    with pytest.raises(TypeError, match="step_size: expected a number fixed at compile time"):
        jax.jit(lambda step: kernels.mala(REAL, step).step_size)(0.1)
    with pytest.raises(TypeError, match="kernel: expected one from mala or hmc"):
        kernels.tune_step_size(jax.random.key(0), by_gradients(BITS), None, None)
    for make in (by_mala, by_hmc):
        with pytest.raises(TypeError, match="clamp: expected a boolean mask"):
            make(REAL).init(jax.random.key(0), None, jnp.zeros(2), jnp.zeros(2))


def test_without_blackjax_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "blackjax", None)
    for make in (by_mala, by_hmc):
        with pytest.raises(ImportError, match=r"need the blackjax package: pip install 'poejax\["):
            make(REAL)
