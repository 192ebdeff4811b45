"""Real visible units: a flat base measure, and fields with a precision."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _meshes, _random
from poejax._numerics import HALF_LOG_2PI, as_float, at_least_float32, widen
from poejax.tails import Reach, as_float64, everywhere
from poejax.types import Array, Event, Field, Params, PyTree
from poejax.units._rows import conditioned
from poejax.units.checks import check_batch
from poejax.units.vector import VectorUnit

__all__ = ["GaussianDiag", "QuadraticUnit", "RealUnit", "moments", "require_real"]


@dataclasses.dataclass(frozen=True)
class RealUnit(VectorUnit):
    """What all blocks of real numbers share."""

    @property
    def is_real(self) -> bool:
        return True

    @property
    def num_states(self) -> None:
        return None

    def state_at(self, index: Array) -> Event:
        raise ValueError(f"state_at: {self} has infinitely many events and cannot be enumerated")

    def linear_statistic(self, x: Event) -> Array:
        # Squares of what float16 holds overflow it, and bfloat16 has too few digits to centre.
        return at_least_float32(super().linear_statistic(x))

    def check(self, name: str, x: Event) -> None:
        check_batch(name, x, self.event_shape, self, real=True)


@dataclasses.dataclass(frozen=True)
class QuadraticUnit(RealUnit):
    """Real visible units: Lebesgue base, and a field with a linear and a quadratic part.

    Coordinates are {"origin": [size], "scale": [size] or, lower triangular, [size, size]}: x =
    origin + scale y. Natural parameters about zero lose all digits once mean² x precision passes
    10⁷, and a float32 difference of squares there is noise.
    """

    @property
    def has_proper_base(self) -> bool:
        return False

    @property
    def is_quadratic(self) -> bool:
        return True

    def reach(self) -> Reach:
        return everywhere(self.size)

    @abc.abstractmethod
    def diagonal_field(self, linear: Array, precision: Array) -> Field:
        """Return the field with a linear part and a diagonal precision, [size] each."""

    def linear_part(self, params: Params) -> Array:
        return params["linear"]

    def shift_linear(self, params: Params, v: Array) -> Params:
        return params | {"linear": params["linear"] + v}

    def coordinates(self, x: Event, full: bool = False, weights: Array | None = None) -> PyTree:
        if full:
            require_full_rank("data", _checks.counted(x, weights), least=1e-10)  # in float64
        mean, covariance = moments(x, full, weights)
        xp = _numpy_or_jax(covariance)
        scale = xp.linalg.cholesky(covariance) if full else xp.sqrt(covariance)
        dtype = jnp.result_type(float)
        return {"origin": jnp.asarray(mean, dtype), "scale": jnp.asarray(scale, dtype)}

    def check_coordinates(self, name: str, coordinates: PyTree) -> None:
        if not isinstance(coordinates, dict) or coordinates.keys() != {"origin", "scale"}:
            raise ValueError(
                f"{name}: expected {{'origin', 'scale'}} for {self}, got {coordinates!r}"
            )
        shape = self.event_shape
        _checks.shape(f"{name}['origin']", coordinates["origin"], shape, self)
        scale = coordinates["scale"]
        if jnp.shape(scale) not in (shape, shape * 2):
            raise ValueError(
                f"{name}['scale']: expected shape {shape} or {shape * 2}, got {jnp.shape(scale)}"
            )
        _checks.finite(name, coordinates)
        if _checks.is_concrete(scale):
            host = _meshes.to_host(scale)
            diagonal = host if host.ndim == 1 else np.diagonal(host)
            if not (diagonal > 0).all() or (host.ndim == 2 and np.triu(host, 1).any()):
                raise ValueError(
                    f"{name}['scale']: expected positive numbers, or a lower triangular matrix "
                    f"with such a diagonal, got {host.tolist() if host.size < 10 else 'others'}"
                )

    def standardize(self, coordinates: PyTree, x: Event) -> Event:
        if not coordinates:
            return x
        origin, scale = _wide(coordinates)
        centred = self.linear_statistic(x) - origin
        if jnp.ndim(scale) == 1:
            return centred / scale
        return jax.scipy.linalg.solve_triangular(scale, centred, lower=True)

    def standardize_rows(self, coordinates: PyTree, x: Event) -> Event:
        if not coordinates:
            return x
        # What is spread over processes stays so.
        if not _checks.is_concrete(x, coordinates) or _meshes.is_spread(x, coordinates):
            return jax.vmap(lambda event: self.standardize(coordinates, event))(x)
        origin, scale = (np.asarray(coordinates[name], np.float64) for name in ("origin", "scale"))
        centred = np.asarray(x, np.float64) - origin
        y = centred / scale if scale.ndim == 1 else np.linalg.solve(scale, centred.T).T
        return jnp.asarray(y, jnp.result_type(float))

    def restore(self, coordinates: PyTree, y: Event) -> Event:
        if not coordinates:
            return y
        origin, scale = _wide(coordinates)
        if scale.ndim == 1:
            return origin + scale * y
        return origin + jnp.matmul(scale, y, precision="highest")

    def log_volume(self, coordinates: PyTree) -> Array:
        if not coordinates:
            return jnp.zeros(())
        _, scale = _wide(coordinates)
        return jnp.sum(jnp.log(scale if scale.ndim == 1 else jnp.diagonal(scale)))

    def log_mass(self, params: Params) -> Array:
        field = self.field(params)
        # Where the mean lies makes no difference to a Gaussian measured from its peak.
        return self.log_partition(field | {"linear": jnp.zeros_like(field["linear"])})

    def check_spread(self, name: str, x: Event) -> None:
        _border.require_spread(name, x)

    def sample_clamped(
        self, rng_key: Array, field: Field, x: Event, mask: PyTree, coordinates: PyTree = None
    ) -> Event:
        if self.is_diagonal(coordinates):
            return super().sample_clamped(rng_key, field, x, mask, coordinates)
        rows = self.square_root_rows(field)
        noise = _random.normal(rng_key, (rows.shape[0],), rows.dtype)
        return self._conditioned(noise, field["linear"], rows, x, mask, coordinates)

    def mean_clamped(
        self, field: Field, x: Event, mask: PyTree, coordinates: PyTree = None
    ) -> Event:
        if self.is_diagonal(coordinates):
            return super().mean_clamped(field, x, mask, coordinates)
        rows = self.square_root_rows(field)
        noise = jnp.zeros(rows.shape[0], rows.dtype)
        return self._conditioned(noise, field["linear"], rows, x, mask, coordinates)

    @abc.abstractmethod
    def square_root_rows(self, field: Field) -> Array:
        """Return rows [R, size] whose precision is rowsᵀ rows."""

    def _conditioned(
        self, noise: Array, linear: Array, rows: Array, x: Event, mask: Array, coordinates: PyTree
    ) -> Event:
        if not coordinates:
            return conditioned(linear, rows, noise, x, mask)
        origin, scale = _wide(coordinates)
        spread = scale
        if scale.ndim == 2:
            # Sites of x are held, not of y: on to x, but for the size of each, where a row r of y
            # is r scale⁻¹.
            spread = jnp.max(jnp.abs(scale), axis=1)
            scale = scale / spread[:, None]
            linear, rows = (
                jax.scipy.linalg.solve_triangular(scale, v.T, lower=True, trans=1).T
                for v in (linear, rows)
            )
        drawn = conditioned(linear, rows, noise, (x - origin) / spread, mask)
        return jnp.where(mask, x, origin + spread * drawn)


@dataclasses.dataclass(frozen=True)
class GaussianDiag(QuadraticUnit):
    """`size` real visible units with base h(x) = 1 and a diagonal Gaussian conditional.

    log p(x | field) = linear·x - ½ precision·x² - A, A = Σ ½ (linear²/precision - log precision
    + log 2π). The field is {"linear": [size], "precision": [size]}; its free parameters are
    {"linear", "log_precision"}, so that precisions stay positive under any optimizer. Weight
    matrices couple to the linear statistic only. Without an expert that adds precision the
    conditional is improper: A = +inf and samples are NaN.
    """

    def linear_field(self, v: Array) -> Field:
        return {"linear": v, "precision": jnp.zeros_like(v)}

    def diagonal_field(self, linear: Array, precision: Array) -> Field:
        return {"linear": linear, "precision": precision}

    def init_field(self) -> Params:
        return {"linear": jnp.zeros(self.size), "log_precision": jnp.zeros(self.size)}

    def field(self, params: Params) -> Field:
        params = widen(params)
        return {"linear": params["linear"], "precision": jnp.exp(params["log_precision"])}

    def inner(self, field: Field, x: Event) -> Array:
        x, field = self.linear_statistic(x), widen(field)
        return jnp.sum(field["linear"] * x - 0.5 * field["precision"] * x**2)

    def log_factor(self, params: Params, x: Event) -> Array:
        params = widen(params)
        mean = params["linear"] * jnp.exp(-params["log_precision"])
        residual = jnp.exp(0.5 * params["log_precision"]) * (self.linear_statistic(x) - mean)
        return -0.5 * jnp.sum(residual**2)

    def peak(self, params: Params) -> Array:
        params = widen(params)
        return 0.5 * jnp.sum((params["linear"] * jnp.exp(-0.5 * params["log_precision"])) ** 2)

    def move_field(self, params: Params, coordinates: PyTree) -> Params:
        if not coordinates:
            return params
        params = widen(params)
        origin, scale = _wide(coordinates)
        if scale.ndim != 1:
            raise ValueError(
                f"coordinates: expected a scale per column, in which a diagonal field of {self} "
                "stays diagonal, got a full one; use units.Gaussian"
            )
        # Through the mean: the linear part less precision times origin would cancel.
        precision = params["log_precision"] + 2 * jnp.log(scale)
        mean = params["linear"] / jnp.exp(params["log_precision"])
        linear = jnp.exp(precision) * (mean - origin) / scale
        return {"linear": linear, "log_precision": precision}

    def is_diagonal(self, coordinates: PyTree) -> bool:
        return not coordinates or jnp.ndim(coordinates["scale"]) == 1

    def square_root_rows(self, field: Field) -> Array:
        return jnp.diag(jnp.sqrt(widen(field)["precision"]))

    def normal_field(self, y: Event, log_scale: Array) -> Params:
        log_precision = jnp.full(self.size, -2 * log_scale)
        # Times the very numbers that the field's mean is divided by, so that it is y to the last
        # digit, which is what counts where y is far from zero.
        linear = self.linear_statistic(y) * jnp.exp(log_precision)
        return {"linear": linear, "log_precision": log_precision}

    def decay_rows(self, params: Params) -> np.ndarray:
        return np.diag(np.exp(0.5 * as_float64(params["log_precision"])))

    def power(self, params: Params, weight: float) -> Params:
        return {
            "linear": weight * params["linear"],
            "log_precision": params["log_precision"] + math.log(weight),
        }

    def log_partitions(self, field: Field) -> Array:
        proper = field["precision"] > 0
        precision = jnp.where(proper, field["precision"], 1.0)
        value = 0.5 * (field["linear"] ** 2 / precision - jnp.log(precision)) + HALF_LOG_2PI
        return jnp.where(proper, value, jnp.inf)

    def mean(self, field: Field) -> Event:
        return field["linear"] / field["precision"]

    def sample(self, rng_key: Array, field: Field) -> Event:
        field = widen(field)
        noise = _random.normal(rng_key, (self.size,), field["linear"].dtype)
        return self.mean(field) + noise * jax.lax.rsqrt(field["precision"])

    def fit_field(self, x: Event, smoothing: float, weights: Array | None = None) -> Params:
        mean, variance = moments(x, weights=weights)
        variance = (1 + smoothing) * variance
        xp, dtype = _numpy_or_jax(variance), jnp.result_type(float)
        log_precision = (-xp.log(variance)).astype(dtype)
        # By the precision as it is rounded, or the mean would be off by as much as that, times it.
        linear = mean * xp.exp(log_precision.astype(mean.dtype))
        return {
            "linear": jnp.asarray(linear, dtype),
            "log_precision": jnp.asarray(log_precision),
        }


def moments(x: Any, full: bool = False, weights: Array | None = None) -> tuple[Any, Any]:
    """Return mean [D] and variance [D], or covariance [D, D], of a batch [N, D], weighted or not.

    In float64 on the host wherever the values can be looked at.
    """
    on_host = _checks.is_concrete(x, weights)
    x = _meshes.to_host(x, np.float64) if on_host else at_least_float32(as_float(x))
    if weights is None:
        share = np.full(len(x), 1 / len(x)) if on_host else jnp.full(len(x), 1 / len(x), x.dtype)
    else:
        share = _meshes.to_host(weights, np.float64) if on_host else jnp.asarray(weights, x.dtype)
        share = share / share.sum()
    # About a row, so that a mean far from zero keeps its digits.
    origin = x[0]
    mean = origin + share @ (x - origin)
    centred = x - mean
    if full:
        return mean, (centred * share[:, None]).T @ centred
    return mean, share @ centred**2


def require_real(visible: Any) -> QuadraticUnit:
    """Return `visible` if it is a block of real visible units."""
    if not isinstance(visible, QuadraticUnit):
        raise ValueError(f"visible: expected units.GaussianDiag or units.Gaussian, got {visible}")
    return visible


def _wide(coordinates: PyTree) -> tuple[Array, Array]:
    """Return origin and scale in float32 or wider."""
    coordinates = widen(coordinates)
    return coordinates["origin"], coordinates["scale"]


def _numpy_or_jax(value: Any) -> Any:
    return np if isinstance(value, np.ndarray) else jnp


def require_full_rank(name: str, x: Event, least: float = 1e-6) -> None:
    """Raise ValueError if columns of a batch [N, D] that can be looked at depend on each other."""
    if not _checks.is_concrete(x):
        return
    x = _meshes.to_host(x, np.float64)
    if not np.isfinite(x).all():
        return  # NaN marks what is missing
    _, covariance = moments(x, full=True)
    deviation = np.sqrt(np.diagonal(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(deviation, deviation))
    # Float32 cannot tell smaller ones than 1e-6 from zero.
    if values[0] < least:
        columns = np.flatnonzero(np.abs(vectors[:, 0]) > 1e-3).tolist()
        raise ValueError(
            f"{name}: expected variance in every direction, got {len(x)} rows whose columns "
            f"{columns} depend on each other linearly; drop one of them"
        )
