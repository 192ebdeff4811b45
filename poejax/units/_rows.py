"""Gaussians by square-root rows of their precision: means, draws and conditioning through a QR."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from poejax.types import Array


def solve(triangle: Array, v: Array, transpose: bool = False) -> Array:
    """Return R⁻¹ v, or R⁻ᵀ v, for an upper triangular R."""
    return jax.scipy.linalg.solve_triangular(triangle, v, trans=1 if transpose else 0)


def triangle_of(rows: Array, size: int) -> Array:
    """Return R of the QR decomposition of the rows, longest first, padded to `size` rows."""
    order = jnp.argsort(-jnp.sum(rows**2, axis=1))
    missing = max(0, size - rows.shape[0])
    return jnp.linalg.qr(jnp.pad(rows[order], ((0, missing), (0, 0))), mode="r")


def least_squares(linear: Array, rows: Array, targets: Array) -> Array:
    """Return Λ⁻¹ (linear + rowsᵀ targets), which for standard normal targets is a draw."""
    size = rows.shape[1]
    triangle = triangle_of(jnp.concatenate([rows, targets[:, None]], axis=1), size + 1)
    # The last column of R is Qᵀ targets.
    triangle, rotated = triangle[:size, :size], triangle[:size, size]
    return solve(triangle, rotated + solve(triangle, linear, transpose=True))


def conditioned(linear: Array, rows: Array, targets: Array, x: Array, mask: Array) -> Array:
    """Return what `least_squares` gives at the sites where `mask` is False, given `x` elsewhere.

    Conditioning: the held sites become targets of the free ones' rows, and unit rows of their own
    keep the system square.
    """
    held = jnp.where(mask, x, 0.0)
    free = jnp.where(mask, 0.0, rows)
    # In full precision everywhere: accelerators would round a product's operands.
    targets = targets - jnp.matmul(rows, held, precision="highest")
    rows = jnp.concatenate([free, jnp.diag(mask.astype(free.dtype))])
    targets = jnp.concatenate([targets, jnp.zeros(x.shape[0], targets.dtype)])
    return jnp.where(mask, x, least_squares(jnp.where(mask, 0.0, linear), rows, targets))
