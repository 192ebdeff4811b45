"""Ratios of densities of events one site apart: against densities, in order, in O(D H)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import estimators, experts, units
from poejax.experts import Bias, HiddenBank, Mixture, Power

# Many small functions, each of which runs a few times: to compile them takes the time.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})
BITS, SPINS, LETTERS = units.Bernoulli(5), units.Spin(4), units.Categorical(4, 3)


class Doubled(HiddenBank):
    """A bank of the user's own, whose factors are not the bank's."""

    def log_factors(self, params, x):
        return 2 * super().log_factors(params, x)


class DoubledBias(Bias):
    def log_factors(self, params, x):
        return 2 * super().log_factors(params, x)


def over(visible):
    nested = pj.product(visible, field=Bias(visible), spins=HiddenBank(visible, units.Spin(2)))
    bank = HiddenBank(visible, units.Bernoulli(3))
    return pj.product(
        visible,
        bias=Bias(visible),
        bank=bank,
        letters=HiddenBank(visible, units.Categorical(2, 3)),
        relu=HiddenBank(visible, units.ReLU(2)),
        nested=nested,
        sum=Mixture(visible, (("one", nested), ("two", bank))),
        weighted=Power(visible, nested, signed=True),
        own=Doubled(visible, units.Bernoulli(3)),
        own_bias=DoubledBias(visible),
    )


def neighbours(unit, x):
    """All events one site away, site by site, in the order of the values."""
    if isinstance(unit, units.Categorical):
        alphabet = np.eye(unit.num_classes)
    else:
        alphabet = np.array([-1.0, 1.0] if isinstance(unit, units.Spin) else [0.0, 1.0])
    found = []
    for site in range(unit.num_sites):
        for value in alphabet:
            if not np.array_equal(value, x[site]):
                found.append(np.array(x))
                found[-1][site] = value
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("visible", [BITS, SPINS, LETTERS], ids=str)
def test_ratios_are_those_of_the_densities(visible, random_params):
    model = over(visible)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), random_params(model))
        masked = model.mask(params, bank=jnp.array(False), nested=jnp.array(True))
        sites = jnp.arange(visible.num_sites)
        ratios = compiled(lambda p, x: pj.diagnostics.neighbour_log_ratios(model, p, x, sites))
        densities = compiled(jax.vmap(model.log_density, (None, 0)))
        for given in (params, model.temper(params, 0.37), masked):
            for seed in range(3):
                x = visible.random_event(jax.random.key(seed)).astype(float)
                there = densities(given, neighbours(visible, x))
                expected = (there - densities(given, x[None])).reshape(len(sites), -1)
                np.testing.assert_allclose(ratios(given, x), expected, atol=1e-10)


def test_an_absent_expert_reaches_no_ratio(random_params):
    model = pj.models.rbm(5, 3)
    params = random_params(model)
    broken = params | {"hidden": jax.tree.map(lambda leaf: leaf * jnp.nan, params["hidden"])}
    masked = model.mask(broken, hidden=jnp.array(False))

    def total(params):
        found = pj.diagnostics.neighbour_log_ratios(model, params, jnp.ones(5), jnp.arange(5))
        return jnp.sum(found), found

    grads, found = jax.jit(jax.grad(total, has_aux=True))(masked)
    np.testing.assert_allclose(found[:, 0], -params["bias"]["field"], rtol=1e-6)
    assert not np.asarray(grads["hidden"]["w"]).any()


def test_other_values_are_in_ascending_order():
    visible = units.Categorical(3, 4)
    model = pj.product(visible, bias=Bias(visible))
    field = 10.0 ** jnp.arange(12).reshape(3, 4)
    params = {"bias": {"field": field}}
    x = jax.nn.one_hot(jnp.array([2, 0, 3]), 4)
    found = pj.diagnostics.neighbour_log_ratios(model, params, x, jnp.array([2, 0, 1]))
    field = np.asarray(field)
    expected = [field[2, :3] - field[2, 3], field[0, [0, 1, 3]] - field[0, 2]]
    expected += [field[1, 1:] - field[1, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_other_units_are_refused():
    for visible in (units.Gaussian(2), units.Joint(a=BITS, b=LETTERS)):
        model = pj.product(visible, bias=Bias(visible))
        with pytest.raises(
            ValueError, match="model: expected visible units of finitely many values"
        ):
            pj.diagnostics.neighbour_log_ratios(model, {}, jnp.zeros(2), jnp.arange(2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        estimators.pseudo_likelihood,
        estimators.minimum_probability_flow,
        estimators.ratio_matching,
    ],
)
def test_memory_of_wide_data(make):
    # D² numbers per event would be 4 GB.
    model = pj.models.rbm(8000, 20)
    x = jax.ShapeDtypeStruct((16, 8000), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    rule = make(model)
    step = jax.jit(lambda key, p, b: rule.grad(key, p, (), b)[0])
    assert used(step, jax.random.key(0), params, x) < 1e8


def test_memory_of_experts_without_a_shortcut():
    def apply(params, x):
        return jnp.sum(jnp.tanh(x @ params))

    visible = units.Bernoulli(2000)
    neural = experts.Neural(visible, lambda key: jnp.zeros((2000, 3)), apply)
    model = pj.product(visible, neural=neural)
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((8, 2000), jnp.float32)

    def loss(key, params, x):
        score = lambda row: pj.diagnostics.pseudo_log_likelihood(key, model, params, row)  # noqa: E731
        return jnp.mean(jax.vmap(score)(x))

    assert used(jax.jit(jax.grad(loss, argnums=1)), jax.random.key(0), params, x) < 5e7


def used(fn, *arguments):
    return fn.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
