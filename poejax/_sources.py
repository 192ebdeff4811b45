"""Rows by number out of what does not fit in memory: arrays on disk, HDF5, files, grain, sequences.

A tree of sources is read as the tree of what its leaves give, whose rows may themselves be trees.
"""

from __future__ import annotations

import abc
import bisect
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from poejax import _checks, _foreign
from poejax.types import PyTree

_BLOCK_ROWS = 1024  # read at once, lest a second copy of all rows be in memory
_BLOCK_BYTES = 2**22


class Halted(Exception):
    """Nobody waits for the rows any more."""


class Source(abc.ABC):
    """A source that gives several rows at once."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abc.abstractmethod
    def gather(self, numbers: np.ndarray) -> Any:
        """Return rows of these numbers, sorted and different: an array [N, ...] or a list."""


class Files(Source):
    """Arrays of `.npy` files, mapped into memory one after the other."""

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self._parts = [_mapped(os.fspath(path)) for path in paths]
        first = self._parts[0]
        for path, part in zip(paths, self._parts, strict=True):
            if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
                raise ValueError(
                    f"paths: expected rows of shape {first.shape[1:]} and dtype {first.dtype}, as "
                    f"in {os.fspath(paths[0])}, got {part.shape[1:]} and {part.dtype} in "
                    f"{os.fspath(path)}"
                )
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        """Return rows of these numbers, each out of its file."""
        found = np.empty((len(numbers), *self._parts[0].shape[1:]), self._parts[0].dtype)
        cuts = np.searchsorted(numbers, self._ends)
        for i in range(bisect.bisect_right(self._ends, numbers[0]), len(self._parts)):
            start = cuts[i - 1] if i else 0
            if start == len(numbers):
                break
            first = self._ends[i - 1] if i else 0
            found[start : cuts[i]] = self._parts[i][numbers[start : cuts[i]] - first]
        return found


class Grain(Source):
    """A grain.MapDataset, or a source of grain's, read by its threads."""

    def __init__(self, source: Any, read_options: Any) -> None:
        self._source, self._options = source, read_options

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, numbers: np.ndarray) -> list[Any]:
        """Return the elements of these numbers."""
        import grain

        picked = grain.MapDataset.source(_Picked(self._source, numbers))
        # With what a filter leaves out as None, lest its neighbour be taken for it.
        return list(picked.to_iter_dataset(self._options, allow_nones=True))


class _Picked:
    """Some elements of a source, as grain's protocol of sources has them."""

    def __init__(self, source: Any, numbers: np.ndarray) -> None:
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        return self._source[int(self._numbers[int(index)])]


def is_leaf(node: Any) -> bool:
    """Whether a node of a tree of sources, or of a row, is a source, or an array, in itself."""
    return node is None or isinstance(node, list)


def length(source: PyTree) -> int:
    """Return the common number of rows of the sources of a tree; raise unless they have rows."""
    leaves = jax.tree_util.tree_leaves_with_path(source, is_leaf=is_leaf)
    lengths = {f"source{_checks.leaf_name(path)}": _length(leaf) for path, leaf in leaves}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"source: expected one common number of rows, got {lengths}")
    (found,) = set(lengths.values())
    if not 1 <= found < 2**31:
        raise ValueError(f"source: expected 1 to 2**31 - 1 rows, got {found}")
    return found


def _length(source: Any) -> int:
    if isinstance(source, Source):
        return len(source)
    library = type(source).__module__.split(".")[0]
    if library in ("pandas", "polars", "scipy"):
        raise TypeError(
            f"source: expected rows by number, got {_foreign.kind(source)} of {library}, which "
            "gives columns, or tables; pass its NumPy array"
        )
    if isinstance(source, (str, bytes, os.PathLike)):
        raise TypeError(f"source: expected rows, got {source!r}; streams.from_files reads files")
    if hasattr(source, "keys"):  # as a file of HDF5 or an archive of arrays has
        raise TypeError(
            f"source: expected rows by number, got {_foreign.kind(source)} of arrays by name; pass "
            "one of them, or a dict of those that are wanted"
        )
    if isinstance(source, np.ma.MaskedArray):
        raise TypeError("source: expected an array without a mask; use estimators.Incomplete")
    try:
        found = len(source)
    except TypeError:
        found = -1
    if found < 0 or not hasattr(source, "__getitem__") or isinstance(source, type):
        raise TypeError(
            "source: expected something with a length and rows by number, got "
            f"{_foreign.kind(source)}"
        )
    return found


