"""Random mixtures, data of them, and EM in float64 NumPy."""

from __future__ import annotations

import jax
import numpy as np
from scipy import special, stats

from poejax import mixtures

COVARIANCES = ("full", "diag", "spherical")
KEY = jax.random.key(0)
K, D, N = 3, 2, 400
NUM_DRAWS = 20_000

# Compiled once for all tests; the fits share shapes for the same reason.
log_probs = jax.jit(jax.vmap(mixtures.log_prob, (None, 0)))
posteriors = jax.jit(jax.vmap(mixtures.responsibilities, (None, 0)))
samples = jax.jit(jax.vmap(mixtures.sample, (0, None)))


def random_covariance(rng, covariance, num_dims):
    if covariance == "spherical":
        return np.exp(rng.normal())
    if covariance == "diag":
        return np.exp(rng.normal(size=num_dims))
    root = rng.normal(size=(num_dims, num_dims))
    return root @ root.T + 0.1 * np.eye(num_dims)


def random_mixture(covariance, seed=0, num_components=K, num_dims=D, spread=2.0):
    rng = np.random.default_rng(seed)
    return mixtures.MixtureParams(
        np.log(rng.dirichlet(np.full(num_components, 5.0))),
        spread * rng.normal(size=(num_components, num_dims)),
        np.stack([random_covariance(rng, covariance, num_dims) for _ in range(num_components)]),
    )


def random_bernoulli_mixture(seed=0, num_components=K, num_dims=3):
    rng = np.random.default_rng(seed)
    return mixtures.BernoulliMixtureParams(
        np.log(rng.dirichlet(np.full(num_components, 5.0))),
        rng.normal(size=(num_components, num_dims), scale=1.5),
    )


def as_matrix(covariance, num_dims=D):
    return np.diag(np.broadcast_to(covariance, num_dims)) if np.ndim(covariance) < 2 else covariance


def gaussian_data(seed=0, num_rows=N, num_dims=D):
    """Rows of a mixture whose components overlap, in float32."""
    rng = np.random.default_rng(seed)
    params = random_mixture("full", seed + 100, num_dims=num_dims)
    labels = rng.integers(K, size=num_rows)
    roots = np.linalg.cholesky(params.covariances)
    noise = rng.normal(size=(num_rows, num_dims))
    x = params.means[labels] + np.einsum("nij,nj->ni", roots[labels], noise)
    return x.astype(np.float32)


def bernoulli_data(params, num_rows, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(params.log_weights), size=num_rows, p=np.exp(params.log_weights))
    on = rng.random((num_rows, params.num_features)) < special.expit(params.logits[labels])
    return on.astype(np.uint8), labels


def numpy_log_joint(params, x):
    """log π_k p_k(x_n), [N, K], in float64."""
    if isinstance(params, mixtures.BernoulliMixtureParams):
        p = special.expit(np.asarray(params.logits, float))
        log_p = np.where(x[:, None] == 1, np.log(p), np.log1p(-p)).sum(axis=2)
    else:
        log_p = np.stack(
            [
                stats.multivariate_normal(m, as_matrix(c, len(m))).logpdf(x)
                for m, c in zip(params.means, params.covariances, strict=True)
            ],
            axis=1,
        )
    return np.asarray(params.log_weights, float) + log_p


def numpy_em(params, x, num_steps, update):
    """Parameters and mean log-likelihoods of `num_steps` textbook EM steps, in float64."""
    x = np.asarray(x, float)
    log_likelihoods = []
    for step in range(num_steps + 1):
        joint = numpy_log_joint(params, x)
        rows = special.logsumexp(joint, axis=1, keepdims=True)
        log_likelihoods.append(rows.mean())
        if step < num_steps:
            params = update(x, np.exp(joint - rows))
    return params, np.array(log_likelihoods)


def numpy_gaussian_step(covariance, ridge):
    def update(x, r):
        counts = r.sum(axis=0)
        means = r.T @ x / counts[:, None]
        covariances = []
        for k, mean in enumerate(means):
            full = np.cov(x.T, aweights=r[:, k], ddof=0) + ridge * np.eye(x.shape[1])
            np.testing.assert_allclose(mean, np.average(x, axis=0, weights=r[:, k]))
            diagonal = np.diag(full)
            kinds = {"full": full, "diag": diagonal, "spherical": diagonal.mean()}
            covariances.append(kinds[covariance])
        return mixtures.MixtureParams(np.log(counts / len(x)), means, np.stack(covariances))

    return update


def assert_same_params(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def binomial_scores(counts, p):
    total = counts.sum()
    return (counts - total * p) / np.sqrt(total * p * (1 - p))
