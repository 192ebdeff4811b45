"""Counts up to a known number: ratings, wins in n games, grey levels as numbers of photons."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma

from poejax import _checks, _random
from poejax._numerics import at_least_float32, mean_of_rows
from poejax.tails import Tails, bounded
from poejax.types import Array, Event, Field, Params
from poejax.units._index import as_index, digits
from poejax.units.checks import check_batch, require_values
from poejax.units.vector import VectorUnit

__all__ = ["Binomial"]


@dataclasses.dataclass(frozen=True)
class Binomial(VectorUnit):
    """`size` units in {0, ..., n}, each a sum of n = `num_trials` bits of one field.

    h(x) = Π (n choose x_i),  A(field) = n Σ softplus(field_i),  E[x_i] = n sigm(field_i)

    As hidden units each is n copies of a binary one that share weights and bias. A draw takes n
    random numbers per unit.

    Source: Teh & Hinton (2001), Rate-coded restricted Boltzmann machines for face recognition.
    """

    num_trials: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.positive_int("num_trials", self.num_trials)

    @property
    def num_values(self) -> int:
        return self.num_trials + 1

    @property
    def num_states(self) -> int:
        return int(self.num_values**self.size)

    @property
    def has_proper_base(self) -> bool:
        return True

    def state_at(self, index: Array) -> Event:
        index = as_index(index, self.num_states, self)
        return digits(index, self.num_values, self.size).astype(jnp.result_type(float))

    def log_base(self, x: Event) -> Array:
        return jnp.sum(_log_choose(self.num_trials, at_least_float32(self.linear_statistic(x))))

    def log_partitions(self, field: Field) -> Array:
        return self.num_trials * jax.nn.softplus(at_least_float32(field))

    def mean(self, field: Field) -> Event:
        return self.num_trials * jax.nn.sigmoid(field)

    def sample(self, rng_key: Array, field: Field) -> Event:
        field = at_least_float32(field)
        trials = jnp.broadcast_to(field, (self.num_trials, self.size))
        return jnp.sum(_random.bernoulli(rng_key, trials), axis=0).astype(field.dtype)

    def fit_field(self, x: Event, smoothing: float, weights: Array | None = None) -> Params:
        p = (1 - smoothing) * mean_of_rows(x, weights) / self.num_trials + smoothing / 2
        return jnp.log(p) - jnp.log1p(-p)

    def bank_tails(self, weights: np.ndarray) -> Tails:
        share = 0.5 * self.num_trials * weights
        return bounded(len(weights))._replace(tilt=share.sum(axis=1), spread=share.T)

    def check(self, name: str, x: Event) -> None:
        check_batch(name, x, self.event_shape, self)
        expected = f"integers from 0 to {self.num_trials}"
        require_values(name, x, partial(_is_count, self.num_trials), expected, self)


def _is_count(most: int, v: Array) -> Array:
    return (v >= 0) & (v <= most) & (v == v.round())


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_choose(n: int, x: Array) -> Array:
    """Return log (n choose x), elementwise, at whole numbers; smooth between them."""
    k = np.arange(n + 1, dtype=np.float64)
    # From a sum in float64: of float32 log factorials of large n few digits would be left.
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(k[1:]))])
    table = log_factorial[-1] - log_factorial - log_factorial[::-1]
    return jnp.asarray(table, x.dtype)[jnp.clip(jnp.round(x), 0, n).astype(int)]


@_log_choose.defjvp
def _log_choose_jvp(n: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return _log_choose(n, x), (digamma(n - x + 1) - digamma(x + 1)) * tangent
