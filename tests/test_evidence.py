"""Annealed importance sampling against exact log Z."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import evidence
from poejax.evidence._annealing import _ais_steps

RBM = pj.models.rbm(10, 6)
BETAS = evidence.linear_betas(200)


def exact_events(key, model, params, count):
    log_p = jnp.log(pj.exact.probabilities(model, params))
    return jax.vmap(model.visible.state_at)(jax.random.categorical(key, log_p, shape=(count,)))


def estimate_and_truth(model, seed, random_params, scale=0.8):
    params = random_params(model, seed, scale)
    truth = float(pj.exact.log_z(model, params))
    base = evidence.base_rate(model, exact_events(jax.random.key(seed), model, params, 200))
    return evidence.ais(jax.random.key(seed), model, params, base, BETAS, 100), truth


@pytest.mark.slow
def test_intervals_cover_and_errors_are_centred_over_200_random_rbms(random_params):
    estimates, truths = zip(
        *(estimate_and_truth(RBM, seed, random_params) for seed in range(200)), strict=True
    )
    covered = [
        float(e.ci_low) <= t <= float(e.ci_high) for e, t in zip(estimates, truths, strict=True)
    ]
    errors = np.array([float(e.log_z) - t for e, t in zip(estimates, truths, strict=True)])
    scores = errors / np.array([float(e.std_err) for e in estimates])
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(covered))
    assert abs(errors.mean()) < 3 * errors.std(ddof=1) / np.sqrt(len(errors))
    # The claimed standard errors are the real ones: their ratio's mean square is near 1
    # (standard deviation of the mean square of 200 normal scores: 0.1).
    assert 0.7 < np.mean(scores**2) < 1.3


@pytest.mark.slow
def test_weights_are_unbiased_even_on_a_bad_path(random_params):
    # E[w] = Z for any schedule, so even 3 temperatures must be right within standard errors.
    params = random_params(RBM, 3, 0.5)
    truth = float(pj.exact.log_z(RBM, params))
    base = evidence.base_rate(RBM, exact_events(jax.random.key(0), RBM, params, 200))
    found = evidence.ais(jax.random.key(1), RBM, params, base, evidence.linear_betas(3), 20_000)
    assert abs(float(found.log_z) - truth) < 3.5 * float(found.std_err)
    assert float(found.std_err) < 0.05


def test_forward_and_reverse_bracket_log_z(random_params):
    # Two chains and three temperatures, so that Jensen's gap shows: forward falls short of log Z
    # on average, reverse from exact samples overshoots.
    params = random_params(RBM, 0, 1.0)
    truth = float(pj.exact.log_z(RBM, params))
    x = exact_events(jax.random.key(0), RBM, params, 4000)
    base, betas = evidence.base_rate(RBM, x), evidence.linear_betas(3)
    keys = jax.random.split(jax.random.key(1), 2000)
    forward = jax.vmap(lambda k: evidence.ais(k, RBM, params, base, betas, 2).log_z)(keys)
    reverse = jax.vmap(lambda k, x: evidence.reverse_ais(k, RBM, params, base, betas, x).log_z)(
        keys, x.reshape(2000, 2, 10)
    )
    for gaps, sign in ((forward - truth, -1), (reverse - truth, 1)):
        assert sign * float(gaps.mean()) > 3 * float(gaps.std(ddof=1)) / np.sqrt(2000)


def test_reverse_weights_are_unbiased_for_one_over_z(random_params):
    params = random_params(RBM, 3, 0.5)
    truth = float(pj.exact.log_z(RBM, params))
    x = exact_events(jax.random.key(0), RBM, params, 20_000)
    base = evidence.base_rate(RBM, x)
    found = evidence.reverse_ais(jax.random.key(1), RBM, params, base, evidence.linear_betas(3), x)
    assert abs(float(found.log_z) - truth) < 3.5 * float(found.std_err)
    assert float(found.std_err) < 0.05


V = pj.units.Joint(image=pj.units.Bernoulli(4), label=pj.units.Categorical(1, 3))
PAIRINGS = {
    "spin": (pj.units.Spin(6), pj.units.Bernoulli(4)),
    "categorical": (pj.units.Categorical(3, 3), pj.units.Spin(4)),
    "joint": (V, pj.units.Categorical(2, 3)),
    "standard_gaussian": (pj.units.Bernoulli(6), pj.units.StandardGaussian(3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRINGS)
def test_ais_for_other_units(name, random_params):
    visible, hidden = PAIRINGS[name]
    bank = pj.experts.HiddenBank(visible, hidden)
    model = pj.product(visible, bias=pj.experts.Bias(visible), hidden=bank)
    found, truth = estimate_and_truth(model, 5, random_params, scale=0.5)
    assert abs(float(found.log_z) - truth) < 3.5 * float(found.std_err)
    assert float(found.std_err) < 0.1


@pytest.mark.slow
def test_ais_for_real_visible_units(random_params):
    model = pj.models.gaussian_rbm(3, 4)
    params = random_params(model, 1, 0.5)
    truth = float(pj.exact.log_z(model, params))
    data = 2.0 * jax.random.normal(jax.random.key(0), (500, 3))
    base = evidence.base_rate(model, data)
    found = evidence.ais(jax.random.key(0), model, params, base, BETAS, 400)
    assert abs(float(found.log_z) - truth) < 3.5 * float(found.std_err)
    assert float(found.std_err) < 0.1


def test_ais_in_pieces_is_ais_at_once_and_compiles_once(random_params, compiles_nothing):
    params = random_params(RBM)
    base = evidence.base_rate(RBM, RBM.visible.states())
    whole = evidence.ais(jax.random.key(2), RBM, params, base, BETAS, 20)
    state = evidence.ais_init(jax.random.key(2), RBM, params, base, BETAS, 20)
    with compiles_nothing():
        for num_steps in (1, 70, 3, 500):
            state = evidence.ais_steps(state, RBM, params, base, BETAS, num_steps)
    assert int(state.step) == 200
    np.testing.assert_array_equal(evidence.ais_result(state).log_weights, whole.log_weights)


def test_new_params_and_an_equal_model_compile_nothing(random_params, compiles_nothing):
    def go(model, seed):
        params = random_params(model, seed)
        base = evidence.base_rate(model, model.visible.states())
        found = evidence.ais(jax.random.key(seed), model, params, base, BETAS, 20)
        return evidence.log_likelihood(model, params, model.visible.states(), found)

    go(RBM, 0)
    go(RBM, 1)
    with compiles_nothing():
        go(pj.models.rbm(10, 6), 2)


def test_one_matmul_pair_per_chain_step(random_params):
    params = random_params(RBM)
    base = evidence.base_rate(RBM, RBM.visible.states())
    state = evidence.ais_init(jax.random.key(0), RBM, params, base, BETAS, 64)
    path = pj.product(RBM.visible, base=base.model, target=RBM)
    kernel = pj.kernels.block_gibbs(path)
    lowered = _ais_steps.lower(state, RBM, params, base, BETAS, 10, kernel)
    text = lowered.compile().as_text()
    # Of matrices: what adds up the inner products with a field has a vector for a result.
    found = [line for line in text.splitlines() if " dot(" in line or "onednn$matmul" in line]
    products = [line for line in found if not re.search(r"= f32\[\d+\]\S* dot\(", line)]
    assert len(products) == 2, products


def test_log_likelihood_passes_on_the_interval(random_params):
    params = random_params(RBM)
    x = RBM.visible.states()[:50]
    truth = pj.exact.log_z(RBM, params)
    exact = evidence.log_likelihood(RBM, params, x, truth)
    expected = jax.vmap(lambda row: pj.exact.log_prob(RBM, params, row, truth))(x)
    np.testing.assert_allclose(exact.values, expected, atol=1e-5)
    assert float(exact.ci_low) == float(exact.mean) == float(exact.ci_high)
    assert np.isnan(exact.ess)
    base = evidence.base_rate(RBM, x)
    log_z = evidence.ais(jax.random.key(0), RBM, params, base, BETAS, 50)
    found = evidence.log_likelihood(RBM, params, x, log_z)
    np.testing.assert_allclose(found.mean - found.ci_low, log_z.ci_high - log_z.log_z, atol=1e-4)
    np.testing.assert_allclose(found.ci_high - found.mean, log_z.log_z - log_z.ci_low, atol=1e-4)
    assert float(found.ess) == float(log_z.ess)


def test_salakhutdinov_murray_schedule():
    betas = np.asarray(evidence.salakhutdinov_murray_betas(), np.float64)
    assert betas.shape == (14_501,)
    assert betas[[0, 500, 4500, 14_500]] == pytest.approx([0, 0.5, 0.9, 1])
    assert (np.diff(betas) > 0).all()


def call(**change):
    params = RBM.init(jax.random.key(0))
    arguments = {
        "rng_key": jax.random.key(0),
        "model": RBM,
        "params": params,
        "base": evidence.base_rate(RBM, RBM.visible.states()),
        "betas": BETAS,
        "num_chains": 4,
    }
    return evidence.ais(**(arguments | change))


OTHER = pj.models.rbm(9, 6)
BAD = [
    ({"betas": jnp.linspace(0.1, 1, 5)}, "betas: expected to rise from 0 to 1, got 0.1"),
    ({"betas": jnp.array([0, 0.9, 0.5, 1.0])}, "betas: .* not monotone"),
    ({"betas": jnp.array([0.0, jnp.nan, 1.0])}, "betas: expected to rise"),
    ({"betas": jnp.ones((2, 2))}, r"betas: expected shape \(T \+ 1,\)"),
    ({"num_chains": 1}, "num_chains: expected at least 2"),
    ({"params": OTHER.init(jax.random.key(0))}, r"params\['bias'\].*expected shape \(10,\)"),
    ({"base": evidence.base_rate(OTHER, OTHER.visible.states())}, "base: expected units Bern"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_of_ais(change, message):
    with pytest.raises(ValueError, match=message):
        call(**change)


def test_bad_arguments_of_base_rate_and_log_likelihood(random_params):
    with pytest.raises(ValueError, match="data: expected at least one row"):
        evidence.base_rate(RBM, jnp.zeros((0, 10)))
    with pytest.raises(ValueError, match=r"data: expected values in \{0, 1\}"):
        evidence.base_rate(RBM, jnp.full((3, 10), 0.5))
    with pytest.raises(ValueError, match=r"smoothing: expected a number in \(0, 1\)"):
        evidence.base_rate(RBM, jnp.zeros((3, 10)), smoothing=0.0)
    gaussian = pj.models.gaussian_rbm(3, 2)
    with pytest.raises(ValueError, match="data: expected variance in every column, got column 0"):
        evidence.base_rate(gaussian, jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 10\)"):
        evidence.log_likelihood(RBM, random_params(RBM), jnp.zeros(10), 0.0)
