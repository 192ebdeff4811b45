"""Units with finitely many values: {0, 1}, {-1, +1} and one-hot."""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks, _random
from poejax._numerics import as_float, at_least_float32, mean_of_rows, total_of_few
from poejax.tails import Tails, bounded
from poejax.types import Array, Event, Field, Params
from poejax.units._index import as_index, digits
from poejax.units.base import Unit
from poejax.units.checks import check_batch, require_values
from poejax.units.vector import VectorUnit

__all__ = ["Bernoulli", "BinaryUnit", "Categorical", "Spin"]


def _binary_digits(index: Array, size: int) -> Array:
    num_bits = min(size, jnp.iinfo(index.dtype).bits)
    bits = (index >> jnp.arange(num_bits, dtype=index.dtype)) & 1
    # Sites beyond the bits of an index are zero for every index that fits.
    return jnp.pad(bits, (0, size - num_bits))


@jax.custom_jvp
def _softplus(field: Array) -> Array:
    # jax.nn.softplus costs 2-3 times as much on a CPU.
    return jnp.maximum(field, 0) + jnp.log1p(jnp.exp(-jnp.abs(field)))


@_softplus.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The derivative is the mean, in one pass and ½ at zero.
    (field,), (tangent,) = primals, tangents
    return _softplus(field), jax.nn.sigmoid(field) * tangent


def _times(r: Array, s: Array) -> Array:
    """Return (1 + r)(1 + s) - 1."""
    # Logarithms bind where densities are asked for, so that products of a few factors share one.
    # Of a product 1 + r only r is kept, or a unit that is nearly off, and a step between near
    # temperatures, would be lost beside one.
    return r + s + r * s


@jax.custom_jvp
def _sum_of_softplus(field: Array) -> Array:
    wide = at_least_float32(field)
    # In rows of whole registers, filled up with units that are surely off.
    width = 512 if len(wide) > 2048 else 64 if len(wide) >= 64 else 8
    padding = (0, -len(wide) % width)
    rows = jnp.pad(wide, padding, constant_values=jnp.finfo(wide.dtype).min).reshape(8, -1)
    positive = functools.reduce(operator.add, [jnp.maximum(row, 0) for row in rows])
    r = functools.reduce(_times, [jnp.exp(-jnp.abs(row)) for row in rows])
    found = total_of_few(positive + jnp.log1p(r))
    return found.astype(field.dtype) if jnp.issubdtype(field.dtype, jnp.floating) else found


@_sum_of_softplus.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (field,), (tangent,) = primals, tangents
    return _sum_of_softplus(field), jnp.sum(jax.nn.sigmoid(field) * tangent)


@jax.custom_jvp
def _softplus_change(old: Array, new: Array) -> Array:
    """Return Σ [softplus(new) - softplus(old)], []: differences before the sum."""
    old, new = at_least_float32(old), at_least_float32(new)
    here, there = jnp.exp(-jnp.abs(old)), jnp.exp(-jnp.abs(new))
    r = (there - here) / (1 + here)
    # Four at a time: products down to 2^-4 are near enough to one for their r.
    tails = jnp.log1p(functools.reduce(_times, jnp.split(jnp.pad(r, (0, -len(r) % 4)), 4)))
    return jnp.sum(jnp.maximum(new, 0) - jnp.maximum(old, 0)) + jnp.sum(tails)


@_softplus_change.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    old, new = (jax.nn.sigmoid(at_least_float32(field)) for field in primals)
    return _softplus_change(*primals), jnp.sum(new * tangents[1] - old * tangents[0])


def _zero_or_one(v: Array) -> Array:
    return (v == 0) | (v == 1)


def _minus_or_plus_one(v: Array) -> Array:
    return (v == 1) | (v == -1)


def _sums_to_one(v: Array) -> Array:
    return v.sum(-1) == 1


