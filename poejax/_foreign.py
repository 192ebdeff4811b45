"""Other libraries' arrays, tables and tensors as NumPy arrays, told by the module of their type."""

from __future__ import annotations

from typing import Any

import numpy as np

_DENSE_LIMIT = 2**30


def to_numpy(name: str, x: Any) -> np.ndarray:
    """Return what `x` holds as a NumPy array of whatever dtype; raise one line where that fails."""
    if isinstance(x, (list, tuple)):
        raise TypeError(f"{name}: expected an array, got {kind(x)}; use numpy.asarray")
    library = type(x).__module__.split(".")[0]
    if library in _READERS:
        return _READERS[library](name, x)
    if isinstance(x, (bool, int, float)):
        return np.asarray(x)
    if not hasattr(x, "__array__"):
        raise TypeError(f"{name}: expected an array, got {kind(x)}")
    try:
        # Any subclass: numpy.asarray would drop the mask of a masked array without a word.
        return np.asanyarray(x)
    except Exception as error:
        raise TypeError(
            f"{name}: expected an array, got {kind(x)}, which numpy.asarray does not read"
        ) from error


def kind(x: Any) -> str:
    """Name the type of `x` with its article; never what it holds."""
    if x is None:
        return "None"
    if isinstance(x, type):
        return f"the class {x.__name__}"
    found = type(x).__name__
    return f"{'an' if found[0] in 'aeiouAEIOU' else 'a'} {found}"


def _from_pandas(name: str, x: Any) -> np.ndarray:
    if not hasattr(x, "dtypes"):
        return np.asarray(x)
    if x.ndim == 1:
        return _pandas_column(name, x)
    kinds = list(x.dtypes)
    if len(set(kinds)) == 1 and isinstance(kinds[0], np.dtype) and kinds[0].kind in "biuf":
        return x.to_numpy()
    # Column by column, since a table of bool and float columns comes out as objects.
    columns = [_pandas_column(name, x.iloc[:, i]) for i in range(x.shape[1])]
    return np.stack(columns, axis=1) if columns else np.zeros(x.shape)


def _pandas_column(name: str, column: Any) -> np.ndarray:
    if getattr(column.dtype, "kind", "O") not in "biuf":
        raise _not_numeric(name, column.name, column.dtype)
    values = column.to_numpy()
    # Nullable columns come out as objects that mark what is missing with a value of their own.
    return values if values.dtype.kind in "biuf" else column.to_numpy(float, na_value=np.nan)


def _from_polars(name: str, x: Any) -> np.ndarray:
    if not hasattr(x, "to_numpy"):
        raise TypeError(f"{name}: expected an array, got {kind(x)}; collect it first")
    if not hasattr(x, "columns"):
        return _polars_column(name, x)
    columns = [_polars_column(name, x[column]) for column in x.columns]
    return np.stack(columns, axis=1) if columns else np.zeros(x.shape)


def _polars_column(name: str, column: Any) -> np.ndarray:
    is_bool = str(column.dtype) == "Boolean"
    if not (is_bool or column.dtype.is_numeric()):
        raise _not_numeric(name, column.name, column.dtype)
    if column.null_count() or column.dtype.is_decimal():
        column = (column.cast(int) if is_bool else column).cast(float)
    return column.to_numpy()


def _not_numeric(name: str, column: Any, dtype: Any) -> TypeError:
    return TypeError(
        f"{name}: expected numeric or boolean columns, got column {column!r} of dtype {dtype}"
    )


def _from_torch(name: str, x: Any) -> np.ndarray:
    if not hasattr(x, "detach"):
        raise TypeError(f"{name}: expected an array, got {kind(x)}")
    x = x.detach().cpu()
    if str(x.layout) != "torch.strided":
        x = x.to_dense()
    return (x.float() if str(x.dtype) == "torch.bfloat16" else x.resolve_conj()).numpy()


def _from_scipy(name: str, x: Any) -> np.ndarray:
    if not hasattr(x, "toarray"):
        raise TypeError(f"{name}: expected an array, got {kind(x)}")
    size = int(np.prod(x.shape, dtype=np.int64)) * x.dtype.itemsize
    if size > _DENSE_LIMIT:
        raise ValueError(
            f"{name}: expected a dense array, or a sparse one of less than 1 GiB once dense, got "
            f"shape {x.shape} of {size / 2**30:.1f} GiB; pass some rows at a time by toarray()"
        )
    return x.toarray()


def _from_here(name: str, x: Any) -> np.ndarray:
    if hasattr(x, "chunk_bytes"):
        raise TypeError(
            f"{name}: expected an array in memory, got streams.Rows of {len(x):,} rows, which only "
            f"training reads as it goes; pass some of them, {name}.sample(rng_key, 8192)"
        )
    raise TypeError(f"{name}: expected an array, got {kind(x)}")


_READERS = {
    "pandas": _from_pandas,
    "poejax": _from_here,
    "polars": _from_polars,
    "torch": _from_torch,
    "scipy": _from_scipy,
}
