"""Weights, sums and masks of experts, against the models that they should equal."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import experts, units

BINARY = units.Bernoulli(4)
IMAGE = experts.HiddenBank(BINARY, units.Bernoulli(3))
TEXT = experts.HiddenBank(BINARY, units.Spin(2))
BOTH = pj.product(BINARY, bias=experts.Bias(BINARY), image=IMAGE, text=TEXT)
ONE = pj.product(BINARY, bias=experts.Bias(BINARY), image=IMAGE)
REALS = units.GaussianDiag(3)


def without(params, name):
    return {key: value for key, value in params.items() if key != name}


def test_a_masked_product_is_the_product_of_the_rest(random_params):
    params = random_params(BOTH)
    masked = BOTH.mask(params, text=False)
    expected = pj.exact.probabilities(ONE, without(params, "text"))
    np.testing.assert_allclose(pj.exact.probabilities(BOTH, masked), expected, atol=1e-6)
    # The absent bank's latents are normalised: no log 2 per unit is left behind, on either side.
    log_z = pj.exact.log_z(ONE, without(params, "text"))
    assert float(pj.exact.log_z(BOTH, masked)) == pytest.approx(float(log_z), abs=1e-5)
    x = BINARY.states()[5]
    votes = BOTH.log_factors(masked, x)
    np.testing.assert_array_equal(votes[4:], np.zeros(2))
    assert pj.exact.probabilities(BOTH, BOTH.mask(params, text=True)) == pytest.approx(
        np.asarray(pj.exact.probabilities(BOTH, params))
    )


def test_each_event_of_a_batch_has_modalities_of_its_own(random_params):
    params = random_params(BOTH)
    x = BINARY.states()

    def density(x, image, text):
        return BOTH.log_density(BOTH.mask(params, image=image, text=text), x)

    image = jnp.arange(16) % 2 == 0
    text = jnp.arange(16) % 3 == 0
    found = jax.jit(jax.vmap(density))(x, image, text)
    votes = jax.vmap(BOTH.log_factors, (None, 0))(params, x)
    expected = votes[:, 0] + image * votes[:, 1:4].sum(1) + text * votes[:, 4:].sum(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_an_absent_expert_holds_reaches_nothing(random_params):
    params = random_params(BOTH)
    params["text"] = jax.tree.map(lambda leaf: leaf * jnp.nan, params["text"])
    x = BINARY.states()[3]

    def density(params):
        return BOTH.log_density(BOTH.mask(params, text=False), x)

    value, grads = jax.jit(jax.value_and_grad(density))(params)
    expected = ONE.log_density(without(params, "text"), x)
    assert float(value) == pytest.approx(float(expected), abs=1e-5)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(grads["text"]))
    BOTH.check_params(BOTH.mask(params, text=False))
    with pytest.raises(ValueError, match=r"params\['text'\]\['b'\]: expected finite values"):
        BOTH.check_params(params)


def test_masked_chains_follow_the_product_of_the_rest(random_params):
    params = random_params(BOTH)
    kernel = pj.kernels.block_gibbs(BOTH)
    masked = BOTH.mask(params, text=False)
    states = pj.chains.init(jax.random.key(1), kernel, masked, 4000)
    states, _ = pj.chains.run(jax.random.key(2), kernel, masked, states, 40)
    index = np.asarray(states.x @ (2.0 ** jnp.arange(4))).astype(int)
    found = np.bincount(index, minlength=16) / 4000

    def largest_score(p):
        return np.abs((found - p) / np.sqrt(p * (1 - p) / 4000)).max()

    assert largest_score(np.asarray(pj.exact.probabilities(BOTH, masked))) < 3.9  # 1e-4 x 16
    assert largest_score(np.asarray(pj.exact.probabilities(BOTH, params))) > 3.9


def test_a_nested_product_is_left_out_whole(random_params):
    inner = pj.product(BINARY, image=IMAGE, text=TEXT)
    model = pj.product(BINARY, bias=experts.Bias(BINARY), inner=inner)
    params = model.mask(random_params(model), inner=False)
    np.testing.assert_array_equal(model.log_factors(params, BINARY.states()[7])[1:], np.zeros(5))


def test_a_nested_product_that_is_absent_may_hold_anything(random_params):
    inner = pj.product(BINARY, image=IMAGE, present=experts.Bias(BINARY))
    model = pj.product(BINARY, bias=experts.Bias(BINARY), inner=inner)
    params = random_params(model)
    params["inner"] = jax.tree.map(lambda leaf: leaf * jnp.nan, params["inner"])
    alone = pj.product(BINARY, bias=experts.Bias(BINARY))
    expected = pj.exact.log_z(alone, {"bias": params["bias"]})
    found = pj.exact.log_z(model, model.mask(params, inner=False))
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_an_absent_energy_has_no_slope():
    singular = experts.Neural(
        REALS, lambda key: {"a": jnp.ones(()), "b": jnp.zeros(())},
        lambda phi, x: jnp.sum(x**2) / (phi["a"] - phi["b"]),
    )  # fmt: skip
    model = pj.product(REALS, energy=singular, broad=experts.Gaussian(REALS))
    params = model.mask(model.init(jax.random.key(0)), energy=False)
    x = jnp.array([0.3, -1.0, 2.0])
    found = jax.grad(model.log_density, argnums=1)(params, x)
    np.testing.assert_allclose(found, params["broad"]["mean"] - x, rtol=1e-5)


def test_temperatures_and_masks_are_not_trained(random_params):
    params, x = random_params(ONE), jnp.ones((2, 4))
    estimator, tx = pj.estimators.exact(ONE), optax.sgd(0.1)
    for bad in (ONE.temper(params, 0.5), ONE.mask(params, image=True)):
        with pytest.raises(ValueError, match="which the optimizer would change"):
            pj.training.init(jax.random.key(0), ONE, estimator, tx, x, params=bad)


def test_bad_masks(random_params):
    params = random_params(BOTH)
    with pytest.raises(ValueError, match=r"present: expected names of \['bias', .*got 'sound'"):
        BOTH.mask(params, sound=False)
    with pytest.raises(ValueError, match=r"text: expected shape \(\)"):
        BOTH.mask(params, text=jnp.ones(3, bool))
    with pytest.raises(TypeError, match="text: expected a boolean, got 1"):
        BOTH.mask(params, text=1)


def test_weighted_gaussians_have_their_closed_form():
    # A generalised product of experts, each raised to a weight of its own.
    model = pj.product(
        REALS, **{name: experts.Power(REALS, experts.Gaussian(REALS)) for name in ("a", "b")}
    )
    params = model.init(jax.random.key(0))
    weights = jnp.array([0.3, 2.5])
    for name, weight in zip("ab", weights, strict=True):
        params[name]["log_weight"] = jnp.log(weight)
    means, log_precisions = (
        jnp.stack([params[name]["expert"][leaf] for name in "ab"])
        for leaf in ("mean", "log_precision")
    )
    closed = pj.gaussians.product(means, jnp.exp(log_precisions), weights)
    assert float(pj.exact.log_z(model, params)) == pytest.approx(float(closed.log_z), abs=1e-5)
    z = {"a": (), "b": ()}
    np.testing.assert_allclose(model.visible_mean(params, z), closed.mean, rtol=1e-5)


def test_a_negative_weight_divides():
    model = pj.product(
        REALS,
        narrow=experts.Gaussian(REALS),
        divisor=experts.Power(REALS, experts.Gaussian(REALS), signed=True),
    )
    params = model.init(jax.random.key(0))
    params["narrow"]["log_precision"] = jnp.full(3, 1.0)
    params["divisor"]["weight"] = jnp.array(-1.0)
    x = jnp.array([0.3, -1.0, 2.0])
    narrow, inner = params["narrow"], params["divisor"]["expert"]
    expected = pj.gaussians.log_prob(narrow["mean"], jnp.exp(narrow["log_precision"]), x)
    expected -= pj.gaussians.log_prob(inner["mean"], jnp.ones(3), x)
    assert float(model.log_density(params, x)) == pytest.approx(float(expected), abs=1e-5)
    assert model.is_opaque


def test_a_mixture_adds_densities():
    # Two normalised Gaussians: the sum is normalised too, and its weights are probabilities.
    members = {name: experts.Gaussian(REALS) for name in ("a", "b")}
    model = pj.product(REALS, pair=experts.mixture(REALS, **members))
    params = model.init(jax.random.key(0))
    params["pair"]["logits"] = jnp.log(jnp.array([0.2, 0.8]))
    assert float(pj.exact.log_z(model, params)) == pytest.approx(0.0, abs=1e-5)
    x = jnp.array([0.3, -1.0, 0.5])
    parts = [
        jnp.log(weight) + members[name].log_factors(params["pair"]["members"][name], x)[0]
        for name, weight in (("a", 0.2), ("b", 0.8))
    ]
    expected = jnp.logaddexp(*parts)
    assert float(model.log_density(params, x)) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("visible", [units.GaussianDiag(1), units.Gaussian(2)], ids=str)
def test_a_mixture_of_far_members_keeps_its_digits(visible):
    members = {name: experts.Gaussian(visible) for name in ("a", "b")}
    model = pj.product(visible, pair=experts.mixture(visible, **members))
    params = model.init(jax.random.key(0))
    for name, mean in (("a", 100.0), ("b", -30.0)):
        leaves = params["pair"]["members"][name]
        leaves["mean"] = jnp.full_like(leaves["mean"], mean)
        leaves["log_precision"] = jnp.full_like(leaves["mean"], jnp.log(1e4))
    assert pj.exact.method(model) == "latent enumeration"
    assert float(pj.exact.log_z(model, params)) == pytest.approx(0.0, abs=1e-4)
    slope = jax.grad(lambda p: pj.exact.log_z(model, p))(params)["pair"]["logits"]
    np.testing.assert_allclose(slope, np.zeros(2), atol=1e-4)


def test_a_tempered_mixture_is_finite_far_out():
    visible = units.GaussianDiag(2)
    model = pj.product(visible, m=experts.GaussianMixture(visible, 2, joint=True))
    params = model.temper(model.init(jax.random.key(0)), 0.7)
    x = jnp.array([[-524288.0] * 2, [-1e6] * 2])
    found = jax.jit(jax.vmap(model.log_density, (None, 0)))(params, x)
    # Of both components' means of order one, far out only |x|² counts.
    np.testing.assert_allclose(found, -0.35 * (np.asarray(x, float) ** 2).sum(1), rtol=1e-4)


def test_an_energy_without_parameters_can_be_tempered():
    energy = experts.Neural(REALS, lambda key: {}, lambda phi, x: jnp.sum(x**2))
    params = energy.temper(energy.init(jax.random.key(0)), 0.5)
    assert float(energy.log_factors(params, jnp.ones(3))[0]) == -1.5


def test_a_neural_expert_says_what_it_needs():
    with pytest.raises(TypeError, match="init_fn: expected a function, got 3"):
        experts.Neural(REALS, 3, lambda phi, x: 0.0)
    vector = experts.Neural(REALS, lambda rng_key: {"a": jnp.ones(())}, lambda phi, x: phi["a"] * x)
    with pytest.raises(ValueError, match=r"apply_fn\(φ, x\): expected shape \(\)"):
        vector.log_factors(vector.init(jax.random.key(0)), jnp.zeros(3))
    with pytest.raises(ValueError, match="one with latents and a field, got Neural"):
        vector.visible_field(vector.init(jax.random.key(0)), ())


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: experts.Power(REALS, IMAGE), ValueError, "expert: expected units GaussianDiag"),
        (lambda: experts.mixture(BINARY, a=IMAGE), ValueError, "expected at least two members"),
        (lambda: experts.mixture(REALS, a=IMAGE, b=TEXT), ValueError, "expected expert 'a' to see"),
        (lambda: experts.mixture(BINARY, a=IMAGE, b=2), TypeError, "expected 'b' to be an Expert"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()
