"""Ranking, features, denoising, inpainting and class probabilities against enumeration."""

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


def exact_means(model, params, log_likelihood):
    """E[x | y] by enumeration, [N, ...], for a table of log p(y_n | x_s), [N, S]."""
    x = model.visible.states()
    log_p = jax.vmap(model.log_density, (None, 0))(params, x) + log_likelihood
    return np.einsum("ns,s...->n...", jax.nn.softmax(log_p, axis=1), x)


DISCRETE = {
    "bernoulli": (RBM.visible, lambda x, y: x == y),
    "spin": (units.Spin(5), lambda x, y: x == y),
    "categorical": (units.Categorical(3, 3), lambda x, y: (x == y).all(-1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DISCRETE)
def test_denoising_bit_flips_is_the_posterior_mean(name, random_params):
    visible, same = DISCRETE[name]
    bank = experts.HiddenBank(visible, units.Bernoulli(4))
    model = pj.product(visible, bias=experts.Bias(visible), hidden=bank)
    params = random_params(model)
    x = visible.states()
    noisy = x[jnp.array([0, 5, 11, 20])]
    found = inference.denoise(
        jax.random.key(1), model, params, noisy, inference.BitFlips(0.2), num_chains=NUM_CHAINS
    )
    agree = same(x[None], noisy[:, None])
    num_values = 3 if name == "categorical" else 2
    log_p = jnp.where(agree, jnp.log(0.8), jnp.log(0.2 / (num_values - 1))).sum(-1)
    t, limit = reference.largest_t(
        found.mean, found.std_err, exact_means(model, params, log_p), NUM_CHAINS
    )
    assert t < limit
    # With the noise taken for weaker than it was, the statistic sees it.
    wrong = inference.denoise(
        jax.random.key(1), model, params, noisy, inference.BitFlips(0.1), num_chains=NUM_CHAINS
    )
    t, limit = reference.largest_t(
        wrong.mean, wrong.std_err, exact_means(model, params, log_p), NUM_CHAINS
    )
    assert t > limit
    visible.check("samples", found.samples.reshape(-1, *visible.event_shape))


@pytest.mark.parametrize("visible", [units.GaussianDiag(3), units.Gaussian(3)], ids=str)
def test_denoising_gaussian_noise_has_its_closed_form(visible):
    kind = "full" if isinstance(visible, units.Gaussian) else "diag"
    # Written as a mixture of one component with itself, so that there is a latent to sample.
    mixture = experts.GaussianMixture(visible, 2, joint=True)
    model = pj.product(visible, prior=experts.Gaussian(visible, kind), mixture=mixture)
    params = model.init(jax.random.key(0))
    params["mixture"]["mean"] = jnp.zeros_like(params["mixture"]["mean"])
    noisy = 2 * jax.random.normal(jax.random.key(1), (5, 3))
    found = inference.denoise(
        jax.random.key(2),
        model,
        params,
        noisy,
        inference.GaussianNoise(0.5),
        num_chains=NUM_CHAINS,
        num_steps=400,
    )
    # Precisions 1 (prior), 1 (mixture) and 4 (noise).
    expected = (params["prior"]["mean"] + 4 * noisy) / 6
    np.testing.assert_allclose(found.mean, expected, atol=1e-5)


@pytest.mark.slow
def test_inpainting_is_the_conditional_mean(random_params):
    params = random_params(RBM)
    x = RBM.visible.states()
    rows = x[jnp.array([3, 17, 40])]
    observed = jnp.array([[1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]], bool)
    damaged = jnp.where(observed, rows, jnp.nan)
    found = inference.inpaint(
        jax.random.key(1), RBM, params, damaged, observed, num_chains=NUM_CHAINS
    )
    fits = ((x[None] == rows[:, None]) | ~observed[:, None]).all(-1)
    expected = exact_means(RBM, params, jnp.where(fits, 0.0, -jnp.inf))
    t, limit = reference.largest_t(found.mean, found.std_err, expected, NUM_CHAINS)
    assert t < limit
    np.testing.assert_array_equal(found.mean[observed], rows[observed])
    assert float(jnp.abs(found.std_err[observed]).max()) == 0
    shared = inference.inpaint(jax.random.key(1), RBM, params, damaged[:1], observed[0])
    np.testing.assert_array_equal(
        shared.samples[0][:, observed[0]], jnp.broadcast_to(rows[0, observed[0]], (4, 3))
    )


@pytest.mark.slow
def test_inpainting_full_precision_units_conditions(random_params):
    visible = units.Gaussian(3)
    model = pj.product(visible, full=experts.Gaussian(visible, "full"))
    params = random_params(model)
    x = jnp.array([[0.5, 9.0, -1.0]])
    observed = jnp.array([True, False, True])
    found = inference.inpaint(jax.random.key(0), model, params, x, observed)
    rows = visible.field(params["full"] | {"linear": jnp.zeros(3)})["rows"]
    precision, mean = np.asarray(rows.T @ rows), np.asarray(params["full"]["mean"])
    expected = (
        mean[1] - precision[1, [0, 2]] @ (np.asarray(x)[0, [0, 2]] - mean[[0, 2]]) / precision[1, 1]
    )
    assert float(found.mean[0, 1]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_joint_units_are_inpainted_block_by_block(random_params):
    visible = units.Joint(image=units.Bernoulli(4), label=units.Categorical(1, 3))
    bank = experts.HiddenBank(visible, units.Bernoulli(3))
    model = pj.product(visible, bias=experts.Bias(visible), hidden=bank)
    params = random_params(model)
    image = units.Bernoulli(4).states()[:5]
    x = {"image": image, "label": jnp.zeros((5, 1, 3))}
    observed = {"image": jnp.ones(4, bool), "label": jnp.zeros(1, bool)}
    found = inference.inpaint(jax.random.key(0), model, params, x, observed, num_chains=NUM_CHAINS)
    log_p = jax.vmap(lambda x: inference.class_log_probs(model, params, x))(x)
    mean, std_err = (part["label"][:, 0] for part in (found.mean, found.std_err))
    t, limit = reference.largest_t(mean, std_err, jnp.exp(log_p), NUM_CHAINS)
    assert t < limit


@pytest.mark.slow
def test_class_log_probs_against_enumeration(random_params):
    visible = units.Joint(image=units.Bernoulli(4), label=units.Categorical(1, 3))
    other = experts.HiddenBank(visible, units.StandardGaussian(2))
    inner = pj.product(visible, nested=experts.HiddenBank(visible, units.Spin(2)))
    bank = experts.HiddenBank(visible, units.Bernoulli(3))
    model = pj.product(visible, bias=experts.Bias(visible), hidden=bank, other=other, inner=inner)
    params = random_params(model)
    for tried in (params, model.mask(params, hidden=False), model.temper(params, 0.4)):
        image = jnp.array([1.0, 0.0, 0.0, 1.0])
        scores = [
            model.log_density(tried, {"image": image, "label": jax.nn.one_hot(k, 3)[None]})
            for k in range(3)
        ]
        found = inference.class_log_probs(model, tried, {"image": image})
        np.testing.assert_allclose(found, jax.nn.log_softmax(jnp.stack(scores)), atol=1e-5)
    with pytest.raises(ValueError, match=r"label: expected the name of a block Categorical"):
        inference.class_log_probs(model, params, {"image": image}, label="image")


def test_ranking(random_params):
    params = random_params(RBM)
    x = RBM.visible.states()
    ranking = inference.rank(RBM, params, x)
    p = np.asarray(pj.exact.probabilities(RBM, params))
    assert (np.diff(p[ranking.order]) <= 1e-7).all()
    assert int(ranking.most(1 / 64)[0]) == p.argmax()
    assert int(ranking.least(0.001)[0]) == p.argmin()
    assert ranking.most(0.5).shape == (32,)
    with pytest.raises(ValueError, match="fraction: expected a number in"):
        ranking.most(0.0)


def test_features(random_params):
    params = random_params(RBM)
    x = RBM.visible.states()[9]
    found = inference.features(RBM, params, x)
    expected = jax.nn.sigmoid(x @ params["hidden"]["w"] + params["hidden"]["b"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = inference.features(RBM, params, x, bias=False)
    np.testing.assert_allclose(found, jax.nn.sigmoid(x @ params["hidden"]["w"]), rtol=1e-5)
    with pytest.raises(ValueError, match="bank: expected the name of a HiddenBank, got 'bias'"):
        inference.features(RBM, params, x, bank="bias")


def test_a_mean_field_pass_through_scales_is_refused():
    visible = units.Gaussian(2)
    model = pj.product(visible, heavy=experts.StudentT(visible, 2))
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="whose mean-field pass is the same for every x"):
        inference.reconstruct(model, params, jnp.zeros(2))


@pytest.mark.parametrize(
    "visible", [units.Bernoulli(4), units.Spin(4), units.Categorical(4, 3)], ids=str
)
def test_bit_flips_flip_as_often_as_they_say(visible):
    x = visible.random_event(jax.random.key(0))
    noise = inference.BitFlips(0.15)
    y = jax.vmap(lambda key: noise.corrupt(key, visible, x))(
        jax.random.split(jax.random.key(1), 4000)
    )
    visible.check("y", y)
    wrong = np.asarray(y != x) if y.ndim == 2 else np.asarray((y != x).any(-1))
    score = (wrong.mean(0) - 0.15) / np.sqrt(0.15 * 0.85 / 4000)
    assert np.abs(score).max() < 3.7
    if isinstance(visible, units.Categorical):
        others = np.asarray(y).sum(0)[np.asarray(x) == 0].reshape(4, 2)
        score = (others[:, 0] - others[:, 1]) / np.sqrt(others.sum(1))
        assert np.abs(score).max() < 3.7


def test_what_is_no_noise_or_no_kernel_of_the_model(random_params):
    params, x = random_params(RBM), jnp.ones((4, 6))
    with pytest.raises(TypeError, match=r"noise: expected e.g. BitFlips\(0.1\)"):
        inference.denoise(jax.random.key(0), RBM, params, x, 0.1)
    with pytest.raises(TypeError, match=r"kernel: expected a kernel such as .*block_gibbs"):
        inference.inpaint(jax.random.key(0), RBM, params, x, x > 0, kernel=pj.kernels.block_gibbs)
    other = pj.kernels.block_gibbs(pj.models.rbm(6, 3))
    with pytest.raises(ValueError, match="kernel: expected a kernel of the model itself"):
        inference.inpaint(jax.random.key(0), RBM, params, x, x > 0, kernel=other)
    with pytest.raises(TypeError, match=r"noise: expected e.g. BitFlips"):
        inference.denoise(jax.random.key(0), RBM, params, x, inference.BitFlips)

    class Unregistered(inference.BitFlips):
        pass

    with pytest.raises(TypeError, match="noise: expected an object registered with JAX"):
        inference.denoise(jax.random.key(0), RBM, params, x, Unregistered(0.1))
    for rate in ("a", None, 1j, [0.1], np.array([0.1]), True):
        with pytest.raises(TypeError, match="rate: expected one number in"):
            inference.BitFlips(rate)
    assert inference.GaussianNoise(np.int64(1)).scale == 1
    masked = RBM.mask(params, hidden=False)
    np.testing.assert_array_equal(inference.features(RBM, masked, x[0]), np.zeros(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, x: inference.BitFlips(1.5), r"rate: expected a number in \(0, 1\), got 1.5"),
        (lambda p, x: inference.GaussianNoise(0.0), r"scale: expected a number in \(0, inf\)"),
        (
            lambda p, x: inference.denoise(
                jax.random.key(0), RBM, p, x, inference.GaussianNoise(1.0)
            ),
            "noise: GaussianNoise expects real visible units, got Bernoulli",
        ),
        (
            lambda p, x: inference.denoise(
                jax.random.key(0), RBM, p, x, inference.BitFlips(0.1), burn_in=200
            ),
            "burn_in: expected an integer, 0 to 199, got 200",
        ),
        (
            lambda p, x: inference.denoise(
                jax.random.key(0), RBM, p, x, inference.BitFlips(0.1), num_chains=1
            ),
            "num_chains: expected at least 2",
        ),
        (
            lambda p, x: inference.denoise(
                jax.random.key(0), RBM, p, 0.5 * x, inference.BitFlips(0.1)
            ),
            r"noisy: expected values in \{0, 1\}",
        ),
        (
            lambda p, x: inference.inpaint(jax.random.key(0), RBM, p, x, jnp.ones((2, 6), bool)),
            "observed: expected 4 rows, one per chain, got 2",
        ),
    ],
)
def test_bad_arguments(call, message, random_params):
    with pytest.raises(ValueError, match=message):
        call(random_params(RBM), jnp.ones((4, 6)))
