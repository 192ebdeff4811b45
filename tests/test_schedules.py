"""Temperatures by thermodynamic length: fewer fluctuations from as many of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from experiments import annealing
from poejax import evidence
from tests.bracket_cases import SMALL, bars, exact_events, trained

KEY = jax.random.key(0)


def ising(size, coupling):
    """The 2-D Ising model on a torus; the white squares are hidden units of the black ones."""
    x, y = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    number = np.full((size, size), -1)
    is_black = (x + y) % 2 == 0
    number[is_black] = np.arange(is_black.sum())
    number[~is_black] = np.arange(is_black.sum())
    w = np.zeros((size * size // 2,) * 2)
    for i, j in np.argwhere(is_black):
        for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            w[number[i, j], number[(i + di) % size, (j + dj) % size]] += coupling
    spins = pj.units.Spin(size * size // 2)
    model = pj.product(spins, white=pj.experts.HiddenBank(spins, spins))
    zero = jnp.zeros(size * size // 2)
    return model, {"white": {"w": jnp.asarray(w, jnp.float32), "b": zero}}


def spread(model, params, base, betas, num_chains=20_000):
    """Variance of the log weights, and the number of them."""
    found = evidence.ais(jax.random.key(7), model, params, base, betas, num_chains)
    return float(jnp.var(found.log_weights, ddof=1)), found


def upside_down(betas):
    """Temperatures that crowd where those of `betas` are sparse: the mutation."""
    width = 1 / jnp.diff(betas)
    return jnp.concatenate([jnp.zeros(1), jnp.cumsum(width / width.sum())]).at[-1].set(1.0)


def cases():
    params = trained(SMALL, bars(), 0)
    yield "trained", SMALL, params, evidence.base_rate(SMALL, bars()), 40
    model, params = ising(4, 0.6)
    even = jnp.concatenate([jnp.ones((1, 8)), -jnp.ones((1, 8))])
    yield "ising", model, params, evidence.base_rate(model, even), 40


@pytest.mark.slow
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_as_many_temperatures_give_weights_of_less_variance(case):
    _, model, params, base, num_steps = case
    betas = evidence.adaptive_betas(KEY, model, params, base, num_steps)
    assert betas.shape == (num_steps + 1,)
    assert float(betas[0]) == 0
    assert float(betas[-1]) == 1
    assert bool((jnp.diff(betas) > 0).all())
    linear, _ = spread(model, params, base, evidence.linear_betas(num_steps))
    adapted, found = spread(model, params, base, betas)
    # The log of a variance of 20,000 draws has a standard error of about sqrt(2 / 20,000).
    assert np.log(linear / adapted) > 4 * np.sqrt(2 * 2 / 20_000)
    mutated, _ = spread(model, params, base, upside_down(betas))
    assert mutated > linear
    truth = float(pj.exact.log_z(model, params))
    assert abs(float(found.log_z) - truth) < 3.5 * float(found.std_err)


@pytest.mark.slow
def test_temperatures_crowd_where_the_ising_model_has_its_heat_capacity():
    # The density of temperatures follows sd(d log f / dβ), here by enumeration.
    model, params = ising(4, 0.6)
    even = jnp.concatenate([jnp.ones((1, 8)), -jnp.ones((1, 8))])
    base = evidence.base_rate(model, even)
    betas = evidence.adaptive_betas(KEY, model, params, base, 50, num_chains=1000)
    states = model.visible.states()

    @jax.jit
    def sd(beta):
        def log_f(beta):
            tempered = model.temper(params, beta)
            return jax.vmap(lambda x: model.log_density(tempered, x))(states)

        log_p, slope = jax.jvp(log_f, (beta,), (jnp.ones(()),))
        p = jax.nn.softmax(log_p)
        return jnp.sqrt(p @ slope**2 - (p @ slope) ** 2)

    grid = jnp.linspace(0, 1, 201)
    energy_sd = np.array([sd(b) for b in grid])
    # Equal lengths: between neighbours lies the same share of the integral of sd.
    reached = np.concatenate([[0], np.cumsum((energy_sd[1:] + energy_sd[:-1]) / 2)])
    length = np.interp(np.asarray(betas), np.asarray(grid), reached / reached[-1])
    even_length = np.linspace(0, 1, 51)
    np.testing.assert_allclose(length, even_length, atol=0.06)  # what is slow counts a bit more
    linear = np.interp(even_length, np.asarray(grid), reached / reached[-1])
    assert np.abs(linear - even_length).max() > 0.12


@pytest.mark.slow
def test_both_directions_take_them_and_new_params_compile_nothing(random_params, compiles_nothing):
    def go(model, seed):
        params = random_params(model, seed)
        x = exact_events(jax.random.key(seed), model, params, 50)
        base = evidence.base_rate(model, x)
        betas = evidence.adaptive_betas(jax.random.key(seed), model, params, base, 60)
        forward = evidence.ais(KEY, model, params, base, betas, 50)
        return evidence.bracket(
            forward, evidence.reverse_ais(KEY, model, params, base, betas, x)
        ), float(pj.exact.log_z(model, params))

    go(SMALL, 0)
    go(SMALL, 1)
    with compiles_nothing():
        found, truth = go(pj.models.rbm(9, 6), 2)
    assert float(found.low) <= truth <= float(found.high)


def test_a_model_that_is_its_base_keeps_even_temperatures():
    visible = pj.units.Bernoulli(5)
    model = pj.product(visible, bias=pj.experts.Bias(visible))
    params = {"bias": {"field": jnp.arange(5.0)}}
    base = evidence.Base(model, params, pj.exact.log_z(model, params))
    betas = evidence.adaptive_betas(KEY, model, params, base, 10)
    np.testing.assert_allclose(np.diff(betas), 0.1, atol=0.05)


@pytest.mark.slow
def test_real_units_far_from_zero():
    model = pj.models.gaussian_rbm(3, 4)
    data = 1e4 + jax.random.normal(KEY, (500, 3))
    params = model.init_from(KEY, data)
    params["hidden"]["w"] = 0.5 * jax.random.normal(KEY, (3, 4))
    base = evidence.base_rate(model, data, params=params)
    betas = evidence.adaptive_betas(KEY, model, params, base, 30)
    found = evidence.ais(jax.random.key(1), model, params, base, betas, 200)
    truth = float(pj.exact.log_z(model, params))
    assert abs(float(found.log_z) - truth) < 3.5 * float(found.std_err)


def test_bad_arguments(random_params):
    params = random_params(SMALL)
    base = evidence.base_rate(SMALL, bars())
    with pytest.raises(ValueError, match="num_steps: expected an integer of at least 1, got 0"):
        evidence.adaptive_betas(KEY, SMALL, params, base, 0)
    with pytest.raises(ValueError, match="num_chains: expected at least 2"):
        evidence.adaptive_betas(KEY, SMALL, params, base, 10, num_chains=1)
    with pytest.raises(TypeError, match="base: expected a base"):
        evidence.adaptive_betas(KEY, SMALL, params, None, 10)
    with pytest.raises(TypeError, match="rng_key: expected a typed key"):
        evidence.adaptive_betas(0, SMALL, params, base, 10)


@pytest.mark.slow
def test_the_study_small(tmp_path):
    config = annealing.Config(
        dataset="digits",
        num_hidden=3,
        num_updates=20,
        ising_size=4,
        temperatures=(8,),
        num_chains=20,
    )
    found = annealing.train_and_evaluate(config, tmp_path)["estimates"]
    assert [r["schedule"] for r in found] == ["linear", "adaptive"] * 2
    assert all(np.isfinite([r["variance"], r["error"], r["smc_error"]]).all() for r in found)
    assert (tmp_path / "annealing.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match="ising_size: expected an even number, got 3"):
        annealing.Config(ising_size=3)
