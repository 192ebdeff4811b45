"""Closed forms for products of Gaussians, and of axis-aligned mixtures of Gaussians."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks
from poejax import _gaussian_checks as checks
from poejax import _gaussian_forms as forms
from poejax._gaussian_forms import GaussianProduct
from poejax.types import Array

__all__ = [
    "ExpandedMixture",
    "expand_axis_aligned",
    "log_prob",
    "product",
    "sample",
]

_MAX_EXPANSION = 2**16


class ExpandedMixture(NamedTuple):
    """A mixture of M diagonal Gaussians: log weights [M], means [M, D], precisions [M, D]."""

    log_weights: Array
    means: Array
    precisions: Array


def product(
    means: Array,
    precisions: Array,
    weights: Array | None = None,
    mask: Array | None = None,
    prior: tuple[Array, Array] | None = None,
    prior_weight: Array | float = 1.0,
) -> GaussianProduct:
    """Multiply K Gaussian experts, each raised to a weight, and renormalise.

    Π_k N(x; μ_k, Λ_k⁻¹)^w_k = Z N(x; μ, Λ⁻¹),  Λ = Σ w_k Λ_k,  Λ μ = Σ w_k Λ_k μ_k,
    log Z = ½ [Σ w_k (log|Λ_k| - D log 2π) - (log|Λ| - D log 2π) - Σ w_k (μ_k-μ)ᵀ Λ_k (μ_k-μ)].

    Pure and of fixed shapes, so it can sit inside your own `jit(vmap(grad(...)))`, e.g. as the
    fusion layer of a multimodal VAE. An expert that the mask leaves out may hold anything, NaN
    included: it changes no value, and gradients with respect to it are exactly zero. Means are
    measured from that of the sharpest expert and weighed by shares of the precision, so far-off
    means and precisions near the ends of floating point cost no digits.

    Weights need not sum to one. What they sum to matters: posteriors given one prior each, so
    multiplied, count it Σ w_k times. The Bayesian committee machine counts it once by a prior of
    weight 1 - Σ w_k, which is negative as a rule: give that as `prior_weight` (w_k = 1: the
    committee machine; w_k the gain in entropy over the prior: the robust one). With w_k that sum
    to one, the generalised product of experts, it needs no prior.

    Args:
      means: [K, D].
      precisions: inverse (co)variances, [K, D] > 0 (diagonal) or [K, D, D] symmetric positive
        definite (full; the symmetric part is used).
      weights: exponents [K] >= 0 of a generalised product, of any sum; 1 when None.
      mask: [K] bool, False leaves that expert out; all are in when None.
      prior: (mean [D], precision [D] or [D, D]) of an expert that is always in.
      prior_weight: its exponent, [], which may be negative as long as the total precision stays
        positive definite.

    Returns:
      GaussianProduct(mean, precision, log_z). Under a trace values cannot be looked at; a total
      precision that is not positive definite then gives log_z = +inf and a NaN mean, an expert
      that is not positive definite a log_z of -inf or NaN: never a finite log_z.

    Raises:
      ValueError: on shapes that do not fit and, for inputs that are not traced, if an expert that
        is in is not finite, not positive definite, or beyond the result's precision (float32
        unless jax_enable_x64), a weight is negative, or the total precision is not positive
        definite.

    Source: Hinton (2002), "Training products of experts by minimizing contrastive divergence";
    weights: Cao & Fleet (2014), "Generalized product of experts for automatic and principled
    fusion of Gaussian process predictions"; mask and prior: Wu & Goodman (2018), "Multimodal
    generative models for scalable weakly-supervised learning".
    """
    means, precisions = _border.array("means", means), _border.array("precisions", precisions)
    checks.product_shapes(means, precisions, weights, mask, prior, prior_weight)
    num_experts = jnp.shape(means)[0]
    exponents: Any = np.ones(num_experts, np.float32) if weights is None else weights
    is_in: Any = np.ones(num_experts, bool) if mask is None else mask
    concrete = _checks.is_concrete(means, precisions, exponents, is_in, prior, prior_weight)
    if not concrete:
        means, precisions = _common_float(means, precisions)
        return forms.multiply(means, precisions, exponents, is_in, prior, prior_weight)
    dtype = np.dtype(jnp.result_type(jnp.float32, means, precisions))
    checks.product_values(means, precisions, exponents, is_in, prior, prior_weight, dtype)
    # In float64 as long as the host has them: where all means lie is no detail of theirs.
    origin = _midst(means, is_in, prior)
    near = np.where(np.asarray(is_in)[:, None], np.asarray(means, np.float64), origin) - origin
    near_prior = prior and ((np.asarray(prior[0], np.float64) - origin).astype(dtype), prior[1])
    experts = near.astype(dtype), np.asarray(precisions).astype(dtype)
    result = forms.multiply(*experts, exponents, is_in, near_prior, prior_weight)
    if not _checks.is_concrete(result):
        return result._replace(mean=(result.mean + origin).astype(dtype))
    if np.isnan(result.log_z) or np.isposinf(result.log_z):
        raise ValueError(
            f"precisions: the total precision Σ w_k Λ_k is not positive definite in {dtype} (no "
            "expert is in, all weights are 0, or it is too large or too ill-conditioned)"
        )
    mean = np.asarray(result.mean, np.float64) + origin
    checks.resolved(means, is_in, mean, np.asarray(result.precision), dtype)
    return result._replace(mean=jnp.asarray(mean.astype(dtype)))


def log_prob(mean: Array, precision: Array, x: Array) -> Array:
    """Return the log density of one event under one Gaussian, in nats.

    log N(x; μ, Λ⁻¹) = ½ [log|Λ| - D log 2π - (x-μ)ᵀ Λ (x-μ)].

    Args:
      mean: [D].
      precision: [D] (diagonal) or [D, D] (full).
      x: one event [D].

    Returns:
      [].

    Raises:
      ValueError: on shapes that do not fit.
    """
    checks.gaussian("mean", mean, "precision", precision)
    _checks.shape("x", x, jnp.shape(mean), "one event of this Gaussian")
    checks.held("precision", precision)
    centred = _difference(x, mean)
    _, precision = _common_float(mean, precision)
    scale, factor = forms.roots(precision)
    whitened = scale * centred
    if factor is not None:
        whitened = _dot(factor.T, whitened)
    return 0.5 * (forms.log_determinant(scale, factor) - jnp.sum(forms.LOG_2PI + whitened**2))


def sample(rng_key: Array, mean: Array, precision: Array) -> Array:
    """Draw one event from N(mean, precision⁻¹).

    Args:
      rng_key: one typed key.
      mean: [D].
      precision: [D] (diagonal) or [D, D] (full).

    Returns:
      x [D].

    Raises:
      ValueError: on shapes that do not fit.
    """
    _checks.rng_key("rng_key", rng_key)
    checks.gaussian("mean", mean, "precision", precision)
    mean, precision = _common_float(mean, precision)
    noise = jax.random.normal(rng_key, mean.shape, mean.dtype)
    scale, factor = forms.roots(precision)
    if factor is not None:
        noise = jax.scipy.linalg.solve_triangular(factor, noise, lower=True, trans=1)
    return mean + noise / scale


def expand_axis_aligned(log_weights: Array, means: Array, precisions: Array) -> ExpandedMixture:
    """Write a product of D univariate mixtures, expert i on coordinate i, as one mixture.

    Π_i Σ_k π_ik N(x_i; μ_ik, 1/λ_ik) = Σ_m Π_i π_{i m_i} N(x_i; μ_{i m_i}, 1/λ_{i m_i}),
    over all K^D index vectors m, in lexicographic order. 3 D K numbers stand for K^D components:
    what a product says compactly. With Σ_k π_ik = 1 the product is normalised, Z = 1; else
    log Z = Σ_i logsumexp_k log π_ik, which is also the logsumexp of the expanded log weights.

    Args:
      log_weights: [D, K].
      means: [D, K].
      precisions: [D, K] > 0.

    Returns:
      ExpandedMixture(log_weights [K^D], means [K^D, D], precisions [K^D, D]).

    Raises:
      ValueError: on shapes that do not fit, or if K^D exceeds 65,536.
    """
    shape = jnp.shape(log_weights)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"log_weights: expected a non-empty [D, K], got shape {shape}")
    _checks.shape("means", means, shape, "log_weights of the same shape")
    _checks.shape("precisions", precisions, shape, "log_weights of the same shape")
    num_dims, num_components = shape
    size = num_components**num_dims
    if size > _MAX_EXPANSION:
        raise ValueError(
            f"log_weights: expected K^D of at most {_MAX_EXPANSION} components, got "
            f"{num_components}^{num_dims} = {size}"
        )
    # The digits of 0 ... K^D - 1 in base K; coordinate 0 is the leading one.
    choice = np.stack(
        [np.arange(size) // num_components**i % num_components for i in reversed(range(num_dims))],
        axis=1,
    )
    log_weights, means, precisions = (
        jnp.asarray(leaf)[np.arange(num_dims), choice] for leaf in (log_weights, means, precisions)
    )
    return ExpandedMixture(log_weights.sum(axis=1), means, precisions)


def _midst(means: Any, mask: Any, prior: tuple[Any, Any] | None) -> Any:
    # The mean of the first expert that is in, in float64.
    rows = np.asarray(means, np.float64)[np.asarray(mask)]
    if len(rows):
        return rows[0]
    return 0.0 if prior is None else np.asarray(prior[0], np.float64)


def _difference(x: Any, mean: Any) -> Any:
    if isinstance(x, np.ndarray) and isinstance(mean, np.ndarray):
        # What the host holds in float64 is subtracted there, before it narrows.
        dtype = jnp.result_type(jnp.float32, mean, x)
        return jnp.asarray(np.subtract(x, mean, dtype=np.float64).astype(dtype))
    return x - jnp.asarray(mean, jnp.result_type(jnp.float32, mean))


def _dot(a: Array, b: Array) -> Array:
    # Accelerators round the factors of a product to 10 bits unless told otherwise.
    return jnp.matmul(a, b, precision="highest")


def _common_float(*arrays: Array) -> list[Array]:
    dtype = jnp.result_type(jnp.float32, *arrays)
    return [jnp.asarray(array, dtype) for array in arrays]
