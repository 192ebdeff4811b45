"""Hinton (2002), "Training products of experts by minimizing contrastive divergence", again.

    python -m experiments.hinton2002                    # all three parts
    python -m experiments.hinton2002 --part cd_analysis

grid: a product of 15 unigauss experts for 24 clusters on a 5x5 grid; edges: 40 unigauss experts
for images of one edge; cd_analysis: what the expected CD-1 step does in 10^5 random RBMs, exactly.
Writes config.json, results.json and figures/ to the working directory.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal

from experiments import hinton2002_edges, hinton2002_grid, hinton2002_rbms, runs

_PARTS: dict[str, Any] = {
    "grid": hinton2002_grid,
    "edges": hinton2002_edges,
    "cd_analysis": hinton2002_rbms,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything the run depends on."""

    preset: Literal["default", "smoke"] = "default"
    """Defaults of all other options."""
    part: Literal["all", "grid", "edges", "cd_analysis"] = "all"
    """Which part to run."""
    grid: hinton2002_grid.Config = dataclasses.field(default_factory=hinton2002_grid.Config)
    """Clusters on a grid."""
    edges: hinton2002_edges.Config = dataclasses.field(default_factory=hinton2002_edges.Config)
    """Images of edges."""
    cd_analysis: hinton2002_rbms.Config = dataclasses.field(default_factory=hinton2002_rbms.Config)
    """Random RBMs."""
    workdir: Path | None = None
    """Where the run lives; runs/hinton2002/PRESET-PART unless given."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        for name in _PARTS:
            part = getattr(self, name)
            for field in dataclasses.fields(part):
                value = getattr(part, field.name)
                if value <= 0:
                    raise ValueError(f"{name}.{field.name}: expected above 0, got {value}")
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
        grid=hinton2002_grid.Config(
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
        edges=hinton2002_edges.Config(
            side=6, num_train=400, num_test=100, num_experts=8, num_steps=400, learning_rate=0.01
        ),
        cd_analysis=hinton2002_rbms.Config(num_networks=500, num_elsewhere=100, num_seeds=2),
    ),
}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Run the chosen parts and write results.json and figures/; returns the results by part.

    Args:
      config: the run's config.
      workdir: directory to create.

    Raises:
      FileExistsError: if a run lies in `workdir`.
      FloatingPointError: if training diverges or a result is not finite.
    """
    runs.open_workdir(workdir, config, resume=False, unchecked=("workdir",))
    results: dict[str, Any] = {}
    for name, module in _PARTS.items():
        if config.part not in ("all", name):
            continue
        start = time.perf_counter()
        results[name] = module.run(getattr(config, name), workdir / "figures")
        results[name + "_seconds"] = round(time.perf_counter() - start, 1)
    results["machine"] = runs.machine()
    runs.write_json(workdir / "results.json", results)
    return results


def main() -> int:
    """Run from the command line; returns the exit status."""
    try:
        config = runs.parse(PRESETS, __doc__ or "")
        name = f"{config.preset}-{config.part}"
        workdir = config.workdir or Path("runs") / "hinton2002" / name
        results = train_and_evaluate(config, workdir)
    except (FloatingPointError, OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    for name, module in _PARTS.items():
        if name in results:
            print(f"\n{module.table(results[name])}\n({results[name + '_seconds']} s)")
    print(f"\nfigures and results: {workdir}; {results['machine']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
