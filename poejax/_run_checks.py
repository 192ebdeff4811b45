"""What a training run looks at before anything compiles: its rule, its data, all rows of them."""

from __future__ import annotations

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
_FAR, _LOOKED_AT = 30.0, 8_192


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


def require_spread(name: str, visible: Unit, x: PyTree) -> None:
    """Raise if a column of real units is constant over the rows and sites that are learned from."""
    visible.check_spread(*_learned(name, visible, x))


def warn_of_far(name: str, visible: Unit, x: PyTree) -> None:
    """Warn of real columns that lie far from the standard normal where `Product.init` starts."""
    name, x = _learned(name, visible, x)
    if not _checks.is_concrete(x):
        return

    def far(unit: Unit, rows: Array) -> str | None:
        if not unit.is_quadratic:
            return None
        some = _meshes.to_host(rows[:_LOOKED_AT], float)
        with warnings.catch_warnings(action="ignore"):  # of columns that none of these rows show
            mean, spread = np.nanmean(some, axis=0), np.nanstd(some, axis=0)
        distance = np.abs(np.log(np.maximum(np.hypot(mean, spread), np.finfo(float).tiny)))
        column = int(np.nanargmax(distance))
        is_near = distance[column] <= np.log(_FAR)
        return (
            None if is_near else f"{mean[column]:.3g} and standard deviation {spread[column]:.3g}"
        )

    for found in jax.tree.leaves(visible.each_block(far, x)):
        warnings.warn(
            f"{name}: expected real columns near a standard normal, where model.init starts, "
            f"got one of mean {found}; pass params=model.init_from(rng_key, data), which sets "
            "coordinates near the data",
            UserWarning,
            stacklevel=6,
        )


def _learned(name: str, visible: Unit, x: PyTree) -> tuple[str, PyTree]:
    """Return the rows that count, NaN where nothing was observed, and their name."""
    x, weights = _checks.split_weights(name, x)
    if weights is not None and _checks.is_concrete(x, weights):
        name, counts = f"{name}.x", _meshes.to_host(weights) > 0
        x = jax.tree.map(lambda leaf: leaf[counts], x)
    if isinstance(x, Incomplete):
        blank = jax.tree.map(lambda leaf: jnp.full_like(leaf[0], jnp.nan, dtype=float), x.x)
        name, x = f"{name}.x", jax.vmap(visible.select, (0, 0, None))(x.observed, x.x, blank)
    return name, x
