"""Noise processes as experts: p(y | x), read as a function of x, is one more factor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax._numerics import at_least_float32
from poejax.types import Array, Event, Params
from poejax.units import Unit

NoiseT = TypeVar("NoiseT")


class Noise(Protocol):
    """A process that damages events, known well enough to be undone; a registered pytree."""

    def corrupt(self, rng_key: Array, visible: Unit, x: Event) -> Event:
        """Draw a damaged event y ~ p(y | x)."""
        ...

    def field(self, visible: Unit, y: Event) -> Params:
        """Return free parameters of the field that p(y | x) adds to the visible units."""
        ...


def _registered(cls: type[NoiseT]) -> type[NoiseT]:
    """Register a noise of one number with JAX; only users' own calls check what they are given."""
    (field,) = (f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]

    def unflatten(_: None, leaves: Iterable[Any]) -> NoiseT:
        noise = object.__new__(cls)
        object.__setattr__(noise, field, *leaves)
        return noise

    jax.tree_util.register_pytree_with_keys(
        cls,
        lambda noise: (((jax.tree_util.GetAttrKey(field), getattr(noise, field)),), None),
        unflatten,
    )
    return cls


@_registered
@dataclasses.dataclass(frozen=True)
class BitFlips:
    """Every discrete unit independently takes another value with probability `rate`.

    log p(y | x) = const + Σ_i [x_i = y_i] log((1 - ε)(C - 1) / ε), C values per unit: for binary
    units the field of unit i is ±log((1 - ε) / ε).

    Args:
      rate: ε in (0, 1), [].
    """

    rate: Array | float

    def __post_init__(self) -> None:
        _open_interval("rate", self.rate, 0.0, 1.0)

    def corrupt(self, rng_key: Array, visible: Unit, x: Event) -> Event:
        """Draw y: each unit of one event flipped with probability `rate`."""
        visible.check("x", jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], x))
        return visible.each_block(self._corrupt_block, visible.block_keys(rng_key), x)

    def field(self, visible: Unit, y: Event) -> Params:
        """Return the field, shaped as that of a Bias."""
        return visible.each_block(self._block_field, y)

    def _corrupt_block(self, unit: Unit, rng_key: Array, x: Event) -> Event:
        num_values = self._num_values(unit)
        flip_key, value_key = jax.random.split(rng_key)
        x = unit.linear_statistic(x).reshape(jnp.shape(x))
        rate = at_least_float32(jnp.asarray(self.rate))
        flip = jax.random.bernoulli(flip_key, rate, (unit.num_sites,))
        # A step of 1 to C - 1 along the ring of values: any other, each as likely.
        step = jnp.ones(flip.shape, int)
        if num_values > 2:
            step = jax.random.randint(value_key, flip.shape, 1, num_values)
        other = unit.value_at((unit.value_index(x) + step) % num_values, x.dtype)
        return unit.select(~flip, x, other)

    def _block_field(self, unit: Unit, y: Event) -> Params:
        num_values = self._num_values(unit)
        rate = jnp.asarray(self.rate, jnp.result_type(float))
        log_odds = jnp.log1p(-rate) - jnp.log(rate)
        if num_values > 2:
            log_odds = log_odds + jnp.log(num_values - 1.0)
        y = unit.linear_statistic(y).reshape(jnp.shape(y))
        field = unit.value_field(y, log_odds)
        if field is None:
            raise ValueError(
                f"noise: BitFlips expects units whose fields single out a value, got {unit}"
            )
        return field

    def _num_values(self, unit: Unit) -> int:
        if unit.num_values is None:
            raise ValueError(f"noise: BitFlips expects discrete units of few values, got {unit}")
        return unit.num_values


@_registered
@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """Independent Gaussian noise of standard deviation `scale` on every real unit.

    log p(y | x) = const - |y - x|² / (2 σ²): linear field y / σ², precision 1 / σ².

    Args:
      scale: σ > 0, in units of x, [].
    """

    scale: Array | float

    def __post_init__(self) -> None:
        _open_interval("scale", self.scale, 0.0, jnp.inf)

    def corrupt(self, rng_key: Array, visible: Unit, x: Event) -> Event:
        """Draw y: one event plus noise."""
        return visible.each_block(self._corrupt_block, visible.block_keys(rng_key), x)

    def field(self, visible: Unit, y: Event) -> Params:
        """Return the field, shaped as that of a Bias."""
        field = visible.normal_field(y, jnp.log(jnp.asarray(self.scale, jnp.result_type(float))))
        if field is None:
            raise _not_real(visible)
        return field

    def _corrupt_block(self, unit: Unit, rng_key: Array, x: Event) -> Event:
        if not unit.is_quadratic:
            raise _not_real(unit)
        x = unit.linear_statistic(x)
        return x + self.scale * jax.random.normal(rng_key, x.shape, x.dtype)


def _not_real(visible: Unit) -> ValueError:
    return ValueError(f"noise: GaussianNoise expects real visible units, got {visible}")


def _open_interval(name: str, value: Any, low: float, high: float) -> None:
    if not _checks.is_real(value):
        raise TypeError(f"{name}: expected one number in ({low:g}, {high:g}), got {value!r}")
    if _checks.is_concrete(value) and not low < float(value) < high:
        raise ValueError(f"{name}: expected a number in ({low:g}, {high:g}), got {value}")