def first_row(source: PyTree) -> PyTree:
    """Return row 0, whose structure, shapes and dtypes all rows must have."""
    return jax.tree.map(lambda leaf: leaf[0], _block(source, np.zeros(1, int), None))


def read(
    source: PyTree,
    numbers: np.ndarray,
    row: PyTree,
    is_halted: Callable[[], bool] = lambda: False,
) -> PyTree:
    """Return rows of a tree of sources in memory.

    Args:
      source: the tree.
      numbers: which rows, in which order, repeated or not, [N].
      row: row 0.
      is_halted: looked at between blocks of rows.

    Returns:
      Arrays [N, ...].

    Raises:
      Halted: once `is_halted()`.
      ValueError, TypeError: if a row is unlike row 0; and whatever a source raises.
    """
    leaves, structure = jax.tree.flatten(row)
    found = [np.empty((len(numbers), *leaf.shape), leaf.dtype) for leaf in leaves]
    # Sorted, as HDF5 wants them and disks like them.
    order = np.argsort(numbers, kind="stable")
    size = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(1, num_bytes(row))))
    for start in range(0, len(numbers), size):
        if is_halted():
            raise Halted
        places = order[start : start + size]
        wanted, copies = np.unique(numbers[places], return_inverse=True)
        block = _block(source, wanted, row)
        for whole, part in zip(found, jax.tree.leaves(block), strict=True):
            whole[places] = part if len(wanted) == len(places) else part[copies]
    return jax.tree.unflatten(structure, found)


def num_bytes(row: PyTree) -> int:
    """Return how much memory a row takes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(row))


def _block(source: PyTree, numbers: np.ndarray, row: PyTree) -> PyTree:
    """Return rows of sorted, different numbers."""
    if row is None:
        return jax.tree.map(lambda leaf: _rows(leaf, numbers, None), source, is_leaf=is_leaf)
    return jax.tree.map(lambda leaf, like: _rows(leaf, numbers, like), source, row, is_leaf=is_leaf)


def _rows(source: Any, numbers: np.ndarray, like: PyTree) -> PyTree:
    if isinstance(source, (np.ndarray, jax.Array)):
        return np.asarray(source)[numbers]
    if type(source).__module__.split(".")[0] == "h5py":
        return source[numbers]
    if isinstance(source, Source):
        found = source.gather(numbers)
        return found if isinstance(found, np.ndarray) else _stacked(found, numbers, like)
    return _stacked([source[int(i)] for i in numbers], numbers, like)


def _stacked(rows: list[Any], numbers: np.ndarray, like: PyTree) -> PyTree:
    """Return rows, of trees of arrays, as one tree of arrays; raise unless they are alike."""
    held = [_held(row, int(i)) for row, i in zip(rows, numbers, strict=True)]
    expected = _form(held[0] if like is None else like)
    for row, i in zip(held, numbers, strict=True):
        if (found := _form(row)) != expected:
            raise ValueError(
                f"data: expected rows as row 0, {_words(expected)}, got {_words(found)} in row {i}"
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *held)


def _held(row: Any, i: int) -> PyTree:
    if row is None:
        raise ValueError(f"data: expected a row, got None in row {i}; filter the source's rows")
    return jax.tree.map(_array, row, is_leaf=is_leaf)


def _array(leaf: Any) -> np.ndarray:
    if isinstance(leaf, (np.ndarray, np.generic, list)):
        return np.asarray(leaf)
    return _foreign.to_numpy("data", leaf)


def _form(row: PyTree) -> tuple[Any, tuple[tuple[tuple[int, ...], np.dtype], ...]]:
    leaves, structure = jax.tree.flatten(row)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _words(form: tuple[Any, tuple[tuple[tuple[int, ...], np.dtype], ...]]) -> str:
    structure, leaves = form
    words = [f"{dtype}{list(shape)}" for shape, dtype in leaves]
    return str(jax.tree.unflatten(structure, words)).replace("'", "")


def _mapped(path: str) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:  # what np.load raises of files of any other kind
        raise ValueError(f"paths: expected .npy files of numbers, got {path}: {error}") from error
    if not isinstance(found, np.ndarray) or found.ndim == 0:
        raise ValueError(f"paths: expected .npy files with an array of rows, got {path}")
    return found
