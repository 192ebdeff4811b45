"""The coordinates that a batch is fitted in: a centre, a unit, and the way there and back.

Squares are only as good as the numbers squared are small and alike. Rows are therefore measured
from a value in their midst, in units of their spread: by NumPy in float64 if the host can look at
them, before anything narrows, else by JAX in the precision they come in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border

_SAMPLE = 1024  # rows that a median is taken of
_MAX_REACH = 50  # powers of two from the unit to the largest value: squares of both are float32
_MAX_RANGE = 100  # powers of two from the typical deviation to the largest
_BLOCK = 2**22  # values that are widened to float64 at a time


class Frame(NamedTuple):
    """x = origin + unit · y, column by column, for a batch x [N, D]; units are powers of two.

    origin: about the median of each column, [D].
    unit: of the order of a column's spread, [D].
    shared_unit: of the order of a row's distance from the origin, [].
    typical: median of the deviations |x - origin| that are not 0, [D]; a constant column has that
      of whole rows.
    shared_typical: that of rows, the largest deviation in each, [].
    is_constant: columns that differ by no more than rounding, relative to their values, [D].
    largest: the largest deviation, [D].
    """

    origin: Any
    unit: Any
    shared_unit: Any
    typical: Any
    shared_typical: Any
    is_constant: Any
    largest: Any


def rows(x: Any) -> Any:
    """Return a batch as NumPy in its own precision, or as a float array of JAX if it is traced.

    Or spread over several processes: then too no host can look at all of it.
    """
    x = _border.array("x", x)
    if _border.is_abstract(x) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    return np.asarray(x)


def working_dtype(x: Any) -> Any:
    """Return the precision to fit a batch in: its own, within float32 ... JAX's widest."""
    if not isinstance(x, np.ndarray):
        return x.dtype
    return jax.dtypes.canonicalize_dtype(np.result_type(x.dtype, np.float32))


def measure(x: Any) -> Frame:
    """Return the frame of a batch [N, D] as `rows` returns it; values must be finite."""
    xp: Any = np if isinstance(x, np.ndarray) else jnp
    wide = np.float64 if xp is np else x.dtype
    lowest, highest = x.min(axis=0).astype(wide), x.max(axis=0).astype(wide)
    sample = x[:: max(1, len(x) // _SAMPLE)].astype(wide)
    # A value of the column, not a mean of two: whole numbers stay whole.
    origin = xp.sort(sample, axis=0)[(len(sample) - 1) // 2]
    largest = xp.maximum(highest - origin, origin - lowest)
    # Results of arithmetic may differ by rounding; whole numbers and narrow floats only store.
    computed = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits >= 32
    eps = float(jnp.finfo(x.dtype if computed else np.float64).eps)
    is_constant = highest - lowest <= 2 * eps * xp.maximum(abs(lowest), abs(highest))
    deviations = abs(sample - origin)
    far = xp.where(is_constant, 0, deviations).max(axis=1, keepdims=True)
    reach = xp.where(is_constant, 0, largest).max()
    shared = _typical(xp, far, reach[None])[0]
    shared = xp.where(shared > 0, shared, 1)
    typical = xp.where(is_constant, shared, _typical(xp, deviations, largest))
    return Frame(
        origin,
        _unit(xp, typical, xp.where(is_constant, 0, largest)),
        _unit(xp, shared, reach),
        typical,
        shared,
        is_constant,
        largest,
    )


def check_values(x: Any, frame: Frame, *, squares: bool = False) -> None:
    """Require values that the working precision can hold, and digits of the others beside them.

    With `squares`, that it can hold the squares of the deviations too, as variances are.
    """
    if not isinstance(x, np.ndarray):
        return
    dtype = working_dtype(x)
    largest = float(jnp.finfo(dtype).max)
    ways = f"; drop fill values, divide the column by its scale{_ways_out(dtype)}"
    size = np.maximum(abs(frame.origin), frame.largest)
    if (size > largest / 4).any():
        _refuse_largest(x, frame, size, f"values that {dtype} can hold", ways)
    if squares and (frame.largest > np.sqrt(largest) / 2).any():
        _refuse_largest(
            x, frame, frame.largest, f"values whose squares, as variances, {dtype} can hold", ways
        )
    apart = frame.largest / frame.typical if squares else frame.largest / frame.shared_typical
    if (apart > 2.0**_MAX_RANGE).any():
        _refuse_largest(
            x, frame, apart, f"values within 2^{_MAX_RANGE} times the typical deviation", ways
        )


def coordinates(x: Any, frame: Frame, unit: Any) -> Any:
    """Return the batch measured from the frame's origin in that unit, in the working precision."""
    dtype = working_dtype(x)
    if not isinstance(x, np.ndarray):
        return jnp.where(frame.is_constant, 0, (x - frame.origin) / unit).astype(dtype)
    found = np.empty(x.shape, dtype)
    size = max(1, _BLOCK // x.shape[1])
    for first in range(0, len(x), size):
        block = slice(first, first + size)
        found[block] = (x[block].astype(np.float64) - frame.origin) / unit
    found[:, frame.is_constant] = 0
    return found


def is_lossy(x: Any, column: int) -> bool:
    """Whether the working precision cannot hold a column of a batch exactly."""
    values = x[:, column]
    return bool((values != values.astype(working_dtype(x)).astype(values.dtype)).any())


def refuse_unsayable(x: Any, frame: Frame, column: int, what: str) -> None:
    """Raise the error of a result that the working precision cannot say in the user's units."""
    dtype = working_dtype(x)
    values = x[:, column].astype(np.float64)
    mean = values.mean()
    raise ValueError(
        f"x: expected columns whose detail {dtype} can say, got column {column} of mean "
        f"{mean:.10g} and standard deviation {values.std():.3g}, {what}, where {dtype} steps by "
        f"{np.spacing(np.asarray(abs(mean), dtype)):.3g}; subtract the column's mean first"
        f"{_ways_out(dtype)}"
    )


def _ways_out(dtype: Any) -> str:
    return "" if dtype == np.float64 else ", or set jax_enable_x64"


def _refuse_largest(x: Any, frame: Frame, size: Any, expected: str, ways: str) -> None:
    column = int(np.argmax(size))
    row = int(np.argmax(abs(x[:, column].astype(np.float64) - frame.origin[column])))
    raise ValueError(
        f"x: expected {expected}, got {float(x[row, column]):g} in row {row}, column {column}, "
        f"beside a typical {frame.origin[column]:.3g} ± {frame.typical[column]:.3g}{ways}"
    )


def _typical(xp: Any, deviations: Any, largest: Any) -> Any:
    # The median of what is not 0 in each column; where all of the sample is, the largest of all.
    ordered = xp.sort(deviations, axis=0)
    num_zeros = (ordered == 0).sum(axis=0)
    middle = xp.minimum((num_zeros + len(ordered)) // 2, len(ordered) - 1)
    median = xp.take_along_axis(ordered, middle[None], axis=0)[0]
    return xp.where(median > 0, median, largest)


def _unit(xp: Any, typical: Any, largest: Any) -> Any:
    unit = xp.maximum(typical, largest * 2.0**-_MAX_REACH)
    return xp.ldexp(xp.ones_like(unit), xp.frexp(unit)[1])
