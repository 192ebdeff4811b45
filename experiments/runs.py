"""What every run needs around its mathematics: a working directory, a log, a progress bar."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro
from tqdm.auto import tqdm

from poejax import datasets

ConfigT = TypeVar("ConfigT")


def parse(
    presets: Mapping[str, ConfigT], description: str, args: list[str] | None = None
) -> ConfigT:
    """Parse a typed command line whose `--preset` chooses the defaults of all other options."""
    args = sys.argv[1:] if args is None else args
    preset = next(iter(presets))
    for i, arg in enumerate(args):
        if arg == "--preset" and i + 1 < len(args):
            preset = args[i + 1]
        elif arg.startswith("--preset="):
            preset = arg.removeprefix("--preset=")
    default = presets.get(preset, next(iter(presets.values())))
    config = tyro.cli(
        type(default),
        default=default,
        args=args,
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    for name, value in jsonable(config).items():
        # NaN would pass any check for what is too large or too small.
        if not all(math.isfinite(v) for v in jax.tree.leaves(value) if isinstance(v, float)):
            raise ValueError(f"{name}: expected finite numbers, got {value}")
    return config


def open_workdir(workdir: Path, config: Any, resume: bool, unchecked: tuple[str, ...]) -> None:
    """Create `workdir`, or check that what lies there is this very run.

    Args:
      workdir: directory of the run.
      config: frozen dataclass; written to config.json.
      resume: whether the caller means to go on with a run that lies there.
      unchecked: fields that may differ when resuming.

    Raises:
      FileExistsError: if a run lies there and `resume` is False.
      ValueError: if the run that lies there has another config; names the fields.
    """
    path = workdir / "config.json"
    fields = {k: v for k, v in jsonable(config).items() if k not in unchecked}
    if not path.exists() and (workdir / "results.json").exists():
        raise FileExistsError(
            f"workdir: {workdir} holds results of something else, without config.json; pass another"
        )
    if path.exists():
        if not resume:
            raise FileExistsError(
                f"workdir: {workdir} holds a run already; pass --resume to go on with it, or "
                "another --workdir"
            )
        found = read_json(path)
        changed = [k for k in sorted(fields.keys() | found.keys()) if fields.get(k) != found.get(k)]
        if changed:
            listed = ", ".join(f"{k}={fields.get(k)!r} (was {found.get(k)!r})" for k in changed)
            raise ValueError(f"resume: the run in {workdir} has another config: {listed}")
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, fields)


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
    """Write JSON, null for NaN; a kill leaves the old file or the new one, never half of one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_without_nan(value), indent=2) + "\n")
    os.replace(partial, path)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


class MetricsLog:
    """Lines of JSON, one record each, in step order without repeats after a resume."""

    def __init__(self, path: Path, step: int) -> None:
        """Open `path`, dropping what a killed run logged after the checkpoint at `step`."""
        self.path = path
        self.records: list[dict[str, Any]] = []
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written at the kill
            if record["step"] <= step:
                self.records.append(record)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(r) + "\n" for r in self.records))
        os.replace(partial, path)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record, on disk before the call returns."""
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def progress(total: int, description: str, unit: str, initial: int = 0) -> Any:
    """Return a progress bar; quieter where the output is no terminal."""
    interval = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        mininterval=interval,
        dynamic_ncols=True,
    )


def machine() -> str:
    """Return what the run ran on, in words."""
    device = jax.devices()[0]
    cpus = f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind
    return f"{jax.device_count()} {device.platform} device(s), {cpus}, jax {jax.__version__}, " + (
        f"Python {platform.python_version()}"
    )


def jsonable(config: Any) -> dict[str, Any]:
    """Return the fields of a config dataclass as JSON holds them."""

    def as_json(value: Any) -> Any:
        if isinstance(value, tuple):
            return [as_json(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {k: as_json(v) for k, v in dataclasses.asdict(config).items()}


def load(name: str, num_validation: int) -> datasets.Dataset:
    """Load a data set; of MNIST hold out `num_validation` digits, the others have their own."""
    return datasets.load(name, **({"num_validation": num_validation} if name == "mnist" else {}))


def counts_at_least_one(config: Any) -> None:
    """Raise ValueError unless every integer field is at least 1."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int) and not isinstance(value, bool):
            at_least(config, 1, field.name)


def at_least(config: Any, low: float, *names: str) -> None:
    """Raise ValueError unless the fields of these names are numbers >= `low`."""
    for name in names:
        if not getattr(config, name) >= low:
            raise ValueError(f"{name}: expected at least {low}, got {getattr(config, name)}")


def write_results(
    workdir: Path, config: Any, results: dict[str, Any], start: float
) -> dict[str, Any]:
    """Write results.json, with config, machine and seconds since `start`; returns all of it."""
    results = results | {
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "config": jsonable(config),
    }
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "results.json", results)
    return results


def command(main: Callable[[], int]) -> Callable[[], int]:
    """Turn what goes wrong in a main function into one line and an exit status."""

    @functools.wraps(main)
    def guarded() -> int:
        try:
            return main()
        except (FloatingPointError, ImportError, OSError, ValueError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted; scripts that know --resume go on from here", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)  # an orderly exit may crash beside a computation that still runs

    return guarded


def run_study(
    presets: Mapping[str, ConfigT],
    description: str,
    name: str,
    study: Callable[[ConfigT, Path], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> int:
    """Run a study that needs no resuming from the command line; returns the exit status.

    Args:
      presets: configs by `--preset`, each with fields `preset` and `workdir`.
      description: help of the command line.
      name: folder under runs/ unless the config names a workdir; what lies there is replaced.
      study: `(config, workdir) -> results`, which writes figures and results.json.
      table: what to print of the results.
    """
    config: Any = parse(presets, description)
    workdir = config.workdir or Path("runs") / name / config.preset
    if (workdir / "config.json").exists():
        raise FileExistsError(f"workdir: {workdir} holds a run that can be resumed; pass another")
    results = study(config, workdir)
    print(table(results))
    print(f"{results['seconds']:.0f} s; {results['machine']}")
    print(f"figures and results.json: {workdir}")
    return 0
