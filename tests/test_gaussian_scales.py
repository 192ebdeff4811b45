"""Products of Gaussians anywhere in floating point, from host data, and with a prior's weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from test_gaussians import D, K, as_matrix, numpy_product, random_experts

from poejax import gaussians

KINDS = ("diagonal", "full")
SCALES = (1e-18, 1e-15, 1e-6, 1e6, 1e15, 1e18)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES)
def test_products_densities_and_draws_in_any_unit(kind, scale):
    means, precisions, weights, prior = random_experts(kind)
    mean, precision, log_z = numpy_product(means, precisions, weights, None, prior)
    there = [means * scale, precisions / scale**2]
    prior_there = (prior[0] * scale, prior[1] / scale**2)
    # A product of K experts and a prior has the units of that many densities but one.
    log_z = log_z - D * np.log(scale) * weights.sum()
    for fuse in (gaussians.product, jax.jit(gaussians.product)):
        found = fuse(*there, weights, None, prior_there)
        np.testing.assert_allclose(np.asarray(found.mean, float) / scale, mean, rtol=1e-4)
        shape = as_matrix(np.asarray(found.precision, float)) * scale**2
        np.testing.assert_allclose(shape, precision, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.log_z, log_z, rtol=1e-4, atol=1e-4)
    x = np.random.default_rng(1).normal(size=D)
    expected = stats.multivariate_normal(means[0], np.linalg.inv(as_matrix(precisions[0])))
    log_p = gaussians.log_prob(there[0][0], there[1][0], x * scale)
    np.testing.assert_allclose(log_p, expected.logpdf(x) - D * np.log(scale), rtol=1e-5)
    draw = gaussians.sample(jax.random.key(0), there[0][0], there[1][0])
    here = gaussians.sample(jax.random.key(0), means[0], precisions[0])
    np.testing.assert_allclose(np.asarray(draw, float) / scale, here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES[1:])
def test_gradients_in_any_unit(kind, scale):
    means, precisions, _, _ = random_experts(kind)

    def loss(means, log_scales, scale):
        sharper = jnp.exp(log_scales)[:, None] if kind == "diagonal" else jnp.exp(log_scales)
        sharper = sharper.reshape(K, *[1] * (precisions.ndim - 1)) * precisions / scale / scale
        found = gaussians.product(means * scale, sharper)
        return (found.mean / scale).sum() + found.log_z

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    zeros = jnp.zeros(K)
    here, there = (gradient(means, zeros, s) for s in (1.0, scale))
    for a, b in zip(there, here, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_variance", [-40.0, -80.0, -88.0])
def test_an_expert_that_is_very_sure_has_its_way(kind, log_variance):
    # Its precision is a float32, precision times mean is none; log Z by hand from one coordinate.
    means = np.array([[50.3, 1.0], [2.0, 3.0]], np.float32)
    prior = (np.zeros(2), np.ones(2))

    def fuse(log_variance):
        precisions = jnp.exp(-jnp.stack([jnp.stack([log_variance, 0.0]), jnp.zeros(2)]))
        if kind == "full":
            precisions = jax.vmap(jnp.diag)(precisions)
        return gaussians.product(means, precisions, prior=prior)

    expected = [float(means[0, 0]), 4 / 3]
    # At its peak the sharp one is worth the other two there; in the other coordinate all count.
    sharp = stats.norm.logpdf(means[0, 0].astype(float), [2, 0]).sum()
    rest = numpy_product(
        means[:, 1:].astype(float), np.ones((2, 1)), prior=(np.zeros(1), np.ones(1))
    )
    for found in (fuse(jnp.float32(log_variance)), jax.jit(fuse)(log_variance)):
        np.testing.assert_allclose(found.mean, expected, rtol=1e-6)
        np.testing.assert_allclose(found.log_z, sharp + rest[2], rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda v: fuse(v).mean.sum() + fuse(v).log_z))(log_variance)
    assert np.isfinite(gradient)


def test_a_density_far_away_is_infinite_in_logs_and_finite_in_gradient():
    for precision in (np.ones(2), np.eye(2)):
        value, gradient = jax.value_and_grad(gaussians.log_prob, 2)(
            jnp.zeros(2), jnp.asarray(precision), jnp.array([1e20, 0.0])
        )
        assert value == -np.inf
        np.testing.assert_allclose(gradient, [-1e20, 0], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [300.0, 1e4, 1e6, 1e9])
def test_what_the_host_holds_in_float64_is_subtracted_there(kind, offset):
    means, precisions, weights, prior = random_experts(kind)
    near = numpy_product(means, precisions, weights, None, prior)
    prior_there = (prior[0] + offset, prior[1])
    if offset < 1e9:
        found = gaussians.product(means + offset, precisions, weights, None, prior_there)
        np.testing.assert_allclose(found.log_z, near[2], rtol=2e-5)
        atol = np.spacing(np.float32(offset))
        np.testing.assert_allclose(found.mean - offset, near[0], rtol=1e-5, atol=atol)
    else:
        with pytest.raises(ValueError, match="means: expected means that float32 can tell apart"):
            gaussians.product(means + offset, precisions, weights, None, prior_there)
    x = np.random.default_rng(1).normal(size=D)
    found = gaussians.log_prob(means[0] + offset, precisions[0], x + offset)
    expected = stats.multivariate_normal(means[0], np.linalg.inv(as_matrix(precisions[0])))
    np.testing.assert_allclose(found, expected.logpdf(x), rtol=1e-5)


def test_what_float32_cannot_hold_is_named():
    means, precisions = np.zeros((2, 3)), np.ones((2, 3))
    for value in (1e39, 1e-39):
        spoilt = precisions.copy()
        spoilt[1, 2] = value
        for bad in (spoilt, np.stack([np.diag(p) for p in spoilt])):
            with pytest.raises(ValueError, match=r"precisions\[1\]: .* for coordinate 2.*x64"):
                gaussians.product(means, bad)
            with pytest.raises(ValueError, match=r"precision: .* for coordinate 2"):
                gaussians.log_prob(means[1], bad[1], means[0])
        with jax.enable_x64(True):
            found = gaussians.product(means, spoilt)
            np.testing.assert_allclose(found.precision, spoilt.sum(axis=0), rtol=1e-15)
    spoilt = means.copy()
    spoilt[1, 2] = 1e39
    with pytest.raises(ValueError, match=r"means\[1\]: .* 1e\+39 for coordinate 2"):
        gaussians.product(spoilt, precisions)
    with pytest.raises(ValueError, match=r"total precision .* too large"):
        gaussians.product(means, 2e38 * precisions)
    assert np.isposinf(jax.jit(gaussians.product)(means, 2e38 * precisions).log_z)
    # Ill-conditioned only by its units.
    mixed = np.diag([1e30, 1.0, 1e-30])
    found = gaussians.product(means, np.stack([mixed, mixed]))
    np.testing.assert_allclose(found.precision, 2 * mixed, rtol=1e-6)


# --- committees -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_committee_of_posteriors_counts_their_prior_once(kind):
    likelihoods, precisions, _, prior = random_experts(kind)
    posteriors = [
        numpy_product(m[None], p[None], prior=prior)[:2]
        for m, p in zip(likelihoods, precisions, strict=True)
    ]
    means, totals = (np.stack(leaf) for leaf in zip(*posteriors, strict=True))
    if kind == "diagonal":
        totals = np.diagonal(totals, axis1=1, axis2=2)
    mean, precision, _ = numpy_product(likelihoods, precisions, prior=prior)
    fuse = gaussians.product
    for committee in (fuse, jax.jit(fuse)):
        found = committee(means, totals, prior=prior, prior_weight=1.0 - K)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(as_matrix(found.precision), precision, rtol=1e-4, atol=1e-4)
    # Robust weights β, of any sum: Λ = Σ β Λ_k + (1 - Σ β) Λ_0.
    beta = np.random.default_rng(0).uniform(0.3, 1, size=K)
    found = fuse(means, totals, beta, prior=prior, prior_weight=1 - beta.sum())
    expected = np.einsum("k,k...->...", beta, totals) + (1 - beta.sum()) * prior[1]
    np.testing.assert_allclose(found.precision, expected, rtol=1e-4, atol=1e-4)
    # log Z too: against the same product with the prior's share taken out of a nested one.
    whole = fuse(means, totals, beta, prior=prior)
    back = fuse(found.mean[None], found.precision[None], prior=prior, prior_weight=beta.sum())
    np.testing.assert_allclose(found.log_z + back.log_z, whole.log_z, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(back.mean, whole.mean, rtol=1e-3, atol=1e-4)


def test_a_prior_weight_that_takes_too_much_is_refused():
    means, precisions, prior = np.zeros((2, 1)), np.ones((2, 1)), (np.zeros(1), np.ones(1))
    with pytest.raises(ValueError, match="total precision"):
        gaussians.product(means, precisions, prior=prior, prior_weight=-2.5)
    with pytest.raises(ValueError, match="prior_weight: expected a prior beside it"):
        gaussians.product(means, precisions, prior_weight=-1.0)
    with pytest.raises(ValueError, match="prior_weight: expected a finite number"):
        gaussians.product(means, precisions, prior=prior, prior_weight=np.nan)
    with pytest.raises(ValueError, match="prior_weight: expected one number"):
        gaussians.product(means, precisions, prior=prior, prior_weight=np.ones(2))
    traced = jax.jit(gaussians.product)(means, precisions, prior=prior, prior_weight=-2.5)
    assert np.isposinf(traced.log_z)
