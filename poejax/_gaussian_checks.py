"""What the closed forms of Gaussians require of their arguments, before anything compiles."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from poejax import _checks
from poejax.types import Array


def gaussian(mean_name: str, mean: Array, precision_name: str, precision: Array) -> None:
    """Require one mean [D] and one precision, [D] or [D, D]."""
    mean_shape, precision_shape = jnp.shape(mean), jnp.shape(precision)
    if len(mean_shape) != 1:
        raise ValueError(f"{mean_name}: expected shape (D,), got {mean_shape}; batches are vmapped")
    if precision_shape not in (mean_shape, mean_shape * 2):
        raise ValueError(
            f"{precision_name}: expected shape {mean_shape} or {mean_shape * 2}, got "
            f"{precision_shape}"
        )


def product_shapes(
    means: Array,
    precisions: Array,
    weights: Array | None,
    mask: Array | None,
    prior: tuple[Array, Array] | None,
    prior_weight: Any,
) -> None:
    """Require experts of one kind, and weights, a mask and a prior that fit them."""
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
    if not _checks.is_real(prior_weight):
        raise ValueError(f"prior_weight: expected one number, got {prior_weight!r}")
    if prior is None:
        if _checks.is_concrete(prior_weight) and float(prior_weight) != 1:
            raise ValueError(f"prior_weight: expected a prior beside it, got {prior_weight} alone")
        return
    if not isinstance(prior, tuple) or len(prior) != 2:
        raise ValueError("prior: expected a tuple (mean, precision)")
    _checks.shape("prior[0]", prior[0], shape[1:], f"experts on {shape[1]} dimensions")
    gaussian("prior[0]", prior[0], "prior[1]", prior[1])
    if len(found) == 2 and jnp.ndim(prior[1]) == 2:
        raise ValueError(
            "prior[1]: expected a diagonal precision [D] beside diagonal experts, got [D, D]; "
            "give the experts' precisions as [K, D, D]"
        )


def product_values(
    means: Any,
    precisions: Any,
    weights: Any,
    mask: Any,
    prior: tuple[Any, Any] | None,
    prior_weight: Any,
    dtype: Any,
) -> None:
    """Require experts that are densities and weights that are exponents, all within `dtype`."""
    # NumPy, since under an outer trace a jnp operation on a constant gives a tracer.
    means, precisions, weights = (np.asarray(leaf) for leaf in (means, precisions, weights))
    for k in np.flatnonzero(np.asarray(mask)):
        if not 0 <= weights[k] <= np.finfo(dtype).max:
            raise ValueError(f"weights[{k}]: expected a finite number >= 0, got {weights[k]}")
        _check_expert(f"means[{k}]", means[k], f"precisions[{k}]", precisions[k], dtype)
    if prior is not None:
        if not abs(float(prior_weight)) <= np.finfo(dtype).max:
            raise ValueError(f"prior_weight: expected a finite number, got {prior_weight}")
        mean, precision = (np.asarray(leaf) for leaf in prior)
        _check_expert("prior[0]", mean, "prior[1]", precision, dtype)


def held(name: str, precision: Any, dtype: Any = None) -> None:
    """Require a precision in NumPy to be in the range of its `dtype`, float32 unless wider."""
    if not isinstance(precision, np.ndarray):
        return
    limits = np.finfo(np.dtype(dtype or jnp.result_type(jnp.float32, precision)))
    host = precision.astype(np.float64)
    diagonal = np.diagonal(host) if host.ndim == 2 else host
    wrong = (diagonal > limits.max) | ((diagonal > 0) & (diagonal < limits.tiny))
    for i in np.flatnonzero(wrong):
        raise ValueError(
            f"{name}: expected values in the range of {limits.dtype}, {limits.tiny:.2g} ... "
            f"{limits.max:.2g}, got {diagonal[i]:g} for coordinate {i}; measure it in another unit"
            f"{'' if limits.dtype == np.float64 else ', or set jax_enable_x64'}"
        )


def resolved(means: Any, mask: Any, mean: Any, precision: Any, dtype: Any) -> None:
    """Require that `dtype` can say a product's mean where experts differ by finer detail."""
    rows = np.asarray(means)[np.asarray(mask)]
    if not len(rows):
        return
    diagonal = np.diagonal(precision) if precision.ndim == 2 else precision
    steps = 4 * np.spacing(abs(mean).astype(dtype)).astype(np.float64)
    apart = rows.max(axis=0).astype(np.float64) - rows.min(axis=0)
    deviation = diagonal.astype(np.float64) ** -0.5
    coarse = (apart > 0) & (steps > apart) & (steps > deviation)
    for i in np.flatnonzero(coarse & (rows != rows.astype(dtype).astype(rows.dtype)).any(axis=0)):
        raise ValueError(
            f"means: expected means that {dtype} can tell apart, got {apart[i]:.3g} between those "
            f"of coordinate {i} about {mean[i]:.10g}, where {dtype} steps by {steps[i] / 4:.3g} "
            f"beside a deviation of {deviation[i]:.3g}; subtract a common mean first, or set "
            "jax_enable_x64"
        )


def _check_expert(
    mean_name: str, mean: Any, precision_name: str, precision: Any, dtype: Any
) -> None:
    _checks.finite(mean_name, mean)
    _checks.finite(precision_name, precision)
    for i in np.flatnonzero(abs(mean.astype(np.float64)) > np.finfo(dtype).max / 4):
        raise ValueError(
            f"{mean_name}: expected values that {dtype} can hold, got {float(mean[i]):g} for "
            f"coordinate {i}"
        )
    held(precision_name, precision, dtype)
    host = precision.astype(np.float64)
    if host.ndim == 1:
        smallest = host.min()
    else:
        if not np.allclose(host, host.T, rtol=0, atol=1e-5 * np.abs(host).max()):
            raise ValueError(f"{precision_name}: expected a symmetric matrix")
        smallest = np.diagonal(host).min()
        if smallest > 0:  # of a matrix with ones on its diagonal: units are no reason to refuse
            scale = np.sqrt(np.diagonal(host))
            smallest = np.linalg.eigvalsh(host / scale[:, None] / scale).min()
    if smallest <= 0:
        raise ValueError(
            f"{precision_name}: expected a positive definite precision, got a smallest "
            f"eigenvalue of {smallest:.3g}"
        )
