"""Bases over real units: their log Z and draws, and annealing from them against exact log Z."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import poejax as pj
from poejax import evidence, experts, units

KEY = jax.random.key(0)
PLANE = units.Gaussian(2)


def square(size):
    visible = units.Gaussian(size)
    return pj.product(visible, heavy=experts.StudentT(visible, size))


def draw(model, seed, exponents=(0.8, 2.0), name="heavy"):
    """Random directions, scales and exponents of the Student-t bank of that name."""
    params = model.init(jax.random.key(seed))
    scale_key, exponent_key = jax.random.split(jax.random.key(1000 + seed))
    shape = params[name]["log_scale"].shape
    nu = jax.random.uniform(exponent_key, shape, minval=exponents[0], maxval=exponents[1])
    params[name] |= {
        "log_scale": 0.5 * jax.random.normal(scale_key, shape),
        "log_exponent": jnp.log(nu),
    }
    return params


def closed_form(params):
    """Log Z of a square Student-t product, by scipy."""
    w = np.asarray(params["w"], float)
    alpha = np.exp(np.asarray(params["log_scale"], float))
    nu = np.exp(np.asarray(params["log_exponent"], float))
    ratio = special.gammaln(nu - 0.5) - special.gammaln(nu)
    each = 0.5 * np.log(np.pi) + ratio + (0.5 - nu) * np.log(alpha)
    return each.sum() - np.linalg.slogdet(w / np.linalg.norm(w, axis=0))[1]


def quadrature_log_z(model, params):
    """Log ∫ exp log_density over the plane, on a grid even in arcsinh."""
    v = jnp.linspace(-11, 11, 1101)
    x = jnp.stack(jnp.meshgrid(jnp.sinh(v), jnp.sinh(v), indexing="ij"), -1).reshape(-1, 2)
    log_f = jax.lax.map(lambda row: model.log_density(params, row), x, batch_size=2**15)
    log_f = np.asarray(log_f, float).reshape(len(v), -1)
    log_jacobian = np.log(np.cosh(np.asarray(v, float)))
    total = log_f + log_jacobian[:, None] + log_jacobian
    return special.logsumexp(total) + 2 * np.log(float(v[1] - v[0]))


# The bases themselves.


@pytest.mark.slow
@pytest.mark.parametrize("visible", [units.GaussianDiag(3), units.Gaussian(3)], ids=str)
def test_gaussian_base_is_the_gaussian_of_the_data(visible):
    mixing = np.array([[1.0, 0, 0], [2.0, 0.5, 0], [0, 1.0, 3.0]])
    data = jax.random.normal(KEY, (4000, 3)) @ mixing.T + jnp.array([3.0, 0, -1.0])
    model = pj.product(visible, broad=experts.Gaussian(visible))
    base = evidence.gaussian_base(model, data, scale=2.0)
    covariance = 4 * np.cov(np.asarray(data, float), rowvar=False, ddof=0)
    if isinstance(visible, units.GaussianDiag):
        covariance = np.diag(np.diag(covariance))
    mean = np.asarray(data, float).mean(axis=0)
    normal = stats.multivariate_normal(mean, covariance)
    for x in data[:3]:
        found = float(base.model.log_density(base.params, x) - base.log_z)
        assert found == pytest.approx(normal.logpdf(np.asarray(x)), abs=1e-3)
    x = jax.vmap(base.sample)(jax.random.split(KEY, 4000))
    whitened = (np.asarray(x, float) - mean) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    for column in whitened.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3


def test_student_t_base_takes_the_models_directions():
    model = square(3)
    params = draw(model, 0)
    base = evidence.student_t_base(model, params, closeness=1.0)
    found, own = base.params["heavy"], params["heavy"]
    order = [int(np.argmax(np.abs(own["w"].T @ column))) for column in found["w"].T]
    assert sorted(order) == [0, 1, 2]
    for leaf in ("log_scale", "log_exponent"):
        np.testing.assert_allclose(found[leaf], own[leaf][jnp.array(order)], atol=1e-6)
    assert float(base.log_z) == pytest.approx(closed_form(own), abs=1e-4)
    half = evidence.student_t_base(model, params)
    nu, model_nu = (np.exp(p["log_exponent"]) for p in (half.params["heavy"], found))
    np.testing.assert_allclose(nu, 0.25 + 0.5 * model_nu, rtol=1e-5)
    assert float(half.log_z) == pytest.approx(closed_form(half.params["heavy"]), abs=1e-4)


def test_student_t_base_log_z_is_its_integral():
    model = square(2)
    base = evidence.student_t_base(model, draw(model, 3, (1.5, 3.0)))
    found = quadrature_log_z(base.model, base.params)
    assert float(base.log_z) == pytest.approx(found, abs=2e-3)


@pytest.mark.parametrize("mutation", [1.0, 0.85])
def test_student_t_base_draws_are_exact(mutation):
    model = square(3)
    base = evidence.student_t_base(model, draw(model, 1))
    x = np.asarray(jax.vmap(base.sample)(jax.random.split(KEY, 20_000)), float)
    own = {name: np.asarray(leaf, float) for name, leaf in base.params["heavy"].items()}
    y = x @ own["w"]
    alpha, nu = np.exp(own["log_scale"]), mutation * np.exp(own["log_exponent"])
    scale = np.sqrt(alpha / (2 * nu - 1))
    p_values = [
        stats.kstest(y[:, j] / scale[j], stats.t(2 * nu[j] - 1).cdf).pvalue for j in range(3)
    ]
    assert (min(p_values) > 1e-3 / 3) == (mutation == 1.0), p_values
    # Independent coordinates, by ranks: t draws of few degrees of freedom have no correlation.
    correlations = stats.spearmanr(y).statistic[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 3.5 / np.sqrt(20_000)


def test_the_model_falls_at_least_as_fast_as_its_student_t_base():
    visible = units.Gaussian(3)
    model = pj.product(
        visible,
        many=experts.StudentT(visible, 4),
        nested=pj.product(visible, more=experts.StudentT(visible, 2)),
    )
    params = model.init(KEY)
    params["many"]["log_exponent"] = jnp.log(jnp.array([0.4, 0.9, 2.0, 1.2]))
    base = evidence.student_t_base(model, params)
    assert base.params["heavy"]["w"].shape == (3, 3)
    # Along axes orthogonal to two columns too, where tails are heaviest.
    w = np.concatenate([params["many"]["w"].T, params["nested"]["more"]["w"].T])
    rays = [np.cross(w[i], w[j]) for i in range(6) for j in range(i)]
    for ray in np.stack(rays) / np.linalg.norm(rays, axis=1, keepdims=True):
        gap = [
            float(base.model.log_density(base.params, s * ray) - model.log_density(params, s * ray))
            for s in (1e2, 1e4)
        ]
        assert gap[1] > gap[0] + 0.1


@pytest.mark.slow
def test_bases_and_models_of_equal_shape_compile_once(compiles_nothing):
    def go(seed):
        model = square(2)
        params = draw(model, seed)
        base = evidence.student_t_base(model, params)
        return evidence.ais(KEY, model, params, base, evidence.linear_betas(5), 4)

    go(0)
    go(1)
    with compiles_nothing():
        go(2)


# Annealing from them.


@pytest.mark.slow
@pytest.mark.parametrize(("exponent", "num_steps"), [(1.7, 60), (1.0, 200)])
def test_evidence_of_square_student_t_products(exponent, num_steps):
    model = square(8)
    for seed in range(3):
        params = draw(model, seed, (exponent, exponent))
        base = evidence.student_t_base(model, params)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = evidence.ais(
                jax.random.key(seed), model, params, base, evidence.linear_betas(num_steps), 400
            )
        error = float(found.log_z) - closed_form(params["heavy"])
        assert abs(error) < 3 * float(found.std_err), (seed, error)
        assert abs(error) < 0.05, (seed, error)
        assert float(found.ess) > 250


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_intervals_cover_over_random_student_t_products(size):
    model = square(size)
    scores = []
    for seed in range(20):
        params = draw(model, seed)
        base = evidence.student_t_base(model, params)
        found = evidence.ais(
            jax.random.key(seed), model, params, base, evidence.linear_betas(40), 100
        )
        scores.append((float(found.log_z) - closed_form(params["heavy"])) / float(found.std_err))
    scores = np.array(scores)
    assert np.mean(np.abs(scores) < 1.96) >= 0.8
    assert abs(scores.mean()) < 3.5 / np.sqrt(20)
    assert 0.3 < np.mean(scores**2) < 2.1  # standard deviation sqrt(2 / 20) for normal scores


PRODUCTS = {
    "more experts than dimensions": pj.product(PLANE, heavy=experts.StudentT(PLANE, 5)),
    "beside a gaussian": pj.product(
        PLANE, heavy=experts.StudentT(PLANE, 3), broad=experts.Gaussian(PLANE, "full")
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCTS)
def test_evidence_of_other_student_t_products(name):
    model = PRODUCTS[name]
    params = draw(model, 4)
    truth = quadrature_log_z(model, params)
    base = evidence.student_t_base(model, params)
    # Small steps at first, where the heavy base meets the Gaussian.
    found = evidence.ais(KEY, model, params, base, evidence.linear_betas(60) ** 3, 600)
    error = float(found.log_z) - truth
    assert abs(error) < 3.5 * float(found.std_err) < 0.15, error


@pytest.mark.slow
def test_reverse_from_exact_samples_brackets():
    model = square(2)
    params = draw(model, 0, (1.0, 1.0))
    base = evidence.student_t_base(model, params)
    exact = evidence.student_t_base(model, params, closeness=1.0)
    x = jax.vmap(exact.sample)(jax.random.split(KEY, 4000))
    found = evidence.reverse_ais(KEY, model, params, base, evidence.linear_betas(40), x)
    error = float(found.log_z) - closed_form(params["heavy"])
    assert abs(error) < 3.5 * float(found.std_err) < 0.2


@pytest.mark.slow
def test_a_base_with_lighter_tails_is_reported():
    betas = evidence.linear_betas(3)
    data = jax.random.normal(KEY, (50, 2))
    model = square(2)
    params = draw(model, 0, (1.0, 1.0))
    for base in (evidence.gaussian_base(model, data), evidence.base_rate(model, data)):
        with pytest.warns(UserWarning, match="base: its Gaussian tails .* infinite variance"):
            evidence.ais_init(KEY, model, params, base, betas, 4)
    half_covered = pj.product(
        PLANE,
        heavy=experts.StudentT(PLANE, 2),
        row=experts.Gaussian(PLANE, coordinate=0),
    )
    half_params = half_covered.init(KEY)
    base = evidence.gaussian_base(half_covered, data)
    with pytest.warns(UserWarning, match="infinite variance"):
        evidence.ais_init(KEY, half_covered, half_params, base, betas, 4)
    beside = PRODUCTS["beside a gaussian"]
    gaussian_model = pj.models.gaussian_rbm(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for safe in (beside, gaussian_model):
            base = evidence.gaussian_base(safe, data)
            evidence.ais_init(KEY, safe, safe.init(KEY), base, betas, 4)
        heavy = evidence.student_t_base(beside, beside.init(KEY))
        evidence.ais_init(KEY, beside, beside.init(KEY), heavy, betas, 4)


def test_bad_arguments():
    model = square(2)
    params = draw(model, 0)
    data = jnp.zeros((5, 2))
    with pytest.raises(ValueError, match=r"visible: expected units.GaussianDiag or units.Gaussian"):
        evidence.gaussian_base(pj.models.rbm(2, 2), data)
    with pytest.raises(ValueError, match=r"data: expected shape \(N, 2\)"):
        evidence.gaussian_base(model, jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match="data: expected variance in every column, got column 0"):
        evidence.gaussian_base(model, data)
    for flat in (jnp.arange(10.0).reshape(5, 2), jnp.eye(2)):
        with pytest.raises(ValueError, match="data: expected variance in every direction"):
            evidence.gaussian_base(model, flat)
    with pytest.raises(ValueError, match="scale: expected a positive number, got 0"):
        evidence.gaussian_base(model, jnp.eye(2), scale=0.0)
    with pytest.raises(ValueError, match=r"closeness: expected a number in \(0, 1\], got 1.5"):
        evidence.student_t_base(model, params, closeness=1.5)
    light = draw(model, 0, (0.4, 0.45))
    with pytest.raises(ValueError, match=r"above 0.5 along 2 .* got 0 \(of 2 such experts, 0 have"):
        evidence.student_t_base(model, light)
    params["heavy"]["w"] = jnp.ones((2, 2))
    with pytest.raises(ValueError, match=r"got 1 \(of 2 such experts, 2 have"):
        evidence.student_t_base(model, params)
    gaussian = pj.models.gaussian_rbm(2, 3)
    with pytest.raises(ValueError, match=r"got 0 \(of 0 such experts"):
        evidence.student_t_base(gaussian, gaussian.init(KEY))
