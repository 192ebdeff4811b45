"""Tables of results: made once, printed at the end of a run, kept in results.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np


class Table(TypedDict):
    """A caption, headings, and cells as they are to be read."""

    caption: str
    columns: list[str]
    rows: list[list[str]]


def table(
    caption: str,
    columns: Sequence[Any],
    rows: Mapping[str, Sequence[Any]] | Iterable[Sequence[Any]],
    form: str = "",
) -> Table:
    """Build a table; rows may be given by first cells; `form` is how numbers are written."""
    if isinstance(rows, Mapping):
        rows = [(name, *cells) for name, cells in rows.items()]

    def cell(value: Any) -> str:
        is_float = isinstance(value, float | np.floating)
        return format(value, form) if is_float else str(value)

    texts = [[cell(v) for v in row] for row in rows]
    return {"caption": caption, "columns": [str(c) for c in columns], "rows": texts}


def of_records(
    caption: str, columns: Mapping[str, str], records: Iterable[Mapping[str, Any]]
) -> Table:
    """Build a table with a row for each record; `columns` hold format strings by heading."""
    rows = [[form.format(**record) for form in columns.values()] for record in records]
    return table(caption, list(columns), rows)


def spread(values: Any) -> float:
    """Return the standard deviation of a sample, e.g. over seeds; NaN of a single value."""
    values = np.asarray(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def std_err(values: Any) -> float:
    """Return the standard error of the mean of a sample; NaN of a single value."""
    return spread(values) / len(values) ** 0.5


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation and all of one figure per seed, for results.json."""
    mean = float(np.mean(values))
    return {"mean": mean, "std_over_seeds": spread(values), "per_seed": values}


def plus_minus(
    values: Sequence[float],
    digits: int = 2,
    scale: float = 1,
    error: Callable[[Any], float] = spread,
) -> str:
    """Return mean ± standard deviation, or another `error`, the latter if there are several."""
    scaled = scale * np.asarray(values, float)
    around = f" ± {error(scaled):.{digits}f}" if len(scaled) > 1 else ""
    return f"{scaled.mean():.{digits}f}{around}"


def text(tables: Iterable[Table]) -> str:
    """Return tables for a terminal."""
    blocks = []
    for table in tables:
        grid = [table["columns"], *table["rows"]]
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        lines = [
            "  ".join(
                c.ljust(w) if k == 0 else c.rjust(w)
                for k, (c, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in grid
        ]
        blocks.append("\n".join(["", table["caption"], *lines]))
    return "\n".join(blocks)


def markdown(table: Table) -> str:
    """Return a table for a page."""
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join([f"{table['caption']}:", "", *lines])
