"""Runs of `experiments.mnist_rbm` that differ in their seed alone, in one table.

    python -m experiments.mnist_rbm.seeds runs/mnist_rbm/full-seed0 runs/mnist_rbm/full-seed1 ...

Writes results.json to runs/mnist_rbm/seeds unless --workdir says otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import tyro

from experiments.lab import runs, tables
from experiments.lab.tables import text
from experiments.mnist_rbm import config as options
from experiments.mnist_rbm import described

_MAY_DIFFER = ("seed", "workdir", "preset", "resume")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs, and where their table goes."""

    workdirs: tyro.conf.Positional[tuple[Path, ...]]  # Folders of finished runs.
    workdir: Path = Path("runs/mnist_rbm/seeds")  # Where results.json goes.


def gathered(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what results.json holds of several runs.

    Raises:
      ValueError: if there are fewer than two, two of one seed, or runs of different configs.
    """
    if len(found) < 2:
        raise ValueError(f"workdirs: expected at least two runs, got {len(found)}")
    if other := [run["workdir"] for run in found if "reverse_test_log_likelihood" not in run]:
        raise ValueError(f"workdirs: expected runs of experiments.mnist_rbm, got {other[0]}")
    seeds = [run["seed"] for run in found]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"workdirs: expected runs of different seeds, got {seeds}")
    # Options that came after a run have the defaults that hold what it did.
    later = described(options.Config())
    configs = [later | run["config"] for run in found]
    shared = [{k: v for k, v in config.items() if k not in _MAY_DIFFER} for config in configs]
    for config in shared[1:]:
        keys = sorted(shared[0].keys() | config.keys())
        if different := [k for k in keys if config.get(k) != shared[0].get(k)]:
            raise ValueError(f"workdirs: expected runs of one config, got others in {different}")
    first = found[0]
    return {
        "runs": found,
        "machine": first["machine"],
        "date": max(run["date"] for run in found),
        "seconds": sum(run["seconds"] for run in found) / len(found),
        "config": first["config"] | {"seeds": seeds},
        "tables": [table(found)],
    }


def table(found: list[dict[str, Any]]) -> tables.Table:
    """Return the test log-likelihood of every run from both sides, and its mean."""
    rows = []
    for run in found:
        cells = [str(run["seed"])]
        for side in ("", "reverse_"):
            low, high = run[f"{side}test_interval"]  # an end that is open is null in JSON
            ends = (
                f"{-math.inf if low is None else low:.2f}, {math.inf if high is None else high:.2f}"
            )
            cells += [f"{run[f'{side}test_log_likelihood']:.2f} [{ends}]"]
        cells += [f"{run['ais_ess']:.0f} / {run['reverse_ais_ess']:.0f}"]
        cells += [f"{run['train_log_likelihood']:.2f}", f"{run['training_seconds']:.0f}"]
        rows.append(cells)
    test, reverse, train = (
        tables.plus_minus([run[f"{name}_log_likelihood"] for run in found])
        for name in ("test", "reverse_test", "train")
    )
    rows.append(["mean ± standard deviation", test, reverse, "", train, ""])
    first = found[0]
    caption = (
        f"log-likelihood in nats per example, {first['config']['num_hidden']} hidden units, "
        f"{first['config']['num_epochs']} epochs, binarisation {first['binarization']}; "
        f"{first['ais_steps']} temperatures, {first['ais_chains']} chains"
    )
    columns = ("seed", "test, AIS", "test, reverse AIS", "ESS, AIS / reverse", "train, AIS")
    return tables.table(caption, (*columns, "training, s"), rows)


@runs.command
def main() -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, description=__doc__)
    found = [
        runs.read_json(folder / "results.json") | {"workdir": str(folder)}
        for folder in config.workdirs
    ]
    results = gathered(found)
    config.workdir.mkdir(parents=True, exist_ok=True)
    runs.write_json(config.workdir / "results.json", results)
    print(text(results["tables"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
