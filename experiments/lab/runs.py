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
from typing import Any, ClassVar, Literal, TypeVar

import jax
import tyro
from tqdm.auto import tqdm

from experiments.lab import devices
from experiments.lab.tables import Table, text
from experiments.lab.workdirs import MetricsLog as MetricsLog
from experiments.lab.workdirs import jsonable, stored_config, write_json
from experiments.lab.workdirs import open_workdir as open_workdir
from experiments.lab.workdirs import read_json as read_json
from poejax import datasets, training

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True)
class Options:
    """What every study can be told; its own options are fields of a subclass."""

    preset: str = "default"  # Defaults of all other options.
    workdir: Path | None = None
    """Where results.json and figures/ go; runs/STUDY/PRESET unless given."""

    bounds: ClassVar[Mapping[str, Any]] = {}
    """The least value of numbers by name, or (least, first beyond); else counts are at least 1,
    other numbers positive. No tuple is empty."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        check_numbers(self, self.bounds)
        self.check()

    def check(self) -> None:
        """Refuse what no bound of a single number says; for subclasses."""

    def expect(self, holds: bool, name: str, words: str) -> None:
        """Raise ValueError "name: expected words, got the field's value" unless it `holds`."""
        if not holds:
            raise ValueError(f"{name}: expected {words}, got {getattr(self, name)}")

    def expect_multiple(self, name: str, of: str) -> None:
        """Raise ValueError unless one field is a multiple of another."""
        unit = getattr(self, of)
        self.expect(getattr(self, name) % unit == 0, name, f"a multiple of {of} = {unit}")


@dataclasses.dataclass(frozen=True)
class DigitOptions(Options):
    """The same of a study of digits."""

    dataset: Literal["mnist5k", "mnist", "digits"] = "mnist5k"
    """mnist5k and digits need no download."""


def check_numbers(config: Any, bounds: Mapping[str, Any]) -> None:
    """Raise ValueError unless all numbers of a config lie in their bounds; see `Options`."""
    for name, value in vars(config).items():
        if value == ():
            raise ValueError(f"{name}: expected at least one, got none")
        values = value if isinstance(value, tuple) else (value,)
        for v in values:
            if isinstance(v, bool) or not isinstance(v, int | float):
                continue
            is_count, bound = isinstance(v, int), bounds.get(name)
            if not math.isfinite(v):
                words, good = "finite numbers", False
            elif isinstance(bound, tuple):
                low, high = bound
                words = f"{low} to {high - 1}" if is_count else f"a number in [{low}, {high})"
                good = low <= v < high
            elif bound is None and not is_count:
                words, good = "> 0", v > 0
            else:
                low = 1 if bound is None else bound
                words, good = f"at least {low}", v >= low
            if not good:
                raise ValueError(f"{name}: expected {words}, got {v}")


def parse(
    presets: Mapping[str, ConfigT],
    description: str,
    name: Callable[[ConfigT], Path] | None = None,
) -> ConfigT:
    """Parse a typed command line whose `--preset` chooses the defaults of all other options.

    Args:
      presets: configs by name, the first one for when none is chosen.
      description: help of the command line.
      name: the workdir of a config that states none. If given, the config has fields `workdir` and
        `resume`, the workdir returned is never None, and the run that lies there takes the place
        of the preset where `resume` is set.

    Raises:
      FileNotFoundError: if a run is to be resumed and none lies there.
      ValueError: if an option is empty or not finite, or that run's config cannot be read.
    """
    args, preset = sys.argv[1:], next(iter(presets))
    for i, arg in enumerate(args):
        if arg == "--preset" and i + 1 < len(args):
            preset = args[i + 1]
        elif arg.startswith("--preset="):
            preset = arg.removeprefix("--preset=")
        if arg == "" or (arg.startswith("--") and arg.endswith("=")):
            # A path of no characters would be the current folder.
            option = (arg or args[i - 1]).strip("-=").replace("-", "_")
            raise ValueError(f"{option}: expected a value, got an empty one")
    description += f"\n\nPresets: {', '.join(presets)}."
    if preset not in presets:
        raise ValueError(f"preset: expected one of {', '.join(presets)}, got {preset}")
    config = _parse(presets[preset], description)
    if name is None:
        return config
    found: Any = config
    workdir = found.workdir or name(config)
    if found.resume:
        # What the run was started with, but for what this command line says.
        found = _parse(stored_config(type(config), workdir), description)
    return dataclasses.replace(found, workdir=workdir)


def _parse(default: ConfigT, description: str) -> ConfigT:
    config = tyro.cli(
        type(default),
        prog="python -m " + ".".join(type(default).__module__.split(".")[:2]),
        default=default,
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
    """Return a progress bar of the first process; quieter where the output is no terminal."""
    interval = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        mininterval=interval,
        dynamic_ncols=True,
        disable=not devices.is_first(),
    )


def train(
    run: training.Run,
    state: training.TrainState,
    data: Any,
    num_steps: int,
    description: str | None = "training",
) -> training.TrainState:
    """Take the steps of a run beside a progress bar, none if `description` is None."""
    if description is None:
        return run.steps(state, data, num_steps)[0]
    # One piece compiles once; a remainder would be a second program.
    every = num_steps // 10 if num_steps % 10 == 0 else num_steps
    with progress(num_steps, description, "step") as bar:

        def show(state: training.TrainState, metrics: training.Metrics) -> None:
            bar.update(every)
            bar.set_postfix({"|grad|": f"{float(metrics.grad_norm.mean()):.3g}"}, refresh=False)

        return run.steps(state, data, num_steps, show, every)[0]


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


def require_batch(batch_size: int, num_rows: int) -> None:
    """Raise ValueError if a batch is larger than the data."""
    if batch_size > num_rows:
        raise ValueError(f"batch_size: expected at most {num_rows}, got {batch_size}")


def write_results(
    workdir: Path,
    config: Any,
    results: dict[str, Any],
    start: float,
    table: Callable[[dict[str, Any]], list[Table]],
) -> dict[str, Any]:
    """Write results.json, with config, tables, machine and seconds; returns all of it."""
    results = results | {
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "config": jsonable(config),
    }
    results["tables"] = table(results)
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
            return devices.leave(1)
        except KeyboardInterrupt:
            print("interrupted; scripts that know --resume go on from here", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)  # an orderly exit may crash beside a computation that still runs

    return guarded


def main_of(
    presets: Mapping[str, Any],
    description: str | None,
    name: str,
    study: Callable[[Any, Path], dict[str, Any]],
    table: Callable[[dict[str, Any]], list[Table]],
    resumes: bool = False,
) -> Callable[[], int]:
    """Return the main function of a study, which returns the exit status.

    Args:
      presets: configs by `--preset`.
      description: help of the command line.
      name: folder under runs/ unless the config names a workdir.
      study: `(config, workdir) -> results`, which writes figures and results.json.
      table: what to print of the results.
      resumes: whether the study looks after its folder itself; else what lies there is replaced.
    """

    @command
    def main() -> int:
        config = parse(presets, description or "")
        workdir = config.workdir or Path("runs") / name / config.preset
        if not resumes and (workdir / "config.json").exists():
            raise FileExistsError(
                f"workdir: {workdir} holds a run that can be resumed; pass another"
            )
        results = study(config, workdir)
        print(text(table(results)))
        if "seconds" in results:
            print(f"{results['seconds']:.0f} s")
        print(f"{machine()}; results.json and figures: {workdir}")
        return int(results.get("failed", False))

    return main
