"""Real-valued units in their two roles: visible (Lebesgue base) and hidden (Gaussian base)."""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp

from poejax.types import Array, Event, Field, Params
from poejax.units.base import VectorUnit, as_float, check_batch

HALF_LOG_2PI = 0.9189385332046727


@dataclasses.dataclass(frozen=True)
class RealUnit(VectorUnit):
    """What all blocks of real numbers share."""

    @property
    def num_states(self) -> None:
        return None

    def state_at(self, index: Array) -> Event:
        raise ValueError(f"state_at: {self} is continuous and cannot be enumerated")

    def check(self, name: str, x: Event) -> None:
        check_batch(name, x, self.event_shape, self, real=True)


@dataclasses.dataclass(frozen=True)
class QuadraticUnit(RealUnit):
    """Real visible units: Lebesgue base, and a field with a linear and a quadratic part."""

    @property
    def has_proper_base(self) -> bool:
        return False

    @abc.abstractmethod
    def diagonal_field(self, linear: Array, precision: Array) -> Field:
        """Return the field with a linear part and a diagonal precision, [size] each."""

    def linear_part(self, params: Params) -> Array:
        return params["linear"]

    def shift_linear(self, params: Params, v: Array) -> Params:
        return params | {"linear": params["linear"] + v}


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
        return {"linear": params["linear"], "precision": jnp.exp(params["log_precision"])}

    def inner(self, field: Field, x: Event) -> Array:
        x = self.linear_statistic(x)
        return jnp.sum(field["linear"] * x - 0.5 * field["precision"] * x**2)

    def log_partitions(self, field: Field) -> Array:
        proper = field["precision"] > 0
        precision = jnp.where(proper, field["precision"], 1.0)
        value = 0.5 * (field["linear"] ** 2 / precision - jnp.log(precision)) + HALF_LOG_2PI
        return jnp.where(proper, value, jnp.inf)

    def mean(self, field: Field) -> Event:
        return field["linear"] / field["precision"]

    def sample(self, rng_key: Array, field: Field) -> Event:
        noise = jax.random.normal(rng_key, (self.size,), field["linear"].dtype)
        return self.mean(field) + noise * jax.lax.rsqrt(field["precision"])

    def fit_field(self, x: Event, smoothing: float) -> Params:
        x = as_float(x)
        log_precision = -jnp.log((1 + smoothing) * jnp.var(x, axis=0))
        return {
            "linear": jnp.mean(x, axis=0) * jnp.exp(log_precision),
            "log_precision": log_precision,
        }


@dataclasses.dataclass(frozen=True)
class StandardGaussian(RealUnit):
    """`size` real hidden units with base exp(-z²/2): z ~ N(field, 1).

    A(field) = Σ ½ field² + ½ log 2π.
    """

    @property
    def has_proper_base(self) -> bool:
        return True

    def log_base(self, x: Event) -> Array:
        return -0.5 * jnp.sum(self.linear_statistic(x) ** 2)

    def log_partitions(self, field: Field) -> Array:
        return 0.5 * field**2 + HALF_LOG_2PI

    def mean(self, field: Field) -> Event:
        return field

    def sample(self, rng_key: Array, field: Field) -> Event:
        return field + jax.random.normal(rng_key, (self.size,), field.dtype)

    def fit_field(self, x: Event, smoothing: float) -> Params:
        del smoothing  # the variance is fixed by the base measure
        return jnp.mean(as_float(x), axis=0)
