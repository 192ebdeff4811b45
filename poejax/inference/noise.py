"""Noise processes as experts: p(y | x), read as a function of x, is one more factor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax.types import Array, Event, Params
from poejax.units import Bernoulli, Categorical, Gaussian, GaussianDiag, Joint, Spin, Unit

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
        if isinstance(visible, Joint):
            return _corrupt_blocks(self, rng_key, visible, x)
        visible.check("x", jnp.asarray(x)[None])
        flip_key, value_key = jax.random.split(rng_key)
        _require_units("BitFlips", "discrete", visible, (Bernoulli, Spin, Categorical))
        x = visible.linear_statistic(x).reshape(jnp.shape(x))
        flip = jax.random.bernoulli(flip_key, self.rate, (visible.num_sites,))
        if isinstance(visible, Bernoulli):
            return jnp.where(flip, 1 - x, x)
        if isinstance(visible, Spin):
            return jnp.where(flip, -x, x)
        assert isinstance(visible, Categorical)
        # A step of 1 to C - 1 along the ring of classes: any other, each as likely.
        step = jax.random.randint(value_key, flip.shape, 1, visible.num_classes)
        rolled = jax.vmap(jnp.roll)(x, step)
        return jnp.where(flip[:, None], rolled, x)

    def field(self, visible: Unit, y: Event) -> Params:
        """Return the field, shaped as that of a Bias."""
        if isinstance(visible, Joint):
            return {name: self.field(unit, y[name]) for name, unit in visible.items}
        rate = jnp.asarray(self.rate, jnp.result_type(float))
        log_odds = jnp.log1p(-rate) - jnp.log(rate)
        _require_units("BitFlips", "discrete", visible, (Bernoulli, Spin, Categorical))
        y = visible.linear_statistic(y).reshape(jnp.shape(y))
        if isinstance(visible, Bernoulli):
            return (2 * y - 1) * log_odds
        if isinstance(visible, Spin):
            return 0.5 * y * log_odds
        assert isinstance(visible, Categorical)
        return y * (log_odds + jnp.log(visible.num_classes - 1.0))


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
        if isinstance(visible, Joint):
            return _corrupt_blocks(self, rng_key, visible, x)
        _require_units("GaussianNoise", "real visible", visible, (GaussianDiag, Gaussian))
        x = visible.linear_statistic(x)
        return x + self.scale * jax.random.normal(rng_key, x.shape, x.dtype)

    def field(self, visible: Unit, y: Event) -> Params:
        """Return the field, shaped as that of a Bias."""
        if isinstance(visible, Joint):
            return {name: self.field(unit, y[name]) for name, unit in visible.items}
        _require_units("GaussianNoise", "real visible", visible, (GaussianDiag, Gaussian))
        log_scale = jnp.log(jnp.asarray(self.scale, jnp.result_type(float)))
        y = visible.linear_statistic(y)
        params = visible.init_field()
        # Times the very numbers that the field's mean is divided by, so that it is y to the last
        # digit, which is what counts where y is far from zero.
        if isinstance(visible, GaussianDiag):
            log_precision = params["log_precision"] - 2 * log_scale
            return params | {"linear": y * jnp.exp(log_precision), "log_precision": log_precision}
        log_diagonal = params["log_diagonal"] - log_scale
        root = jnp.exp(log_diagonal)
        return params | {"linear": y * root * root, "log_diagonal": log_diagonal}


def _corrupt_blocks(noise: Noise, rng_key: Array, visible: Joint, x: Event) -> Event:
    keys = jax.random.split(rng_key, len(visible.items))
    return {
        name: noise.corrupt(key, unit, x[name])
        for key, (name, unit) in zip(keys, visible.items, strict=True)
    }


def _require_units(noise: str, expected: str, visible: Unit, kinds: tuple[type, ...]) -> None:
    if not isinstance(visible, kinds):
        raise ValueError(f"noise: {noise} expects {expected} units, got {visible}")


def _open_interval(name: str, value: Any, low: float, high: float) -> None:
    if not _checks.is_real(value):
        raise TypeError(f"{name}: expected one number in ({low:g}, {high:g}), got {value!r}")
    if _checks.is_concrete(value) and not low < float(value) < high:
        raise ValueError(f"{name}: expected a number in ({low:g}, {high:g}), got {value}")
