"""The arithmetic of products of Gaussians, for precisions anywhere in floating point."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax.types import Array

LOG_2PI = 1.8378770664093453


class GaussianProduct(NamedTuple):
    """A renormalised product of Gaussians: N(x; mean, precision⁻¹), and its log Z in nats, [].

    The mean is [D]; the precision is [D] (diagonal) or [D, D] (full), as the experts' were.
    """

    mean: Array
    precision: Array
    log_z: Array


@jax.jit
def multiply(
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
        log_determinant(*roots(precisions)),
        log_determinant(scale, factor),
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
    constant = mean.shape[0] * LOG_2PI
    log_z = 0.5 * (jnp.sum(weights * (log_det_experts - constant)) - (log_det - constant) - misfit)
    improper = improper | jnp.isinf(precision).any()
    return GaussianProduct(
        jnp.where(improper, jnp.nan, mean), precision, jnp.where(improper, jnp.inf, log_z)
    )


def roots(precision: Array) -> tuple[Array, Array | None]:
    """Return scale [D] and, of full precisions, L with scale_i scale_j (L Lᵀ)_ij = precision_ij.

    A diagonal one's roots are its scale. Products of tiny or huge precisions are never formed.
    """
    if precision.ndim == 1:
        return jnp.sqrt(precision), None
    scale = jnp.sqrt(_unit(jnp.diagonal(precision, axis1=-2, axis2=-1), power=2))
    return scale, jnp.linalg.cholesky(precision / scale[..., :, None] / scale[..., None, :])


def log_determinant(scale: Array, factor: Array | None) -> Array:
    roots = jnp.log(scale)
    if factor is not None:
        roots = roots + jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1))
    return 2 * roots.sum(axis=-1)
