"""The folder of a run: its config, that of the run that lies there already, and its log."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments.lab import devices
from poejax import checkpoint

ConfigT = TypeVar("ConfigT")


def open_workdir(
    workdir: Path,
    config: Any,
    resume: bool | None,
    unchecked: tuple[str, ...],
    adjustable: tuple[str, ...] = (),
) -> None:
    """Create `workdir`, or check that what lies there is this very run.

    Args:
      workdir: directory of the run.
      config: frozen dataclass; written to config.json.
      resume: whether the caller means to go on with a run that lies there; None: if one does.
      unchecked: fields that may differ when resuming, and are not written down.
      adjustable: fields that may differ when resuming; what is written down follows.

    Raises:
      FileExistsError: if a run lies there and `resume` is False.
      FileNotFoundError: if none does and `resume` is True.
      ValueError: if the run that lies there has another config; names the fields.
    """
    fields = {k: v for k, v in jsonable(config).items() if k not in unchecked}
    if not _holds_run(workdir) and (workdir / "results.json").exists():
        raise FileExistsError(
            f"workdir: {workdir} holds results of something else, without config.json; pass another"
        )
    if _holds_run(workdir):
        if resume is False:
            raise FileExistsError(
                f"workdir: {workdir} holds a run already; pass --resume to go on with it, or "
                "another --workdir"
            )
        for where, found in _descriptions(workdir).items():
            found = _known(type(config), found, where)
            changed = [k for k in fields if fields[k] != found[k] and k not in adjustable]
            if changed:
                listed = ", ".join(f"{k}={fields[k]!r} (was {found[k]!r})" for k in changed)
                raise ValueError(
                    f"resume: the run in {workdir} has another config: {listed}, says {where}"
                )
    elif resume:
        raise _no_run(workdir)
    devices.agree(0)  # all have looked before one writes
    if devices.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", fields)


def stored_config(config_type: type[ConfigT], workdir: Path) -> ConfigT:
    """Return the config of the run in `workdir`: of config.json, else of its checkpoints.

    Raises:
      FileNotFoundError: if no run lies there.
      ValueError: if its config cannot be read, or has a field that this version does not know.
    """
    if not _holds_run(workdir):
        raise _no_run(workdir)
    where, found = next(iter(_descriptions(workdir).items()))
    hints = typing.get_type_hints(config_type)

    def as_field(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(value)
        return Path(value) if value is not None and hints[name] in (Path, Path | None) else value

    known = _known(config_type, found, where)
    return config_type(**{name: as_field(name, value) for name, value in known.items()})


def _holds_run(workdir: Path) -> bool:
    return (workdir / "config.json").exists() or bool(checkpoint.all_steps(workdir / "checkpoints"))


def _no_run(workdir: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"resume: no run lies in {workdir}; is --workdir spelt as when it was started? A new run "
        "is started without --resume"
    )


def _descriptions(workdir: Path) -> dict[str, dict[str, Any]]:
    """Return what is known of a run's config, by where that is written."""
    found = {}
    if (path := workdir / "config.json").exists():
        found[str(path)] = read_json(path)
    if checkpoint.all_steps(path := workdir / "checkpoints"):
        # A run copied in part, or beside another's config, must not go on as something else.
        found[str(path)] = checkpoint.load_config(path)
    if not (found := {where: config for where, config in found.items() if config}):
        raise ValueError(f"workdir: {workdir} holds a run without a config; pass another --workdir")
    return found


def _known(config_type: type, found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return all fields of a config, from `found` or, if they came later, their defaults."""
    defaults = jsonable(config_type())
    if unknown := sorted(found.keys() - defaults.keys()):
        listed = ", ".join(f"{name}={found[name]!r}" for name in unknown)
        raise ValueError(
            f"{where}: this version knows no {listed}; go on with the version that wrote it, start "
            "a new run in another --workdir, or take that out of config.json if it changes nothing"
        )
    return defaults | dict(found)


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file.

    Raises:
      ValueError: if the file holds none, e.g. because it was cut short; names it.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got what cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def write_json(path: Path, value: Any) -> None:
    """Write JSON, null for NaN or infinity; a kill leaves the old file or the new one, whole.

    Of several processes the first writes.
    """
    if not devices.is_first():
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_without_nan(value), indent=2) + "\n")
    os.replace(partial, path)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsLog:
    """Lines of JSON, one record each, in step order without repeats after a resume.

    Of several processes the first writes.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Open `path`, dropping what a killed run logged after the checkpoint at `step`."""
        self.path = path
        self.records: list[dict[str, Any]] = []
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written at the kill
            if isinstance(record, dict) and record.get("step", math.inf) <= step:
                self.records.append(record)
        if not devices.is_first():
            return
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(r) + "\n" for r in self.records))
        os.replace(partial, path)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record, null for NaN, on disk before the call returns."""
        self.records.append(record)
        if not devices.is_first():
            return
        with self.path.open("a") as file:
            file.write(json.dumps(_without_nan(record)) + "\n")

    def last(self, name: str, step: int) -> float:
        """Return what the record of `step` says, 0 at the start, NaN if its line is gone."""
        found = self.records[-1] if self.records else {}
        value = found.get(name) if found.get("step") == step else None
        return 0.0 if step == 0 else math.nan if value is None else float(value)


def jsonable(config: Any) -> dict[str, Any]:
    """Return the fields of a config dataclass as JSON holds them."""

    def as_json(value: Any) -> Any:
        if isinstance(value, tuple):
            return [as_json(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {k: as_json(v) for k, v in dataclasses.asdict(config).items()}
