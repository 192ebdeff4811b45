"""What log Z costs: annealing, both ways, resampling and replica exchange, where it is known.

    python -m experiments.partition_function

On an RBM of random weights and one of two modes, both enumerable, and on the critical Ising model
on a torus, an RBM of any size whose log Z Kaufman (1949) found. Cost is counted in sweeps of a
chain, those that place temperatures and let chains settle included.

Writes to the working directory: figures/cost.png, results.json.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.lab import figures, runs, tables
from experiments.partition_function import methods
from poejax import plotting


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the study depends on."""

    sweeps: tuple[int, ...] = (100_000, 300_000, 1_000_000)  # Budgets, of all chains together.
    ising_sizes: tuple[int, ...] = (16, 32)  # Squares along a side of the torus, even.
    num_seeds: int = 3  # Seeds 0, 1, ... of chains; the models stay.

    bounds: ClassVar = {"sweeps": 1000, "ising_sizes": 2}

    def check(self) -> None:
        """Refuse a torus without a chessboard."""
        is_even = all(size % 2 == 0 for size in self.ising_sizes)
        self.expect(is_even, "ising_sizes", "even numbers")


PRESETS = {
    "default": Config(),
    "smoke": Config(preset="smoke", sweeps=(20_000,), ising_sizes=(4,), num_seeds=2),
}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Estimate by every method at every budget; returns what results.json holds."""
    start, rows = time.perf_counter(), []
    targets = {"random RBM 100x16": methods.random_rbm(0), "two modes 16x12": methods.two_modes(0)}
    targets |= {f"Ising {n}x{n}": methods.critical_ising(n) for n in config.ising_sizes}
    total = len(targets) * len(methods.METHODS) * len(config.sweeps) * config.num_seeds
    with runs.progress(total, "estimating", "run") as bar:
        for name, target in targets.items():
            for method in methods.METHODS:
                for budget in config.sweeps:
                    for seed in range(config.num_seeds):
                        key = jax.random.key(seed)
                        found = methods.measured(key, target, method, budget)
                        about = {"model": name, "method": method, "budget": budget, "seed": seed}
                        rows.append(about | found)
                        bar.set_postfix_str(f"{name}, {method}: {found['error']:+.3f}")
                        bar.update()
    plotting.save(figure(rows), workdir / "figures" / "cost.png")
    truths = {name: target.log_z for name, target in targets.items()}
    return runs.write_results(workdir, config, {"log_z": truths, "estimates": rows}, start, table)


def _groups(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """Return the rows of all seeds by model, method and budget."""
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["model"], row["method"], row["budget"]), []).append(row)
    return found


def _rms(rows: list[dict[str, Any]]) -> float:
    return float(np.sqrt(np.mean([row["error"] ** 2 for row in rows])))


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Draw the error against cost, a panel for each model; crosses are what methods claim."""
    groups = _groups(rows)
    models = list(dict.fromkeys(row["model"] for row in rows))
    drawn = Figure((3.1 * len(models), 3.7), dpi=130, layout="constrained")
    for number, model in enumerate(models):
        axes = drawn.add_subplot(
            1, len(models), number + 1, title=model, xlabel="sweeps", xscale="log", yscale="log"
        )
        for color, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
            own = [group for (m, k, _), group in groups.items() if (m, k) == (model, method)]
            cost = [_mean(group, "sweeps") for group in own]
            axes.plot(cost, [_rms(group) for group in own], "o-", color=f"C{color}", label=method)
            claimed = [_mean(group, "std_err") for group in own]
            axes.plot(cost, claimed, "x", color=f"C{color}", alpha=0.7)
        axes.xaxis.set_minor_formatter(NullFormatter())
        figures.bare(axes)
    drawn.axes[0].set_ylabel("error of log Z, nats")
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return drawn


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table, of the largest budget."""
    largest = max(results["config"]["sweeps"])
    rows = []
    for (model, method, budget), group in _groups(results["estimates"]).items():
        if budget == largest:
            covered = sum(row["covers"] for row in group)
            rows.append(
                (
                    model,
                    method,
                    f"{_mean(group, 'error'):+.4f}",
                    f"{_rms(group):.4f}",
                    f"{_mean(group, 'std_err'):.4f}",
                    f"{np.median([row['width'] for row in group]):.3f}",
                    f"{covered} of {len(group)}",
                    f"{_mean(group, 'sweeps'):.3g}",
                    f"{_mean(group, 'seconds'):.1f}",
                )
            )
    columns = ("model", "method", "mean error", "rms error", "standard error", "width of interval")
    caption = (
        f"log Z in nats, errors against the exact one, a budget of {largest:.3g} sweeps, "
        "which ladders exceed where they need more to settle, over "
        f"{results['config']['num_seeds']} seeds; seconds without compilation"
    )
    return [tables.table(caption, (*columns, "it covers", "sweeps", "seconds"), rows)]


main = runs.main_of(PRESETS, __doc__, "partition_function", train_and_evaluate, table)
