"""MALA and HMC leave the model invariant."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_cases import BLOCKS, NUM_CHAINS, Case, bank, step_all
from scipy import stats

import poejax as pj
from poejax import kernels, units
from poejax.kernels import HMC, MALA


class Unadjusted(MALA):
    def step(self, rng_key, params, state):
        gradient = jax.grad(self.model.log_density, argnums=1)(params, state.x)
        noise = jax.random.normal(rng_key, state.x.shape)
        x = state.x + self.step_size * gradient + jnp.sqrt(2 * self.step_size) * noise
        return state._replace(x=x), pj.types.MetropolisInfo(jnp.ones(()), jnp.array(True))


class TooCold(HMC):
    def log_density(self, params, state):
        return lambda x: 1.2 * super(TooCold, self).log_density(params, state)(x)


MAKE = {
    "mala": lambda model: kernels.mala(model, 0.4),
    "hmc": lambda model: kernels.hmc(model, 0.9, 3),
    "hmc with masses": lambda model: kernels.hmc(model, 0.9, 3, 0.0, np.array([0.6, 1.7])),
    "unadjusted": lambda model: Unadjusted(model, 0.4),
    "too cold": lambda model: TooCold(model, 0.9, 3, 0.2, None),
}


@functools.partial(jax.jit, static_argnames=("kernel", "num_steps"))
def run(rng_key, kernel, params, x, num_steps, clamp=None):
    """Events after `num_steps` steps from the rows of `x`, and the rate of accepted proposals."""
    states = pj.chains.init(rng_key, kernel, params, NUM_CHAINS, x, clamp)
    accepted = lambda params, state, info: info.is_accepted  # noqa: E731
    states, seen = pj.chains.run(rng_key, kernel, params, states, num_steps, accepted)
    return states.x, jnp.mean(seen.mean)


def p_values(case, name, num_steps=5):
    """Kolmogorov-Smirnov p of both coordinates, and of their product, after steps from exact x."""
    x = case.draw(np.random.default_rng(1))
    kernel = MAKE[name](case.model)
    x, rate = run(jax.random.key(0), kernel, case.params, jnp.asarray(x, jnp.float32), num_steps)
    u = case.uniforms(np.asarray(x, float))
    both = np.corrcoef(stats.norm.ppf(u).T)[0, 1] * np.sqrt(NUM_CHAINS)
    tests = [stats.kstest(column, "uniform").pvalue for column in u.T]
    return np.array([*tests, 2 * stats.norm.sf(abs(both))]), float(rate)


@pytest.mark.parametrize("beta", [1.0, 0.7])
@pytest.mark.parametrize("target", ["gaussian", "student", "mixture"])
@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_chains_from_exact_samples_stay_exact(name, target, beta):
    p, rate = p_values(Case(target, beta), name)
    assert p.min() > 1e-4 / p.size
    assert 0.3 < rate < 0.99  # so that the acceptance matters


def test_masses_change_the_motion_and_not_the_target():
    p, rate = p_values(Case("gaussian", 1.0), "hmc with masses")
    assert p.min() > 1e-4 / p.size
    assert 0.3 < rate < 0.99


@pytest.mark.parametrize("name", ["unadjusted", "too cold"])
def test_a_wrong_kernel_fails_the_same_statistic(name):
    p, _ = p_values(Case("gaussian", 1.0), name)
    assert p.min() < 1e-4 / p.size


class Overwrite(HMC):
    def step(self, rng_key, params, state):
        free, info = super().step(rng_key, params, state._replace(clamp=None))
        x = jax.tree.map(jnp.where, state.clamp, state.x, free.x)
        return state._replace(x=x), info


@pytest.mark.parametrize("name", ["mala", "hmc", "overwrite"])
def test_clamped_sites_condition_the_others(name):
    model = bank(BLOCKS, units.StandardGaussian(1))
    field = {
        "late": {"linear": jnp.array([0.3]), "log_precision": jnp.array([0.4])},
        "early": {
            "linear": jnp.array([-0.5]),
            "log_diagonal": jnp.array([0.45]),
            "off_diagonal": jnp.zeros(0),
        },
    }
    params = {
        "bias": {"field": field},
        "hidden": {"w": jnp.array([[0.7], [0.9]]), "b": jnp.array([0.2])},
    }
    # log p(x) = aᵀx - ½ xᵀΛx + ½ (b + wᵀx)²: a Gaussian of precision Λ - wwᵀ.
    held, precision = 1.5, np.exp(0.9) - 0.9**2
    mean = (-0.5 + 0.2 * 0.9 + 0.7 * 0.9 * held) / precision
    start = mean + np.random.default_rng(0).normal(size=(NUM_CHAINS, 1)) / np.sqrt(precision)
    x = {"late": jnp.full((NUM_CHAINS, 1), held), "early": jnp.asarray(start, jnp.float32)}
    mask = {"late": jnp.array([True]), "early": jnp.array([False])}
    masses = {"late": np.array([5.0]), "early": np.array([0.5])}
    kernel = {
        "mala": kernels.mala(model, 0.4),
        "hmc": kernels.hmc(model, 0.8, 4, inverse_mass=masses),
        "overwrite": Overwrite(model, 0.8, 4, 0.2, None),
    }[name]
    if name == "hmc":
        assert kernel.inverse_mass == (0.5, 5.0)  # in the order of the flattened dict
    x, rate = run(jax.random.key(1), kernel, params, x, 5, mask)
    assert (x["late"] == held).all()
    assert 0.3 < float(rate) < 0.999
    u = stats.norm.cdf((np.asarray(x["early"], float)[:, 0] - mean) * np.sqrt(precision))
    assert (stats.kstest(u, "uniform").pvalue > 1e-4) == (name != "overwrite")


def test_a_trajectory_that_diverges_stays_and_says_so():
    case = Case("gaussian", 1.0)
    kernel = kernels.hmc(case.model, 50.0)
    x = jnp.ones((4, 2))
    after, info = step_all(kernel, jax.random.key(0), case.params, pj.types.ChainState(x))
    assert info.is_divergent.all()
    assert not info.is_accepted.any()
    np.testing.assert_array_equal(after.x, x)


@pytest.mark.parametrize(("name", "target"), [("mala", 0.57), ("hmc", 0.8)])
def test_tuning_finds_the_step_size_of_a_target_rate(name, target, compiles_nothing):
    case = Case("gaussian", 1.0)
    first = MAKE[name](case.model)
    x = jnp.asarray(case.draw(np.random.default_rng(0))[:500], jnp.float32)
    states = pj.types.ChainState(x)
    tuned, after = kernels.tune_step_size(jax.random.key(0), first, case.params, states, target)
    assert not np.array_equal(after.x, x)
    _, info = step_all(tuned, jax.random.key(1), case.params, after)
    assert float(info.acceptance_rate.mean()) == pytest.approx(target, abs=0.06)
    far = dataclasses.replace(first, step_size=1e-3)
    with compiles_nothing():
        again, _ = kernels.tune_step_size(jax.random.key(2), far, case.params, states, target)
    assert again.step_size == pytest.approx(tuned.step_size, rel=0.2)
