"""What a training run looks at before anything compiles: its rule, its data, all rows of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _meshes, _optimizers
from poejax._product import Product, shapes
from poejax.estimators._missing import Incomplete
from poejax.types import Array, Estimator, Event, Params, PyTree, Weighted
from poejax.units import Unit

Preprocess = Callable[[Array, PyTree], Event]
_FAR, _LOOKED_AT = 30.0, 2**20  # times; values


def check_rule(estimator: Any, tx: Any, preprocess: Any) -> None:
    """Raise TypeError unless these are an estimator, an optimizer, and None or a function."""
    _checks.estimator("estimator", estimator)
    _optimizers.check(tx)
    if preprocess is not None and not callable(preprocess):
        raise TypeError(
            "preprocess: expected a function (rng_key, rows) -> events, got "
            f"{_checks.describe(preprocess)}"
        )


def check_settings(model: Product, params: Params) -> None:
    """Raise if `params` hold leaves that set a temperature or leave an expert out."""
    if len(jax.tree.leaves(params)) != len(jax.tree.leaves(shapes(model))):
        raise ValueError(
            "params: expected parameters as `model.init` gives them, got some with a leaf 'beta' "
            "or 'present', which the optimizer would change; temper or mask after training"
        )


def preprocessed(preprocess: Preprocess | None, rng_key: Array, data: PyTree) -> PyTree:
    """Return the events that rows become; weights stay theirs."""
    if preprocess is None:
        return data
    if isinstance(data, Weighted):
        return data._replace(x=preprocess(rng_key, data.x))
    return preprocess(rng_key, data)


def check_rows(preprocess: Preprocess | None, data: PyTree) -> None:
    """Let `preprocess` look at all rows, if it has a check of them."""
    if (check := getattr(preprocess, "check", None)) is not None:
        rows = data.x if isinstance(data, Weighted) else data
        _border.once(rows, preprocess, lambda: check("data", rows))


def check_events(
    estimator: Estimator,
    model: Product | None,
    preprocess: Preprocess | None,
    data: PyTree,
    events: Callable[[], PyTree],
) -> None:
    """Raise unless all rows of `data` are, or become, what the estimator takes."""
    name = "data" if preprocess is None else "preprocess(data)"
    own = _checks.own_rows(estimator)

    def check() -> None:
        if own is not None:
            return own(name, events())
        if model is None:
            return _checks.finite(name, events())
        return model.visible.check(name, _checks.split_weights(name, events())[0])

    visible = None if model is None else model.visible
    _border.once(data, (visible if own is None else estimator, preprocess), check)


def is_unchecked(estimator: Estimator, preprocess: Preprocess | None) -> bool:
    """Whether nobody has looked at the rows that become complete events."""
    is_checked = preprocess is None or hasattr(preprocess, "check")
    return not is_checked and _checks.own_rows(estimator) is None


def learned(name: str, visible: Unit, x: PyTree) -> tuple[str, PyTree]:
    """Return the rows that are learned from, NaN where nothing was observed, and their name."""
    x, weights = _checks.split_weights(name, x)
    if weights is not None and _checks.is_concrete(x, weights):
        name, x = f"{name}.x", _checks.counted(x, weights)
    if isinstance(x, Incomplete):
        blank = jax.tree.map(lambda leaf: jnp.full_like(leaf[0], jnp.nan, dtype=float), x.x)
        name, x = f"{name}.x", jax.vmap(visible.select, (0, 0, None))(x.observed, x.x, blank)
    return name, x


def warn_of_far(name: str, visible: Unit, x: PyTree) -> None:
    """Warn of real columns that lie far from the standard normal where `Product.init` starts.

    So do means or deviations above 30, a block of which none is above 1/30, and means that are more
    than 30 deviations away. Some of the rows are looked at, from all over.
    """
    if not _checks.is_concrete(x):
        return

    def far(unit: Unit, rows: Array) -> str | None:
        if not unit.is_quadratic:
            return None
        with jax.ensure_compile_time_eval():
            some = _meshes.to_host(rows[:: 1 + rows.size // _LOOKED_AT], float)
        with warnings.catch_warnings(action="ignore"):  # of columns that these rows do not show
            mean, spread = np.nanmean(some, axis=0).ravel(), np.nanstd(some, axis=0).ravel()
            # Rounding gives a constant column of float64 a deviation of 1e-17.
            varying = np.flatnonzero(np.nanmax(some, axis=0) > np.nanmin(some, axis=0))
        if not varying.size:
            return None
        mean, spread = mean[varying], spread[varying]
        size = np.hypot(mean, spread)
        times = np.maximum(size if size.max() >= 1 / _FAR else 1 / size, np.abs(mean) / spread)
        worst = int(times.argmax())
        if times[worst] <= _FAR:
            return None
        return (
            f"column {varying[worst]} of mean {mean[worst]:.3g} and deviation {spread[worst]:.3g}"
        )

    found = visible.each_block(far, x)
    for path, column in jax.tree_util.tree_leaves_with_path(found):
        warnings.warn(
            f"{name}{jax.tree_util.keystr(path)}: expected real columns near a standard normal, "
            f"where model.init starts, got {column}; pass params=model.init_from(rng_key, events), "
            "of complete events such as these, which sets coordinates near them",
            UserWarning,
            stacklevel=_outside(),
        )


def _outside() -> int:
    """Return how far up the caller's nearest frame outside of this package is."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("poejax."):
        level, frame = level + 1, frame.f_back
    return level + 1
