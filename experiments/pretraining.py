"""Does pre-training by RBMs help, how deep, and with how few labels? (Erhan et al. 2010)

    python -m experiments.pretraining                        # 5,000 embedded MNIST digits
    python -m experiments.pretraining --preset full          # all 70,000
    python -m experiments.pretraining --preset full --labels 100 1000 --depths 1 2

Three arms per depth and number of labels: a sigmoid network that starts from a greedy stack of RBMs
learned without labels on the whole training set; the same network from a random start (Glorot); and
a modern control, ReLU from He's start. All are trained by Adam under one rule: for each seed the
learning rate and the epoch with the fewest errors on a labelled validation set, as large as the
training set (at most all held-out digits), ties broken by cross-entropy. Seed s has its own stack,
labelled subset (balanced) and validation subset, the same in all arms, so that arms are compared in
pairs. One stack per seed serves all its depths and numbers of labels.

A killed study goes on with --resume, and may be asked for more labels, depths, arms or seeds then;
results.json holds every seed's error, figures/errors.png the box plots.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

from experiments import pretraining_cells, pretraining_report, runs
from experiments.cells import Cells
from poejax import datasets, plotting

Arm = Literal["pre-trained", "random", "modern"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything the study depends on, with its data."""

    preset: Literal["default", "full", "smoke"] = "default"
    """Defaults of all other options."""
    dataset: Literal["mnist5k", "mnist", "digits"] = "mnist5k"
    """mnist5k and digits need no download."""
    num_validation: int = 10_000
    """Training digits of mnist held out; the other data sets have splits of their own."""
    labels: tuple[int, ...] = (100, 300, 1_000, 0)
    """Numbers of labelled examples; 0 stands for the whole training set."""
    depths: tuple[int, ...] = (1, 2, 3, 4)
    """Numbers of hidden layers."""
    arms: tuple[Arm, ...] = ("pre-trained", "random", "modern")
    """How networks start; the last is ReLU, the others sigmoid."""
    layer_size: int = 500
    """Units of every hidden layer."""
    num_seeds: int = 10
    """Seeds 0, 1, ... up to few_labels labels."""
    num_seeds_above: int = 3
    """Seeds with more labels."""
    few_labels: int = 1_000
    """Up to so many labels, num_seeds seeds and all learning rates are run."""
    pretraining_epochs: int = 60
    """Passes over the unlabelled images per layer."""
    pretraining_rate: float = 0.3
    """Learning rate of centred CD-1, lowered linearly to a hundredth over the second half."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """Of Adam, lowered to zero along a cosine; above few_labels only the (lower) middle one."""
    min_updates: int = 800
    """Least number of updates of a network; decides the number of epochs when labels are few."""
    min_epochs: int = 15
    """Least number of epochs; decides it when there are many."""
    batch_size: int = 100
    """Examples per update; a quarter of the labelled set if that is less."""
    together: int = 4
    """Networks trained at once by vmap, up to few_labels labels; one by one above."""
    workdir: Path | None = None
    """Where the study lives; runs/pretraining/PRESET unless given."""
    resume: bool = False
    """Go on with the study in workdir."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ValueError(f"{field.name}: expected at least 1, got {value}")
        if not (self.labels and self.depths and self.arms and self.learning_rates):
            raise ValueError("labels, depths, arms, learning_rates: expected at least one of each")
        if min(self.depths) < 1:
            raise ValueError(f"depths: expected at least 1, got {self.depths}")
        if min(n or 10 for n in self.labels) < 10:
            raise ValueError(f"labels: expected at least 10, or 0 for all, got {self.labels}")
        if min(*self.learning_rates, self.pretraining_rate) <= 0:
            raise ValueError(
                "learning_rates, pretraining_rate: expected > 0, got "
                f"{self.learning_rates} and {self.pretraining_rate}"
            )


PRESETS = {
    "default": Config(),
    "full": Config(
        preset="full",
        dataset="mnist",
        labels=(100, 300, 1_000, 10_000, 0),
        pretraining_epochs=10,
    ),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        labels=(40,),
        depths=(1, 2),
        layer_size=20,
        num_seeds=3,
        pretraining_epochs=60,
        learning_rates=(1e-2, 3e-2),
        min_updates=150,
        min_epochs=5,
    ),
}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Run every cell that is not done; returns what results.json holds.

    Args:
      config: the study's config.
      workdir: directory to create, or to resume from when `config.resume` is set.

    Returns:
      By name, e.g. "labels100/depth2/random/seed3", the test and validation error and what was
      chosen.

    Raises:
      FileExistsError: if a study lies in `workdir` and `config.resume` is not set.
      ValueError: if it has another config, or there are not so many labels.
      FloatingPointError: if training diverges.
    """
    options = {"num_validation": config.num_validation} if config.dataset == "mnist" else {}
    data = datasets.load(config.dataset, **options)
    num_rows = len(data.train.labels)
    if max(config.labels) >= num_rows:
        raise ValueError(
            f"labels: expected less than {num_rows}, or 0 for all, got {max(config.labels)}"
        )
    free = ("labels", "depths", "arms", "num_seeds", "num_seeds_above", "together")
    runs.open_workdir(workdir, config, config.resume, unchecked=(*free, "workdir", "resume"))
    cells = Cells(workdir / "results.json")
    pretraining_cells.run(config, data, cells, workdir)
    figure = pretraining_report.draw(cells.values, num_rows)
    plotting.save(figure, workdir / "figures" / "errors.png")
    return cells.values


@runs.command
def main() -> int:
    """Run from the command line; returns the exit status."""
    config = runs.parse(PRESETS, __doc__ or "")
    workdir = config.workdir or Path("runs") / "pretraining" / config.preset
    results = train_and_evaluate(config, workdir)
    print(pretraining_report.table(results))
    print(f"results.json and figures: {workdir}; {runs.machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
