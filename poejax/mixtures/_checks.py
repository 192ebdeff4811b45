"""What the fits of mixtures require of their arguments, before anything compiles."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _meshes
from poejax.mixtures import _frame as frame
from poejax.types import Array

_MAX_ROW_SUM_ERROR = 1e-3


def fit(
    rng_key: Array,
    x: Any,
    name: str,
    num_components: int,
    max_steps: int,
    num_restarts: int,
    weights: Any,
) -> Any:
    """Require a key, a finite non-empty batch [N, D] and no more components than rows.

    Returns the batch as `frame.rows` gives it.
    """
    _checks.rng_key("rng_key", rng_key)
    x = frame.rows(x)
    if len(x.shape) != 2 or 0 in x.shape:
        raise ValueError(f"x: expected a non-empty batch [N, D], got shape {x.shape}")
    _border.finite("x", x)
    if _checks.positive_int(name, num_components) > len(x):
        raise ValueError(f"{name}: expected at most the {len(x)} rows of x, got {num_components}")
    _checks.positive_int("max_steps", max_steps)
    _checks.positive_int("num_restarts", num_restarts)
    if weights is not None and _checks.is_concrete(weights):
        _check_weights(weights, len(x), name, num_components)
    return x


def counted(rows: Any, weights: Any) -> tuple[Any, Any, Any]:
    """Return the rows whose weight is not 0, their weights, and which they are, None for all.

    The others are to be as none, and no frame is to be measured by them.
    """
    if weights is None or not isinstance(rows, np.ndarray):
        return rows, weights, None
    weights = _border.array("weights", weights)
    counts = _checks.counting(rows, weights)
    if counts is None:
        return rows, weights, None
    return rows[counts], _meshes.to_host(weights)[counts], counts


def mean_one(weights: Any, dtype: Any) -> tuple[Any, Any]:
    """Return weights of mean 1 and the mean they had; None and 1 for none."""
    if weights is None:
        return None, 1.0
    if _checks.is_concrete(weights):
        host = _meshes.to_host(_border.array("weights", weights), np.float64)
        largest = host.max()
        mean = (host / largest).mean()
        return (host / largest / mean).astype(dtype), largest * mean
    weights = jnp.asarray(weights, dtype)
    return weights / weights.mean(), weights.mean()


def start(
    init: str | Array, params: Any, num_rows: int, num_components: int, num_restarts: int
) -> tuple[str, Array | None]:
    """Split `init` into the name of a start and given responsibilities, and check both."""
    named = isinstance(init, str)
    if isinstance(init, str) and init not in ("kmeans++", "kmeans"):
        raise ValueError(
            f'init: expected "kmeans++", "kmeans" or responsibilities [N, K], got {init!r}'
        )
    if not isinstance(init, str):
        responsibilities("init", init, num_rows, num_components)
        if params is not None:
            raise ValueError("init: expected a name beside params, got responsibilities")
    if num_restarts > 1 and (params is not None or not named):
        raise ValueError(
            f"num_restarts: expected 1 when the start is given, got {num_restarts}; all restarts "
            "would be the same"
        )
    return (init, None) if isinstance(init, str) else ("responsibilities", init)


def responsibilities(name: str, value: Array, num_rows: int, num_components: int) -> None:
    """Require [N, K] and, of values that are not traced, that each row is a distribution."""
    _checks.shape(name, value, (num_rows, num_components), "N rows and K components")
    _checks.finite(name, value)
    if _checks.is_concrete(value):
        host = _meshes.to_host(value)
        error = np.abs(host.sum(axis=1) - 1).max()
        if host.min() < 0 or error > _MAX_ROW_SUM_ERROR:
            raise ValueError(f"{name}: expected non-negative rows of sum 1, got others")


def params(params: Any, kind: type[Any], **shapes: tuple[int, ...]) -> None:
    """Require a start of that kind, of these shapes, with finite values and weights of sum 1."""
    if not isinstance(params, kind):
        raise ValueError(f"params: expected {kind.__name__}, got {type(params).__name__}")
    for name, shape in shapes.items():
        _checks.shape(
            f"params.{name}", getattr(params, name), shape, "this data and num_components"
        )
    _checks.finite("params", params)
    if _checks.is_concrete(params):
        total = float(np.exp(_meshes.to_host(params.log_weights, np.float64)).sum())
        if abs(total - 1) > _MAX_ROW_SUM_ERROR:
            raise ValueError(f"params.log_weights: expected weights of sum 1, got {total:.6g}")


def non_negative(name: str, value: float) -> None:
    """Require a finite number >= 0."""
    if not _checks.is_real(value):
        raise TypeError(f"{name}: expected one number, got {_checks.describe(value)}")
    if _checks.is_concrete(value) and not 0 <= float(value) < float("inf"):
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")


def _check_weights(weights: Any, num_rows: int, name: str, num_components: int) -> None:
    weights = _border.array("weights", weights)
    _checks.shape("weights", weights, (num_rows,), f"{num_rows} rows of x")
    host = _meshes.to_host(weights, np.float64)
    wrong = np.flatnonzero(~(host >= 0) | ~np.isfinite(host))
    if len(wrong):
        row = wrong[0]
        raise ValueError(f"weights: expected finite numbers >= 0, got {host[row]} in row {row}")
    count = np.count_nonzero(host)
    if count == 0:
        raise ValueError("weights: expected one above 0, got none")
    if num_components > count:
        raise ValueError(
            f"{name}: expected at most the {count} rows of x of a weight above 0, got "
            f"{num_components}"
        )
