"""Mixtures far from zero, in any unit and any dtype, against float64 NumPy; events far off."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture_cases import (
    COVARIANCES,
    KEY,
    K,
    gaussian_data,
    log_probs,
    numpy_em,
    numpy_gaussian_step,
    numpy_log_joint,
    posteriors,
    random_mixture,
)
from scipy import special, stats
from sklearn.mixture import GaussianMixture

from poejax import mixtures

RIDGE, STEPS = 0.01, 8
# Sixteenths: exact in float32 as far off as a million, in float16 and, about zero, in bfloat16.
X = np.clip(np.round(gaussian_data() * 16) / 16, -7.9375, 7.9375).astype(float)


def starting_at(covariance, scale=1.0, offset=0.0):
    start = random_mixture(covariance, 3)
    return start._replace(
        means=start.means * scale + offset, covariances=start.covariances * scale**2
    )


def fit(x, covariance, scale=1.0, offset=0.0):
    return mixtures.fit_em(
        KEY,
        x,
        K,
        covariance=covariance,
        params=starting_at(covariance, scale, offset),
        max_steps=STEPS,
        tol=0.0,
        ridge=RIDGE * scale**2,
    )


def assert_is_the_fit(found, covariance, data, scale=1.0, offset=0.0):
    """A fit of data · scale + offset is NumPy's of the data, in other units."""
    params, report = found
    update = numpy_gaussian_step(covariance, RIDGE)
    expected, log_likelihoods = numpy_em(starting_at(covariance), data, STEPS, update)
    np.testing.assert_allclose(
        report.log_likelihood + data.shape[1] * np.log(scale), log_likelihoods, rtol=2e-5, atol=2e-5
    )
    np.testing.assert_allclose(params.log_weights, expected.log_weights, atol=2e-4)
    means = np.asarray(params.means, float)
    step = np.spacing(np.abs(means).max().astype(np.float32)) / scale
    np.testing.assert_allclose(
        (means - offset) / scale, expected.means, rtol=2e-4, atol=2e-4 + step
    )
    covariances = np.asarray(params.covariances, float) / scale**2
    np.testing.assert_allclose(covariances, expected.covariances, rtol=5e-4, atol=2e-4)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize(
    ("scale", "offset"),
    [(1.0, 300.0), (1.0, 1e4), (1.0, 1e6), (1e-6, 0), (1e6, 3e8), (1e-17, 0), (1e18, 0)],
)
def test_em_does_not_depend_on_offsets_and_units(covariance, scale, offset):
    # The values narrowed first would be others: in float64 the host still has them.
    data = X + 0.01 * np.sin(np.arange(X.size)).reshape(X.shape)
    found = fit(data * scale + offset, covariance, scale, offset)
    assert_is_the_fit(found, covariance, data, scale, offset)


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [(jnp.bfloat16, 0), (np.float16, 0), (np.float32, 1e6), (">f4", 1e4), (np.longdouble, 1e4)],
)
def test_em_in_any_dtype(dtype, offset):
    found = fit((X + offset).astype(dtype), "full", offset=offset)
    assert found[0].means.dtype == jnp.float32
    assert_is_the_fit(found, "full", X, offset=offset)