@dataclasses.dataclass(frozen=True)
class BinaryUnit(VectorUnit):
    """What units of two values share."""

    @property
    def num_values(self) -> int:
        return 2

    @property
    def num_states(self) -> int:
        return int(2**self.size)

    @property
    def has_proper_base(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True)
class Bernoulli(BinaryUnit):
    """`size` units in {0, 1}: p(x_i = 1) = sigm(field_i), A(field) = Σ softplus(field_i)."""

    def state_at(self, index: Array) -> Event:
        index = as_index(index, self.num_states, self)
        return _binary_digits(index, self.size).astype(jnp.result_type(float))

    def log_partitions(self, field: Field) -> Array:
        return _softplus(field)

    def log_partition(self, field: Field) -> Array:
        return _sum_of_softplus(field)

    def log_partition_change(self, old: Field, new: Field) -> Array:
        return _softplus_change(old, new)

    def mean(self, field: Field) -> Event:
        return jax.nn.sigmoid(field)

    def sample(self, rng_key: Array, field: Field) -> Event:
        return _random.bernoulli(rng_key, at_least_float32(field)).astype(field.dtype)

    def fit_field(self, x: Event, smoothing: float, weights: Array | None = None) -> Params:
        p = (1 - smoothing) * mean_of_rows(x, weights) + smoothing / 2
        return jnp.log(p) - jnp.log1p(-p)

    def value_field(self, y: Event, log_odds: Array) -> Params:
        return (2 * y - 1) * log_odds

    def bank_tails(self, weights: np.ndarray) -> Tails:
        # softplus grows like the larger of 0 and w·y: its mean, and ± half their difference.
        tilt = 0.5 * weights.sum(axis=1)
        return bounded(len(weights))._replace(tilt=tilt, spread=0.5 * weights.T)

    def check(self, name: str, x: Event) -> None:
        check_batch(name, x, self.event_shape, self)
        require_values(name, x, _zero_or_one, "values in {0, 1}", self)


@dataclasses.dataclass(frozen=True)
class Spin(BinaryUnit):
    """`size` units in {-1, +1}: E[x_i] = tanh(field_i), A(field) = Σ log(2 cosh field_i)."""

    def state_at(self, index: Array) -> Event:
        index = as_index(index, self.num_states, self)
        return 2 * _binary_digits(index, self.size).astype(jnp.result_type(float)) - 1

    def log_partitions(self, field: Field) -> Array:
        return jnp.abs(field) + jnp.log1p(jnp.exp(-2 * jnp.abs(field)))

    def log_partition(self, field: Field) -> Array:
        size = jnp.abs(as_float(field))
        return jnp.sum(size) + _sum_of_softplus(-2 * size)

    def log_partition_change(self, old: Field, new: Field) -> Array:
        old, new = jnp.abs(at_least_float32(old)), jnp.abs(at_least_float32(new))
        return jnp.sum(new - old) + _softplus_change(-2 * old, -2 * new)

    def mean(self, field: Field) -> Event:
        return jnp.tanh(field)

    def sample(self, rng_key: Array, field: Field) -> Event:
        up = _random.bernoulli(rng_key, 2 * at_least_float32(field))
        return jnp.where(up, 1, -1).astype(field.dtype)

    def fit_field(self, x: Event, smoothing: float, weights: Array | None = None) -> Params:
        return jnp.arctanh((1 - smoothing) * mean_of_rows(x, weights))

    def value_at(self, index: Array, dtype: Any) -> Array:
        return (2 * index - 1).astype(dtype)

    def value_index(self, x: Event) -> Array:
        return (x > 0).astype(int)

    def value_field(self, y: Event, log_odds: Array) -> Params:
        return 0.5 * y * log_odds

    def bank_tails(self, weights: np.ndarray) -> Tails:
        return bounded(len(weights))._replace(spread=weights.T)

    def check(self, name: str, x: Event) -> None:
        check_batch(name, x, self.event_shape, self)
        require_values(name, x, _minus_or_plus_one, "values in {-1, +1}", self)


