"""Counts without a bound: photons, words, spikes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from poejax._numerics import at_least_float32, mean_of_rows
from poejax.tails import Reach, nowhere
from poejax.types import Array, Event, Field, Params
from poejax.units.checks import check_batch, require_values
from poejax.units.vector import VectorUnit

__all__ = ["Poisson"]

_MOST = 2.0**24  # counts above are not whole in float32


@dataclasses.dataclass(frozen=True)
class Poisson(VectorUnit):
    """`size` units in {0, 1, 2, ...}: x_i of mean exp(field_i).

    h(x) = Π 1 / x_i!,  A(field) = Σ exp(field_i),  E[x_i] = exp(field_i)

    A product over them is normalisable unless an expert grows like a square, as banks of
    StandardGaussian units do. Terms of its log density are of the size of x log x, of which float32
    keeps seven digits. Counts are whole up to 2**24; a draw of a rate beyond is +inf.

    Source: Welling, Rosen-Zvi & Hinton (2004), Exponential family harmoniums; Gehler, Holub &
    Welling (2006), The rate adapting Poisson model.
    """

    @property
    def num_states(self) -> None:
        return None

    @property
    def has_proper_base(self) -> bool:
        return True

    def reach(self) -> Reach:
        return nowhere(self.size)._replace(is_count=np.ones(self.size, bool))

    def state_at(self, index: Array) -> Event:
        raise ValueError(f"state_at: {self} has infinitely many events and cannot be enumerated")

    def log_base(self, x: Event) -> Array:
        return -jnp.sum(gammaln(at_least_float32(self.linear_statistic(x)) + 1))

    def log_partitions(self, field: Field) -> Array:
        return jnp.exp(at_least_float32(field))

    def mean(self, field: Field) -> Event:
        return jnp.exp(at_least_float32(field))

    def sample(self, rng_key: Array, field: Field) -> Event:
        rate = self.mean(field)
        # JAX draws these by its default generator only.
        words = jax.random.bits(rng_key, (2,), jnp.uint32)
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        draw = jax.random.poisson(key, jnp.minimum(rate, _MOST)).astype(rate.dtype)
        return jnp.where(rate <= _MOST, draw, rate * jnp.inf)

    def fit_field(self, x: Event, smoothing: float, weights: Array | None = None) -> Params:
        """Return the log of the mean of `x`, mixed with the mean 1 at field zero."""
        return jnp.log((1 - smoothing) * mean_of_rows(x, weights) + smoothing)

    def check(self, name: str, x: Event) -> None:
        check_batch(name, x, self.event_shape, self)
        require_values(name, x, _is_count, "integers from 0 to 2**24", self)


def _is_count(v: Array) -> Array:
    return (v >= 0) & (v <= _MOST) & (v == v.round())
