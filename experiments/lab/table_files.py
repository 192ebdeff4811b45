"""Files of numbers to read: .npy, .npz, .csv and IDX; what cannot be read is named by its place."""

from __future__ import annotations

import csv
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from poejax import datasets

_NAMES = ("x", "data", "train")  # arrays of an .npz that are taken where there are several
_MISSING = ("", "na", "n/a", "null", "none", "?", "-")  # float() knows "nan" and "inf"


class Table(NamedTuple):
    """Finite numbers [N, ...], the names of columns if there are any, remarks on the reading."""

    values: npt.NDArray[Any]
    names: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()


def read(path: Path) -> Table:
    """Read one array from a file, chosen by the end of its name.

    Args:
      path: .npy, .npz (one array, or the one called x, data or train), .csv (commas, semicolons or
        tabs, one line of names or none) or IDX (a name with "idx" or "ubyte" in it, .gz or not).

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it cannot be read, or holds anything but finite numbers; says where.
    """
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"data: found no file {path}")
    name = path.name.lower()
    if name.endswith((".npy", ".npz")):
        table = _read_numpy(path)
    elif name.endswith(".csv"):
        table = _read_csv(path)
    elif "idx" in name or "ubyte" in name:
        table = Table(datasets.load_idx(path))
    else:
        raise ValueError(
            f"data: expected a file that ends in .npy, .npz or .csv, or an IDX file with idx or "
            f"ubyte in its name, got {path}"
        )
    if table.values.dtype.kind not in "biuf":
        raise ValueError(f"data: expected an array of numbers in {path}, got {table.values.dtype}")
    if table.values.ndim == 0 or not table.values.size:
        raise ValueError(f"data: expected rows in {path}, got shape {table.values.shape}")
    _require_finite(path, table)
    return table


def column(index: int, names: tuple[str, ...] | None) -> str:
    """Return how a column is called: its number as people count, from 1, and its name if any."""
    return f"column {index + 1}" + (f" ({names[index]})" if names else "")


def _require_finite(path: Path, table: Table) -> None:
    if table.values.dtype.kind != "f" or (finite := np.isfinite(table.values)).all():
        return
    row, *inner = (int(i) for i in np.argwhere(~finite)[0])
    columns = int(np.ravel_multi_index(inner, table.values.shape[1:])) if inner else 0
    raise ValueError(
        f"data: expected finite numbers in {path}, got {table.values[(row, *inner)]} in row "
        f"{row + 1}, {column(columns, table.names)} (counted from 1), {(~finite).sum()} in all"
    )


def _read_numpy(path: Path) -> Table:
    try:
        found: Any = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return Table(found)
        with found:
            keys = list(found)
            chosen = keys if len(keys) == 1 else [name for name in _NAMES if name in keys]
            if not chosen:
                raise ValueError(
                    f"several arrays, {', '.join(keys)}, and none of them is called "
                    f"{', '.join(_NAMES)}"
                )
            remark = (f"array {chosen[0]!r} of {', '.join(keys)}",) if len(keys) > 1 else ()
            return Table(found[chosen[0]], remarks=remark)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        # Object arrays are pickles, which run whatever code they hold.
        raise ValueError(f"data: cannot read {path}: {error}") from error


def _read_csv(path: Path) -> Table:
    try:
        skipped, header, delimiter = _head(path)
        try:
            # Of no rows, which `read` refuses.
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                values = np.loadtxt(
                    path,
                    delimiter=delimiter,
                    skiprows=skipped,
                    ndmin=2,
                    encoding="utf-8-sig",
                    quotechar='"',
                )
        except ValueError as error:
            raise ValueError(_complaint(path, skipped, delimiter) or str(error)) from error
    except ValueError as error:
        raise ValueError(f"data: cannot read {path}: {error}") from error
    names = tuple(header) if header and len(header) == values.shape[-1] else None
    remarks = ("one line of names skipped",) if header else ()
    if names and names[0] == "" and np.array_equal(values[:, 0], np.arange(len(values))):
        # What pandas writes unless told otherwise.
        return Table(values[:, 1:], names[1:], (*remarks, "column of row numbers left out"))
    return Table(values, names, remarks)


def _head(path: Path) -> tuple[int, list[str], str]:
    """Return how many lines come before the rows, the names in the last of them, the delimiter."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, line in enumerate(file):
            if not (text := line.partition("#")[0].strip("\r\n")).strip():
                continue
            delimiter = max(",;\t", key=text.count)
            fields = [field.strip() for field in next(csv.reader([text], delimiter=delimiter))]
            header = any(not _is_number(f) and f.lower() not in _MISSING for f in fields)
            return (number + 1, fields, delimiter) if header else (0, [], delimiter)
    raise ValueError("expected rows of numbers, got none")


def _complaint(path: Path, skipped: int, delimiter: str) -> str | None:
    """Find the first line that is no row of numbers like the first one."""
    row, width = 0, None
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, line in enumerate(file, start=1):
            text = line.partition("#")[0].strip("\r\n")
            if number <= skipped or not text:
                continue
            row, fields = row + 1, next(csv.reader([text], delimiter=delimiter))
            width = width or len(fields)
            where = f"row {row} (line {number} of the file)"
            if len(fields) != width:
                return f"expected {width} columns as in row 1, got {len(fields)} in {where}"
            for column, field in enumerate(fields, start=1):
                if not _is_number(field):
                    return f"expected a number, got {field.strip()!r} in {where}, column {column}"
    return None


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field  # Python's own 1_000
