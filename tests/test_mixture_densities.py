"""Densities, samples and the evidence lower bound of mixtures, against NumPy and counts."""

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
    NUM_DRAWS,
    K,
    N,
    bernoulli_data,
    binomial_scores,
    gaussian_data,
    log_probs,
    numpy_log_joint,
    posteriors,
    random_bernoulli_mixture,
    random_mixture,
    samples,
)
from scipy import special

from poejax import mixtures

# --- densities and samples ------------------------------------------------------------------------

FAMILIES = (*COVARIANCES, "bernoulli")


def family_params(family, seed=0):
    return random_bernoulli_mixture(seed) if family == "bernoulli" else random_mixture(family, seed)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_densities_and_responsibilities_against_numpy(family):
    params = family_params(family)
    x = 3 * np.random.default_rng(1).normal(size=(20, params.num_features))
    if family == "bernoulli":
        x = (x > 0).astype(np.uint8)
    joint = numpy_log_joint(params, x)
    log_p = log_probs(params, x)
    np.testing.assert_allclose(log_p, special.logsumexp(joint, axis=1), rtol=2e-5)
    r = posteriors(params, x)
    np.testing.assert_allclose(r, special.softmax(joint, axis=1), atol=1e-5)
    np.testing.assert_allclose(mixtures.log_prob(params, x[0]), log_p[0], rtol=1e-6)
    gradient = jax.jit(jax.grad(mixtures.log_prob))(jax.tree.map(jnp.float32, params), x[0])
    assert all(np.isfinite(leaf).all() for leaf in gradient)
    with pytest.raises(ValueError, match=r"x: expected shape .*jax\.vmap for a batch"):
        mixtures.log_prob(params, x)


def draws_of(params, num_draws=NUM_DRAWS):
    keys = jax.random.split(jax.random.key(1), num_draws)
    return np.asarray(samples(keys, params))


def cell_scores(params, x, edges):
    """Scores of how many draws fall in each cell of a grid, against the integrated density."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    points = (middle[:, None] + half[:, None] * nodes).ravel()
    mass = (half[:, None] * weights).ravel()
    grid = np.stack(np.meshgrid(points, points, indexing="ij"), axis=-1).reshape(-1, 2)
    log_p = log_probs(params, grid)
    p = np.exp(np.asarray(log_p, float)).reshape(len(points), -1) * mass[:, None] * mass
    p = p.reshape(len(middle), len(nodes), len(middle), len(nodes)).sum(axis=(1, 3)).ravel()
    counts, _, _ = np.histogram2d(*x.T, bins=[edges, edges])
    p = np.append(p, max(0, 1 - p.sum()))
    counts = np.append(counts.ravel(), len(x) - counts.sum())
    enough = len(x) * p > 25  # where a binomial is close to a Gaussian
    return (counts - len(x) * p)[enough] / np.sqrt(len(x) * p * (1 - p))[enough]


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_samples_follow_the_density(covariance):
    params = random_mixture(covariance, seed=1)
    edges = np.linspace(-6, 6, 13)
    z = cell_scores(params, draws_of(params), edges)
    assert z.size > 15
    assert np.abs(z).max() < reference.z_threshold(z.size)
    # The test has power: components in another order, or a root of the wrong covariance, fail.
    for wrong in (
        params._replace(log_weights=params.log_weights[::-1]),
        params._replace(covariances=params.covariances[::-1]),
    ):
        z = cell_scores(params, draws_of(wrong), edges)
        assert np.abs(z).max() > reference.z_threshold(z.size)


def test_bernoulli_samples_follow_the_probabilities():
    params = random_bernoulli_mixture(seed=1)
    states = np.array(list(itertools.product((0, 1), repeat=3)))
    p = np.exp(log_probs(params, states), dtype=float)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)

    def scores(params):
        x = draws_of(params)
        assert set(np.unique(x)) == {0.0, 1.0}
        counts = np.bincount((x @ [4, 2, 1]).astype(int), minlength=8)
        return binomial_scores(counts, p)

    assert np.abs(scores(params)).max() < reference.z_threshold(8)
    # The test has power: the wrong sign, or weights of other components, fail.
    for wrong in (
        params._replace(logits=-params.logits),
        params._replace(log_weights=params.log_weights[::-1]),
    ):
        assert np.abs(scores(wrong)).max() > reference.z_threshold(8)


# --- the evidence lower bound ---------------------------------------------------------------------


@pytest.mark.parametrize("family", ["full", "bernoulli"])
def test_the_bound_is_the_log_likelihood_after_the_e_step_and_below_it_otherwise(family):
    params = family_params(family)
    x = gaussian_data() if family == "full" else bernoulli_data(params, N)[0]
    joint = numpy_log_joint(params, x)
    log_likelihood = special.logsumexp(joint, axis=1).mean()
    posterior = special.softmax(joint, axis=1)
    np.testing.assert_allclose(mixtures.elbo(params, x, posterior), log_likelihood, rtol=1e-5)
    rng = np.random.default_rng(0)
    hard = np.eye(K)[rng.integers(K, size=len(x))]
    for r in (hard, rng.dirichlet(np.ones(K), size=len(x))):
        gap = special.rel_entr(r, posterior).sum(axis=1).mean()
        assert gap > 0.1
        found = mixtures.elbo(params, x, r)
        np.testing.assert_allclose(found, log_likelihood - gap, rtol=1e-5)
    gradient = jax.grad(mixtures.elbo, 2)(jax.tree.map(jnp.asarray, params), x, jnp.asarray(hard))
    assert np.isfinite(gradient).all()


def test_each_half_step_raises_the_bound():
    with jax.enable_x64(True):
        x = gaussian_data().astype(float)
        params = random_mixture("full")
        for _ in range(5):
            r = posteriors(params, x)
            before = mixtures.elbo(params, x, r)
            params, report = mixtures.fit_em(KEY, x, K, params=params, max_steps=1, ridge=0.0)
            np.testing.assert_allclose(report.log_likelihood[0], before, rtol=1e-12)
            between = mixtures.elbo(params, x, r)
            assert before < between < report.log_likelihood[1]


def test_the_bound_refuses_rows_that_are_no_distributions():
    params, x = random_mixture("full"), gaussian_data()
    with pytest.raises(ValueError, match="responsibilities: expected non-negative rows of sum 1"):
        mixtures.elbo(params, x, np.ones((N, K)))
    with pytest.raises(ValueError, match="responsibilities: expected shape"):
        mixtures.elbo(params, x, np.ones((N, K + 1)) / (K + 1))
