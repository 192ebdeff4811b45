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
results.json holds every seed's error, figures/errors.png the box plots. On a GPU raise --together,
the networks of all seeds and learning rates that vmap trains at once.

The whole study, --preset full, took 62 min on two CPU cores (jax 0.10.2, 2026-11-24, a fresh
reader's runs beside it). Test error in %, mean ± standard deviation over seeds; gain: by how many
points pre-training beats the random start, mean ± standard error over pairs of one seed each:

    labels depth seeds    pre-trained          random         modern           gain
       100     1    10   21.85 ± 1.79    24.33 ± 1.69   24.30 ± 1.99    2.48 ± 0.43
       100     2    10   21.02 ± 2.16    31.51 ± 2.75   24.39 ± 2.10   10.49 ± 0.72
       100     3    10   21.20 ± 1.61    52.94 ± 6.16   23.84 ± 1.16   31.75 ± 2.06
       100     4    10   19.64 ± 1.51    74.80 ± 3.35   26.40 ± 3.20   55.16 ± 1.03
       300     1    10   14.14 ± 0.99    15.12 ± 0.88   14.87 ± 0.94    0.98 ± 0.22
       300     2    10   13.43 ± 1.04    20.11 ± 1.50   14.98 ± 0.95    6.68 ± 0.56
       300     3    10   12.50 ± 0.86    27.99 ± 4.20   15.48 ± 1.55   15.49 ± 1.39
       300     4    10   12.56 ± 0.72    60.39 ± 5.42   15.86 ± 1.68   47.83 ± 1.72
     1,000     1    10    9.03 ± 0.17    10.04 ± 0.50    8.71 ± 0.26    1.01 ± 0.17
     1,000     2    10    8.45 ± 0.35    11.32 ± 0.63    9.10 ± 0.33    2.86 ± 0.15
     1,000     3    10    7.92 ± 0.31    16.11 ± 3.41    9.27 ± 0.43    8.19 ± 1.03
     1,000     4    10    8.08 ± 0.72   38.97 ± 12.04    8.89 ± 0.34   30.89 ± 3.85
    10,000     1     3    5.84 ± 0.19     6.54 ± 0.12    4.78 ± 0.09    0.70 ± 0.05
    10,000     2     3    4.45 ± 0.13     6.09 ± 0.44    3.79 ± 0.06    1.64 ± 0.19
    10,000     3     3    3.70 ± 0.13     6.69 ± 0.21    3.43 ± 0.13    2.99 ± 0.19
    10,000     4     3    3.48 ± 0.16     7.25 ± 0.60    3.26 ± 0.05    3.77 ± 0.29
    50,000     1     3    2.29 ± 0.10     2.45 ± 0.06    1.93 ± 0.07    0.16 ± 0.08
    50,000     2     3    1.76 ± 0.14     2.37 ± 0.06    1.58 ± 0.08    0.61 ± 0.11
    50,000     3     3    1.61 ± 0.01     2.32 ± 0.06    1.54 ± 0.12    0.71 ± 0.03
    50,000     4     3    1.54 ± 0.08     2.17 ± 0.04    1.48 ± 0.04    0.63 ± 0.03

Pre-training beats the same network from a random start everywhere, by more than two standard errors
but for one layer with all labels (two). It beats the modern network by 2.45 ± 0.36, 3.37 ± 0.33,
2.64 ± 0.62 and 6.75 ± 0.88 points at 100 labels, 0.73 ± 0.22 to 3.29 ± 0.51 at 300 and, from two
layers on, 0.65 ± 0.10 to 1.35 ± 0.15 at 1,000; it is behind it by 0.32 ± 0.08 at 1,000 labels with
one layer, by 1.06 ± 0.10 to 0.22 ± 0.09 at 10,000, and with all labels by 0.36 ± 0.10 and 0.18 ±
0.07 with one and two layers; with more they are level. All RBMs here have seen 50,000 images
without labels, and no network drops units or pixels, as those of experiments.classification do.

Part of the gain with many layers is speed: with five times as many updates (--preset full
--labels 100 1000 --depths 2 4 --arms pre-trained random --num-seeds 3 --min-updates 4000, 13 min)
deep networks from a random start come closer, and stay behind:

    labels depth seeds    pre-trained          random           gain
       100     2     3   19.99 ± 1.97    29.92 ± 1.42    9.92 ± 0.32
       100     4     3   19.44 ± 2.30   50.31 ± 10.16   30.88 ± 4.78
     1,000     2     3    8.25 ± 0.14    10.74 ± 0.36    2.49 ± 0.17
     1,000     4     3    7.55 ± 0.16    12.71 ± 1.64    5.17 ± 0.90
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

from experiments import pretraining_cells, pretraining_report, runs
from experiments.cells import Cells
from poejax import plotting

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
        runs.counts_at_least_one(self)
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
    data = runs.load(config.dataset, config.num_validation)
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
