"""Results of a study, cell by cell: on disk as soon as a cell is done, found again on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.lab import runs


class Cells:
    """Named results in one JSON file, which is whole after a kill at any moment."""

    def __init__(self, path: Path) -> None:
        """Open `path`, with whatever an earlier run left there."""
        self.path = path
        self.values: dict[str, Any] = runs.read_json(path) if path.exists() else {}
        if not all(isinstance(value, dict) for value in self.values.values()):
            raise ValueError(f"{path}: expected an object for every cell")

    def __contains__(self, name: str) -> bool:
        """Whether that cell is done."""
        return name in self.values

    def __getitem__(self, name: str) -> Any:
        """Return the result of a cell."""
        return self.values[name]

    def save(self, name: str, value: Any) -> None:
        """Add a result and write the file."""
        self.values[name] = value
        runs.write_json(self.path, self.values)
