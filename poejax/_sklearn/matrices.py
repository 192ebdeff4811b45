"""Matrices that may be sparse, and their rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from poejax import _foreign

Matrix = npt.NDArray[Any]

LARGE, BLOCK = 2**30, 2**28  # bytes: beyond the first, by row blocks of the second


def dense(X: Any) -> Matrix:
    """Return a matrix that may be sparse as a dense one, or raise where that exceeds 1 GiB."""
    return X if isinstance(X, np.ndarray) else _foreign.to_numpy("X", X)


def dense_bytes(X: Any) -> int:
    """Return the memory that the matrix takes once dense."""
    return int(X.shape[0]) * int(X.shape[1]) * X.dtype.itemsize


def is_large(X: Any) -> bool:
    """Whether the matrix is to be looked at by blocks."""
    return dense_bytes(X) > LARGE


def row_blocks(X: Any) -> Iterator[slice]:
    """Yield slices of rows whose dense blocks take 256 MiB."""
    rows = max(1, BLOCK * X.shape[0] // dense_bytes(X))
    for start in range(0, X.shape[0], rows):
        yield slice(start, start + rows)


def grouped(x: Matrix) -> Matrix:
    """Return the rows with equal ones side by side, in a fixed order, if any occurs twice.

    So that what is learned is the same for weights and for repetitions, wherever these stand.
    """
    if len({hash(row.tobytes()) for row in x}) == len(x):
        return x
    x = np.ascontiguousarray(x + 0)  # + 0: of the two zeros only one
    keys = x.view(np.dtype((np.void, x.dtype.itemsize * x.shape[1])))[:, 0]
    return x[np.argsort(np.unique(keys, return_inverse=True)[1].reshape(-1), kind="stable")]
