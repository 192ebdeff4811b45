"""What `training` looks at before it compiles a step, and after one has been taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _optimizers
from poejax.estimators.missing import Incomplete
from poejax.product import Product, split_coordinates
from poejax.types import Array, Estimator, Params, PyTree
from poejax.units import Unit

Preprocess = Callable[[Array, PyTree], PyTree]


def refuse_settings(model: Product, params: Params) -> None:
    """Raise if `params` hold leaves that set a temperature or leave an expert out."""
    trained = jax.eval_shape(model.init, jax.random.key(0))
    if len(jax.tree.leaves(split_coordinates(params)[0])) != len(jax.tree.leaves(trained)):
        raise ValueError(
            "params: expected parameters as `model.init` gives them, got some with a leaf 'beta' "
            "or 'present', which the optimizer would change; temper or mask after training"
        )


def check_rule(estimator: Any, tx: Any, preprocess: Any) -> None:
    """Raise TypeError unless these are an estimator, an optimizer and a function or None."""
    _checks.estimator("estimator", estimator)
    _optimizers.check(tx)
    if preprocess is not None and not callable(preprocess):
        raise TypeError(
            "preprocess: expected a function (rng_key, rows) -> events, got "
            f"{_checks.describe(preprocess)}"
        )


def check_rows(preprocess: Preprocess | None, data: PyTree) -> None:
    """Let `preprocess` look at all rows, if it has a check of them."""
    if (check := getattr(preprocess, "check", None)) is not None:
        _border.once(data, preprocess, lambda: check("data", data))


def check_events(
    estimator: Estimator,
    model: Product,
    preprocess: Preprocess | None,
    data: PyTree,
    events: Callable[[], PyTree],
) -> None:
    """Raise unless all rows of `data` are, or become, what the estimator takes."""
    # Estimators whose data are more than events check them themselves.
    check = getattr(estimator, "check_data", model.visible.check)
    whose = estimator if hasattr(estimator, "check_data") else model.visible
    name = "data" if preprocess is None else "preprocess(data)"
    _border.once(data, (whose, preprocess), lambda: check(name, events()))


def is_unchecked(estimator: Estimator, preprocess: Preprocess | None) -> bool:
    """Whether nobody has looked at the rows that become complete events."""
    is_checked = preprocess is None or hasattr(preprocess, "check")
    return not is_checked and not hasattr(estimator, "check_data")


def are_finite(tree: PyTree) -> Array:
    """Whether each leaf is finite, [number of leaves]."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])


def is_on_device(data: PyTree) -> bool:
    """Whether all leaves are arrays of JAX, which nobody can change."""
    return all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(data))


def check_spread(name: str, visible: Unit, x: PyTree) -> None:
    """Raise if real units do not vary in some direction, over the rows where they were seen."""
    if isinstance(x, Incomplete):
        blank = jax.tree.map(lambda leaf: jnp.full_like(leaf[0], jnp.nan, dtype=float), x.x)
        seen = jax.vmap(lambda mask, event: visible.select(mask, event, blank))
        name, x = f"{name}.x", seen(x.observed, x.x)
    visible.check_spread(name, x)


def require_finite(state: Any, finite: np.ndarray) -> None:
    """Raise at the first step, from `state` on, with a leaf that is not finite, [T, leaves]."""
    if finite.all():
        return
    step, leaf = np.argwhere(~finite)[0].tolist()
    trained, _ = split_coordinates(state.params)
    paths = jax.tree_util.tree_leaves_with_path({"gradient": trained})
    paths += jax.tree_util.tree_leaves_with_path({"parameter": trained})
    number = int(state.step) + step + 1
    # Events come first, where they are watched: the rest follows from them.
    num_watched = finite.shape[1] - len(paths)
    if leaf < num_watched:
        raise ValueError(f"preprocess(data): expected finite events, got others at step {number}")
    kind, *rest = paths[leaf - num_watched][0]
    name = f"{kind.key} params{_checks.leaf_name(rest)}"
    raise FloatingPointError(
        f"{name} is not finite at step {number}; the state passed in "
        f"(step {int(state.step)}) is the last good one. Try a smaller learning rate or gradient "
        "clipping."
    )
