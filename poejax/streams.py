"""Training data larger than memory: rows that are read as a run comes to them.

    data = streams.from_files(sorted(Path("digits").glob("*.npy")))
    state = run.init(rng_key, data)
    state, metrics = run.steps(state, data, 100_000)

The same run as with all rows in memory, bitwise: which rows a step takes is a function of the run's
key, the step's number and the number of rows, so that there is nothing to store, and a run resumes
after any step. The next rows are read by a thread while the present ones are trained on.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from poejax import _checks, _foreign, _random, _sources
from poejax._numerics import WEIGHTS
from poejax.types import Array, PyTree, Weighted

__all__ = ["Rows", "from_files", "from_grain"]


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows that stay where they are, in place of the data of a training run.

    source: anything with a length and rows by number: an array of NumPy, mapped into memory or
      not, a dataset of h5py, a list or another sequence of rows, which may be trees of arrays; or a
      tree (dict, tuple, NamedTuple) of those, e.g. `Weighted(rows, weights)` or
      `{"image": ..., "label": ...}`. Its rows must not change while it is in use.
    chunk_bytes: how much is read ahead, a batch at least. Two such chunks are in memory, one on the
      device, whatever the number of rows.

    Weights that come inside of rows take a pass over all rows before the first step.
    """

    source: PyTree
    chunk_bytes: int = 2**24

    def __post_init__(self) -> None:
        """Refuse what has no rows."""
        _checks.positive_int("chunk_bytes", self.chunk_bytes)
        _sources.length(self.source)

    def __len__(self) -> int:
        """Return the number of rows."""
        return _sources.length(self.source)

    @functools.cached_property
    def first(self) -> PyTree:
        """Row 0, whose structure, shapes and dtypes all rows must have."""
        return _sources.first_row(self.source)

    def take(self, numbers: npt.ArrayLike) -> PyTree:
        """Return the rows of some numbers, in memory.

        Args:
          numbers: integers in [0, len(self)), in any order, [N].

        Returns:
          Arrays of NumPy [N, ...], in the structure of a row.

        Raises:
          ValueError: if these are no such numbers, or a row is unlike row 0.
        """
        found = np.asarray(numbers)
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise ValueError(
                f"numbers: expected integers [N], got {_checks.describe(np.asarray(numbers))}"
            )
        if found.size and not 0 <= found.min() <= found.max() < len(self):
            raise ValueError(
                f"numbers: expected some in [0, {len(self)}), got {found.min()} to {found.max()}"
            )
        return _sources.read(self.source, found, self.first)

    def draw(self, rng_key: Array, num_rows: int) -> np.ndarray:
        """Return the numbers of a random sample of rows, sorted, [min(num_rows, len(self))]."""
        _checks.rng_key("rng_key", rng_key)
        size = len(self)
        if _checks.positive_int("num_rows", num_rows) >= size:
            return np.arange(size)
        return np.sort(np.asarray(_draw(rng_key, num_rows, size)))

    def sample(self, rng_key: Array, num_rows: int) -> PyTree:
        """Return a random sample of rows, in memory, for all that takes arrays: base rates, bases.

        Args:
          rng_key: one typed key.
          num_rows: how many; all of them, in order, if there are no more.

        Returns:
          Arrays of NumPy [min(num_rows, len(self)), ...].
        """
        return self.take(self.draw(rng_key, num_rows))

    @functools.cached_property
    def weights(self) -> np.ndarray | None:
        """The weights of all rows [N], None unless rows are `Weighted`; read at first use."""
        row, source = self.first, self.source
        if not isinstance(row, Weighted):
            return None
        if isinstance(source, Weighted):
            source, row = source.weights, row.weights
        size = max(1, self.chunk_bytes // max(1, _sources.num_bytes(row)))
        found = []
        for start in range(0, len(self), size):
            numbers = np.arange(start, min(start + size, len(self)))
            part = _sources.read(source, numbers, row)
            found.append(part.weights if isinstance(part, Weighted) else part)
        weights: Any = np.concatenate(found)
        _checks.split_weights("data", Weighted(weights, weights))
        weights = np.asarray(weights)
        # Each chunk is read on its own: there is nothing to scale its weights by.
        low, high = WEIGHTS
        if not low < (largest := float(weights.max())) < high:
            raise ValueError(
                f"data.weights: expected a largest one between {low:g} and {high:g}, as only "
                f"ratios matter, got {largest:g}"
            )
        return weights


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(rng_key: Array, num_rows: int, size: int) -> Array:
    return _random.permuted(rng_key, jnp.arange(num_rows), size)


def from_files(
    paths: Iterable[str | os.PathLike[str]], chunk_bytes: int = Rows.chunk_bytes
) -> Rows:
    """Join the arrays of `.npy` files, one after the other, without reading them.

    Args:
      paths: of files with rows of one shape and dtype [N_i, ...].
      chunk_bytes: as for `Rows`.

    Returns:
      Rows [Σ N_i].

    Raises:
      ValueError: if a file is none of arrays, or of other rows than the first; names it.
      FileNotFoundError: if one is not there.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise TypeError(f"paths: expected a list of paths, got {paths!r}")
    found: Sequence[str | os.PathLike[str]] = list(paths)
    if not found:
        raise ValueError("paths: expected at least one file, got none")
    return Rows(_sources.Files(found), chunk_bytes)


def from_grain(source: Any, read_options: Any = None, chunk_bytes: int = Rows.chunk_bytes) -> Rows:
    """Read rows out of a `grain.MapDataset` or a random-access source of grain's, by its threads.

    What the dataset does to its elements is done as they are read; batches and epochs are the
    run's, so that it should neither batch nor repeat, and a shuffle of its own is of no use.

    Args:
      source: whose elements are arrays, or trees of arrays.
      read_options: `grain.ReadOptions`, grain's own when None (16 threads).
      chunk_bytes: as for `Rows`.

    Raises:
      ImportError: if grain is not installed.
      TypeError: if the source has no rows by number, as an IterDataset has none.
      ValueError: if it repeats for ever.
    """
    try:
        import grain  # noqa: F401
    except ImportError as error:
        raise ImportError("from_grain needs grain: pip install poejax[data]") from error
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise TypeError(
            "source: expected a grain.MapDataset or a source with rows by number, got "
            f"{_foreign.kind(source)}"
        )
    return Rows(_sources.Grain(source, read_options), chunk_bytes)
