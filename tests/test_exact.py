"""Enumeration: chunks, budgets, derivatives, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj


def test_both_sides_agree(random_params):
    # The same weights with the sides swapped have the same Z.
    wide, tall = pj.models.rbm(5, 11), pj.models.rbm(11, 5)
    params = random_params(wide)
    swapped = {
        "bias": {"field": params["hidden"]["b"]},
        "hidden": {"w": params["hidden"]["w"].T, "b": params["bias"]["field"]},
    }
    found = pj.exact.log_z(wide, params), pj.exact.log_z(tall, swapped)
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_chunks_do_not_change_the_sum_or_its_gradient(random_params, monkeypatch):
    model = pj.models.rbm(7, 9)
    params = random_params(model)
    whole = jax.value_and_grad(lambda p: pj.exact.log_z(model, p))(params)
    monkeypatch.setattr(
        pj.exact._enumeration, "_CHUNK_NUMBERS", 9 * 11
    )  # 12 chunks, the last one part full
    jax.clear_caches()
    pieces = jax.value_and_grad(lambda p: pj.exact.log_z(model, p))(params)
    jax.clear_caches()
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_probabilities_are_normalised_and_ordered(random_params):
    model = pj.models.rbm(6, 3)
    params = random_params(model)
    found = pj.exact.probabilities(model, params)
    log_p = jax.vmap(lambda x: pj.exact.log_prob(model, params, x))(model.visible.states())
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(jnp.log(found), log_p, atol=1e-5)


def test_product_with_several_banks_enumerates_all_latents(random_params):
    visible = pj.units.Bernoulli(12)
    banks = {
        "a": pj.experts.HiddenBank(visible, pj.units.Bernoulli(3)),
        "b": pj.experts.HiddenBank(visible, pj.units.Categorical(2, 3)),
        "bias": pj.experts.Bias(visible),
    }
    model = pj.product(visible, **banks)
    params = random_params(model)
    assert model.num_latent_states == 8 * 9
    brute = jax.nn.logsumexp(jax.vmap(model.log_density, (None, 0))(params, visible.states()))
    np.testing.assert_allclose(pj.exact.log_z(model, params), brute, rtol=1e-6)


def test_new_params_and_an_equal_model_compile_nothing(random_params, compiles_nothing):
    pj.exact.log_z(pj.models.rbm(6, 4), random_params(pj.models.rbm(6, 4), 0))
    params = random_params(pj.models.rbm(6, 4), 1)
    with compiles_nothing():
        pj.exact.log_z(pj.models.rbm(6, 4), params)


def test_works_under_jit_vmap_and_grad(random_params):
    model = pj.models.rbm(6, 4)
    stack = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(random_params(model, s) for s in range(3))
    )
    found = jax.jit(jax.vmap(lambda p: pj.exact.log_z(model, p)))(stack)
    assert found.shape == (3,)
    grads = jax.vmap(jax.grad(lambda p: pj.exact.log_z(model, p)))(stack)
    assert grads["hidden"]["w"].shape == (3, 6, 4)


@pytest.mark.parametrize("dim", [1, 2, 4, 6])
def test_any_distribution_on_the_cube_is_an_rbm(dim):
    # 20 random distributions per dimension, from near-uniform to very peaked.
    for seed in range(20):
        scale = [0.1, 1.0, 3.0, 6.0][seed % 4]
        log_probs = scale * jax.random.normal(jax.random.key(seed), (2**dim,))
        model, params = pj.models.rbm_from_log_probs(log_probs)
        found = pj.exact.probabilities(model, params)
        assert 0.5 * float(jnp.abs(found - jax.nn.softmax(log_probs)).sum()) < 1e-4


def test_a_distribution_with_impossible_corners_is_an_rbm():
    log_probs = jnp.array([-jnp.inf, 0.0, -jnp.inf, -1.0, 2.0, -jnp.inf, 0.5, -jnp.inf])
    model, params = pj.models.rbm_from_log_probs(log_probs)
    found = pj.exact.probabilities(model, params)
    assert 0.5 * float(jnp.abs(found - jax.nn.softmax(log_probs)).sum()) < 1e-4
    # Each corner's expert is competent there and withdraws everywhere else.
    votes = jax.vmap(lambda x: model.log_factors(params, x))(model.visible.states())
    off_corner = votes - jnp.diag(jnp.diag(votes))
    assert float(jnp.abs(off_corner).max()) < 1e-6


@pytest.mark.parametrize(
    "bad", [jnp.zeros(6), jnp.zeros((2, 2)), jnp.full(4, -jnp.inf), jnp.array([0.0, jnp.nan])]
)
def test_bad_log_probs(bad):
    with pytest.raises(ValueError, match="log_probs: expected"):
        pj.models.rbm_from_log_probs(bad)


def test_refusals():
    big = pj.models.rbm(784, 500)
    with pytest.raises(ValueError, match=r"at most 67108864 states .* got 2\*\*500 .*evidence.ais"):
        pj.exact.log_z(big, jax.eval_shape(big.init, jax.random.key(0)))
    with pytest.raises(ValueError, match=r"probabilities: expected at most .*2\*\*784"):
        pj.exact.probabilities(big, None)
    visible = pj.units.Gaussian(4)
    real = pj.product(visible, heavy=pj.experts.StudentT(visible, 5))
    with pytest.raises(ValueError, match=r"log_z: .* infinitely many on both .*evidence.ais"):
        pj.exact.log_z(real, real.init(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"sample: .* infinitely many on both"):
        pj.exact.sample(jax.random.key(0), real, real.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="infinitely many on both"):
        pj.exact.method(real)


def test_the_method_goes_by_the_model_and_the_budget():
    assert pj.exact.method(pj.models.rbm(5, 9)) == "visible enumeration"
    assert pj.exact.method(pj.models.rbm(9, 5)) == "latent enumeration"
    assert pj.exact.method(pj.models.gaussian_rbm(3, 9)) == "latent enumeration"
    assert pj.exact.method(pj.models.gaussian_rbm(3, 9), max_states=100) == "quadrature"
    with pytest.raises(ValueError, match=r"at most 100 states to enumerate, got 2\*\*9"):
        pj.exact.method(pj.models.gaussian_rbm(4, 9), max_states=100)


def test_a_model_without_precision_is_not_normalisable():
    visible = pj.units.GaussianDiag(2)
    model = pj.product(visible, hidden=pj.experts.HiddenBank(visible, pj.units.Bernoulli(2)))
    with pytest.raises(ValueError, match="grow exponentially where no Gaussian"):
        pj.exact.log_z(model, model.init(jax.random.key(0)))


def test_a_wide_sample_takes_no_more_memory_than_its_sum():
    model = pj.models.rbm(50_000, 12)
    params = jax.eval_shape(model.init, jax.random.key(0))

    def used(fn, *arguments):
        compiled = jax.jit(fn).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    log_z = used(lambda p: pj.exact.log_z(model, p), params)
    sample = used(lambda k, p: pj.exact.sample(k, model, p), jax.random.key(0), params)
    assert max(log_z, sample) < 5e7
