"""Products of Gaussians against float64 NumPy, quadrature and finite differences."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from scipy import special, stats

from poejax import gaussians

K, D = 4, 3
MASK = np.array([True, False, True, True])
KINDS = ("diagonal", "full")
VARIANTS = list(itertools.product(KINDS, (False, True), (False, True), (False, True)))


def random_precision(rng, kind, num_dims=D):
    if kind == "diagonal":
        return np.exp(rng.normal(size=num_dims))
    root = rng.normal(size=(num_dims, num_dims + 2))
    return root @ root.T


def random_experts(kind, seed=0, num_experts=K, num_dims=D):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(num_experts, num_dims))
    precisions = np.stack([random_precision(rng, kind, num_dims) for _ in range(num_experts)])
    weights = rng.uniform(0.2, 2, size=num_experts)
    prior = (rng.normal(size=num_dims), random_precision(rng, kind, num_dims))
    return means, precisions, weights, prior


def as_matrix(precision):
    return np.diag(precision) if np.ndim(precision) == 1 else precision


def numpy_product(means, precisions, weights=None, mask=None, prior=None):
    """Mean, precision matrix and log Z in float64, in the textbook form: no shared formulas."""
    weights = np.ones(len(means)) if weights is None else weights
    mask = np.ones(len(means), bool) if mask is None else mask
    experts = [
        (m, as_matrix(p), w)
        for m, p, w, keep in zip(means, precisions, weights, mask, strict=True)
        if keep
    ]
    if prior is not None:
        experts.append((prior[0], as_matrix(prior[1]), 1.0))
    precision = sum(w * p for _, p, w in experts)
    linear = sum(w * p @ m for m, p, w in experts)
    mean = np.linalg.solve(precision, linear)
    log_z = 0.5 * linear @ mean - 0.5 * np.linalg.slogdet(precision / (2 * np.pi))[1]
    for m, p, w in experts:
        log_z += w * (0.5 * np.linalg.slogdet(p / (2 * np.pi))[1] - 0.5 * m @ p @ m)
    return mean, precision, log_z


def assert_same_product(found, expected, tolerance):
    mean, precision, log_z = expected
    np.testing.assert_allclose(found.mean, mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        as_matrix(found.precision), precision, rtol=tolerance, atol=tolerance
    )
    np.testing.assert_allclose(found.log_z, log_z, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("kind", "weighted", "masked", "with_prior"), VARIANTS)
def test_product_against_numpy(kind, weighted, masked, with_prior):
    means, precisions, weights, prior = random_experts(kind)
    options = {
        "weights": weights if weighted else None,
        "mask": MASK if masked else None,
        "prior": prior if with_prior else None,
    }
    expected = numpy_product(means, precisions, **options)
    assert_same_product(gaussians.product(means, precisions, **options), expected, 2e-5)
    with jax.enable_x64(True):
        found = gaussians.product(means, precisions, **options)
        assert found.log_z.dtype == jnp.float64
        assert_same_product(found, expected, 1e-11)


@pytest.mark.parametrize("weighted", [False, True])
def test_log_z_against_quadrature_in_one_dimension(weighted):
    means, precisions, weights, _ = random_experts("diagonal", num_dims=1)
    weights = weights if weighted else np.ones(K)
    x = np.linspace(-30, 30, 60_001)
    log_f = sum(
        w * stats.norm.logpdf(x, m[0], p[0] ** -0.5)
        for m, p, w in zip(means, precisions, weights, strict=True)
    )
    expected = np.log(np.trapezoid(np.exp(log_f), x))
    found = gaussians.product(means, precisions, weights)
    np.testing.assert_allclose(found.log_z, expected, rtol=1e-5)
    # Z times the product's own density is the product, pointwise.
    log_p = jax.vmap(lambda v: gaussians.log_prob(found.mean, found.precision, v))(x[::500, None])
    np.testing.assert_allclose(found.log_z + log_p, log_f[::500], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_log_z_against_quadrature_in_two_dimensions(kind):
    means, precisions, weights, prior = random_experts(kind, seed=1, num_dims=2)
    axis = np.linspace(-12, 12, 801)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)

    def log_density(mean, precision):
        return stats.multivariate_normal(mean, np.linalg.inv(as_matrix(precision))).logpdf(grid)

    log_f = log_density(*prior)
    for m, p, w, keep in zip(means, precisions, weights, MASK, strict=True):
        log_f += w * log_density(m, p) * keep
    cell = (axis[1] - axis[0]) ** 2
    expected = special.logsumexp(log_f) + np.log(cell)
    found = gaussians.product(means, precisions, weights, MASK, prior)
    np.testing.assert_allclose(found.log_z, expected, rtol=1e-5)
    p = np.exp(log_f - special.logsumexp(log_f))
    np.testing.assert_allclose(found.mean, np.einsum("ab,abd->d", p, grid), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_products_nest_and_a_weight_is_a_number_of_copies(kind):
    means, precisions, _, prior = random_experts(kind)
    whole = gaussians.product(means, precisions, prior=prior)
    half = gaussians.product(means[:2], precisions[:2])
    rest = gaussians.product(means[2:], precisions[2:], prior=(half.mean, half.precision))
    last = gaussians.product(rest.mean[None], rest.precision[None], prior=prior)
    assert_same_product(
        last._replace(log_z=half.log_z + rest.log_z + last.log_z),
        (whole.mean, as_matrix(whole.precision), whole.log_z),
        2e-5,
    )
    twice = gaussians.product(means.repeat(2, axis=0), precisions.repeat(2, axis=0))
    squared = gaussians.product(means, precisions, weights=np.full(K, 2.0))
    assert_same_product(squared, (twice.mean, as_matrix(twice.precision), twice.log_z), 2e-5)


def test_full_experts_with_a_diagonal_prior():
    means, precisions, _, _ = random_experts("full")
    prior = (np.zeros(D), np.ones(D))
    found = gaussians.product(means, precisions, prior=prior)
    assert_same_product(found, numpy_product(means, precisions, prior=prior), 2e-5)


def test_univariate_gaussians_on_distinct_coordinates_have_z_of_one():
    means, precisions, _, _ = random_experts("diagonal", num_experts=1, num_dims=5)
    per_coordinate = jax.jit(jax.vmap(lambda m, p: gaussians.product(m[None, None], p[None, None])))
    each = per_coordinate(jnp.asarray(means[0]), jnp.asarray(precisions[0]))
    np.testing.assert_allclose(each.log_z, 0, atol=1e-6)
    x = np.random.default_rng(1).normal(size=5)
    joint = gaussians.log_prob(each.mean[:, 0], each.precision[:, 0], x)
    separate = stats.norm.logpdf(x, means[0], precisions[0] ** -0.5).sum()
    np.testing.assert_allclose(joint, separate, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_under_jit_and_vmap_against_finite_differences(kind):
    batch = 3
    masks = np.array([[True] * K, MASK, [False] * K])
    draws = [random_experts(kind, seed=s) for s in range(batch)]
    means, precisions, weights = (np.stack([d[i] for d in draws]) for i in range(3))
    priors = tuple(np.stack([d[3][i] for d in draws]) for i in range(2))

    def loss(arguments, mask):
        means, precisions, weights, prior_mean, prior_precision = arguments
        mean, precision, log_z = gaussians.product(
            means, precisions, weights, mask, (prior_mean, prior_precision)
        )
        return jnp.sum(jnp.sin(mean)) + 0.1 * jnp.sum(precision**2) + log_z

    def numpy_loss(arguments, mask):
        means, precisions, weights, *prior = arguments
        if kind == "full":  # only the symmetric part counts
            precisions = (precisions + precisions.mT) / 2
            prior[1] = (prior[1] + prior[1].T) / 2
        mean, precision, log_z = numpy_product(means, precisions, weights, mask, prior)
        return np.sin(mean).sum() + 0.1 * np.sum(precision**2) + log_z

    arguments = (means, precisions, weights, *priors)
    gradients = jax.jit(jax.vmap(jax.grad(loss)))(arguments, masks)
    step = 1e-6
    for row in range(batch):
        row_arguments = [leaf[row].copy() for leaf in arguments]
        for leaf, gradient in zip(row_arguments, gradients, strict=True):
            expected = np.zeros_like(leaf)
            for index in np.ndindex(leaf.shape):
                values = []
                kept = leaf[index]
                for leaf[index] in (kept + step, kept - step):
                    values.append(numpy_loss(row_arguments, masks[row]))
                leaf[index] = kept
                expected[index] = (values[0] - values[1]) / (2 * step)
            scale = max(1, np.abs(expected).max())
            np.testing.assert_allclose(gradient[row], expected, rtol=1e-4, atol=2e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_that_is_out_changes_neither_values_nor_gradients(kind):
    def loss(means, precisions, weights):
        mean, precision, log_z = gaussians.product(means, precisions, weights, MASK)
        return jnp.sum(jnp.sin(mean)) + jnp.sum(jnp.log1p(precision**2)) + log_z

    value_and_grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    hessian = jax.jit(jax.hessian(loss))
    inputs = random_experts(kind)[:3]
    clean, clean_gradients = value_and_grad(*inputs)
    for rubbish in (np.nan, np.inf, -1.0):
        spoilt = [leaf.copy() for leaf in inputs]
        for leaf in spoilt:
            leaf[~MASK] = rubbish
        dirty, dirty_gradients = value_and_grad(*spoilt)
        np.testing.assert_allclose(dirty, clean, rtol=1e-6)
        for a, b in zip(dirty_gradients, clean_gradients, strict=True):
            assert np.isfinite(a).all()
            assert (np.asarray(a)[~MASK] == 0).all()
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.isfinite(hessian(*spoilt)).all()
        # Concrete values are checked only where they count.
        assert np.isfinite(gaussians.product(*spoilt, MASK).log_z)


@pytest.mark.parametrize("kind", KINDS)
def test_far_off_means_lose_no_digits(kind):
    means, precisions, weights, _ = random_experts(kind)
    # Multiples of 2^-4 are exact in float32 at a million.
    means = 1e6 + np.round(means * 16) / 16
    # In float64 the textbook form cancels too, but still has digits to spare near the origin.
    near = numpy_product(means - 1e6, precisions, weights)
    found = gaussians.product(means.astype(np.float32), precisions, weights)
    np.testing.assert_allclose(found.log_z, near[2], rtol=2e-5)
    np.testing.assert_allclose(np.asarray(found.mean, float), 1e6 + near[0], rtol=0, atol=0.04)


def test_a_sharp_expert_beside_a_broad_one():
    means, precisions = np.array([[0.0], [1e4]]), np.array([[1e-6], [1e6]])
    found = gaussians.product(means, precisions)
    expected = stats.norm.logpdf(1e4, 0, np.sqrt(1e6 + 1e-6))
    np.testing.assert_allclose(found.log_z, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_improper_product_is_refused_or_infinite(kind):
    means, precisions, _, prior = random_experts(kind)
    nothing, zeros = np.zeros(K, bool), np.zeros(K)
    with pytest.raises(ValueError, match="total precision"):
        gaussians.product(means, precisions, mask=nothing)
    with pytest.raises(ValueError, match="total precision"):
        gaussians.product(means, precisions, weights=zeros)
    traced = jax.jit(gaussians.product)
    for found in (traced(means, precisions, mask=nothing), traced(means, precisions, zeros)):
        assert np.isposinf(found.log_z)
        assert np.isnan(found.mean).all()
    assert np.isposinf(traced(means, precisions, -np.ones(K)).log_z)
    # With a prior there is always something left: the prior.
    alone = traced(means, precisions, mask=nothing, prior=prior)
    assert_same_product(alone, (prior[0], as_matrix(prior[1]), 0.0), 2e-6)
    # Experts that are no densities, the total being proper all the same.
    for factor in (0.0, -0.01):
        broken = precisions.copy()
        broken[1] *= factor
        assert not np.isfinite(traced(means, broken).log_z)
        with pytest.raises(ValueError, match=r"precisions\[1\]: expected a positive definite"):
            gaussians.product(means, broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"means": np.zeros(D)}, r"means: expected a non-empty \[K, D\]"),
        ({"means": np.zeros((0, D))}, r"means: expected a non-empty \[K, D\]"),
        ({"precisions": np.ones((K, D + 1))}, "precisions: expected shape"),
        ({"weights": np.ones(K + 1)}, "weights: expected shape"),
        ({"weights": -np.ones(K)}, r"weights\[0\]: expected a finite number >= 0"),
        ({"weights": np.full(K, np.nan)}, r"weights\[0\]: expected a finite number"),
        ({"mask": np.ones(K)}, "mask: expected booleans"),
        ({"means": np.full((K, D), np.nan)}, r"means\[0\]: expected finite values"),
        ({"precisions": np.full((K, D), np.inf)}, r"precisions\[0\]: expected finite values"),
        ({"precisions": np.triu(np.ones((K, D, D)))}, r"precisions\[0\]: expected a symmetric"),
        ({"prior": np.zeros(D)}, "prior: expected a tuple"),
        ({"prior": (np.zeros(2), np.ones(2))}, r"prior\[0\]: expected shape"),
        ({"prior": (np.zeros(D), np.ones(2))}, r"prior\[1\]: expected shape"),
        ({"prior": (np.zeros(D), np.eye(D))}, r"prior\[1\]: expected a diagonal"),
        ({"prior": (np.zeros(D), -np.ones(D))}, r"prior\[1\]: expected a positive definite"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {"means": np.zeros((K, D)), "precisions": np.ones((K, D))} | changes
    with pytest.raises(ValueError, match=message):
        gaussians.product(**arguments)


def test_new_values_compile_nothing(compiles_nothing):
    arguments = [random_experts("full", seed) for seed in range(2)]
    gaussians.product(*arguments[0][:3], MASK, arguments[0][3])
    with compiles_nothing():
        gaussians.product(*arguments[1][:3], ~MASK, arguments[1][3])


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_against_scipy(kind):
    means, precisions, _, _ = random_experts(kind)
    x = np.random.default_rng(1).normal(size=D)
    expected = stats.multivariate_normal(means[0], np.linalg.inv(as_matrix(precisions[0])))
    found = gaussians.log_prob(means[0], precisions[0], x)
    np.testing.assert_allclose(found, expected.logpdf(x), rtol=1e-5)
    with pytest.raises(ValueError, match=r"jax\.vmap for a batch"):
        gaussians.log_prob(means[0], precisions[0], x[None])
    with pytest.raises(ValueError, match="precision: expected shape"):
        gaussians.log_prob(means[0], precisions[0][:2], x)


def moment_scores(x, mean, precision):
    """Scores of the first and second moments of whitened draws, standard normal if all is well."""
    factor = np.linalg.cholesky(as_matrix(precision))
    y = (np.asarray(x, float) - mean) @ factor
    i, j = np.triu_indices(y.shape[1])
    products = y[:, i] * y[:, j] - (i == j)
    products /= np.where(i == j, np.sqrt(2), 1)
    return np.concatenate([y, products], axis=1).mean(axis=0) * np.sqrt(len(y))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_density(kind):
    means, precisions, _, _ = random_experts(kind)
    mean, precision = means[0], precisions[0]
    keys = jax.random.split(jax.random.key(0), 20_000)
    x = jax.jit(jax.vmap(gaussians.sample, (0, None, None)))(keys, mean, precision)
    z = moment_scores(x, mean, precision)
    assert np.abs(z).max() < reference.z_threshold(z.size)
    # The test has power: a precision taken for a covariance, or its root not transposed, fails.
    root = np.linalg.cholesky(as_matrix(precision))
    noise = np.random.default_rng(0).normal(size=x.shape)
    wrong = [mean + noise @ root.T]
    if kind == "full":
        wrong.append(mean + noise @ np.linalg.inv(root).T)
    for draws in wrong:
        z = moment_scores(draws, mean, precision)
        assert np.abs(z).max() > reference.z_threshold(z.size)
