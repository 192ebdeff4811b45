"""Errors raised before anything compiles: each names argument, expectation and what came."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _foreign, _meshes, _parts
from poejax._numerics import relative_weights
from poejax.types import Weighted


def is_concrete(*trees: Any) -> bool:
    """Whether every leaf holds values that the host can look at (no tracer, no abstract shape)."""
    return not any(_border.is_abstract(leaf) for leaf in jax.tree.leaves(trees))


def positive_int(name: str, value: Any) -> int:
    """Return `value` if it is an integer of at least one."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    return int(value)


def is_real(value: Any) -> bool:
    """Whether `value` is one real number, of Python or in an array, traced or not."""
    if hasattr(value, "dtype"):
        real = (jnp.floating, jnp.integer)
        return any(jnp.issubdtype(value.dtype, kind) for kind in real) and jnp.shape(value) == ()
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def fraction(name: str, value: float) -> float:
    """Return `value` if it lies in [0, 1)."""
    if not is_real(value) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")
    return float(value)


def abstract_key() -> Any:
    """Return the shape of a key, for `jax.eval_shape`: making a key would move data to a device."""
    return jax.eval_shape(lambda: jax.random.key(0))


def rng_key(name: str, value: Any) -> None:
    """Require one typed key, `jax.random.key(seed)`."""
    if not (hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)):
        raise TypeError(
            f"{name}: expected a typed key from jax.random.key(seed), got {describe(value)}"
        )
    if value.shape != ():
        raise ValueError(f"{name}: expected one key, got keys of shape {value.shape}")


def shape(name: str, value: Any, expected: tuple[int, ...], owner: Any) -> None:
    """Require the exact shape of one event."""
    found = jnp.shape(value)
    if found != expected:
        hint = ""
        if found[-len(expected) :] == expected and len(found) > len(expected):
            hint = "; functions take one event, use jax.vmap for a batch"
        raise ValueError(f"{name}: expected shape {expected} for {owner}, got {found}{hint}")


def leading_axis(name: str, tree: Any) -> int:
    """Return the common, non-zero length of the leading axis of all leaves."""
    if isinstance(tree, list):
        raise TypeError(f"{name}: expected an array, got a list; use numpy.asarray")
    if tree is None or isinstance(tree, str):
        raise TypeError(f"{name}: expected an array, got {_foreign.kind(tree)}")
    _meshes.require_auto(name, tree)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    lengths = {s[0] if s else None for s in shapes}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(f"{name}: expected arrays with one common leading axis, got {shapes}")
    (length,) = lengths
    if length == 0:
        raise ValueError(f"{name}: expected at least one row, got an empty batch of shape {shapes}")
    found: Any = length  # or the symbol of a length that jax.export leaves open
    return found


def one_row_per_chain(name: str, tree: Any, num_chains: int) -> None:
    """Require a leading axis of length `num_chains`."""
    if (found := leading_axis(name, tree)) != num_chains:
        raise ValueError(f"{name}: expected {num_chains} rows, one per chain, got {found}")


def split_weights(name: str, data: Any) -> tuple[Any, Any]:
    """Return rows and weights [N], None unless `data` are Weighted; weights are checked."""
    if not isinstance(data, Weighted):
        return data, None
    num_rows = leading_axis(f"{name}.x", data.x)
    if jnp.shape(data.weights) != (num_rows,):
        shape = jnp.shape(data.weights)
        raise ValueError(f"{name}.weights: expected shape {(num_rows,)}, got {shape}")
    if is_concrete(data.weights):
        host = _meshes.to_host(data.weights)
        bad = ~np.isfinite(host) | (host < 0)
        if bad.any() or not (host.any() or _parts.is_few()):
            row = int(bad.argmax())
            found = f"{host[row]} in row {_parts.number(row)}" if bad.any() else "zeros"
            raise ValueError(
                f"{name}.weights: expected finite numbers >= 0, not all zero, got {found}"
            )
    return data.x, relative_weights(data.weights)


def counting(rows: Any, weights: Any) -> np.ndarray | None:
    """Return which rows have a weight other than 0, [N], where the host can tell; None for all."""
    if weights is None or not is_concrete(rows, weights):
        return None
    counts: np.ndarray = _meshes.to_host(weights) > 0
    return None if counts.all() else counts


def counted(rows: Any, weights: Any) -> Any:
    """Return the rows [N, ...] whose weight is not 0, where the host can tell."""
    counts = counting(rows, weights)
    return rows if counts is None else jax.tree.map(lambda leaf: leaf[counts], rows)


def with_relative_weights(data: Any) -> Any:
    """Return `data`, if Weighted with weights that can be added up."""
    if not isinstance(data, Weighted):
        return data
    return data._replace(weights=relative_weights(data.weights))


