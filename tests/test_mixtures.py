"""Mixtures by EM against float64 NumPy, scikit-learn, enumeration and quadrature."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from mixture_cases import (
    COVARIANCES,
    KEY,
    K,
    N,
    assert_same_params,
    bernoulli_data,
    gaussian_data,
    log_probs,
    numpy_em,
    numpy_gaussian_step,
    random_bernoulli_mixture,
    random_mixture,
)
from sklearn.mixture import GaussianMixture

from poejax import mixtures

# --- EM for Gaussians -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_em_against_numpy_step_by_step(covariance):
    x, start, ridge = gaussian_data(num_dims=3), random_mixture(covariance, 3, num_dims=3), 0.01
    update = numpy_gaussian_step(covariance, ridge)
    expected, log_likelihoods = numpy_em(start, x, 15, update)
    params, report = mixtures.fit_em(
        KEY, x, K, covariance=covariance, params=start, max_steps=15, tol=0.0, ridge=ridge
    )
    assert int(report.num_steps) == 15
    assert not report.converged
    np.testing.assert_allclose(report.log_likelihood, log_likelihoods, rtol=2e-5)
    assert_same_params(params, expected, 2e-4)
    # From responsibilities, the first M step makes the start.
    r = np.random.default_rng(0).dirichlet(np.ones(K), size=N)
    expected, log_likelihoods = numpy_em(update(x.astype(float), r), x, 3, update)
    params, report = mixtures.fit_em(
        KEY, x, K, covariance=covariance, init=r, max_steps=3, tol=0.0, ridge=ridge
    )
    np.testing.assert_allclose(report.log_likelihood, log_likelihoods, rtol=2e-5)
    assert_same_params(params, expected, 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("x64", [False, True])
def test_em_matches_scikit_learn_from_the_same_start(covariance, x64):
    x = gaussian_data(seed=2, num_rows=600, num_dims=4).astype(float)
    means = x[[0, 1, 2]]
    variances = np.full((K, 4), x.var(axis=0))
    covariances = {
        "full": np.stack([np.diag(v) for v in variances]),
        "diag": variances,
        "spherical": variances.mean(axis=1),
    }[covariance]
    precisions = np.linalg.inv(covariances) if covariance == "full" else 1 / covariances
    ridge = 1e-4

    theirs = GaussianMixture(
        K,
        covariance_type=covariance,
        tol=1e-9,
        reg_covar=ridge,
        max_iter=1000,
        means_init=means,
        weights_init=np.full(K, 1 / K),
        precisions_init=precisions,
    ).fit(x)
    start = mixtures.MixtureParams(np.log(np.full(K, 1 / K)), means, covariances)
    with jax.enable_x64(x64):
        params, report = mixtures.fit_em(
            KEY,
            x,
            K,
            covariance=covariance,
            params=start,
            max_steps=1000,
            tol=1e-9 if x64 else 1e-6,
            ridge=ridge,
        )
        assert report.converged
        assert report.num_steps > 10
        assert params.means.dtype == (jnp.float64 if x64 else jnp.float32)
        log_p = log_probs(params, x)
        np.testing.assert_allclose(log_p.mean(), report.log_likelihood[-1], rtol=1e-5)
        # Nats per example.
        assert abs(float(log_p.mean()) - theirs.score(x)) < (1e-6 if x64 else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_log_likelihood_never_falls(covariance):
    rng = np.random.default_rng(0)
    hard_cases = [
        gaussian_data(num_dims=3),
        1e4 + rng.normal(size=(N, 3)),  # far from the origin
        rng.integers(0, 2, size=(N, 3)).astype(float),  # rows that coincide
        np.repeat(rng.normal(size=(N // 200, 3)), 200, axis=0),  # fewer distinct rows than K
        np.pad(rng.normal(size=(N, 1)), ((0, 0), (0, 2))),  # on a line
    ]
    for x, ridge in itertools.product(hard_cases, (1e-3, 0.5)):
        _, report = mixtures.fit_em(KEY, x, 4, covariance=covariance, ridge=ridge, max_steps=50)
        assert np.isfinite(report.log_likelihood).all()
        assert (np.diff(report.log_likelihood) >= 0).all()
        assert (report.objective == report.log_likelihood).all()


def test_a_fit_far_from_the_origin_is_the_fit_at_the_origin():
    x = np.round(gaussian_data() * 256) / 256  # exact in float32 there too
    here, report = mixtures.fit_em(KEY, x, K)
    there, report_there = mixtures.fit_em(KEY, x + 4096, K)
    np.testing.assert_allclose(report_there.log_likelihood, report.log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(there.covariances, here.covariances, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(there.means - 4096, here.means, atol=2e-3)


@pytest.mark.parametrize("init", ["kmeans++", "kmeans"])
def test_fits_recover_a_planted_mixture(init):
    rng = np.random.default_rng(0)
    planted = np.array([[-8.0, 0.0], [8.0, 0.0], [0.0, 12.0]])
    labels = rng.integers(K, size=N)
    x = planted[labels] + rng.normal(size=(N, 2))
    params, report = mixtures.fit_em(KEY, x, K, init=init)
    assert report.converged
    order = np.argmin(((params.means[:, None] - planted) ** 2).sum(axis=-1), axis=0)
    counts = np.bincount(labels)
    z = (np.asarray(params.means)[order] - planted) * np.sqrt(counts)[:, None]
    assert np.abs(z).max() < reference.z_threshold(z.size)
    weights = np.exp(params.log_weights)[order]
    np.testing.assert_allclose(weights, counts / N, atol=1e-4)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_dead_component_gives_no_nan(covariance):
    x = gaussian_data(num_dims=3)
    dead = np.eye(K)[np.zeros(N, int)]
    params, report = mixtures.fit_em(KEY, x, K, covariance=covariance, init=dead, max_steps=3)
    assert all(np.isfinite(leaf).all() for leaf in (*params, *report))
    np.testing.assert_allclose(params.means[0], x.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(np.exp(params.log_weights), [1, 0, 0], atol=1e-6)
    # The dead ones keep the data's covariance that they started with.
    np.testing.assert_allclose(params.covariances[1:], [params.covariances[0]] * 2, rtol=1e-4)


def test_as_many_components_as_rows_give_no_nan():
    x = gaussian_data(num_rows=6, num_dims=8)
    params, report = mixtures.fit_em(KEY, x, 6, ridge=1e-2)
    assert all(np.isfinite(leaf).all() for leaf in (*params, *report))


def test_more_restarts_are_never_worse():
    x = gaussian_data(seed=0)
    finals = [
        float(mixtures.fit_em(KEY, x, K, num_restarts=n)[1].log_likelihood[-1]) for n in (1, 8)
    ]
    assert finals == sorted(finals)
    assert finals[-1] > finals[0] + 1e-3


def test_a_covariance_that_becomes_singular_is_an_error_that_names_the_ridge():
    flat = np.stack([np.arange(10.0), np.arange(10.0)], axis=1)
    with pytest.raises(FloatingPointError, match="ridge: a covariance became singular"):
        mixtures.fit_em(KEY, flat, 2, ridge=0.0)
    # Under a trace it can only be reported.
    traced = jax.jit(lambda x, ridge: mixtures.fit_em(KEY, x, 2, ridge=ridge))
    assert not traced(flat, 0.0)[1].converged
    params, report = traced(flat, 0.1)
    assert report.converged
    assert_same_params(params, mixtures.fit_em(KEY, flat, 2, ridge=0.1)[0], 1e-4)


# --- all drivers ----------------------------------------------------------------------------------


def test_new_data_and_keys_compile_nothing(compiles_nothing):
    binary = [bernoulli_data(random_bernoulli_mixture(s), N)[0] for s in range(2)]
    real = [gaussian_data(s) for s in range(2)]
    keys = list(jax.random.split(KEY, 2))

    def fit_all(i):
        mixtures.fit_em(keys[i], real[i], K, ridge=(1e-6, 1e-3)[i], tol=(1e-3, 1e-4)[i])
        mixtures.fit_em_bernoulli(keys[i], binary[i], K, smoothing=(0.1, 1.0)[i])
        mixtures.kmeans(keys[i], real[i], K)

    fit_all(0)
    with compiles_nothing():
        fit_all(1)


def test_a_fit_is_a_function_of_its_key():
    x = gaussian_data()
    a, b = (mixtures.fit_em(KEY, x, K)[0] for _ in range(2))
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)
    other, _ = mixtures.fit_em(jax.random.key(1), x, K)
    assert (np.asarray(a.means) != np.asarray(other.means)).any()


X = np.random.default_rng(0).normal(size=(10, 2))
START = random_mixture("full")
WITH_NAN = np.where(np.arange(20).reshape(10, 2) == 3, np.nan, X)
NOT_PD = START._replace(covariances=-START.covariances)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X[0]}, r"x: expected a non-empty batch \[N, D\]"),
        ({"x": X[:0]}, r"x: expected a non-empty batch \[N, D\]"),
        ({"x": WITH_NAN}, "x: expected finite values"),
        ({"num_components": 11}, "num_components: expected at most the 10 rows of x, got 11"),
        ({"num_components": 0}, "num_components: expected an integer of at least 1"),
        ({"covariance": "tied"}, "covariance: expected one of"),
        ({"max_steps": 0}, "max_steps: expected an integer"),
        ({"tol": -1.0}, "tol: expected a finite number >= 0"),
        ({"tol": np.nan}, "tol: expected a finite number >= 0"),
        ({"ridge": -1e-3}, "ridge: expected a finite number >= 0"),
        ({"ridge": np.inf}, "ridge: expected a finite number >= 0"),
        ({"init": "random"}, 'init: expected "kmeans\\+\\+", "kmeans" or responsibilities'),
        ({"init": np.ones((10, 2)) / 2}, "init: expected shape"),
        ({"init": np.ones((10, K))}, "init: expected non-negative rows of sum 1"),
        ({"num_restarts": 0}, "num_restarts: expected an integer"),
        ({"num_restarts": 2, "params": START}, "num_restarts: expected 1 when the start is given"),
        ({"params": START, "init": np.ones((10, K)) / K}, "init: expected a name beside params"),
        ({"params": random_mixture("diag")}, "params.covariances: expected shape"),
        ({"params": START._replace(means=START.means * np.nan)}, "params.*means: expected finite"),
        ({"params": START._replace(log_weights=np.zeros(K))}, "params.log_weights: .* of sum 1"),
        ({"params": NOT_PD}, "params.covariances: expected positive definite"),
        ({"params": random_bernoulli_mixture()}, "params: expected MixtureParams, got Bernoulli"),
    ],
)
def test_bad_input_of_fit_em_is_named(changes, message):
    arguments = {"x": X, "num_components": K} | changes
    with pytest.raises(ValueError, match=message):
        mixtures.fit_em(KEY, **arguments)


def test_bad_input_of_the_others_is_named():
    with pytest.raises(TypeError, match="rng_key: expected a typed key"):
        mixtures.fit_em(0, X, K)
    with pytest.raises(ValueError, match=r"x: expected values in \{0, 1\}"):
        mixtures.fit_em_bernoulli(KEY, X, K)
    for smoothing in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="smoothing: expected"):
            mixtures.fit_em_bernoulli(KEY, X > 0, K, smoothing=smoothing)
    with pytest.raises(ValueError, match=r"params\.logits: expected shape"):
        mixtures.fit_em_bernoulli(KEY, X > 0, K, params=random_bernoulli_mixture())
    with pytest.raises(ValueError, match="num_clusters: expected at most the 10 rows"):
        mixtures.kmeans(KEY, X, 11)
    with pytest.raises(ValueError, match="x: expected finite values"):
        mixtures.kmeans(KEY, WITH_NAN, 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_tol_zero_ends_where_rounding_refuses_a_step(seed):
    # One Gaussian is fitted by one step; the next ones change nothing but the last bit. With the
    # refusal and the end of the loop rounded apart, this climb never ended.
    x = jax.random.normal(jax.random.key(seed), (2000, 1))
    params, report = mixtures.fit_em(jax.random.key(0), x, 1, max_steps=50, tol=0.0)
    assert int(report.num_steps) <= 50
    np.testing.assert_allclose(params.means[0], x.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(params.covariances[0, 0], x.var(axis=0), rtol=1e-4)
