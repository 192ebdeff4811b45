"""One place where host data enter.

Dtype, byte order, finiteness, range and width are looked at in the data's own precision, before
anything narrows: JAX without 64-bit types wraps integers, rounds and overflows in silence.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _foreign, _meshes, _parts

Holds = Callable[[Any], Any]
"""A condition on an array, NumPy's or JAX's, elementwise or by rows; a function of a module."""

_Function = TypeVar("_Function", bound=Callable[..., Any])

_CHUNK = 2**18  # elements: what is computed of them stays in the cache
_SMALL = 2**20  # bytes
_LOST_SHARE = 0.01  # of a column's standard deviation, which rounding may move a value by


def is_abstract(x: Any) -> bool:
    """Whether `x` has a shape and no values that the host can look at."""
    return isinstance(x, (jax.core.Tracer, jax.ShapeDtypeStruct))


def array(name: str, x: Any) -> Any:
    """Return `x` as an array that JAX takes as it is, or raise one line that names it.

    Arrays of JAX, traced or not, pass untouched, NumPy's of native byte order without a copy.
    Tables, tensors, sparse matrices and what else `numpy.asarray` reads are read. Integers that
    the 32 bits of JAX would wrap come out as float64.

    Raises:
      TypeError: if `x` is no array of real numbers.
      ValueError: if `x` has masked entries, or is sparse and too large.
    """
    _meshes.require_auto(name, x)
    if is_abstract(x):
        return x
    if isinstance(x, jax.Array):
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            _require_real(name, x.dtype)
        return x
    if not isinstance(x, np.ndarray):
        x = _foreign.to_numpy(name, x)
    if isinstance(x, np.ma.MaskedArray):
        if num_masked := int(np.ma.count_masked(x)):
            raise ValueError(
                f"{name}: expected no masked entries, got {num_masked}; use estimators.Incomplete "
                "or fill them"
            )
        x = x.data
    _require_real(name, x.dtype)
    x = np.asarray(x)
    if x.dtype == np.longdouble and x.dtype.itemsize > 8:
        return x.astype(np.float64)
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    if x.dtype.kind in "iu" and x.size:
        held = np.iinfo(jax.dtypes.canonicalize_dtype(x.dtype))
        if int(x.min()) < held.min or int(x.max()) > held.max:
            return x.astype(np.float64)
    return x


def tree(name: str, x: Any) -> Any:
    """Return `x` with every leaf as `array` gives it: for dicts, NamedTuples and other pytrees."""
    if x is None:
        raise TypeError(f"{name}: expected an array, got None")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: array(name + jax.tree_util.keystr(path), leaf),
        x,
        is_leaf=lambda node: isinstance(node, list) or hasattr(node, "todense"),
    )


def narrow(name: str, x: Any, real: bool = False) -> Any:
    """Return `x` in the dtype that JAX holds it in, checked by `survives`."""
    x = array(name, x)
    survives(name, x, real)
    if not isinstance(x, np.ndarray):
        return x
    return x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)


def survives(name: str, x: Any, real: bool = False) -> None:
    """Raise where a value of `x` would not survive the dtype that JAX holds it in.

    Args:
      name: what messages call it.
      x: one array, as `array` gives it, [N, ...].
      real: whether it holds measurements, whose squares must be finite too, and whose columns must
        keep the digits in which they vary.

    Raises:
      ValueError: if a value is NaN or infinite, in `x` or once narrowed, or digits that matter
        would be lost; names value, row and column.
    """
    if is_abstract(x):
        return
    finite(name, x)
    held = jax.dtypes.canonicalize_dtype(x.dtype)
    computed = np.promote_types(_float_of(held), np.float32)
    limit = float(jnp.finfo(computed).max)
    if real:
        limit = float(f"{math.sqrt(limit) * 0.99:.1e}")
    if _reaches(x.dtype, limit) and (place := first_failure(x, _within(limit))) is not None:
        what = f"whose squares {computed} holds" if real else f"as {computed} holds them"
        or_x64 = ", or set jax_enable_x64" if computed.itemsize == 4 else ""
        raise ValueError(
            f"{name}: expected magnitudes of at most {limit:.1e}, {what}, got "
            f"{entry(x, place)}{where(place, x.ndim)}; rescale the column{or_x64}"
        )
    if real and computed.itemsize == 4 and not _parts.is_few() and _may_round(x):
        _require_digits(name, _host(x))


def finite(name: str, x: Any) -> None:
    """Raise unless the batch `x` [N, ...] is finite, naming the first value and its place."""
    if is_abstract(x) or not jnp.issubdtype(x.dtype, jnp.inexact):
        return
    if (place := first_failure(x, is_finite)) is not None:
        raise ValueError(
            f"{name}: expected finite values, got {entry(x, place)}{where(place, x.ndim)}"
        )


def require_spread(name: str, x: Any) -> None:
    """Raise if a column of the batch `x` [N, D] is constant, but for rounding; abstract ones pass.

    A free precision grows for as long as one trains on such a column.
    """
    if is_abstract(x):
        return
    # Of NaN, which marks what is missing, the extremes are those of the rest.
    low, high = (_host(v).astype(np.float64) for v in _extremes(_near(x)))
    scale = np.maximum(np.abs(low), np.abs(high))
    # Whole numbers, such as dates, do not come from arithmetic that rounds.
    rounding = 0.0
    if jnp.issubdtype(x.dtype, jnp.floating):
        rounding = 8 * float(jnp.finfo(_float_of(jax.dtypes.canonicalize_dtype(x.dtype))).eps)
    constant = high - low <= min(rounding, 1e-6) * scale
    if constant.any():
        column = int(np.argmax(constant))
        raise ValueError(
            f"{name}: expected variance in every column, got column {column} constant at "
            f"{low[column]:g}; drop it"
        )


def first_failure(x: Any, holds: Holds) -> tuple[int, ...] | None:
    """Return the index of the first entry where the condition fails; None if there is none.

    Device arrays are looked at on their devices if that saves copying, NumPy's by chunks.
    """
    x = _near(x)
    if not isinstance(x, np.ndarray):
        # Under an outer trace an operation on a constant would give a tracer.
        with jax.ensure_compile_time_eval():
            if bool(jax.device_get(_all_hold(holds, x))):
                return None
            return tuple(int(i) for i in jax.device_get(_first_bad(holds, x)))
    if x.ndim == 0:
        return None if bool(holds(x)) else ()
    rows = max(1, _CHUNK * len(x) // max(x.size, 1))
    for start in range(0, len(x), rows):
        good = np.asarray(holds(x[start : start + rows]))
        if not good.all():
            row, *rest = np.argwhere(~good)[0].tolist()
            return (start + row, *rest)
    return None


def entry(x: Any, place: tuple[int, ...]) -> str:
    """Return the entry at an index as messages quote it, or the sum of a row of entries."""
    x = _near(x)
    with jax.ensure_compile_time_eval(), jax.debug_nans(False):
        found = x[place] if isinstance(x, np.ndarray) else jax.device_get(_at(x, place))
    found = np.asarray(found)
    return str(found[()]) if found.ndim == 0 else f"a row of sum {float(found.sum()):g}"


def is_finite(x: Any) -> Any:
    """Return where `x` is neither NaN nor infinite."""
    return np.isfinite(x) if isinstance(x, np.ndarray) else jnp.isfinite(x)


def where(place: tuple[int, ...], ndim: int = 2) -> str:
    """Say where in a batch of events of that rank an entry stands: " in row 3, column 1"."""
    words = ("row", "column") if ndim <= 2 else ("row", "site", "class")
    place = in_source(place)
    found = [f"{word} {index}" for word, index in zip(words, place, strict=False)]
    return f" in {', '.join(found)}" if found else ""


def in_source(place: tuple[int, ...]) -> tuple[int, ...]:
    """Return an index into a batch with the number that its row has where it was read from."""
    return (_parts.number(place[0]), *place[1:]) if place else place


def events(name: str, unit: Any, x: Any) -> Any:
    """Return the batch `x` as arrays, checked whole to be events of `unit` by its `check`."""
    x = tree(name, x)
    once(x, unit, lambda: unit.check(name, x))
    return x


def is_on_device(x: Any) -> bool:
    """Whether all leaves of `x` are arrays of JAX with values, which are immutable."""
    leaves = jax.tree.leaves(x)
    return all(isinstance(leaf, jax.Array) and not is_abstract(leaf) for leaf in leaves)


def once(x: Any, what: Hashable, check: Callable[[], None]) -> None:
    """Run `check` unless all leaves of `x` are device arrays that passed the check `what` before.

    They are immutable, so that a loop of calls with the same data pays for one.
    """
    leaves = jax.tree.leaves(x)
    if not is_on_device(x):
        return check()
    key = (tuple(map(id, leaves)), jax.tree.structure(x), what)
    try:
        hash(key)
    except TypeError:  # as a user's function that holds an array
        return check()
    if (found := _passed.get(key)) and all(
        ref() is v for ref, v in zip(found, leaves, strict=True)
    ):
        return None
    check()
    # An id is given anew once its array is gone, and the array's callback has run by then.
    _passed[key] = tuple(weakref.ref(v, lambda _: _passed.pop(key, None)) for v in leaves)
    return None


def with_check(check: Callable[[str, Any], None]) -> Callable[[_Function], _Function]:
    """Give a `preprocess` of `training` the check of the rows that it takes."""

    def attach(function: _Function) -> _Function:
        function.check = check  # type: ignore[attr-defined]
        return function

    return attach


_passed: dict[Hashable, tuple[weakref.ref[Any], ...]] = {}


def _require_real(name: str, dtype: Any) -> None:
    kinds = (np.bool_, jnp.integer, jnp.floating)
    if not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise TypeError(f"{name}: expected real numbers, got dtype {dtype}")


def _float_of(dtype: Any) -> Any:
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)


def _host(x: Any) -> np.ndarray:
    return _meshes.to_host(x)


def _near(x: Any) -> Any:
    """Return `x` as a NumPy array where copying it is cheaper than to compile for its shape."""
    if isinstance(x, np.ndarray) or not x.is_fully_addressable:
        return x
    is_here = all(device.platform == "cpu" for device in x.devices())
    return _host(x) if is_here or x.nbytes <= _SMALL else x


@functools.cache
def _within(limit: float) -> Holds:
    """Return a condition that is the same object for the same limit, so that it compiles once."""
    return lambda x: (x <= limit) & (x >= -limit)


@functools.partial(jax.jit, static_argnums=0)
def _all_hold(holds: Holds, x: Any) -> Any:
    return holds(x).all()


@functools.partial(jax.jit, static_argnums=0)
def _first_bad(holds: Holds, x: Any) -> Any:
    good = holds(x)
    return jnp.unravel_index(jnp.argmin(good), good.shape) if good.ndim else ()


@functools.partial(jax.jit, static_argnums=1)
def _at(x: Any, place: tuple[int, ...]) -> Any:
    return x[place]


def _extremes(x: Any) -> tuple[Any, Any]:
    if isinstance(x, np.ndarray):
        return np.fmin.reduce(x, axis=0), np.fmax.reduce(x, axis=0)
    return _device_extremes(x)


@jax.jit
def _device_extremes(x: Any) -> tuple[Any, Any]:
    return jnp.nanmin(x, axis=0), jnp.nanmax(x, axis=0)


def _reaches(dtype: Any, limit: float) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and float(jnp.finfo(dtype).max) > limit


def _may_round(x: Any) -> bool:
    """Whether float32 does not hold every value that the dtype of `x` does."""
    if x.ndim < 2:
        return False
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.iinfo(x.dtype).bits >= 32 and first_failure(x, _within(2**24)) is not None
    return x.dtype == np.float64


def _require_digits(name: str, x: np.ndarray) -> None:
    """Raise where rounding to float32 moves a value by much of its column's spread."""
    x = x.reshape(len(x), -1)
    lost = np.zeros(x.shape[1])
    rows = max(1, _CHUNK // max(x.shape[1], 1))
    for start in range(0, len(x), rows):
        chunk = x[start : start + rows].astype(np.float64, copy=False)
        np.maximum(lost, np.abs(chunk - chunk.astype(np.float32)).max(axis=0), out=lost)
    low, high = x.min(axis=0).astype(np.float64), x.max(axis=0).astype(np.float64)
    width = high - low
    # Rounding of float64 itself is no variation: such a column is constant, and may be.
    varies = width > 1e-14 * np.maximum(np.abs(low), np.abs(high))
    # The deviation is at least this; the exact one is computed for the few columns that need it.
    for column in np.flatnonzero(varies & (lost > _LOST_SHARE * width / math.sqrt(2 * len(x)))):
        values = x[:, column].astype(np.float64)
        mean, spread = float(values.mean()), float(values.std())
        if lost[column] > _LOST_SHARE * spread:
            raise ValueError(
                f"{name}: expected columns whose spread float32 resolves, got column {column} of "
                f"mean {mean:g} and standard deviation {spread:g}, which rounding "
                f"moves by up to {lost[column]:.1g}; subtract the column's mean in float64 first, "
                "or set jax_enable_x64"
            )
