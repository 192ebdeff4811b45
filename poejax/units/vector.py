"""Blocks whose event is one vector of numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from poejax import _checks
from poejax._numerics import as_float, at_least_float32, total
from poejax.types import Array, Event, Field, Params
from poejax.units.base import Unit

__all__ = ["VectorUnit"]


@dataclasses.dataclass(frozen=True)
class VectorUnit(Unit):
    """A block whose event is one vector of `size` numbers and whose linear statistic is itself."""

    size: int

    def __post_init__(self) -> None:
        _checks.positive_int("size", self.size)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def num_sites(self) -> int:
        return self.size

    @property
    def num_linear(self) -> int:
        return self.size

    def linear_statistic(self, x: Event) -> Array:
        _checks.shape("x", x, self.event_shape, self)
        return as_float(x)

    def linear_field(self, v: Array) -> Field:
        return v

    def init_field(self) -> Params:
        return jnp.zeros(self.size)

    def field(self, params: Params) -> Field:
        return params

    def linear_part(self, params: Params) -> Array:
        return params

    def shift_linear(self, params: Params, v: Array) -> Params:
        return params + v

    def inner(self, field: Field, x: Event) -> Array:
        # Not a dot of both: accelerators would round its operands.
        return total(at_least_float32(field) * self.linear_statistic(x))

    def value_at(self, index: Array, dtype: Any) -> Array:
        if self.num_values is None:
            return super().value_at(index, dtype)
        return index.astype(dtype)

    def value_index(self, x: Event) -> Array:
        if self.num_values is None:
            return super().value_index(x)
        return x.astype(int)

    def value_scores(self, slope: Array) -> Array:
        if self.num_values is None:
            return super().value_scores(slope)
        return slope[:, None] * self.value_at(jnp.arange(self.num_values), slope.dtype)
