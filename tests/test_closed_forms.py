"""Closed forms of log Z and exact draws, against grids, formulas and each other."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import count_z_scores, z_threshold
from scipy import stats

import poejax as pj
from poejax import experts, units

DIAGONAL, PLANE = units.GaussianDiag(2), units.Gaussian(2)
GRID = jnp.linspace(-12, 12, 401)
POINTS = jnp.stack(jnp.meshgrid(GRID, GRID, indexing="ij"), axis=-1).reshape(-1, 2)
NUM_DRAWS = 4000

MODELS = {
    "gaussian": pj.product(
        PLANE,
        inner=pj.product(PLANE, full=experts.Gaussian(PLANE, "full")),
        diag=experts.Gaussian(PLANE, coordinate=1),
        bias=experts.Bias(PLANE),
    ),
    "diagonal bank": pj.product(
        DIAGONAL,
        bias=experts.Bias(DIAGONAL),
        bank=experts.HiddenBank(DIAGONAL, units.StandardGaussian(3)),
    ),
    "full banks": pj.product(
        PLANE,
        inner=pj.product(PLANE, a=experts.HiddenBank(PLANE, units.StandardGaussian(1))),
        b=experts.HiddenBank(PLANE, units.StandardGaussian(2)),
        full=experts.Gaussian(PLANE, "full"),
    ),
    "mixed banks": pj.product(
        PLANE,
        real=experts.HiddenBank(PLANE, units.StandardGaussian(2)),
        binary=experts.HiddenBank(PLANE, units.Bernoulli(3)),
        full=experts.Gaussian(PLANE, "full"),
    ),
    "mixtures": pj.product(
        DIAGONAL,
        inner=pj.product(DIAGONAL, a=experts.GaussianMixture(DIAGONAL, 3)),
        b=experts.GaussianMixture(DIAGONAL, 2),
        one=experts.Gaussian(DIAGONAL, coordinate=0),
        bias=experts.Bias(DIAGONAL),
    ),
    "square": pj.product(PLANE, a=experts.StudentT(PLANE, 1), b=experts.StudentT(PLANE, 1)),
}
METHODS = dict(
    zip(MODELS, ["gaussian"] * 3 + ["latent enumeration", "coordinatewise mixtures"], strict=False)
) | {"square": "square student-t"}


@pytest.fixture
def setting(random_params):
    """Return a function from a name to a model and moderate parameters."""

    def make(name):
        model = MODELS[name]
        params = random_params(model, 4, 0.4)

        def moderate(path, leaf):
            name = path[-1].key
            if name == "log_exponent":  # light tails, so that a grid holds them
                return leaf + jnp.log(40.0)
            return 0.6 * leaf if name == "w" else leaf  # proper banks

        return model, jax.tree_util.tree_map_with_path(moderate, params)

    return make


@functools.partial(jax.jit, static_argnames="model")
def grid_log_density(model, params):
    return jax.vmap(lambda x: model.log_density(params, x))(POINTS)


def grid_log_z(model, params):
    log_p = grid_log_density(model, params)
    return jax.nn.logsumexp(log_p) + 2 * jnp.log(GRID[1] - GRID[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_value_and_gradient_against_a_grid(name, setting):
    model, params = setting(name)
    assert pj.exact.method(model) == METHODS[name]
    params = model.temper(params, 0.7)  # the derivative by beta is part of the gradient
    expected, slope = jax.value_and_grad(lambda q: grid_log_z(model, q))(params)
    found, gradient = jax.value_and_grad(lambda q: pj.exact.log_z(model, q))(params)
    assert float(found) == pytest.approx(float(expected), abs=2e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3)


def test_jit_and_vmap(setting):
    model, params = setting("full banks")
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    found = jax.jit(jax.vmap(lambda p: pj.exact.log_z(model, p)))(stack)
    halves = jax.tree.map(lambda leaf: 0.5 * leaf, params)
    expected = [pj.exact.log_z(model, p) for p in (params, halves)]
    np.testing.assert_allclose(found, jnp.stack(expected), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "absent"),
    [("gaussian", "inner"), ("mixed banks", "real"), ("mixed banks", "binary"), ("mixtures", "b")],
)
def test_an_absent_expert_is_the_factor_one(name, absent, setting):
    model, params = setting(name)
    rest = pj.product(model.visible, **{n: e for n, e in model.items if n != absent})
    expected = pj.exact.log_z(rest, {n: p for n, p in params.items() if n != absent})
    found = pj.exact.log_z(model, model.mask(params, **{absent: False}))
    assert float(found) == pytest.approx(float(expected), abs=1e-5)
    here = pj.exact.log_z(model, model.mask(params, **{absent: True}))
    assert float(here) == pytest.approx(float(pj.exact.log_z(model, params)), abs=1e-5)
    if absent == "binary":
        with pytest.raises(ValueError, match="where no Gaussian factor decays"):
            pj.exact.log_z(model, model.mask(params, full=False))


def test_normalised_factors_on_distinct_coordinates_have_z_one(random_params):
    visible = units.GaussianDiag(3)
    alone = {f"x{i}": experts.Gaussian(visible, coordinate=i) for i in range(3)}
    mixture = {"mixture": experts.GaussianMixture(visible, 4)}
    for model in (pj.product(visible, **alone), pj.product(visible, **mixture)):
        params = random_params(model, 1, 2.0)
        assert float(pj.exact.log_z(model, params)) == pytest.approx(0.0, abs=2e-5)


def test_a_product_of_mixtures_costs_no_expansion(random_params):
    visible = units.GaussianDiag(60)
    model = pj.product(visible, mixture=experts.GaussianMixture(visible, 10))
    assert model.num_latent_states == 10**60
    assert float(pj.exact.log_z(model, random_params(model))) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_means_far_from_zero_cost_no_precision(kind):
    visible = units.Gaussian(2)
    build = {
        "gaussian": lambda: experts.Gaussian(visible),
        "mixture": lambda: experts.GaussianMixture(visible, 2),
    }[kind]
    model = pj.product(visible, a=build(), b=build())
    params = model.init(jax.random.key(0))
    expected = pj.exact.log_z(model, params)
    moved = {n: p | {"mean": p["mean"] + 1024.0} for n, p in params.items()}
    # What rounding at 1024 does to the means themselves, and no more.
    assert float(pj.exact.log_z(model, moved)) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("visible", [DIAGONAL, PLANE])
def test_an_indefinite_precision_is_refused(visible):
    bank = experts.HiddenBank(visible, units.StandardGaussian(2))
    model = pj.product(visible, base=experts.Gaussian(visible), bank=bank)
    params = model.init(jax.random.key(0))
    for length in (1.0, 1.5):  # precision 1 - length²: flat, then upside down
        params["bank"]["w"] = jnp.array([[length, 0.0], [0.0, 0.3]])
        assert float(jax.jit(lambda p: pj.exact.log_z(model, p))(params)) == np.inf
        with pytest.raises(ValueError, match=r"expected a normalisable model"):
            pj.exact.log_z(model, params)
        with pytest.raises(ValueError, match=r"expected a normalisable model"):
            pj.exact.sample(jax.random.key(0), model, params)
    params["bank"]["w"] = params["bank"]["w"] * 0.6
    assert np.isfinite(pj.exact.log_z(model, params))


def test_student_t_that_cannot_be_normalised(setting):
    model, params = setting("square")
    heavy = params | {"a": params["a"] | {"log_exponent": jnp.log(jnp.array([0.49]))}}
    parallel = params | {"a": params["a"] | {"w": -2 * params["b"]["w"]}}
    for bad in (heavy, parallel, model.mask(params, a=False)):
        assert float(jax.jit(lambda p: pj.exact.log_z(model, p))(bad)) == np.inf
        with pytest.raises(ValueError, match=r"expected a normalisable model"):
            pj.exact.log_z(model, bad)
    with pytest.raises(ValueError, match="a normalisable model, but no expert decays"):
        pj.exact.sample(jax.random.key(0), model, parallel)


def test_the_exact_gradient_of_a_square_bank_is_that_of_ica():
    # ∂NLL/∂W = <x φ(y)ᵀ> - W⁻ᵀ, φ = 2ν y / (α + y²), on the sphere of each unit-norm column.
    visible = units.Gaussian(4)
    model = pj.product(visible, heavy=experts.StudentT(visible, 4))
    params = model.init(jax.random.key(0))
    x = np.asarray(jax.random.t(jax.random.key(1), 3.0, (50, 4)), float)
    grads, _, _ = pj.estimators.exact(model).grad(jax.random.key(0), params, (), jnp.asarray(x))
    w = np.asarray(params["heavy"]["w"], float)
    y = x @ w
    slope = x.T @ (2 * y / (1 + y**2)) / len(x) - np.linalg.inv(w).T
    expected = slope - w * (w * slope).sum(0)
    np.testing.assert_allclose(grads["heavy"]["w"], expected, atol=2e-5)
    wrong = slope + 2 * np.linalg.inv(w).T
    assert np.abs(grads["heavy"]["w"] - (wrong - w * (w * wrong).sum(0))).max() > 0.1


@functools.partial(jax.jit, static_argnames="model")
def draws(keys, model, params):
    return jax.vmap(lambda k: pj.exact.sample(k, model, params))(keys)


def p_values(model, params, x):
    """Kolmogorov-Smirnov p-values of x₁, x₂, x₁ + x₂ and x₁ - x₂ against the density on a grid."""
    log_p = np.asarray(grid_log_density(model, params), float)
    p = np.exp(log_p - log_p.max())
    step = float(GRID[1] - GRID[0])
    found = []
    for way in ([1, 0], [0, 1], [1, 1], [1, -1]):
        along = np.asarray(POINTS, float) @ way
        index = np.rint((along - along.min()) / step).astype(int)
        cdf = np.concatenate([[0], np.cumsum(np.bincount(index, weights=p))]) / p.sum()
        edges = along.min() + step * (np.arange(len(cdf)) - 0.5)
        test = stats.kstest(np.asarray(x) @ way, lambda v, e=edges, c=cdf: np.interp(v, e, c))
        found.append(test.pvalue)
    return min(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_draws_follow_the_density(name, setting):
    model, params = setting(name)
    x = draws(jax.random.split(jax.random.key(7), NUM_DRAWS), model, params)
    assert p_values(model, params, x) > 1e-4 / (4 * len(MODELS))
    # The same statistic sees a wrong sampler.
    hot = draws(jax.random.split(jax.random.key(7), NUM_DRAWS), model, model.temper(params, 0.6))
    assert p_values(model, params, hot) < 1e-4 / (4 * len(MODELS))


def test_heavy_tailed_draws_are_student_t():
    visible = units.Gaussian(3)
    model = pj.product(visible, heavy=experts.StudentT(visible, 3))
    params = model.init(jax.random.key(0))
    nu, alpha = np.array([0.75, 1.0, 2.0]), np.array([0.5, 1.0, 4.0])
    params["heavy"] |= {"log_exponent": jnp.log(nu), "log_scale": jnp.log(alpha)}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    x = draws(jax.random.split(jax.random.key(3), NUM_DRAWS), model, params)
    y = np.asarray(x @ params["heavy"]["w"], float)
    for j in range(3):
        scaled = y[:, j] * np.sqrt((2 * nu[j] - 1) / alpha[j])
        assert stats.kstest(scaled, stats.t(2 * nu[j] - 1).cdf).pvalue > 1e-4 / 3
        assert stats.kstest(1.4 * scaled, stats.t(2 * nu[j] - 1).cdf).pvalue < 1e-4 / 3


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])  # visible enumeration, latent enumeration
def test_draws_of_a_binary_machine_have_their_probabilities(shape, random_params):
    model = pj.models.rbm(*shape)
    params = random_params(model, 2, 0.7)
    side = "visible" if shape[0] < shape[1] else "latent"
    assert pj.exact.method(model) == f"{side} enumeration"
    num_draws = 40_000
    x = draws(jax.random.split(jax.random.key(5), num_draws), model, params)
    index = np.asarray(x) @ (2 ** np.arange(shape[0]))
    counts = np.bincount(index.astype(int), minlength=2 ** shape[0])
    right = count_z_scores(counts, pj.exact.probabilities(model, params))
    assert np.abs(right).max() < z_threshold(len(right))
    wrong = pj.exact.probabilities(model, model.temper(params, 0.9))
    z = count_z_scores(counts, wrong)
    assert np.abs(z).max() > z_threshold(len(z))


@pytest.mark.parametrize("spread", [1e-1, 1e-3])
def test_latent_sums_keep_their_digits_far_from_zero(spread):
    # Normalised experts on separate blocks of coordinates, or one alone: log Z = 0.
    visible = units.GaussianDiag(2)
    model = pj.product(visible, mixture=experts.GaussianMixture(visible, 3, joint=True))
    params = model.init(jax.random.key(0))
    params["mixture"]["log_precision"] -= 2 * jnp.log(spread)
    params["mixture"]["mean"] += 3.0
    assert pj.exact.method(model) == "latent enumeration"
    assert float(pj.exact.log_z(model, params)) == pytest.approx(0.0, abs=2e-5)
    gradient = jax.grad(lambda p: pj.exact.log_z(model, p))(params)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    assert largest * spread < 1e-4


def test_one_component_is_a_mixture_too():
    visible = units.Gaussian(2)
    model = pj.product(visible, one=experts.GaussianMixture(visible, 1, joint=True))
    params = model.init(jax.random.key(0))
    assert float(pj.exact.log_z(model, params)) == pytest.approx(0.0, abs=1e-5)
    z = model.sample_latent(jax.random.key(1), params, jnp.zeros(2))
    np.testing.assert_array_equal(z["one"], [[1.0]])


def test_means_of_full_precision_units_have_gradients():
    unit = units.Gaussian(3)
    rows = jax.random.normal(jax.random.key(0), (5, 3))
    linear = jnp.array([1.0, -2.0, 0.5])
    found = jax.jacobian(lambda v: unit.mean({"linear": v, "rows": rows}))(linear)
    np.testing.assert_allclose(found, jnp.linalg.inv(rows.T @ rows), rtol=1e-4)
    by_rows = jax.grad(lambda r: unit.mean({"linear": linear, "rows": r}).sum())(rows)
    step = jnp.zeros_like(rows).at[2, 1].set(1e-2)
    difference = unit.mean({"linear": linear, "rows": rows + step}).sum()
    difference -= unit.mean({"linear": linear, "rows": rows - step}).sum()
    assert float(by_rows[2, 1]) == pytest.approx(float(difference) / 2e-2, rel=1e-2)


@pytest.mark.slow
def test_named_products_of_real_units_have_a_log_z():
    heavy = pj.models.product_of_student_t(2, 3)
    params = heavy.init(jax.random.key(0))
    assert np.isfinite(float(pj.exact.log_z(heavy, params)))
    mixtures = pj.models.product_of_gaussian_mixtures(2, 3, 2)
    params = mixtures.init(jax.random.key(0))
    assert list(params) == ["mixture_0", "mixture_1", "mixture_2"]
    assert pj.exact.method(mixtures) == "latent enumeration"
    assert np.isfinite(float(pj.exact.log_z(mixtures, params)))
    with pytest.raises(ValueError, match="num_experts"):
        pj.models.product_of_gaussian_mixtures(2, 0)