def finite(name: str, tree: Any) -> None:
    """Require finite values in every leaf that the host can look at; quote the first that is not.

    Of batches of events `_border.finite` also says in which row it stands.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_concrete(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        if (place := _border.first_failure(leaf, _border.is_finite)) is not None:
            where = f" at {list(_border.in_source(place))}" if place else ""
            raise ValueError(
                f"{name}{leaf_name(path)}: expected finite values, got "
                f"{_border.entry(leaf, place)}{where}"
            )


def same_structure(name: str, tree: Any, expected: Any, optional: tuple[str, ...]) -> None:
    """Require the leaves of `expected` with their shapes, and none but those called `optional`."""
    found_leaves, expected_leaves = _shapes(tree), _shapes(expected)
    for path in sorted(expected_leaves.keys() - found_leaves.keys()):
        wanted = expected_leaves[path]
        raise ValueError(f"{name}: expected a leaf {path} of shape {wanted}, got none")
    for path in sorted(found_leaves.keys() - expected_leaves.keys()):
        if not any(path.endswith(f"[{leaf!r}]") for leaf in optional):
            raise ValueError(f"{name}: got a leaf {path} that this model does not have")
    for path, wanted in expected_leaves.items():
        if found_leaves[path] != wanted:
            raise ValueError(f"{name}{path}: expected shape {wanted}, got {found_leaves[path]}")


def model(name: str, value: Any) -> None:
    """Require a product of experts."""
    if isinstance(value, type) or not (hasattr(value, "visible") and hasattr(value, "experts")):
        raise TypeError(f"{name}: expected a product of experts, got {describe(value)}")


def estimator(name: str, value: Any) -> None:
    """Require an estimator of gradients."""
    if isinstance(value, type) or not (hasattr(value, "grad") and hasattr(value, "init")):
        raise TypeError(
            f"{name}: expected an estimator such as pcd(model, 100), got {describe(value)}"
        )


def learned_model(estimator: Any) -> Any:
    """Return the model of an estimator, None if it learns something else."""
    return getattr(estimator, "model", None)


def own_rows(estimator: Any) -> Callable[[str, Any], None] | None:
    """Return an estimator's check of its rows, None if they are events of its model."""
    return getattr(estimator, "check_data", None)


def kernel(name: str, value: Any) -> None:
    """Require a transition kernel."""
    if isinstance(value, type) or not (hasattr(value, "step") and hasattr(value, "init")):
        raise TypeError(
            f"{name}: expected a kernel such as kernels.block_gibbs(model), got {describe(value)}"
        )


def is_hashable(value: Any) -> bool:
    """Whether a value can be hashed, with all that it holds."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def floating_params(name: str, tree: Any) -> None:
    """Require leaves that JAX takes as they are, floating but for those that set something."""
    _meshes.require_auto(name, tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where = name + leaf_name(path)
        if isinstance(leaf, (int, float)) or leaf_name(path).endswith(("['beta']", "['present']")):
            continue
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
            raise TypeError(
                f"{where}: expected an array of JAX or NumPy, got {_foreign.kind(leaf)}"
            )
        if not leaf.dtype.isnative or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{where}: expected a floating dtype, got {leaf.dtype}")


def kernel_of(name: str, value: Any, model: Any, alone: bool = False) -> None:
    """Require None or a kernel of a model, that leaves the law of x alone invariant if `alone`."""
    if value is None:
        return
    kernel(name, value)
    if alone:
        law_of_event(name, value)
    if not dataclasses.is_dataclass(value) or not is_hashable(value):
        raise TypeError(
            f"{name}: expected a frozen dataclass with a field model, all of whose fields can be "
            f"hashed, got {describe(value)}"
        )
    if getattr(value, "model", None) != model:
        raise ValueError(
            f"{name}: expected a kernel of the model itself, such as kernels.block_gibbs(model), "
            f"got one of {getattr(value, 'model', None)}"
        )


def law_of_event(name: str, kernel: Any) -> None:
    """Require a kernel that leaves the law of x alone invariant, not that of x and of replicas."""
    if getattr(kernel, "has_replicas", False):
        raise ValueError(
            f"{name}: expected a kernel that leaves the law of x alone invariant, such as block "
            f"Gibbs, got {type(kernel).__name__}, whose replicas would lag behind a model that "
            "changes under them, or an event that is put in their midst"
        )


def leaf_name(path: Any) -> str:
    """Return the path of a leaf as it would be written in Python, e.g. ['hidden']['w']."""
    return jax.tree_util.keystr(path)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): jnp.shape(leaf) for path, leaf in leaves}


def describe(value: Any) -> str:
    """Say what came where something else was expected; never all that an array or tree holds."""
    if hasattr(value, "dtype"):
        return f"an array of dtype {value.dtype} and shape {value.shape}"
    if value is None or isinstance(value, (str, bytes, numbers.Number)):
        return repr(value)
    if callable(value) and hasattr(value, "__name__") and not isinstance(value, type):
        return f"the function {value.__name__}"
    return _foreign.kind(value)
