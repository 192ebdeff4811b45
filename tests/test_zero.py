"""Derivatives exactly at zero, where piecewise formulas meet: every model starts there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj

UNITS = [
    pj.units.Bernoulli(3),
    pj.units.Spin(3),
    pj.units.Categorical(2, 3),
    pj.units.StandardGaussian(3),
    pj.units.ReLU(3),
    pj.units.GaussianDiag(3),
    pj.units.Gaussian(3),
]


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_the_gradient_of_the_log_partition_at_field_zero_is_the_mean(unit):
    field = unit.field(unit.init_field())

    def log_partition(v):
        return unit.log_partition(unit.combine([field, unit.linear_field(v)]))

    found = jax.grad(log_partition)(jnp.zeros(unit.num_linear))
    np.testing.assert_allclose(found, np.ravel(unit.mean(field)), atol=1e-6)


@pytest.mark.slow
def test_the_exact_gradient_at_zero_parameters():
    model = pj.models.rbm(3, 2)
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))
    x = jnp.zeros((4, 3)).at[0].set(1)
    grads = pj.estimators.exact(model).grad(jax.random.key(0), params, (), x)[0]
    np.testing.assert_allclose(grads["bias"]["field"], np.full(3, 0.25), atol=1e-6)
    np.testing.assert_allclose(grads["hidden"]["b"], np.zeros(2), atol=1e-6)
    np.testing.assert_allclose(grads["hidden"]["w"], np.full((3, 2), 0.125), atol=1e-6)


@pytest.mark.slow
def test_the_curvature_of_student_t_at_its_mode():
    visible = pj.units.Gaussian(2)
    model = pj.product(visible, heavy=pj.experts.StudentT(visible, 3))
    params = model.init(jax.random.key(0))
    w = model.experts["heavy"].directions(params["heavy"])
    found = jax.hessian(lambda x: model.log_density(params, x))(jnp.zeros(2))
    np.testing.assert_allclose(found, -2 * w @ w.T, atol=1e-5)


def test_scales_do_not_make_a_gaussian_improper():
    unit = pj.units.Gaussian(2)
    field = {"linear": jnp.zeros(2), "rows": jnp.diag(jnp.array([3e3, 3e-4]))}
    expected = np.log(2 * np.pi) - np.log(3e3 * 3e-4)
    assert float(unit.log_partition(field)) == pytest.approx(expected, abs=1e-5)


def test_an_improper_model_gets_no_evidence_from_annealing():
    visible = pj.units.GaussianDiag(3)
    model = pj.product(visible, hidden=pj.experts.HiddenBank(visible, pj.units.Bernoulli(2)))
    params = model.init(jax.random.key(0))
    base = pj.evidence.base_rate(model, jax.random.normal(jax.random.key(1), (100, 3)))
    betas = pj.evidence.linear_betas(20)
    with pytest.raises(ValueError, match="params: expected a normalisable model, but experts"):
        pj.evidence.ais(jax.random.key(2), model, params, base, betas, 10)


def test_chains_refuse_nan_parameters():
    model = pj.models.rbm(3, 2)
    kernel = pj.kernels.block_gibbs(model)
    params = model.init(jax.random.key(0))
    states = pj.chains.init(jax.random.key(1), kernel, params, 4)
    params["hidden"]["w"] = params["hidden"]["w"].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"params\['hidden'\]\['w'\]: expected finite values"):
        pj.chains.run(jax.random.key(2), kernel, params, states, 3)


def test_raw_intensities_are_not_trained_on():
    pixels = jnp.full((8, 3), 200, jnp.uint8)
    model = pj.models.rbm(3, 2)
    estimator, tx = pj.estimators.cd(model), optax.sgd(0.1)
    state = pj.training.init(
        jax.random.key(0), model, estimator, tx, pixels, preprocess=pj.datasets.stochastic
    )
    with pytest.raises(ValueError, match=r"data: expected values in \{0, 1\}"):
        pj.training.train_steps(estimator, tx, state, pixels, 4, 2)
