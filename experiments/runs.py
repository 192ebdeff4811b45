"""What every run needs around its mathematics: a working directory, a log, a progress bar."""

from __future__ import annotations

import dataclasses
import functools
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

from experiments.workdirs import MetricsLog as MetricsLog
from experiments.workdirs import jsonable as jsonable
from experiments.workdirs import open_workdir as open_workdir
from experiments.workdirs import read_json as read_json
from experiments.workdirs import stored_config
from experiments.workdirs import write_json as write_json
from poejax import datasets

ConfigT = TypeVar("ConfigT")


def parse(
    presets: Mapping[str, ConfigT],
    description: str,
    args: list[str] | None = None,
    name: Callable[[ConfigT], Path] | None = None,
) -> ConfigT:
    """Parse a typed command line whose `--preset` chooses the defaults of all other options.

    Args:
      presets: configs by name, the first one for when none is chosen.
      description: help of the command line.
      args: the command line, that of the process when None.
      name: the workdir of a config that states none. If given, the config has fields `workdir` and
        `resume`, the workdir returned is never None, and the run that lies there takes the place
        of the preset where `resume` is set.

    Raises:
      FileNotFoundError: if a run is to be resumed and none lies there.
      ValueError: if an option is empty or not finite, or that run's config cannot be read.
    """
    args = sys.argv[1:] if args is None else args
    preset = next(iter(presets))
    for i, arg in enumerate(args):
        if arg == "--preset" and i + 1 < len(args):
            preset = args[i + 1]
        elif arg.startswith("--preset="):
            preset = arg.removeprefix("--preset=")
        if arg == "" or (arg.startswith("--") and arg.endswith("=")):
            # A path of no characters would be the current folder.
            option = (arg or args[i - 1]).strip("-=").replace("-", "_")
            raise ValueError(f"{option}: expected a value, got an empty one")
    config = _parse(presets.get(preset, next(iter(presets.values()))), description, args)
    if name is None:
        return config
    found: Any = config
    workdir = found.workdir or name(config)
    if found.resume:
        # What the run was started with, but for what this command line says.
        found = _parse(stored_config(type(config), workdir), description, args)
    return dataclasses.replace(found, workdir=workdir)


def _parse(default: ConfigT, description: str, args: list[str]) -> ConfigT:
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
    # Shells leave the ~ of --workdir=~/runs as it is.
    values: Any = vars(config)
    paths = {name: p.expanduser() for name, p in values.items() if isinstance(p, Path)}
    return dataclasses.replace(config, **paths) if paths else config  # type: ignore[type-var]


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
