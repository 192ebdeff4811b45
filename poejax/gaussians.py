"""Closed forms for products of Gaussians, and of axis-aligned mixtures of Gaussians."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks
from poejax import _gaussian_checks as checks
from poejax.types import Array

_LOG_2PI = 1.8378770664093453
_MAX_EXPANSION = 2**16


class GaussianProduct(NamedTuple):
    """A renormalised product of Gaussians: N(x; mean, precision⁻¹), and its log Z in nats, [].

    The mean is [D]; the precision is [D] (diagonal) or [D, D] (full), as the experts' were.
    """

    mean: Array
    precision: Array
    log_z: Array


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
    _check_product_shapes(means, precisions, weights, mask, prior)
    num_experts = jnp.shape(means)[0]
    exponents: Any = np.ones(num_experts, np.float32) if weights is None else weights
    is_in: Any = np.ones(num_experts, bool) if mask is None else mask
    concrete = _checks.is_concrete(means, precisions, exponents, is_in, prior, prior_weight)
    if not concrete:
        means, precisions = _common_float(means, precisions)
        return _product(means, precisions, exponents, is_in, prior, prior_weight)
    dtype = np.dtype(jnp.result_type(jnp.float32, means, precisions))
    checks.product_values(means, precisions, exponents, is_in, prior, prior_weight, dtype)
    # In float64 as long as the host has them: where all means lie is no detail of theirs.
    origin = _midst(means, is_in, prior)
    near = np.where(np.asarray(is_in)[:, None], np.asarray(means, np.float64), origin) - origin
    near_prior = prior and ((np.asarray(prior[0], np.float64) - origin).astype(dtype), prior[1])
    precisions = np.asarray(precisions).astype(dtype)
    result = _product(near.astype(dtype), precisions, exponents, is_in, near_prior, prior_weight)
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
    if isinstance(mean, np.ndarray) and isinstance(x, np.ndarray):
        # What the host holds in float64 is subtracted there, before it narrows.
        dtype = jnp.result_type(jnp.float32, mean, x)
        x = np.subtract(x, mean, dtype=np.float64).astype(dtype)
        mean = np.zeros_like(x)
    mean, precision = _common_float(mean, precision)
    scale, factor = _roots(precision)
    whitened = scale * (x - mean)
    if factor is not None:
        whitened = _dot(factor.T, whitened)
    return 0.5 * (_log_det(scale, factor) - jnp.sum(_LOG_2PI + whitened**2))


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
    scale, factor = _roots(precision)
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


@jax.jit
def _product(
    means: Array,
    precisions: Array,
    weights: Array,
    mask: Array,
    prior: tuple[Array, Array] | None,
    prior_weight: Array,
) -> GaussianProduct:
    num_dims = means.shape[1]
    is_full = precisions.ndim == 3
    mask = jnp.asarray(mask, bool)
    # Neutral values go in *before* any arithmetic: a where after it would still let NaN · 0 = NaN
    # into the gradients of an expert that is out.
    neutral = (jnp.eye if is_full else jnp.ones)(num_dims, dtype=means.dtype)
    means = jnp.where(mask[:, None], means, 0)
    precisions = jnp.where(mask[:, None, None] if is_full else mask[:, None], precisions, neutral)
    weights = jnp.where(mask, jnp.asarray(weights, means.dtype), 0)
    if prior is not None:
        prior_mean, prior_precision = (jnp.asarray(leaf, means.dtype) for leaf in prior)
        if is_full and prior_precision.ndim == 1:
            prior_precision = jnp.diag(prior_precision)
        means = jnp.concatenate([means, prior_mean[None]])
        precisions = jnp.concatenate([precisions, prior_precision[None]])
        weights = jnp.concatenate([weights, jnp.asarray(prior_weight, means.dtype)[None]])
    return (_full if is_full else _diagonal)(means, precisions, weights)


def _diagonal(means: Array, precisions: Array, weights: Array) -> GaussianProduct:
    scaled = weights[:, None] * precisions
    offsets, origin = _from_the_sharpest(means, scaled)
    # In units of the largest: a share is divided out before anything is multiplied by it, and
    # neither it nor its gradient leaves floating point.
    unit = _unit(jnp.max(jnp.abs(scaled), axis=0))
    relative = scaled / unit
    total = relative.sum(axis=0)
    shift = (relative / total * offsets).sum(axis=0)
    residuals = offsets - shift
    misfit = jnp.sum(scaled * residuals * residuals)
    return _assemble(
        origin + shift,
        unit * total,
        weights,
        jnp.log(precisions).sum(axis=1),
        jnp.sum(jnp.log(unit) + jnp.log(total)),
        misfit,
        (total <= 0).any(),
    )


def _full(means: Array, precisions: Array, weights: Array) -> GaussianProduct:
    precisions = 0.5 * precisions + 0.5 * precisions.mT
    scaled = weights[:, None, None] * precisions
    diagonals = jnp.diagonal(scaled, axis1=1, axis2=2)
    offsets, origin = _from_the_sharpest(means, diagonals)
    # Coordinates y = scale · x, in which the total precision is of order one.
    scale = jnp.sqrt(_unit(jnp.max(jnp.abs(diagonals), axis=0), power=2))
    relative = scaled / scale[:, None] / scale
    total = relative.sum(axis=0)
    factor = jnp.linalg.cholesky(total)

    def mean_of(points: Array) -> Array:
        linear = jnp.einsum("kij,kj->i", relative, points, precision="highest")
        return jax.scipy.linalg.cho_solve((factor, True), linear)

    # One step of iterative refinement: the result does not depend on the first estimate, which
    # therefore carries no gradient.
    offsets = scale * offsets
    first = jax.lax.stop_gradient(mean_of(offsets))
    shift = mean_of(offsets - first)
    residuals = offsets - first - shift
    misfit = jnp.einsum("kij,ki,kj->", relative, residuals, residuals, precision="highest")
    return _assemble(
        origin + (first + shift) / scale,
        scaled.sum(axis=0),
        weights,
        _log_det(*_roots(precisions)),
        _log_det(scale, factor),
        misfit,
        jnp.isnan(factor).any() & ~jnp.isnan(total).any(),
    )


def _from_the_sharpest(means: Array, precisions: Array) -> tuple[Array, Array]:
    # Per coordinate. From there an expert however sharp has no rounding for a distance, which its
    # precision would blow up; the result does not depend on the origin: no gradient.
    sharpest = jnp.argmax(precisions, axis=0)
    origin = jax.lax.stop_gradient(jnp.take_along_axis(means, sharpest[None], axis=0)[0])
    return means - origin, origin


def _unit(size: Array, power: int = 1) -> Array:
    # A power of two (of four) of that order, 1 for nothing: dividing by it rounds nothing.
    _, exponent = jnp.frexp(jax.lax.stop_gradient(size))
    exponent = jnp.where(size > 0, (exponent - 1) // power * power, 0)
    return jnp.ldexp(jnp.ones_like(size), exponent)


def _assemble(
    mean: Array,
    precision: Array,
    weights: Array,
    log_det_experts: Array,
    log_det: Array,
    misfit: Array,
    improper: Array,
) -> GaussianProduct:
    constant = mean.shape[0] * _LOG_2PI
    log_z = 0.5 * (jnp.sum(weights * (log_det_experts - constant)) - (log_det - constant) - misfit)
    improper = improper | jnp.isinf(precision).any()
    return GaussianProduct(
        jnp.where(improper, jnp.nan, mean), precision, jnp.where(improper, jnp.inf, log_z)
    )


def _roots(precision: Array) -> tuple[Array, Array | None]:
    """Return scale [D] and, of full precisions, L with scale_i scale_j (L Lᵀ)_ij = precision_ij.

    A diagonal one's roots are its scale. Products of tiny or huge precisions are never formed.
    """
    if precision.ndim == 1:
        return jnp.sqrt(precision), None
    scale = jnp.sqrt(_unit(jnp.diagonal(precision, axis1=-2, axis2=-1), power=2))
    return scale, jnp.linalg.cholesky(precision / scale[..., :, None] / scale[..., None, :])


def _log_det(scale: Array, factor: Array | None) -> Array:
    roots = jnp.log(scale)
    if factor is not None:
        roots = roots + jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1))
    return 2 * roots.sum(axis=-1)


def _midst(means: Any, mask: Any, prior: tuple[Any, Any] | None) -> Any:
    # The mean of the first expert that is in, in float64.
    rows = np.asarray(means, np.float64)[np.asarray(mask)]
    if len(rows):
        return rows[0]
    return 0.0 if prior is None else np.asarray(prior[0], np.float64)


def _dot(a: Array, b: Array) -> Array:
    # Accelerators round the factors of a product to 10 bits unless told otherwise.
    return jnp.matmul(a, b, precision="highest")


def _common_float(*arrays: Array) -> list[Array]:
    dtype = jnp.result_type(jnp.float32, *arrays)
    return [jnp.asarray(array, dtype) for array in arrays]