def test_whole_numbers_of_64_bits_and_bits():
    far = (16_000 * X).astype(np.int64) + 3_000_000_000
    params, _ = mixtures.fit_em(KEY, far, 1, ridge=0.0)
    np.testing.assert_allclose(params.means[0], far.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(params.covariances[0], np.cov(far.T, ddof=0), rtol=1e-4)
    bits = X > 0
    params, _ = mixtures.fit_em(KEY, bits, 1, ridge=0.0)
    np.testing.assert_allclose(params.covariances[0], np.cov(bits.T, ddof=0), rtol=1e-5)


@pytest.mark.slow
def test_under_a_trace_the_centring_is_the_same():
    traced = jax.jit(lambda x, start: mixtures.fit_em(KEY, x, K, params=start, max_steps=3))
    x = (X * 1e-15).astype(np.float32)
    found = traced(x, starting_at("full", 1e-15))
    expected = mixtures.fit_em(KEY, x, K, params=starting_at("full", 1e-15), max_steps=3)
    np.testing.assert_allclose(found[1].log_likelihood, expected[1].log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(found[0].means, expected[0].means, rtol=1e-3)
    with jax.enable_x64(True):  # and there the dates of the next test can be said
        x = 2_460_000 + 0.3 + 0.002 * X
        params, _ = mixtures.fit_em(KEY, x, 1, covariance="diag", ridge=0.0)
        np.testing.assert_allclose(params.means[0], x.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(params.covariances[0], x.var(axis=0), rtol=1e-6)


def test_what_float32_cannot_say_is_refused_with_its_place_and_the_way_out():
    dates = 2_460_000 + 0.3 + 0.002 * X
    message = r"x: .* column 0 of mean 2460000\.3.* float32 steps by 0\.25; subtract .* mean first"
    with pytest.raises(ValueError, match=message):
        mixtures.fit_em(KEY, dates, 2, ridge=1e-9)
    near, _ = mixtures.fit_em(KEY, dates - 2_460_000, 1)
    np.testing.assert_allclose(near.means[0], 0.3, atol=0.01)
    for value, bad in ((9.96921e36, "squares"), (1e39, "values that float32 can hold")):
        spoilt = X.copy()
        spoilt[7, 1] = value
        with pytest.raises(ValueError, match=rf"x: .*{bad}.* in row 7, column 1") as error:
            mixtures.fit_em(KEY, spoilt, 2)
        assert "ridge" not in str(error.value)
        assert f"{value:g}" in str(error.value)
    with pytest.raises(ValueError, match=r"x: expected finite values, got inf in row 7, column 1"):
        mixtures.fit_em(KEY, np.where(spoilt == value, np.inf, X), 2)
    with pytest.raises(ValueError, match=r"x: .*variances float32 can hold, got .* in column"):
        mixtures.fit_em(KEY, X * 1e-21, 2)
    # A float32 column has no other digits than its own.
    coarse = (X + 1e8).astype(np.float32)
    params, _ = mixtures.fit_em(KEY, coarse, 1)
    np.testing.assert_allclose(params.means[0], coarse.mean(axis=0, dtype=float), rtol=1e-7)


def test_one_fill_value_leaves_the_other_rows_their_digits():
    x = X.astype(np.float32)
    x[5] = 1e15
    params, _ = mixtures.fit_em(KEY, x, 2)
    rest = np.delete(X, 5, axis=0)
    k = int(np.argmin(np.abs(params.means[:, 0])))
    np.testing.assert_allclose(params.means[k], rest.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(params.covariances[k], np.cov(rest.T, ddof=0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(params.means[1 - k], x[5], rtol=1e-6)


@jax.jit
def fit_without_a_ridge(x):
    return mixtures.fit_em(KEY, x, 2, covariance="diag", ridge=0.0)[1]


@pytest.mark.slow
@pytest.mark.parametrize("constant", [0.0, 0.1, 7.1, 1e6 + 0.1, 1e-20, 1e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_columns_are_told_whatever_the_constant(constant, dtype):
    x = np.column_stack([X, np.full(len(X), constant)]).astype(dtype)
    for covariance in ("full", "diag"):
        with pytest.raises(FloatingPointError, match=r"ridge: .*column 2 of x is constant"):
            mixtures.fit_em(KEY, x, 2, covariance=covariance, ridge=0.0)
    # By default its variance is the documented floor, which nothing else of the fit depends on.
    params, report = mixtures.fit_em(KEY, x, 2, covariance="diag")
    alone, report_alone = mixtures.fit_em(KEY, X.astype(dtype), 2, covariance="diag")
    np.testing.assert_allclose(params.means[:, 2], constant, rtol=1e-6)
    np.testing.assert_allclose(params.means[:, :2], alone.means, rtol=1e-3, atol=1e-4)
    floor = np.asarray(params.covariances)[:, 2]
    assert ((floor > 1e-7) & (floor < 1e-4)).all()
    gain = report.log_likelihood[-1] - report_alone.log_likelihood[-1]
    np.testing.assert_allclose(gain, -0.5 * np.log(2 * np.pi * floor[0]), rtol=1e-3)
    assert not fit_without_a_ridge(x).converged


def test_collinear_columns_are_told_in_float64():
    rng = np.random.default_rng(0)
    x = 1e4 + rng.normal(size=(200, 3)) * [1, 30, 0.1]
    x = np.column_stack([x, 2 * x[:, 0] - x[:, 2]]).astype(np.float64)
    with pytest.raises(FloatingPointError, match="column 3 of x is, to rounding, a sum"):
        mixtures.fit_em(KEY, x, 2, ridge=0.0)
    x[:, 3] += 0.05 * rng.normal(size=200)
    params, _ = mixtures.fit_em(KEY, x, 1, ridge=0.0)
    np.testing.assert_allclose(params.covariances[0], np.cov(x.T, ddof=0), rtol=1e-3, atol=1e-3)


def test_the_default_ridge_has_the_units_of_the_data():
    expected = GaussianMixture(1, reg_covar=0).fit(X).score(X)
    for scale in (1e-12, 1.0, 1e12):
        _, report = mixtures.fit_em(KEY, X * scale, 1)
        found = float(report.log_likelihood[-1]) + 2 * np.log(scale)
        np.testing.assert_allclose(found, expected, atol=2e-5)


# --- events far off -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("size", [1e3, 1e10, 1e18, 1e20, 9.97e36])
def test_responsibilities_of_far_events_against_float64(covariance, size):
    params = random_mixture(covariance, 1)
    x = size * np.array([[1.0, 1.0], [-1.0, 0.25], [0.0, 1.0]])
    joint = numpy_log_joint(params, x)
    np.testing.assert_allclose(posteriors(params, x), special.softmax(joint, axis=1), atol=1e-6)
    expected = special.logsumexp(joint, axis=1)
    found = np.asarray(log_probs(params, x), float)
    is_held = expected > -3e38
    np.testing.assert_allclose(found[is_held], expected[is_held], rtol=1e-5)
    assert (found[~is_held] == -np.inf).all()
    gradients = jax.vmap(jax.grad(mixtures.log_prob), (None, 0))(
        jax.tree.map(jnp.float32, params), jnp.asarray(x, jnp.float32)
    )
    assert all(np.isfinite(leaf).all() for leaf in gradients[:2])
    if covariance != "full":  # by the means: r Λ (x - μ)
        r = special.softmax(joint, axis=1)[:, :, None]
        apart = x[:, None] - params.means
        by_mean = r * apart / params.covariances.reshape(K, -1)
        np.testing.assert_allclose(gradients.means, by_mean, rtol=1e-4, atol=1e-4 * size)


@pytest.mark.slow
def test_a_component_near_the_event_wins_over_far_ones():
    params = mixtures.MixtureParams(
        np.log([0.25, 0.75]), np.array([[1e20, 0.0], [0.0, 0.0]]), np.array([1e30, 1.0])
    )
    event = np.array([1e20, 1e15])
    np.testing.assert_allclose(mixtures.responsibilities(params, event), [1, 0])
    expected = np.log(0.25) - np.log(2 * np.pi * 1e30) - 0.5
    np.testing.assert_allclose(mixtures.log_prob(params, event), expected, rtol=1e-6)
    grads = jax.grad(mixtures.log_prob)(jax.tree.map(jnp.float32, params), event)
    assert all(np.isfinite(leaf).all() for leaf in grads)
    # A Hessian at a mean, where distances are 0, is the precision.
    plain = jax.tree.map(jnp.float32, random_mixture("full", num_components=1))
    hessian = jax.hessian(mixtures.log_prob, 1)(plain, plain.means[0])
    np.testing.assert_allclose(hessian, -np.linalg.inv(plain.covariances[0]), rtol=1e-3)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_samples_scale_with_their_mixture(covariance):
    params = jax.tree.map(jnp.float32, random_mixture(covariance))
    for power in (-56, 56):  # of two: nothing is rounded otherwise
        scaled = params._replace(
            means=params.means * 2.0**power, covariances=params.covariances * 4.0**power
        )
        found = mixtures.sample(KEY, scaled) * 2.0**-power
        np.testing.assert_allclose(found, mixtures.sample(KEY, params), rtol=1e-5)


def test_densities_of_64_bit_whole_numbers():
    params = mixtures.MixtureParams(np.zeros(1), np.full((1, 2), 3e9), np.full((1, 2), 1e6))
    event = np.array([3_000_000_000, 3_000_002_048])
    expected = stats.multivariate_normal(params.means[0], 1e6).logpdf(event)
    np.testing.assert_allclose(mixtures.log_prob(params, event), expected, rtol=1e-5)


@pytest.mark.slow
def test_widths_may_be_mixed_under_x64():
    with jax.enable_x64(True):
        for dtype, wide in ((np.float32, False), (np.float64, True), (np.int64, True)):
            x = (16 * X).astype(dtype)
            params, _ = mixtures.fit_em(KEY, x, 2, covariance="diag", max_steps=1)
            assert params.means.dtype == (np.float64 if wide else np.float32)
        found = mixtures.kmeans(KEY, X, 2, weights=np.ones(len(X), int))
        assert (found.centroids.dtype, found.assignments.dtype) == (np.float64, np.int32)
        params, _ = fit(X.astype(np.float32), "full")  # of a start in float64
        assert params.means.dtype == np.float32
        bits, _ = mixtures.fit_em_bernoulli(KEY, (X > 0).astype(np.int64), 2, init="kmeans")
        assert np.isfinite(bits.logits).all()