@dataclasses.dataclass(frozen=True)
class Categorical(Unit):
    """`size` one-hot units of `num_classes` values: A(field) = Σ_i logsumexp_c field_ic.

    An event is a one-hot array [size, num_classes]; its linear statistic is that array, flattened.
    """

    size: int
    num_classes: int

    def __post_init__(self) -> None:
        _checks.positive_int("size", self.size)
        if _checks.positive_int("num_classes", self.num_classes) < 2:
            raise ValueError(f"num_classes: expected at least 2, got {self.num_classes}")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.size, self.num_classes)

    @property
    def num_sites(self) -> int:
        return self.size

    @property
    def num_linear(self) -> int:
        return self.size * self.num_classes

    @property
    def num_states(self) -> int:
        return int(self.num_classes**self.size)

    @property
    def has_proper_base(self) -> bool:
        return True

    def state_at(self, index: Array) -> Event:
        index = as_index(index, self.num_states, self)
        choice = digits(index, self.num_classes, self.size)
        return jax.nn.one_hot(choice, self.num_classes, dtype=jnp.result_type(float))

    @property
    def num_values(self) -> int:
        return self.num_classes

    def value_at(self, index: Array, dtype: Any) -> Array:
        return jax.nn.one_hot(index, self.num_classes, dtype=dtype)

    def value_index(self, x: Event) -> Array:
        return jnp.argmax(x, axis=-1)

    def value_scores(self, slope: Array) -> Array:
        return slope

    def value_field(self, y: Event, log_odds: Array) -> Params:
        return y * log_odds

    def bank_tails(self, weights: np.ndarray) -> Tails:
        classes = weights.reshape(len(weights), self.size, self.num_classes)
        mean = classes.mean(axis=2, keepdims=True)
        spread = (classes - mean).reshape(len(weights), -1).T
        return bounded(len(weights))._replace(tilt=mean.sum(axis=(1, 2)), spread=spread)

    def linear_statistic(self, x: Event) -> Array:
        _checks.shape("x", x, self.event_shape, self)
        return as_float(x).reshape(-1)

    def linear_field(self, v: Array) -> Field:
        return v.reshape(self.event_shape)

    def init_field(self) -> Params:
        return jnp.zeros(self.event_shape)

    def field(self, params: Params) -> Field:
        return params

    def linear_part(self, params: Params) -> Array:
        return params.reshape(-1)

    def shift_linear(self, params: Params, v: Array) -> Params:
        return params + v.reshape(self.event_shape)

    def inner(self, field: Field, x: Event) -> Array:
        return jnp.sum(at_least_float32(field.reshape(-1)) * self.linear_statistic(x))

    def log_partitions(self, field: Field) -> Array:
        return jax.nn.logsumexp(field, axis=-1)

    def mean(self, field: Field) -> Event:
        return jax.nn.softmax(field, axis=-1)

    def sample(self, rng_key: Array, field: Field) -> Event:
        choice = _random.categorical(rng_key, at_least_float32(field))
        return jax.nn.one_hot(choice, self.num_classes, dtype=field.dtype)

    def fit_field(self, x: Event, smoothing: float, weights: Array | None = None) -> Params:
        mean = mean_of_rows(x, weights)
        return jnp.log((1 - smoothing) * mean + smoothing / self.num_classes)

    def check(self, name: str, x: Event) -> None:
        shape = getattr(x, "shape", ())
        if shape[1:] == (self.size,) or (self.size == 1 and len(shape) == 1):
            raise ValueError(
                f"{name}: expected one-hot rows, shape (N, {self.size}, {self.num_classes}), for "
                f"{self}, got {shape}; of class numbers jax.nn.one_hot(x.reshape(-1, {self.size}), "
                f"{self.num_classes}) makes them"
            )
        check_batch(name, x, self.event_shape, self)
        require_values(name, x, _zero_or_one, "one-hot rows", self)
        require_values(name, x, _sums_to_one, "one-hot rows", self)
