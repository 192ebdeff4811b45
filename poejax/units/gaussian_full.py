"""Real visible units whose conditional has a full precision, kept as square-root rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _random
from poejax._numerics import HALF_LOG_2PI, widen
from poejax.tails import as_float64
from poejax.types import Array, Event, Field, Params, PyTree
from poejax.units._rows import least_squares, solve, triangle_of
from poejax.units.gaussian import QuadraticUnit, moments, require_full_rank

__all__ = ["Gaussian", "require_full", "require_full_rank", "triangular_rows", "upper_triangle"]


@dataclasses.dataclass(frozen=True)
class Gaussian(QuadraticUnit):
    """`size` real visible units with base h(x) = 1 and a full Gaussian conditional.

    log p(x | field) = linear·x - ½ |rows x|² - A,
    A = ½ linearᵀ Λ⁻¹ linear - ½ log det Λ + ½ size log 2π,  Λ = rowsᵀ rows.

    The field is {"linear": [size], "rows": [R, size]}. Experts add rows, never precision matrices:
    with heavy-tailed experts the rows differ by many orders of magnitude, and the sum of their
    squares would lose the small ones in float32. Draws and means go through a QR decomposition of
    the rows, sorted by length (Cox & Higham 1998, on row-wise stability). Free parameters of a
    field are {"linear": [size], "log_diagonal": [size], "off_diagonal": [size (size - 1) / 2]}: the
    upper triangular rows, with the logs of its diagonal. Weight matrices couple to the linear
    statistic only. If the rows do not span the space, A = +inf.
    """

    def linear_field(self, v: Array) -> Field:
        return {"linear": v, "rows": jnp.zeros((0, self.size), v.dtype)}

    def diagonal_field(self, linear: Array, precision: Array) -> Field:
        # A second where keeps the square root's gradient finite where there is no precision.
        root = jnp.where(precision > 0, jnp.sqrt(jnp.where(precision > 0, precision, 1.0)), 0.0)
        return {"linear": linear, "rows": jnp.diag(root)}

    def init_field(self) -> Params:
        return {
            "linear": jnp.zeros(self.size),
            "log_diagonal": jnp.zeros(self.size),
            "off_diagonal": jnp.zeros(self.size * (self.size - 1) // 2),
        }

    def field(self, params: Params) -> Field:
        params = widen(params)
        return {"linear": params["linear"], "rows": triangular_rows(params)}

    def combine(self, fields: Sequence[Field]) -> Field:
        fields = [self.linear_field(jnp.zeros(self.size)), *fields]
        return {
            "linear": sum(field["linear"] for field in fields),
            "rows": jnp.concatenate([field["rows"] for field in fields]),
        }

    def scale(self, field: Field, beta: Array | float) -> Field:
        return {"linear": beta * field["linear"], "rows": jnp.sqrt(beta) * field["rows"]}

    def inner(self, field: Field, x: Event) -> Array:
        x, field = self.linear_statistic(x), widen(field)
        return jnp.sum(field["linear"] * x) - 0.5 * jnp.sum(self._project(field, x) ** 2)

    def log_factor(self, params: Params, x: Event) -> Array:
        field = self.field(params)
        whitened_mean = solve(field["rows"], field["linear"], transpose=True)
        return -0.5 * jnp.sum((self._project(field, self.linear_statistic(x)) - whitened_mean) ** 2)

    def peak(self, params: Params) -> Array:
        field = self.field(params)
        return 0.5 * jnp.sum(solve(field["rows"], field["linear"], transpose=True) ** 2)

    def move_field(self, params: Params, coordinates: PyTree) -> Params:
        if not coordinates:
            return params
        field, scale = self.field(params), widen(coordinates["scale"])
        mean = solve(field["rows"], solve(field["rows"], field["linear"], transpose=True))
        if jnp.ndim(scale) == 1:
            rows = field["rows"] * scale
        else:
            rows = jnp.linalg.qr(jnp.matmul(field["rows"], scale, precision="highest"), mode="r")
            rows = rows * jnp.sign(jnp.diagonal(rows))[:, None]
        moved = self.standardize(coordinates, mean)
        linear = jnp.matmul(rows.T, jnp.matmul(rows, moved, precision="highest"))
        return self._free(linear, rows)

    def square_root_rows(self, field: Field) -> Array:
        return widen(field)["rows"]

    def is_diagonal(self, coordinates: PyTree) -> bool:
        return False

    def normal_field(self, y: Event, log_scale: Array) -> Params:
        log_diagonal = jnp.full(self.size, -log_scale)
        root = jnp.exp(log_diagonal)
        # As the mean is divided out, so that it is y to the last digit.
        linear = self.linear_statistic(y) * root * root
        none = jnp.zeros(self.size * (self.size - 1) // 2)
        return {"linear": linear, "log_diagonal": log_diagonal, "off_diagonal": none}

    def decay_rows(self, params: Params) -> np.ndarray:
        return upper_triangle(params)

    def power(self, params: Params, weight: float) -> Params:
        return {
            "linear": weight * params["linear"],
            "log_diagonal": params["log_diagonal"] + 0.5 * math.log(weight),
            "off_diagonal": math.sqrt(weight) * params["off_diagonal"],
        }

    def check_spread(self, name: str, x: Event) -> None:
        super().check_spread(name, x)
        require_full_rank(name, x)

    def log_partitions(self, field: Field) -> Array:
        triangle = triangle_of(field["rows"], self.size)
        diagonal = jnp.abs(jnp.diagonal(triangle))
        eps = jnp.finfo(diagonal.dtype).eps
        # Against each column's own length, so that the verdict does not depend on units.
        proper = jnp.all(diagonal > self.size * eps * jnp.linalg.norm(triangle, axis=0))
        # A second where keeps the gradient of the unused branch finite.
        triangle = jnp.where(proper, triangle, jnp.eye(self.size, dtype=triangle.dtype))
        diagonal = jnp.where(proper, diagonal, 1.0)
        solved = solve(triangle, field["linear"], transpose=True)
        value = 0.5 * jnp.sum(solved**2) - jnp.sum(jnp.log(diagonal)) + self.size * HALF_LOG_2PI
        return jnp.where(proper, value, jnp.inf)[None]

    def mean(self, field: Field) -> Event:
        # Not as a draw without noise: a column of zeros has no QR derivative.
        triangle = triangle_of(field["rows"], self.size)
        return solve(triangle, solve(triangle, field["linear"], transpose=True))

    def sample(self, rng_key: Array, field: Field) -> Event:
        field = widen(field)
        noise = _random.normal(rng_key, (field["rows"].shape[0],), field["rows"].dtype)
        return least_squares(field["linear"], field["rows"], noise)

    def fit_field(self, x: Event, smoothing: float, weights: Array | None = None) -> Params:
        mean, covariance = moments(x, full=True, weights=weights)
        xp = np if isinstance(covariance, np.ndarray) else jnp
        precision = xp.linalg.inv((1 + smoothing) * covariance)
        rows = xp.linalg.cholesky(precision).T.astype(jnp.result_type(float))
        # By the rows as they are rounded, or the mean would be off by as much as that, times it.
        exact = rows.astype(mean.dtype)
        return self._free(exact.T @ (exact @ mean), rows)

    def _free(self, linear: Array, rows: Array) -> Params:
        """Return the free parameters of a field with upper triangular rows."""
        dtype = jnp.result_type(float)
        linear, rows = jnp.asarray(linear, dtype), jnp.asarray(rows, dtype)
        return {
            "linear": linear,
            "log_diagonal": jnp.log(jnp.diagonal(rows)),
            "off_diagonal": rows[jnp.triu_indices(self.size, 1)],
        }

    def _project(self, field: Field, x: Array) -> Array:
        # In full precision everywhere: accelerators would round a product's operands.
        return jnp.matmul(field["rows"], x, precision=jax.lax.Precision.HIGHEST)


def triangular_rows(params: Params) -> Array:
    """Return upper triangular rows from {"log_diagonal": [D], "off_diagonal": [D (D - 1) / 2]}."""
    diagonal = jnp.exp(params["log_diagonal"])
    upper = jnp.triu_indices(diagonal.shape[0], 1)
    return jnp.diag(diagonal).at[upper].set(params["off_diagonal"])


def upper_triangle(params: Params) -> np.ndarray:
    """Return `triangular_rows` on the host in double precision."""
    rows = np.diag(np.exp(as_float64(params["log_diagonal"])))
    rows[np.triu_indices(len(rows), 1)] = as_float64(params["off_diagonal"])
    return rows


def require_full(visible: Any) -> Gaussian:
    """Return `visible` if it is a block of real visible units of full precision."""
    if not isinstance(visible, Gaussian):
        raise ValueError(f"visible: expected units.Gaussian, got {visible}")
    return visible
