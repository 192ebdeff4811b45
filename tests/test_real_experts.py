"""Experts over real units: samplers against quadrature, closed forms, robustness, refusals."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import poejax as pj
from poejax import experts, units

PLANE = units.Gaussian(2)
DIAGONAL = units.GaussianDiag(2)
NUM_CHAINS = 4000


def everything():
    """A bank, a mixture, unigauss, a Student-t bank and a full Gaussian, in one product."""
    return pj.product(
        PLANE,
        bank=experts.HiddenBank(PLANE, units.Bernoulli(3), init_scale=1.0),
        mixture=experts.GaussianMixture(PLANE, 3),
        unigauss=experts.Unigauss(PLANE, 2),
        heavy=experts.StudentT(PLANE, 3),
        broad=experts.Gaussian(PLANE, "full"),
    )


def with_broad(expert):
    visible = expert.visible
    return pj.product(visible, expert=expert, broad=experts.Gaussian(visible))


def sums_and_powers():
    """A mixture of two products, times a weighted Student-t bank."""
    heavy = pj.product(PLANE, heavy=experts.StudentT(PLANE, 2), broad=experts.Gaussian(PLANE))
    members = {"heavy": heavy, "narrow": experts.Gaussian(PLANE, "full")}
    weighted = experts.Power(PLANE, experts.StudentT(PLANE, 3))
    return pj.product(PLANE, sum=experts.mixture(PLANE, **members), weighted=weighted)


PRODUCTS = {
    "gaussian": pj.product(PLANE, full=experts.Gaussian(PLANE, "full")),
    "one coordinate": with_broad(experts.Gaussian(DIAGONAL, coordinate=1)),
    "mixture": pj.product(DIAGONAL, mixture=experts.GaussianMixture(DIAGONAL, 3)),
    "joint mixture": pj.product(DIAGONAL, m=experts.GaussianMixture(DIAGONAL, 3, joint=True)),
    "unigauss": with_broad(experts.Unigauss(DIAGONAL, 3)),
    "student_t": with_broad(experts.StudentT(PLANE, 3)),
    "everything": everything(),
    "sums and powers": sums_and_powers(),
}


def marginal_p_values(model, params, x):
    """Kolmogorov-Smirnov p-values of each coordinate of `x` against quadrature of the density."""
    grid = jnp.linspace(-12, 12, 1201)
    points = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    log_p = jax.lax.map(lambda p: model.log_density(params, p), points, batch_size=4096)
    p = np.exp(np.asarray(log_p, float) - float(log_p.max())).reshape(len(grid), len(grid))
    found = []
    for axis in (0, 1):
        density = p.sum(1 - axis)
        cdf = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
        test = stats.kstest(np.asarray(x[:, axis]), lambda v, c=cdf: np.interp(v, grid, c / c[-1]))
        found.append(test.pvalue)
    return np.array(found)


def run_chains(model, params, num_steps=60):
    kernel = pj.kernels.block_gibbs(model)
    states = pj.chains.init(jax.random.key(1), kernel, params, NUM_CHAINS)
    return pj.chains.run(jax.random.key(2), kernel, params, states, num_steps)[0].x


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCTS)
def test_chains_follow_the_density(name, random_params):
    model = PRODUCTS[name]
    params = random_params(model, 3, 0.6)
    p_values = marginal_p_values(model, params, run_chains(model, params))
    assert p_values.min() > 1e-4 / (2 * len(PRODUCTS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutate",
    [
        lambda p: p | {"heavy": p["heavy"] | {"log_exponent": p["heavy"]["log_exponent"] + 0.7}},
        lambda p: p | {"bank": p["bank"] | {"w": -p["bank"]["w"]}},
        lambda p: p | {"mixture": p["mixture"] | {"mean": p["mixture"]["mean"] + 0.3}},
        lambda p: p | {"unigauss": p["unigauss"] | {"logit": p["unigauss"]["logit"] + 2.0}},
        lambda p: p | {"broad": p["broad"] | {"mean": p["broad"]["mean"] + 0.3}},
    ],
)
def test_the_same_statistic_sees_a_wrong_sampler(mutate, random_params):
    model = PRODUCTS["everything"]
    params = random_params(model, 3, 0.6)
    p_values = marginal_p_values(model, params, run_chains(model, mutate(params)))
    assert p_values.min() < 1e-4 / (2 * len(PRODUCTS))


@pytest.mark.slow
def test_square_student_t_has_its_closed_form():
    # y = Wᵀx decouples the experts: Z = |det W|⁻¹ Π ∫ (α + y²)^-ν dy.
    model = pj.product(PLANE, heavy=experts.StudentT(PLANE, 2))
    params = {
        "heavy": {
            "w": jnp.array([[1.0, 0.4], [0.2, 1.0]]),
            "log_scale": jnp.log(jnp.array([0.7, 1.5])),
            "log_exponent": jnp.log(jnp.array([2.5, 3.0])),
        }
    }
    w = np.asarray(model.experts["heavy"].directions(params["heavy"]), float)
    alpha, nu = np.array([0.7, 1.5]), np.array([2.5, 3.0])
    one = 0.5 * np.log(np.pi) + special.gammaln(nu - 0.5) - special.gammaln(nu)
    expected = np.sum(one + (0.5 - nu) * np.log(alpha)) - np.log(abs(np.linalg.det(w)))
    y = np.linspace(-60, 60, 2001)
    points = np.stack(np.meshgrid(y, y, indexing="ij"), -1).reshape(-1, 2) @ np.linalg.inv(w)
    log_p = jax.lax.map(
        lambda x: model.log_density(params, x), jnp.asarray(points, jnp.float32), batch_size=8192
    )
    cell = (y[1] - y[0]) ** 2 / abs(np.linalg.det(w))
    found = special.logsumexp(np.asarray(log_p, float)) + np.log(cell)
    assert found == pytest.approx(expected, abs=2e-3)  # the tails beyond the grid


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 64])
def test_heavy_tails_give_no_nan(size):
    visible = units.Gaussian(size)
    model = pj.product(visible, heavy=experts.StudentT(visible, size))
    params = model.init(jax.random.key(0))
    num_chains = 2000 if size == 8 else 50
    kernel = pj.kernels.block_gibbs(model)
    states = pj.chains.init(jax.random.key(1), kernel, params, num_chains)
    states, _ = pj.chains.run(jax.random.key(2), kernel, params, states, 100)
    assert bool(jnp.isfinite(states.x).all())


@pytest.mark.slow
def test_full_precision_units_against_linear_algebra():
    rng = np.random.default_rng(0)
    rows, linear = rng.normal(size=(6, 4)), rng.normal(size=4)
    unit = units.Gaussian(4)
    field = {"linear": jnp.asarray(linear, jnp.float32), "rows": jnp.asarray(rows, jnp.float32)}
    precision = rows.T @ rows
    covariance = np.linalg.inv(precision)
    mean = covariance @ linear
    np.testing.assert_allclose(unit.mean(field), mean, rtol=1e-4, atol=1e-5)
    log_partition = 0.5 * linear @ mean - 0.5 * np.linalg.slogdet(precision)[1]
    expected = log_partition + 2 * np.log(2 * np.pi)
    assert float(unit.log_partition(field)) == pytest.approx(expected, abs=1e-4)
    gradient = jax.grad(lambda v: unit.log_partition(field | {"linear": v}))(field["linear"])
    np.testing.assert_allclose(gradient, mean, rtol=1e-4, atol=1e-5)

    draws = np.asarray(
        jax.vmap(lambda k: unit.sample(k, field))(jax.random.split(jax.random.key(0), 20_000))
    )
    whitened = (draws - mean) @ np.linalg.cholesky(precision)
    p_values = [stats.kstest(column, "norm").pvalue for column in whitened.T]
    correlations = np.corrcoef(whitened.T)[np.triu_indices(4, 1)] * np.sqrt(20_000)
    assert min(p_values) > 1e-4 / 4
    assert np.abs(correlations).max() < stats.norm.isf(0.5e-4 / 6)


def test_clamping_full_precision_units_is_conditioning():
    rng = np.random.default_rng(1)
    rows, linear = rng.normal(size=(6, 4)), rng.normal(size=4)
    unit = units.Gaussian(4)
    field = {"linear": jnp.asarray(linear, jnp.float32), "rows": jnp.asarray(rows, jnp.float32)}
    mask, x = jnp.array([True, False, True, False]), jnp.array([1.5, 0.0, -2.0, 0.0])
    precision = rows.T @ rows
    free, held = [1, 3], [0, 2]
    free_precision = precision[np.ix_(free, free)]
    shift = linear[free] - precision[np.ix_(free, held)] @ np.asarray(x)[held]
    mean = np.linalg.solve(free_precision, shift)
    draws = np.asarray(
        jax.vmap(lambda k: unit.sample_clamped(k, field, x, mask))(
            jax.random.split(jax.random.key(0), 20_000)
        )
    )
    assert (draws[:, held] == np.asarray(x)[held]).all()
    whitened = (draws[:, free] - mean) @ np.linalg.cholesky(free_precision)
    p_values = [stats.kstest(column, "norm").pvalue for column in whitened.T]
    assert min(p_values) > 1e-4 / 2
    overwritten = jax.vmap(lambda k: unit.sample(k, field))(
        jax.random.split(jax.random.key(0), 20_000)
    )
    wrong = (np.asarray(overwritten)[:, free] - mean) @ np.linalg.cholesky(free_precision)
    assert min(stats.kstest(column, "norm").pvalue for column in wrong.T) < 1e-4


def test_rows_that_do_not_span_the_space_are_improper():
    field = {"linear": jnp.zeros(2), "rows": jnp.array([[1.0, 1.0], [2.0, 2.0]])}
    assert float(PLANE.log_partition(field)) == np.inf
    silent = dataclasses.replace(experts.Unigauss(DIAGONAL, 1))
    model = pj.product(DIAGONAL, alone=silent)
    with pytest.raises(ValueError, match="uniform parts of unigauss experts do not decay"):
        pj.exact.log_z(model, model.init(jax.random.key(0)))


@pytest.mark.slow
def test_exact_log_z_of_mixture_products_against_quadrature(random_params):
    for name in ("mixture", "joint mixture", "unigauss", "one coordinate"):
        model = PRODUCTS[name]
        params = random_params(model, 5, 0.6)
        grid = jnp.linspace(-15, 15, 1501)
        points = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
        log_p = jax.lax.map(
            lambda p, m=model, q=params: m.log_density(q, p), points, batch_size=4096
        )
        expected = special.logsumexp(np.asarray(log_p, float)) + 2 * np.log(grid[1] - grid[0])
        assert float(pj.exact.log_z(model, params)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: experts.Gaussian(units.Bernoulli(2)), "visible: expected units.GaussianDiag or"),
        (lambda: experts.Gaussian(DIAGONAL, "full"), "covariance: 'full' needs units.Gaussian"),
        (lambda: experts.Gaussian(PLANE, "round"), "covariance: expected 'diag' or 'full'"),
        (lambda: experts.Gaussian(PLANE, coordinate=2), "coordinate: expected 0 to 1, got 2"),
        (lambda: experts.GaussianMixture(PLANE, 0), "num_components: expected an integer of at"),
        (lambda: experts.StudentT(DIAGONAL, 2), "visible: expected units.Gaussian, got"),
        (lambda: experts.StudentT(PLANE, 2, init_exponent=0.0), "init_exponent: expected positive"),
        (lambda: experts.Unigauss(PLANE, 2, uniform_density=-1.0), "uniform_density: expected a"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
