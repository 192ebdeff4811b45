"""Hinton (2002), "Training products of experts by minimizing contrastive divergence", again.

    python -m experiments.hinton2002                    # all three parts
    python -m experiments.hinton2002 --part cd_analysis

grid: a product of 15 unigauss experts for 24 clusters on a 5x5 grid; edges: 40 unigauss experts
for images of one edge; cd_analysis: what the expected CD-1 step does in 10^5 random RBMs, exactly.
Writes config.json, results.json and figures/ to the working directory.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

from experiments.hinton2002 import cd_analysis, edges, grid
from experiments.lab import runs, tables

_PARTS: dict[str, Any] = {
    "grid": grid,
    "edges": edges,
    "cd_analysis": cd_analysis,
}


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the run depends on."""

    part: Literal["all", "grid", "edges", "cd_analysis"] = "all"  # Which part to run.
    grid: grid.Config = dataclasses.field(default_factory=grid.Config)  # Clusters on a grid.
    edges: edges.Config = dataclasses.field(default_factory=edges.Config)  # Images of edges.
    cd_analysis: cd_analysis.Config = dataclasses.field(default_factory=cd_analysis.Config)
    """Random RBMs."""

    def check(self) -> None:
        """Refuse what is impossible in a part."""
        for name in _PARTS:
            part = getattr(self, name)
            for field, value in vars(part).items():
                if value <= 0:
                    raise ValueError(f"{name}.{field}: expected above 0, got {value}")
            if name != "cd_analysis" and part.batch_size > part.num_train:
                raise ValueError(
                    f"{name}.batch_size: expected at most num_train, {part.num_train}, got "
                    f"{part.batch_size}"
                )
        if self.edges.min_contrast >= 1:
            raise ValueError(f"edges.min_contrast: expected below 1, got {self.edges.min_contrast}")


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        grid=grid.Config(
            num_train=200,
            num_test=200,
            num_experts=6,
            cd_steps=300,
            exact_steps=100,
            num_chains=300,
            num_sweeps=30,
            num_restarts=1,
            num_seeds=1,
        ),
        edges=edges.Config(
            side=6, num_train=400, num_test=100, num_experts=8, num_steps=400, learning_rate=0.01
        ),
        cd_analysis=cd_analysis.Config(num_networks=500, num_elsewhere=100, num_seeds=2),
    ),
}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Run the chosen parts and write results.json and figures/; returns the results by part.

    Raises:
      FileExistsError: if a run lies in `workdir`.
      FloatingPointError: if training diverges or a result is not finite.
    """
    runs.open_workdir(workdir, config, resume=False, unchecked=("workdir",))
    begin, results = time.perf_counter(), {}
    for name, module in _PARTS.items():
        if config.part in ("all", name):
            start = time.perf_counter()
            results[name] = module.run(getattr(config, name), workdir / "figures")
            results[name + "_seconds"] = round(time.perf_counter() - start, 1)
    return runs.write_results(workdir, config, results, begin, table)


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return a table for every part that ran."""
    return [module.table(results[name]) for name, module in _PARTS.items() if name in results]


main = runs.main_of(PRESETS, __doc__, "hinton2002", train_and_evaluate, table, resumes=True)
