"""Real visible units whose conditional has a full precision, kept as square-root rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from poejax.types import Array, Event, Field, Params, PyTree
from poejax.units.base import as_float
from poejax.units.gaussian import HALF_LOG_2PI, QuadraticUnit


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
        x = self.linear_statistic(x)
        return jnp.sum(field["linear"] * x) - 0.5 * jnp.sum(self._project(field, x) ** 2)

    def log_partitions(self, field: Field) -> Array:
        triangle = _triangle(field["rows"], self.size)
        diagonal = jnp.abs(jnp.diagonal(triangle))
        eps = jnp.finfo(diagonal.dtype).eps
        # Against each column's own length, so that the verdict does not depend on units.
        proper = jnp.all(diagonal > self.size * eps * jnp.linalg.norm(triangle, axis=0))
        # A second where keeps the gradient of the unused branch finite.
        triangle = jnp.where(proper, triangle, jnp.eye(self.size, dtype=triangle.dtype))
        diagonal = jnp.where(proper, diagonal, 1.0)
        solved = _solve(triangle, field["linear"], transpose=True)
        value = 0.5 * jnp.sum(solved**2) - jnp.sum(jnp.log(diagonal)) + self.size * HALF_LOG_2PI
        return jnp.where(proper, value, jnp.inf)[None]

    def mean(self, field: Field) -> Event:
        # Not as a draw without noise: a column of zeros has no QR derivative.
        triangle = _triangle(field["rows"], self.size)
        return _solve(triangle, _solve(triangle, field["linear"], transpose=True))

    def sample(self, rng_key: Array, field: Field) -> Event:
        return self._least_squares(field, self._noise(rng_key, field))

    def sample_clamped(self, rng_key: Array, field: Field, x: Event, mask: PyTree) -> Event:
        return self._clamped(self._noise(rng_key, field), field, x, mask)

    def mean_clamped(self, field: Field, x: Event, mask: PyTree) -> Event:
        return self._clamped(jnp.zeros(self._num_rows(field), field["rows"].dtype), field, x, mask)

    def _clamped(self, noise: Array, field: Field, x: Event, mask: PyTree) -> Event:
        # Conditioning: the held sites become targets of the free ones' rows, and unit rows of
        # their own keep the system square.
        held = jnp.where(mask, x, 0.0)
        free = jnp.where(mask, 0.0, field["rows"])
        targets = noise - self._project(field, held)
        rows = jnp.concatenate([free, jnp.diag(mask.astype(free.dtype))])
        targets = jnp.concatenate([targets, jnp.zeros(self.size, targets.dtype)])
        linear = jnp.where(mask, 0.0, field["linear"])
        drawn = self._least_squares({"linear": linear, "rows": rows}, targets)
        return jnp.where(mask, x, drawn)

    def fit_field(self, x: Event, smoothing: float) -> Params:
        x = as_float(x)
        mean = jnp.mean(x, axis=0)
        covariance = (1 + smoothing) * jnp.atleast_2d(jnp.cov(x, rowvar=False, ddof=0))
        precision = jnp.linalg.inv(covariance)
        rows = jnp.linalg.cholesky(precision).T
        return {
            "linear": precision @ mean,
            "log_diagonal": jnp.log(jnp.diagonal(rows)),
            "off_diagonal": rows[jnp.triu_indices(self.size, 1)],
        }

    def _num_rows(self, field: Field) -> int:
        return int(field["rows"].shape[0])

    def _noise(self, rng_key: Array, field: Field) -> Array:
        return jax.random.normal(rng_key, (self._num_rows(field),), field["rows"].dtype)

    def _project(self, field: Field, x: Array) -> Array:
        # In full precision everywhere: accelerators would round a product's operands.
        return jnp.matmul(field["rows"], x, precision=jax.lax.Precision.HIGHEST)

    def _least_squares(self, field: Field, targets: Array) -> Array:
        """Return Λ⁻¹ (linear + rowsᵀ targets), which for standard normal targets is a draw."""
        stacked = jnp.concatenate([field["rows"], targets[:, None]], axis=1)
        triangle = _triangle(stacked, self.size + 1)
        # The last column of R is Qᵀ targets.
        triangle, rotated = triangle[: self.size, : self.size], triangle[: self.size, self.size]
        solved = _solve(triangle, field["linear"], transpose=True)
        return _solve(triangle, rotated + solved)


def triangular_rows(params: Params) -> Array:
    """Return upper triangular rows from {"log_diagonal": [D], "off_diagonal": [D (D - 1) / 2]}."""
    diagonal = jnp.exp(params["log_diagonal"])
    upper = jnp.triu_indices(diagonal.shape[0], 1)
    return jnp.diag(diagonal).at[upper].set(params["off_diagonal"])


def _solve(triangle: Array, v: Array, transpose: bool = False) -> Array:
    return jax.scipy.linalg.solve_triangular(triangle, v, trans=1 if transpose else 0)


def _triangle(rows: Array, size: int) -> Array:
    """Return R of the QR decomposition of the rows, longest first, padded to `size` rows."""
    order = jnp.argsort(-jnp.sum(rows**2, axis=1))
    missing = max(0, size - rows.shape[0])
    return jnp.linalg.qr(jnp.pad(rows[order], ((0, missing), (0, 0))), mode="r")
