"""Closed forms for products of Gaussians, and of axis-aligned mixtures of Gaussians."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks
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
) -> GaussianProduct:
    """Multiply K Gaussian experts, each raised to a weight, and renormalise.

    Π_k N(x; μ_k, Λ_k⁻¹)^w_k = Z N(x; μ, Λ⁻¹),  Λ = Σ w_k Λ_k,  Λ μ = Σ w_k Λ_k μ_k,
    log Z = ½ [Σ w_k (log|Λ_k| - D log 2π) - (log|Λ| - D log 2π) - Σ w_k (μ_k-μ)ᵀ Λ_k (μ_k-μ)].

    Pure and of fixed shapes, so it can sit inside your own `jit(vmap(grad(...)))`, e.g. as the
    fusion layer of a multimodal VAE. An expert that the mask leaves out may hold anything, NaN
    included: it changes no value, and gradients with respect to it are exactly zero. Everything is
    measured from the product's mean, so far-off means cost no float32 precision.

    Args:
      means: [K, D].
      precisions: inverse (co)variances, [K, D] > 0 (diagonal) or [K, D, D] symmetric positive
        definite (full; the symmetric part is used).
      weights: exponents [K] >= 0 of a generalised product; 1 when None.
      mask: [K] bool, False leaves that expert out; all are in when None.
      prior: (mean [D], precision [D] or [D, D]) of an expert that is always in, with weight 1.

    Returns:
      GaussianProduct(mean, precision, log_z). Under a trace values cannot be looked at; a total
      precision that is not positive definite then gives log_z = +inf and a NaN mean, an expert
      that is not positive definite a log_z of -inf or NaN: never a finite log_z.

    Raises:
      ValueError: on shapes that do not fit and, for inputs that are not traced, if an expert that
        is in is not finite or not positive definite, a weight is negative, or the total precision
        is not positive definite.

    Source: Hinton (2002), "Training products of experts by minimizing contrastive divergence";
    weights: Cao & Fleet (2014), "Generalized product of experts for automatic and principled
    fusion of Gaussian process predictions"; mask and prior: Wu & Goodman (2018), "Multimodal
    generative models for scalable weakly-supervised learning".
    """
    means, precisions = _border.array("means", means), _border.array("precisions", precisions)
    _check_product_shapes(means, precisions, weights, mask, prior)
    num_experts = jnp.shape(means)[0]
    exponents: Any = np.ones(num_experts, np.float32) if weights is None else weights
    is_in: Any = np.ones(num_experts, bool) if mask is None else mask
    if _checks.is_concrete(means, precisions, exponents, is_in, prior):
        _check_product_values(means, precisions, exponents, is_in, prior)
    result = _product(*_common_float(means, precisions), exponents, is_in, prior)
    if _checks.is_concrete(result) and not np.isfinite(result.log_z):
        raise ValueError(
            "precisions: the total precision Σ w_k Λ_k is not positive definite in "
            f"{result.mean.dtype} (no expert is in, all weights are 0, or it is too "
            "ill-conditioned)"
        )
    return result


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
    _check_gaussian("mean", mean, "precision", precision)
    _checks.shape("x", x, jnp.shape(mean), "one event of this Gaussian")
    mean, precision = _common_float(mean, precision)
    centred = x - mean
    if precision.ndim == 1:
        return 0.5 * jnp.sum(jnp.log(precision) - _LOG_2PI - precision * centred**2)
    factor = jnp.linalg.cholesky(precision)
    whitened = _dot(factor.T, centred)
    return jnp.sum(jnp.log(jnp.diag(factor)) - 0.5 * (_LOG_2PI + whitened**2))


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
    _check_gaussian("mean", mean, "precision", precision)
    mean, precision = _common_float(mean, precision)
    noise = jax.random.normal(rng_key, mean.shape, mean.dtype)
    if precision.ndim == 1:
        return mean + noise * jax.lax.rsqrt(precision)
    factor = jnp.linalg.cholesky(precision)
    return mean + jax.scipy.linalg.solve_triangular(factor, noise, lower=True, trans=1)


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
        weights = jnp.concatenate([weights, jnp.ones(1, weights.dtype)])
    return (_full if is_full else _diagonal)(means, precisions, weights)


def _diagonal(means: Array, precisions: Array, weights: Array) -> GaussianProduct:
    scaled = weights[:, None] * precisions
    precision = scaled.sum(axis=0)
    # One step of iterative refinement: the first estimate of the mean only serves as the origin,
    # which the result does not depend on, so it carries no gradient.
    origin = jax.lax.stop_gradient((scaled * means).sum(axis=0) / precision)
    offsets = means - origin
    shift = (scaled * offsets).sum(axis=0) / precision
    log_det_experts = jnp.log(precisions).sum(axis=1)
    log_det = jnp.log(precision).sum()
    misfit = jnp.sum(scaled * (offsets - shift) ** 2)
    return _assemble(
        origin + shift,
        precision,
        weights,
        log_det_experts,
        log_det,
        misfit,
        (precision <= 0).any(),
    )


def _full(means: Array, precisions: Array, weights: Array) -> GaussianProduct:
    precisions = 0.5 * (precisions + precisions.mT)
    scaled = weights[:, None, None] * precisions
    precision = scaled.sum(axis=0)
    factor = jnp.linalg.cholesky(precision)

    def mean_of(points: Array) -> Array:
        linear = jnp.einsum("kij,kj->i", scaled, points, precision="highest")
        return jax.scipy.linalg.cho_solve((factor, True), linear)

    origin = jax.lax.stop_gradient(mean_of(means))
    offsets = means - origin
    shift = mean_of(offsets)
    residuals = offsets - shift
    misfit = jnp.einsum("kij,ki,kj->", scaled, residuals, residuals, precision="highest")
    improper = jnp.isnan(factor).any() & ~jnp.isnan(precision).any()
    return _assemble(
        origin + shift,
        precision,
        weights,
        _log_det(jnp.linalg.cholesky(precisions)),
        _log_det(factor),
        misfit,
        improper,
    )


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
    return GaussianProduct(
        jnp.where(improper, jnp.nan, mean), precision, jnp.where(improper, jnp.inf, log_z)
    )


def _log_det(factor: Array) -> Array:
    return 2 * jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(axis=-1)


def _dot(a: Array, b: Array) -> Array:
    # Accelerators round the factors of a product to 10 bits unless told otherwise.
    return jnp.matmul(a, b, precision="highest")


def _common_float(*arrays: Array) -> list[Array]:
    dtype = jnp.result_type(jnp.float32, *arrays)
    return [jnp.asarray(array, dtype) for array in arrays]


def _check_gaussian(mean_name: str, mean: Array, precision_name: str, precision: Array) -> None:
    mean_shape, precision_shape = jnp.shape(mean), jnp.shape(precision)
    if len(mean_shape) != 1:
        raise ValueError(f"{mean_name}: expected shape (D,), got {mean_shape}; batches are vmapped")
    if precision_shape not in (mean_shape, mean_shape * 2):
        raise ValueError(
            f"{precision_name}: expected shape {mean_shape} or {mean_shape * 2}, got "
            f"{precision_shape}"
        )


def _check_product_shapes(
    means: Array,
    precisions: Array,
    weights: Array | None,
    mask: Array | None,
    prior: tuple[Array, Array] | None,
) -> None:
    shape = jnp.shape(means)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"means: expected a non-empty [K, D], got shape {shape}; vmap over batches"
        )
    found = jnp.shape(precisions)
    if found not in (shape, (*shape, shape[1])):
        raise ValueError(f"precisions: expected shape {shape} or {(*shape, shape[1])}, got {found}")
    for name, value in (("weights", weights), ("mask", mask)):
        if value is not None:
            _checks.shape(name, value, shape[:1], f"{shape[0]} experts")
    if mask is not None and not jnp.issubdtype(jnp.result_type(mask), jnp.bool_):
        raise ValueError(f"mask: expected booleans, got dtype {jnp.result_type(mask)}")
    if prior is None:
        return
    if not isinstance(prior, tuple) or len(prior) != 2:
        raise ValueError("prior: expected a tuple (mean, precision)")
    _checks.shape("prior[0]", prior[0], shape[1:], f"experts on {shape[1]} dimensions")
    _check_gaussian("prior[0]", prior[0], "prior[1]", prior[1])
    if len(found) == 2 and jnp.ndim(prior[1]) == 2:
        raise ValueError(
            "prior[1]: expected a diagonal precision [D] beside diagonal experts, got [D, D]; "
            "give the experts' precisions as [K, D, D]"
        )


def _check_product_values(
    means: Any, precisions: Any, weights: Any, mask: Any, prior: tuple[Any, Any] | None
) -> None:
    # NumPy, since under an outer trace a jnp operation on a constant gives a tracer.
    means, precisions, weights = (np.asarray(leaf) for leaf in (means, precisions, weights))
    for k in np.flatnonzero(np.asarray(mask)):
        if not 0 <= weights[k] < np.inf:
            raise ValueError(f"weights[{k}]: expected a finite number >= 0, got {weights[k]}")
        _check_expert(f"means[{k}]", means[k], f"precisions[{k}]", precisions[k])
    if prior is not None:
        _check_expert("prior[0]", prior[0], "prior[1]", prior[1])


def _check_expert(mean_name: str, mean: Array, precision_name: str, precision: Array) -> None:
    _checks.finite(mean_name, mean)
    _checks.finite(precision_name, precision)
    host = np.asarray(precision, np.float64)
    if host.ndim == 1:
        smallest = host.min()
    else:
        if not np.allclose(host, host.T, rtol=0, atol=1e-5 * np.abs(host).max()):
            raise ValueError(f"{precision_name}: expected a symmetric matrix")
        smallest = np.linalg.eigvalsh(host).min()
    if smallest <= 0:
        raise ValueError(
            f"{precision_name}: expected a positive definite precision, got a smallest "
            f"eigenvalue of {smallest:.3g}"
        )
