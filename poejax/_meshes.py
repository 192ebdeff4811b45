"""Meshes of devices: axes of which kind are taken, and over which an array varies.

Inside `jax.shard_map` the latter matters: of an array that does not vary `jax.grad` takes the sum
of the gradients over the mesh, in silence, so that each member of an ensemble would learn by those
of all; and a loop refuses a carry that begins to vary on its way. Outside of `shard_map`, and where
that does not check what varies (check_vma=False), casts do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


def require_auto(name: str, x: Any) -> None:
    """Raise where an array of JAX is spread over Explicit axes, which would end deep inside JAX."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        # Of Auto axes, and of Manual ones inside shard_map, types say nothing.
        if isinstance(leaf, jax.Array) and any(spec := jax.typeof(leaf).sharding.spec):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: expected an array on one device or on a mesh "
                f"whose axes are Auto, got one over Explicit axes, {spec}; build the mesh by "
                "jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))"
            )


def is_explicit(kind: Any) -> bool:
    """Whether an array's type says how it lies over a mesh, as it does of Explicit axes."""
    return bool(kind.sharding.mesh.explicit_axes)


def is_spread(*trees: Any) -> bool:
    """Whether a leaf is an array with values of which only other processes hold a part."""
    return any(
        isinstance(leaf, jax.Array)
        and not isinstance(leaf, jax.core.Tracer)
        and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
        for leaf in jax.tree.leaves(trees)
    )


def to_host(x: Any, dtype: Any = None) -> np.ndarray:
    """Return an array whole, in NumPy; all processes must call it where it is spread over them."""
    if is_spread(x):
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x, dtype)


def alike(*trees: Any) -> Any:
    """Return the trees with every leaf made to vary over the axes over which any of them does.

    For what is differentiated, together with all that the function depends on. Whoever wants the
    gradient of data that are spread over a mesh takes `jax.lax.pmean` of it.
    """
    if not _is_manual():
        return trees
    axes = frozenset().union(*map(_axes, jax.tree.leaves(trees)))
    return jax.tree.map(lambda leaf: _over(leaf, axes), trees)


def settled(step: Callable[[T], T], start: T) -> T:
    """Return the start of a loop, each leaf made to vary as it does after any number of steps."""
    if not _is_manual():
        return start
    while True:
        before = [_axes(leaf) for leaf in jax.tree.leaves(start)]
        start = jax.tree.map(lambda a, b: _over(a, _axes(b)), start, jax.eval_shape(step, start))
        if before == [_axes(leaf) for leaf in jax.tree.leaves(start)]:
            return start


def _is_manual() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _axes(leaf: Any) -> frozenset[str]:
    # Shapes of eval_shape carry it themselves; JAX has called it `vma` before.
    of = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    kind = getattr(of, "manual_axis_type", None)
    found = getattr(of, "vma", None) if kind is None else kind.varying
    return frozenset(found or ())


def _over(leaf: Any, axes: frozenset[str]) -> Any:
    missing = tuple(sorted(axes - _axes(leaf)))
    return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf
