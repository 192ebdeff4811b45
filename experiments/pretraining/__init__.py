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
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.lab import runs
from experiments.lab.cells import Cells
from experiments.pretraining import networks, report
from experiments.pretraining.networks import PRESETS, Config
from poejax import plotting


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Run every cell that is not done; returns what results.json holds.

    By name, e.g. "labels100/depth2/random/seed3": test and validation error, what was chosen.

    Raises:
      FileExistsError: if a study lies in `workdir` and `config.resume` is not set.
      ValueError: if it has another config, or there are not so many labels.
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
    networks.run(config, data, cells, workdir)
    figure = report.draw(cells, num_rows)
    plotting.save(figure, workdir / "figures" / "errors.png")
    return cells


main = runs.main_of(PRESETS, __doc__, "pretraining", train_and_evaluate, report.table, resumes=True)
