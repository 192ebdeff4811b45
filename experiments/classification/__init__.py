"""What an RBM is worth to a classifier: features, a start for a network, a model of labels.

    python -m experiments.classification                   # 5,000 embedded MNIST digits
    python -m experiments.classification --preset full     # all 70,000
    python -m experiments.classification --preset full --arms features fine-tuned

Arms: logistic regression on frozen RBM features; the network that starts from that RBM, fine-tuned
end to end, and the same network from a random start; a classification RBM over image and label
learned generatively, discriminatively, or by both (Larochelle & Bengio 2008). Whatever is chosen
(penalty, epoch) is chosen on digits held out of the training set. A killed run goes on with
--resume; results.json, the trained RBMs and figures/errors.png lie in the working directory.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

import poejax as pj
from experiments.classification import arms
from experiments.classification.arms import ARMS, Arm, Config
from experiments.lab import figures, runs, supervised, tables
from experiments.lab.cells import Cells
from poejax import checkpoint, nn, plotting

PRESETS = {
    "default": Config(),
    "full": Config(
        preset="full", dataset="mnist", rbm_epochs=35, network_epochs=25, joint_epochs=20
    ),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        num_seeds=1,
        batch_size=20,
        num_hidden=32,
        rbm_epochs=5,
        penalties=(1e-2, 1e-3),
        regression_steps=20,
        network_epochs=5,
        network_rate=2e-2,
        dropout=0.1,
        input_dropout=0.0,
        joint_hidden=32,
        joint_epochs=5,
        discriminative_rate=1e-2,
    ),
}


def run_arm(
    config: Config,
    arm: Arm,
    seed: int,
    data: dict[str, supervised.Examples],
    layer: nn.Layer | None,
    report: arms.Report,
) -> dict[str, float]:
    """Train one arm on one seed; returns test and validation error and what was chosen."""
    key = jax.random.fold_in(jax.random.key(seed), ARMS.index(arm))
    if arm == "features":
        assert layer is not None
        return arms.regress_on_features(config, layer, data, report)
    if arm in ("fine-tuned", "random-start"):
        return arms.fine_tune(config, key, layer, data, report)
    return arms.train_classification_rbm(config, key, arm, data, report)


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Run every arm on every seed that is not done; returns what results.json holds.

    Raises:
      FileExistsError: if a study lies in `workdir` and `config.resume` is not set.
      ValueError: if it has another config, or the config does not fit the data set.
    """
    loaded = runs.load(config.dataset, config.num_validation)
    runs.require_batch(config.batch_size, len(loaded.train.labels))
    unchecked = ("arms", "num_seeds", "workdir", "resume")
    runs.open_workdir(workdir, config, config.resume, unchecked)
    cells = Cells(workdir / "results.json")
    data = supervised.splits(loaded)
    with runs.progress(len(config.arms) * config.num_seeds, "arms", "arm") as bar:
        for seed in range(config.num_seeds):
            for arm in config.arms:
                name = f"{arm}/seed{seed}"
                if name not in cells:
                    layer = None
                    if arm in ("features", "fine-tuned"):
                        layer = _rbm(config, seed, data["train"], cells, workdir, bar)
                    started = time.perf_counter()
                    found = run_arm(config, arm, seed, data, layer, _reporter(bar, arm))
                    cells.save(name, found | {"seconds": _since(started)})
                bar.update()
    plotting.save(draw(cells, len(loaded.test.labels)), workdir / "figures" / "errors.png")
    return cells


def _rbm(
    config: Config, seed: int, train: supervised.Examples, cells: Cells, workdir: Path, bar: Any
) -> nn.Layer:
    """Return the RBM of a seed, from disk if it is there."""
    path, name = workdir / "rbm" / f"seed{seed}", f"rbm/seed{seed}"
    if name in cells:
        model = pj.models.rbm(train.images.shape[1], config.num_hidden)
        return model, checkpoint.load_params(path)
    started = time.perf_counter()
    layer = arms.train_rbm(config, jax.random.key(seed), train.images, _reporter(bar, "RBM"))
    checkpoint.save_params(path, layer[1], config=runs.jsonable(config), overwrite=True)
    cells.save(name, {"seconds": _since(started)})
    return layer


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 1)


def _reporter(bar: Any, name: str) -> arms.Report:
    epochs = 0

    def report(figures: dict[str, str]) -> None:
        nonlocal epochs
        epochs += 1
        bar.set_postfix({name: epochs} | figures)

    return report


def by_arm(cells: dict[str, Any], key: str) -> dict[str, list[float]]:
    """Return one figure of every arm that ran, and of the RBM, seed by seed."""
    found = {
        arm: [v[key] for name, v in cells.items() if name.startswith(f"{arm}/") and key in v]
        for arm in (*ARMS, "rbm")
    }
    return {arm: numbers for arm, numbers in found.items() if numbers}


def draw(cells: dict[str, Any], num_test: int) -> Figure:
    """Draw the test error of every arm, a dot per seed and a square at the mean."""
    errors = by_arm(cells, "test_error")
    figure = Figure((7, 0.6 + 0.45 * len(errors)), layout="tight")
    axes = figure.add_subplot(xlabel=f"errors on {num_test:,} test digits (%), by seed; mean")
    figures.by_group(axes, {arm: {"": [100 * v for v in of]} for arm, of in errors.items()})
    axes.set_xlim(left=0)
    return figure


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    errors, seconds = by_arm(results, "test_error"), by_arm(results, "seconds")
    rows = {
        arm: (
            tables.plus_minus(values, 2, 100),
            tables.plus_minus(by_arm(results, "validation_error")[arm], 2, 100),
            tables.plus_minus(seconds[arm], 0),
            len(values),
        )
        for arm, values in errors.items()
    }
    caption = "error, %, mean ± standard deviation over seeds"
    if "rbm" in seconds:
        caption += f"; the RBM of the first two takes {tables.plus_minus(seconds['rbm'], 0)} s more"
    return [tables.table(caption, ("", "test", "validation", "seconds", "seeds"), rows)]


main = runs.main_of(PRESETS, __doc__, "classification", train_and_evaluate, table, resumes=True)
