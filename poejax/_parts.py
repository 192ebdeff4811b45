"""Which rows of a larger source those at hand are, for what errors say of them.

Checks take a batch and count its rows from 0. Where the batch is read out of a source, in whatever
order, the user knows its rows by other numbers, and what holds of columns is nothing to ask of a
few rows.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class _Part(NamedTuple):
    numbers: np.ndarray
    is_sample: bool


_current: contextvars.ContextVar[_Part | None] = contextvars.ContextVar("part", default=None)


@contextlib.contextmanager
def rows(numbers: np.ndarray, is_sample: bool = False) -> Iterator[None]:
    """Have checks inside call row i of a batch `numbers[i]`.

    Args:
      numbers: of the rows in their source, [N].
      is_sample: whether these say enough of all rows for checks of whole columns to be made.
    """
    token = _current.set(_Part(numbers, is_sample))
    try:
        yield
    finally:
        _current.reset(token)


def number(row: int) -> int:
    """Return the number of a row of the batch at hand in its source."""
    part = _current.get()
    return row if part is None or row >= len(part.numbers) else int(part.numbers[row])


def is_few() -> bool:
    """Whether the rows at hand are too few, or too odd a choice, for what is asked of columns."""
    part = _current.get()
    return part is not None and not part.is_sample
