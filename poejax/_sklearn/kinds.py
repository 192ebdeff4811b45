"""The kinds of visible units that the scikit-learn face speaks: what its rows mean to a model."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from poejax import inference, models
from poejax._product import Product, log_densities
from poejax.types import Array, Event, Params, PyTree

Matrix = npt.NDArray[Any]
Preprocess = Callable[[Array, Array], Event]

KINDS = ("bernoulli", "gaussian", "categorical")

_ROUNDING = 8  # units in the last place, by which scalers miss the ends of their range


class Kind(abc.ABC):
    """Rows of a user's matrix [N, D] as rows to learn from, as events, and back.

    Rows to learn from may be probabilities or codes, which `preprocess` turns into events.
    """

    preprocess: Preprocess | None = None

    @abc.abstractmethod
    def rows(self, x: Matrix) -> Matrix:
        """Return what is learned from, or raise where `x` is none of this kind."""

    @abc.abstractmethod
    def events(self, x: Matrix) -> Array:
        """Return the events [N, ...] that are scored; nothing is drawn."""

    @abc.abstractmethod
    def restore(self, events: Event) -> Matrix:
        """Return events in the user's units, [N, D]."""

    @abc.abstractmethod
    def mean_field(self, x: Matrix) -> Array:
        """Return what the hidden units' means are taken of, [N, ...]."""

    @abc.abstractmethod
    def fill(self, rng_key: Array, model: Product, params: Params, x: Matrix) -> Matrix:
        """Return rows with posterior means, or likeliest codes, where `x` is missing."""

    def field(self, model: Product, rows: Matrix, weights: Any) -> Params:
        """Return the visible bias of the base rates of rows [N, D], weighted or not."""
        return model.visible.fit_field(rows, smoothing=0.01, weights=weights)

    def missing(self, x: Matrix) -> Matrix:
        """Return where `x` is missing."""
        return np.isnan(x)


@dataclasses.dataclass(frozen=True)
class Bits(Kind):
    """Probabilities in [0, 1], drawn anew for every batch, or reals cut at a threshold."""

    threshold: float | None

    @property
    def preprocess(self) -> Preprocess:  # type: ignore[override]
        return _draw

    def rows(self, x: Matrix) -> Matrix:
        if self.threshold is not None:
            return (x > self.threshold).astype(x.dtype)
        low, high, slack = x.min(), x.max(), _ROUNDING * np.finfo(x.dtype).eps
        if low < -slack or high > 1 + slack:
            raise ValueError(
                "X: expected probabilities in [0, 1] with binarize='sample', got values in "
                f"[{low:g}, {high:g}]; scale them, or pass binarize='threshold'"
            )
        return np.clip(x, 0, 1) if low < 0 or high > 1 else x

    def mean_field(self, x: Matrix) -> Array:
        return jnp.asarray(self.rows(x), jnp.result_type(float))

    def events(self, x: Matrix) -> Array:
        return jnp.asarray(self.rows(x) > 0.5, jnp.result_type(float))

    def restore(self, events: Event) -> Matrix:
        return np.asarray(events)

    def fill(self, rng_key: Array, model: Product, params: Params, x: Matrix) -> Matrix:
        missing = self.missing(x)
        bits = self.events(np.where(missing, 0, x))
        found = inference.inpaint(rng_key, model, params, bits, ~missing).mean
        return np.where(missing, np.asarray(found, x.dtype), x)


@dataclasses.dataclass(frozen=True)
class Codes(Kind):
    """Codes 0 ... C - 1, one-hot inside the model."""

    num_classes: int

    @property
    def preprocess(self) -> Preprocess:  # type: ignore[override]
        return _one_hot(self.num_classes)

    def field(self, model: Product, rows: Matrix, weights: Any) -> Params:
        rates = [np.average(rows == c, axis=0, weights=weights) for c in range(self.num_classes)]
        return model.visible.fit_field(np.stack(rates, axis=-1)[None], smoothing=0.01)

    def rows(self, x: Matrix) -> Matrix:
        whole = x == np.round(x)
        if not (whole & (x >= 0) & (x < self.num_classes)).all():
            place = np.unravel_index(np.argmin(whole & (x >= 0) & (x < self.num_classes)), x.shape)
            raise ValueError(
                f"X: expected codes 0 to {self.num_classes - 1}, got {x[place]:g} in row "
                f"{place[0]}, column {place[1]}; pass num_classes if the data fitted did not hold "
                "all codes"
            )
        return x.astype(np.int32)

    def mean_field(self, x: Matrix) -> Array:
        return self.events(x)

    def events(self, x: Matrix) -> Array:
        return jax.nn.one_hot(self.rows(x), self.num_classes, dtype=jnp.result_type(float))

    def restore(self, events: Event) -> Matrix:
        return np.argmax(np.asarray(events), axis=-1)

    def missing(self, x: Matrix) -> Matrix:
        return np.isnan(x) | (x == -1)

    def fill(self, rng_key: Array, model: Product, params: Params, x: Matrix) -> Matrix:
        missing = self.missing(x)
        codes = np.where(missing, 0, x)
        found = inference.inpaint(rng_key, model, params, self.events(codes), ~missing).mean
        return np.where(missing, self.restore(found), codes).astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Reals(Kind):
    """Real numbers; the model is in coordinates of the data, taken and left on the host."""

    coordinates: PyTree

    def rows(self, x: Matrix) -> Matrix:
        visible = models.gaussian_rbm(x.shape[1], 1).visible
        y = np.asarray(visible.standardize_rows(self.coordinates, x))
        if not np.isfinite(y).all():
            row, column = np.argwhere(~np.isfinite(y))[0]
            raise ValueError(
                f"X: expected values near those fitted, got {x[row, column]:g} in row {row}"
            )
        return y

    def mean_field(self, x: Matrix) -> Array:
        return self.events(x)

    def events(self, x: Matrix) -> Array:
        return jnp.asarray(self.rows(x))

    def restore(self, events: Event) -> Matrix:
        # In float64: far from zero, float32 would round away what tells samples apart.
        origin, scale = (np.asarray(self.coordinates[k], float) for k in ("origin", "scale"))
        y = np.asarray(events, float)
        return origin + (scale * y if scale.ndim == 1 else y @ scale.T)

    def fill(self, rng_key: Array, model: Product, params: Params, x: Matrix) -> Matrix:
        missing = self.missing(x)
        origin = np.asarray(self.coordinates["origin"], float)
        centred = jnp.asarray(np.where(missing, 0, x - origin), jnp.result_type(float))
        about = self.coordinates | {"origin": jnp.zeros_like(self.coordinates["origin"])}
        params = params | {"coordinates": about}
        found = inference.inpaint(rng_key, model, params, centred, ~missing).mean
        return np.where(missing, origin + np.asarray(found, float), x).astype(x.dtype)

    def log_densities(self, model: Product, params: Params, x: Matrix) -> Matrix:
        """Return unnormalised log densities in the user's units, [N]."""
        found = log_densities(model, params, self.events(x))
        return np.asarray(found, float) - float(model.visible.log_volume(self.coordinates))


def _draw(rng_key: Array, probabilities: Array) -> Array:
    return jax.random.bernoulli(rng_key, probabilities).astype(jnp.result_type(float))


@functools.lru_cache
def _one_hot(num_classes: int) -> Preprocess:
    def encode(rng_key: Array, codes: Array) -> Array:
        del rng_key
        return jax.nn.one_hot(codes, num_classes, dtype=jnp.result_type(float))

    return encode
