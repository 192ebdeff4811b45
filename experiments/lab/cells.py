"""Results of a study, cell by cell: on disk as soon as a cell is done, found again on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.lab import runs


class Cells(dict[str, Any]):
    """Results by name, also in one JSON file, which is whole after a kill at any moment."""

    def __init__(self, path: Path) -> None:
        """Open `path`, with whatever an earlier run left there."""
        super().__init__(runs.read_json(path) if path.exists() else {})
        self.path = path
        if not all(isinstance(value, dict) for value in self.values()):
            raise ValueError(f"{path}: expected an object for every cell")

    def save(self, name: str, value: Any) -> None:
        """Add a result and write the file."""
        self[name] = value
        runs.write_json(self.path, self)
