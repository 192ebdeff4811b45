"""Posterior means: other units and dtypes, what is held, what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import poejax as pj
from poejax import experts, inference, units

RBM = pj.models.rbm(6, 5)
NUM_CHAINS = 32


MIXED = units.Joint(image=units.Bernoulli(3), label=units.Categorical(1, 3))


@pytest.mark.slow
def test_noise_on_joint_units_damages_every_block(random_params):
    bank = experts.HiddenBank(MIXED, units.Bernoulli(3))
    model = pj.product(MIXED, bias=experts.Bias(MIXED), hidden=bank)
    params, noise = random_params(model), inference.BitFlips(0.2)
    noisy = jax.vmap(lambda key: noise.corrupt(key, MIXED, MIXED.random_event(key)))(
        jax.random.split(jax.random.key(0), 4)
    )
    found = inference.denoise(jax.random.key(1), model, params, noisy, noise, num_chains=NUM_CHAINS)
    x = MIXED.states()
    same = x["image"][None] == noisy["image"][:, None]
    log_p = jnp.where(same, jnp.log(0.8), jnp.log(0.2)).sum(-1)
    label = (x["label"][None] == noisy["label"][:, None]).all((-1, -2))
    log_p += jnp.where(label, jnp.log(0.8), jnp.log(0.1))
    log_p += jax.vmap(model.log_density, (None, 0))(params, x)
    p = jax.nn.softmax(log_p, axis=1)
    for block in ("image", "label"):
        expected = np.einsum("ns,s...->n...", p, x[block])
        t, limit = reference.largest_t(
            found.mean[block], found.std_err[block], expected, NUM_CHAINS
        )
        assert t < limit


def test_noise_levels_are_leaves():
    rates = [inference.BitFlips(rate) for rate in (0.1, 0.2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rates)
    fields = jax.vmap(lambda noise: noise.field(units.Bernoulli(1), jnp.ones(1)))(stacked)
    np.testing.assert_allclose(fields[:, 0], np.log([9, 4]), rtol=1e-6)


@pytest.mark.slow
def test_what_is_observed_comes_back_exactly(random_params):
    model = pj.models.gaussian_rbm(2, 3)
    x = np.array([[0.3, 1000.1]], np.float32)
    observed = np.array([True, True])
    found = inference.inpaint(
        jax.random.key(0), model, random_params(model), x, observed,
        num_chains=24, num_steps=5000,
    )  # fmt: skip
    np.testing.assert_array_equal(found.mean, x)
    np.testing.assert_array_equal(found.std_err, np.zeros_like(x))


@pytest.mark.slow
def test_gradients_reach_rate_and_parameters_past_the_burn_in(random_params):
    # Means of conditionals given the chains' latents depend smoothly on rate and parameters.
    params, x = random_params(RBM), jnp.ones((2, 6))

    def error(rate, params):
        found = inference.denoise(
            jax.random.key(0), RBM, params, x, inference.BitFlips(rate),
            num_chains=2, num_steps=8, burn_in=3,
        )  # fmt: skip
        return jnp.mean(1 - found.mean)

    slope, grads = jax.grad(error, (0, 1))(0.1, params)
    assert float(slope) > 0  # the less the observation is trusted, the further from it
    assert float(jnp.abs(grads["bias"]["field"]).min()) > 0
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bfloat16, jnp.float32])
def test_data_of_another_dtype_than_the_parameters(dtype, random_params):
    params, x = random_params(RBM), np.tile([1, 0], (2, 3))
    noise, key = inference.BitFlips(0.1), jax.random.key(0)
    expected = inference.denoise(key, RBM, params, jnp.asarray(x, float), noise, num_steps=110)
    found = inference.denoise(key, RBM, params, jnp.asarray(x, dtype), noise, num_steps=110)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        found = inference.denoise(key, RBM, wide, jnp.asarray(x, dtype), noise, num_steps=110)
    assert found.mean.dtype == jnp.float64


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (RBM, np.ones(6), r"x: expected shape \(N, 6\)"),
        (RBM, np.ones((2, 1)), r"x: expected shape \(N, 6\)"),
        (RBM, np.ones((2, 7)), r"x: expected shape \(N, 6\)"),
        (RBM, [[1, 0, 0, 0, 0, 0]], "x: expected an array, got a list"),
    ],
)
def test_inpainting_refuses_what_would_broadcast(model, x, message, random_params):
    observed = np.ones(6, bool)
    with pytest.raises((TypeError, ValueError), match=message):
        inference.inpaint(jax.random.key(0), model, random_params(model), x, observed)


def test_masks_of_blocks_agree_in_rank(random_params):
    model = pj.product(MIXED, bias=experts.Bias(MIXED))
    x = jax.vmap(MIXED.random_event)(jax.random.split(jax.random.key(0), 2))
    masks = {"image": np.ones((2, 3), bool), "label": np.ones(1, bool)}
    with pytest.raises(ValueError, match=r"observed: expected masks all \[D\] or all \[N, D\]"):
        inference.inpaint(jax.random.key(0), model, random_params(model), x, masks)


def test_posteriors_without_a_finite_z_are_refused(random_params):
    visible = units.GaussianDiag(2)
    x, key = np.array([[0.3, -1.0]]), jax.random.key(0)
    model = pj.product(visible, hidden=experts.HiddenBank(visible, units.StandardGaussian(2)))
    params = {"hidden": {"w": 2 * jnp.eye(2), "b": jnp.zeros(2)}}
    with pytest.raises(ValueError, match=r"normalisable model, but experts \['prior.hidden'\]"):
        inference.denoise(key, model, params, x, inference.GaussianNoise(2.0))
    # Narrow noise makes the same prior proper.
    inference.denoise(key, model, params, x, inference.GaussianNoise(0.4))
    model = pj.product(visible, hidden=experts.HiddenBank(visible, units.Bernoulli(2)))
    with pytest.raises(ValueError, match="params: expected a finite posterior mean"):
        inference.inpaint(key, model, random_params(model), x, np.array([True, False]))


def test_a_mean_field_pass_weighs_the_members_of_a_mixture(random_params):
    # Two equal members are one expert: the choice between them must not matter.
    visible = units.Bernoulli(4)
    bank = experts.HiddenBank(visible, units.Bernoulli(3))
    single = pj.product(visible, bias=experts.Bias(visible), bank=bank)
    params = random_params(single)
    params["bank"]["b"] = jnp.full(3, -30.0)  # off, so that its mean is its idle mean too
    both = pj.product(
        visible, bias=experts.Bias(visible), mix=experts.mixture(visible, a=single, b=single)
    )
    members = {"logits": jnp.array([0.1, 0.0]), "members": {"a": params, "b": params}}
    x = jnp.array([1.0, 0, 1, 1])
    found = inference.reconstruct(both, {"bias": {"field": jnp.zeros(4)}, "mix": members}, x)
    np.testing.assert_allclose(found, inference.reconstruct(single, params, x), rtol=1e-5)
