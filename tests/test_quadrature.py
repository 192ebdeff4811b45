"""Quadrature of one to three real units: accuracy, derivatives, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import poejax as pj
from poejax import experts, units

LINE = units.Gaussian(1)
HEAVY = pj.product(LINE, heavy=experts.StudentT(LINE, 2))
OPAQUE = pj.product(
    LINE,
    energy=experts.Neural(
        LINE,
        lambda key: {"slope": jax.random.normal(key)},
        lambda network, x: jnp.sum(jnp.cosh(x) - network["slope"] * x),
    ),
)


def heavy_params(nu, alpha=(1.0, 1.0)):
    count = len(nu)
    return {
        "heavy": {
            "w": jnp.ones((1, count)),
            "log_scale": jnp.log(jnp.array(alpha[:count])),
            "log_exponent": jnp.log(jnp.array(nu)),
        }
    }


@pytest.mark.parametrize("nu", [0.62, 0.75, 1.0, 30.0])
@pytest.mark.parametrize("alpha", [1.0, 1e-6])
def test_power_law_tails_in_one_dimension(nu, alpha):
    # Both experts see the same line: together they are one of exponent ν.
    found = pj.exact.quadrature(HEAVY, heavy_params([nu / 2] * 2, [alpha] * 2))
    closed = pj.product(LINE, heavy=experts.StudentT(LINE, 1))
    expected = pj.exact.log_z(closed, heavy_params([nu], [alpha]))
    assert pj.exact.method(HEAVY) == "quadrature"
    tolerance = 2e-5 if nu > 0.7 else 1e-3  # at 0.62 some mass lies beyond the last float32
    assert float(found.log_z) == pytest.approx(float(expected), abs=tolerance)
    assert float(found.error) < tolerance


def test_the_error_covers_the_mass_beyond_the_last_radius():
    found = pj.exact.quadrature(HEAVY, heavy_params([0.3, 0.29]))
    closed = pj.product(LINE, heavy=experts.StudentT(LINE, 1))
    missing = pj.exact.log_z(closed, heavy_params([0.59])) - found.log_z
    assert 0 < float(missing) < 1.5 * float(found.error)


def test_value_and_derivatives_under_jit_and_vmap():
    stack = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        heavy_params([1.0, 0.7], [0.5, 2.0]),
        heavy_params([1.5, 2.0], [0.1, 9.0]),
    )
    evaluate = jax.value_and_grad(lambda p: pj.exact.log_z(HEAVY, p))
    values, grads = jax.jit(jax.vmap(evaluate))(stack)
    for i in range(2):
        nu = np.exp(np.asarray(stack["heavy"]["log_exponent"][i], float))
        alpha = np.exp(np.asarray(stack["heavy"]["log_scale"][i], float))

        def density(x, nu=nu, alpha=alpha):
            return np.prod((alpha + x**2) ** -nu)

        total = integrate.quad(density, -np.inf, np.inf)[0]
        assert float(values[i]) == pytest.approx(np.log(total), abs=1e-5)
        for j in range(2):

            def moment(x, j=j, nu=nu, alpha=alpha, density=density):
                return -nu[j] * np.log(alpha[j] + x**2) * density(x)

            expected = integrate.quad(moment, -np.inf, np.inf)[0] / total
            assert float(grads["heavy"]["log_exponent"][i, j]) == pytest.approx(expected, abs=1e-4)


def test_a_neural_expert_needs_nothing_but_its_density():
    params = {"energy": {"network": {"slope": jnp.asarray(1.3)}}}
    total = integrate.quad(lambda x: np.exp(1.3 * x - np.cosh(x)), -30, 30)[0]
    assert pj.exact.method(OPAQUE) == "quadrature"
    assert float(pj.exact.log_z(OPAQUE, params)) == pytest.approx(np.log(total), abs=1e-5)
    x = jnp.array([0.4])
    found = pj.exact.log_prob(OPAQUE, params, x)
    assert float(found) == pytest.approx(1.3 * 0.4 - np.cosh(0.4) - np.log(total), abs=1e-5)
    with pytest.raises(ValueError, match=r"sample: .* only quadrature .* kernels"):
        pj.exact.sample(jax.random.key(0), OPAQUE, params)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3])
def test_peaks_sharp_or_far_apart(size, random_params):
    # A normalised mixture of nine narrow peaks, around a centre far from zero.
    visible = units.GaussianDiag(size)
    model = pj.product(visible, mixture=experts.GaussianMixture(visible, 9, joint=True))
    params = random_params(model, 3, 1.0)
    for log_precision, centre in ((8.0, 0.0), (0.0, 30.0))[: 1 if size == 3 else 2]:
        mixture = params["mixture"]
        moved = mixture | {
            "mean": 3 * mixture["mean"] + centre,
            "log_precision": mixture["log_precision"] + log_precision,
        }
        found = pj.exact.quadrature(model, {"mixture": moved})
        assert float(found.log_z) == pytest.approx(0.0, abs=1e-4)
        assert float(found.error) < 3e-4


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ridges_that_run_to_infinity_off_the_axes(size):
    visible = units.Gaussian(size)
    model = pj.product(visible, heavy=experts.StudentT(visible, size))
    params = model.init(jax.random.key(1))
    nu = {2: 1.0, 3: 1.5}[size]
    params["heavy"]["log_exponent"] = jnp.full(size, jnp.log(nu))
    found = pj.exact.quadrature(model, params)
    truth = float(pj.exact.log_z(model, params))
    assert float(found.log_z) == pytest.approx(truth, abs=1e-4)
    assert abs(float(found.log_z) - truth) < float(found.error) + 1e-5 < 1e-3
    # The comparison sees a ridge that is one percent off.
    params["heavy"]["log_scale"] = params["heavy"]["log_scale"] + 0.01
    assert abs(float(found.log_z) - float(pj.exact.log_z(model, params))) > 2e-3


@pytest.mark.slow
def test_three_units_against_latent_enumeration(random_params):
    visible = units.Gaussian(3)
    model = pj.product(
        visible,
        bank=experts.HiddenBank(visible, units.Bernoulli(6)),
        broad=experts.Gaussian(visible, "full"),
    )
    # The second has its mode four thousand away along a ridge, at a height of 7759 nats.
    for seed, scale in ((4, 0.5), (2, 1.0)):
        params = random_params(model, seed, scale)
        found = pj.exact.quadrature(model, params)
        truth = float(pj.exact.log_z(model, params))
        assert float(found.log_z) == pytest.approx(truth, rel=4e-7, abs=2e-5)
        assert float(found.error) < 1e-3


def test_more_hidden_units_than_can_be_enumerated(random_params):
    visible = units.GaussianDiag(1)
    model = pj.product(
        visible,
        bias=experts.Bias(visible),
        bank=experts.HiddenBank(visible, units.Bernoulli(200), init_scale=0.3),
    )
    params = model.init(jax.random.key(0))
    assert pj.exact.method(model) == "quadrature"
    w = np.asarray(params["bank"]["w"][0], float)
    expected = integrate.quad(
        lambda x: np.exp(np.logaddexp(0, w * x).sum() - 0.5 * x**2 - 150), -40, 40, epsabs=0
    )[0]
    assert float(pj.exact.log_z(model, params)) == pytest.approx(np.log(expected) + 150, abs=1e-4)


@pytest.mark.slow
def test_improper_products_are_never_finite():
    evaluate = jax.jit(pj.exact.log_z, static_argnums=0)
    for nu in ([0.2, 0.25], [0.25, 0.25], [0.01, 0.01]):  # |x|^-0.9, |x|^-1, nearly flat
        params = heavy_params(nu)
        assert float(evaluate(HEAVY, params)) == np.inf
        with pytest.raises(ValueError, match="expected a normalisable model"):
            pj.exact.log_z(HEAVY, params)
    plane = units.Gaussian(2)
    strip = pj.product(plane, heavy=experts.StudentT(plane, 3))
    params = strip.init(jax.random.key(0))
    params["heavy"]["w"] = jnp.array([[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]])  # one way is open
    assert not np.isfinite(evaluate(strip, params))
    # Passes in every direction, fails in the plane: 2 · 3 · 0.3 < 2.
    params = strip.init(jax.random.key(0))
    params["heavy"]["log_exponent"] = jnp.log(jnp.full(3, 0.3))
    assert not np.isfinite(evaluate(strip, params))


@pytest.mark.slow
def test_what_does_not_converge_is_refused():
    # Proper, but x^-1.06 leaves a good part of the mass beyond the largest float32.
    params = heavy_params([0.265, 0.265])
    assert np.isnan(jax.jit(lambda p: pj.exact.log_z(HEAVY, p))(params))
    with pytest.raises(ValueError, match=r"quadrature did not converge: an error of .*evidence"):
        pj.exact.log_z(HEAVY, params)
    big = pj.product(units.Gaussian(4), heavy=experts.StudentT(units.Gaussian(4), 5))
    with pytest.raises(ValueError, match="quadrature: expected at most 3 real visible units"):
        pj.exact.quadrature(big, big.init(jax.random.key(0)))


@pytest.mark.slow
def test_log_prob_is_the_density_of_draws():
    # A square bank's draws, seen through the quadrature of the same model: mean log p = -entropy.
    model = pj.product(LINE, heavy=experts.StudentT(LINE, 1))
    params = heavy_params([2.0])
    x = jax.vmap(lambda k: pj.exact.sample(k, model, params))(
        jax.random.split(jax.random.key(0), 4000)
    )
    log_z = pj.exact.quadrature(model, params).log_z
    log_p = np.asarray(jax.vmap(lambda v: pj.exact.log_prob(model, params, v, log_z))(x), float)
    entropy = stats.t(3).entropy() - 0.5 * np.log(3)  # y = t √(α / (2ν - 1))
    assert abs(log_p.mean() + entropy) < 4.5 * log_p.std() / np.sqrt(len(log_p))


@pytest.mark.slow
@pytest.mark.parametrize("power", [2, 4])
def test_a_density_that_grows_is_refused(power):
    line = units.GaussianDiag(1)
    growing = experts.Neural(
        line, lambda key: jnp.zeros(()), lambda phi, x: -0.5 * jnp.sum(x**power)
    )
    model = pj.product(line, growing=growing)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"log_z \(quadrature\): expected"):
        pj.exact.log_z(model, params)
    assert not np.isfinite(jax.jit(lambda p: pj.exact.log_z(model, p))(params))


PLANE = units.Gaussian(2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "wide", "models"),
    [
        ("bfloat16", False, [pj.product(PLANE, heavy=experts.StudentT(PLANE, 4))]),
        ("float32", True, [pj.product(PLANE, heavy=experts.StudentT(PLANE, 4))]),
        (
            "float16",
            True,
            [
                pj.product(PLANE, heavy=experts.StudentT(PLANE, 2)),
                pj.product(PLANE, bias=experts.Bias(PLANE), one=experts.Gaussian(PLANE)),
                pj.models.gaussian_rbm(4, 3),
                pj.models.rbm(4, 3),
            ],
        ),
    ],
    ids=["quadrature", "quadrature in 64 bits", "other methods"],
)
def test_parameters_of_any_dtype_give_what_their_numbers_give(dtype, wide, models):
    for model in models:
        with jax.enable_x64(wide):
            params = model.init(jax.random.key(0))
            params = jax.tree.map(lambda leaf: (leaf + 0.3).astype(dtype), params)
            same = jax.tree.map(lambda leaf: leaf.astype(float), params)
            expected = pj.exact.log_z(model, same)
            assert float(pj.exact.log_z(model, params)) == pytest.approx(float(expected), rel=1e-6)
