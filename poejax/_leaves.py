"""The leaves of a tree, described in words that JSON holds, and their data on the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from poejax import _checks, _meshes
from poejax.types import PyTree


def pack(tree: PyTree, allow_nonfinite: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Describe each leaf and bring its data to the host."""
    leaves, table, arrays = named(tree), {}, {}
    keys = {n for n, x in leaves.items() if hasattr(x, "dtype") and spec(x)[1].startswith("key<")}
    hosted = jax.device_get(
        {n: _whole(jax.random.key_data(x) if n in keys else x) for n, x in leaves.items()}
    )
    for name, value in leaves.items():
        data = np.asarray(hosted[name])
        if not (jnp.issubdtype(data.dtype, jnp.number) or data.dtype == bool):
            raise TypeError(f"{name}: cannot store a {type(value).__name__} of dtype {data.dtype}")
        inexact = jnp.issubdtype(data.dtype, jnp.inexact)
        if inexact and not allow_nonfinite and not np.isfinite(data).all():
            raise ValueError(f"{name} is not finite; allow_nonfinite=True saves it regardless")
        shape, dtype = spec(value)
        table[name] = {"shape": shape, "dtype": dtype}
        if type(value) in (bool, int, float):
            table[name]["value"] = value
            continue
        table[name]["data"] = [data.shape, data.dtype.name]
        if data.size:  # orbax refuses arrays without elements
            arrays[name] = data
        if name in keys:
            table[name]["impl"] = str(jax.random.key_impl(value))
    return table, arrays


def _whole(value: Any) -> Any:
    return _meshes.to_host(value) if _meshes.is_spread(value) else value


def leaf(entry: Mapping[str, Any], data: Any, abstract: Any = None) -> Any:
    """Return a leaf from its description and data, placed as `abstract` is."""
    if "value" in entry:
        return entry["value"]
    # An uncommitted array says nothing about placement; its sharding would commit the copy.
    sharding = getattr(abstract, "sharding", None) if getattr(abstract, "committed", True) else None
    if "impl" in entry:
        keys = jax.random.wrap_key_data(jnp.asarray(data), impl=entry["impl"])
        return _placed(keys, sharding)
    exact = jax.dtypes.canonicalize_dtype(data.dtype) == data.dtype
    return _placed(data, sharding) if exact else data


def _placed(data: Any, sharding: Any) -> Any:
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(data, sharding)
    # Each process has all of it: it places its part, and need not hear from the others.
    return jax.make_array_from_callback(data.shape, sharding, lambda index: data[index])


def by_one(tree: PyTree, folder: Path, write: Callable[[], object]) -> Path:
    """Let process 0 write; the others wait for it where `tree` shows that all take part.

    Where it does not, they warn: that process 0 calls this too cannot be known.
    """
    error: Exception | None = None
    if jax.process_index() == 0:
        try:
            write()
        except Exception as caught:
            error = caught
    if _meshes.is_spread(tree):
        is_written = multihost_utils.broadcast_one_to_all(np.asarray(error is None))
        if error is None and not is_written:
            raise RuntimeError(
                f"checkpoint: process 0 could not write {folder}; its error says why"
            )
    elif jax.process_index() > 0:
        warnings.warn(
            "checkpoint: process 0 saves what every process holds whole, and has to make this call "
            f"too; this is process {jax.process_index()}, which writes nothing",
            UserWarning,
            stacklevel=3,
        )
    if error is not None:
        raise error
    return folder


def named(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by their paths."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    found = {_checks.leaf_name(path): leaf for path, leaf in pairs}
    if len(found) < len(pairs):
        raise TypeError("two leaves have the same path")
    return found


def is_plain(tree: Any) -> bool:
    """Whether JSON holds a tree of names as it is."""
    if type(tree) is dict:
        return all(isinstance(key, str) and is_plain(child) for key, child in tree.items())
    return all(map(is_plain, tree)) if type(tree) is list else tree is None or type(tree) is str


def spec(value: Any) -> tuple[tuple[int, ...], str]:
    """Return the shape and the name of the dtype of a leaf."""
    if type(value) in (bool, int, float):
        return (), type(value).__name__
    return np.shape(value), value.dtype.name


def show(described: tuple[tuple[int, ...], str] | None, traced: bool = False) -> str:
    """Write float32[2, 3]; `traced` gives a Python number the dtype it has under `jax.jit`."""
    if described is None:
        return "nothing"
    shape, dtype = described
    if traced and dtype in ("int", "float"):
        dtype = jax.dtypes.canonicalize_dtype(dtype).name
    return f"{dtype}{list(shape)}"
