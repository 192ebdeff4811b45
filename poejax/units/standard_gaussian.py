"""Real hidden units: a Gaussian base measure."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from poejax import _random
from poejax._numerics import HALF_LOG_2PI, at_least_float32
from poejax.tails import Reach, Tails, bounded, everywhere
from poejax.types import Array, Event, Field, Params
from poejax.units.gaussian import RealUnit, moments

__all__ = ["StandardGaussian"]


@dataclasses.dataclass(frozen=True)
class StandardGaussian(RealUnit):
    """`size` real hidden units with base exp(-z²/2): z ~ N(field, 1).

    A(field) = Σ ½ field² + ½ log 2π.
    """

    @property
    def has_proper_base(self) -> bool:
        return True

    @property
    def is_standard_gaussian(self) -> bool:
        return True

    def reach(self) -> Reach:
        return everywhere(self.size)._replace(decay=np.eye(self.size))

    def bank_tails(self, weights: np.ndarray) -> Tails:
        return bounded(len(weights))._replace(square=weights.T)

    def log_base(self, x: Event) -> Array:
        return -0.5 * jnp.sum(self.linear_statistic(x) ** 2)

    def log_partitions(self, field: Field) -> Array:
        return 0.5 * at_least_float32(field) ** 2 + HALF_LOG_2PI

    def mean(self, field: Field) -> Event:
        return field

    def sample(self, rng_key: Array, field: Field) -> Event:
        field = at_least_float32(field)
        return field + _random.normal(rng_key, (self.size,), field.dtype)

    def fit_field(self, x: Event, smoothing: float, weights: Array | None = None) -> Params:
        del smoothing  # the variance is fixed by the base measure
        return jnp.asarray(moments(x, weights=weights)[0], jnp.result_type(float))
