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

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import optax
from flax import nnx
from matplotlib.figure import Figure

import poejax as pj
from experiments.classification import arms
from experiments.lab import figures, runs, supervised, tables
from experiments.lab.cells import Cells
from poejax import checkpoint, nn, plotting

Arm = Literal["features", "fine-tuned", "random-start", "generative", "discriminative", "hybrid"]
ARMS: tuple[Arm, ...] = (
    "features", "fine-tuned", "random-start", "generative", "discriminative", "hybrid",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything the study depends on, with its data."""

    num_validation: int = 5_000
    """Training digits of mnist held out; the other data sets have splits of their own."""
    arms: tuple[Arm, ...] = ARMS  # Which arms to run.
    num_seeds: int = 3  # Seeds 0, 1, ... of every arm.
    batch_size: int = 100  # Examples per update, everywhere.
    num_hidden: int = 1_000  # Hidden units of the RBM, and of the networks.
    rbm_epochs: int = 60  # Passes over the training images, without labels.
    rbm_rate: float = 0.5  # Learning rate of the RBM.
    penalties: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    """L2 penalties that logistic regression chooses from."""
    regression_steps: int = 60  # Steps of L-BFGS per penalty.
    network_epochs: int = 60  # Passes over the training set of either network.
    network_rate: float = 3e-3  # Learning rate of Adam, lowered to zero along a cosine.
    dropout: float = 0.2  # Probability that a hidden unit is dropped.
    input_dropout: float = 0.1  # Probability that a pixel is dropped.
    joint_hidden: int = 1_000  # Hidden units of the classification RBM.
    joint_epochs: int = 60  # Passes over the training set of the classification RBM.
    generative_rate: float = 0.1
    """Learning rate of the purely generative rule, by centred gradients."""
    discriminative_rate: float = 2e-3  # Learning rate of Adam for the other two.
    generative_weight: float = 0.01
    """Weight of -log p(x, y) beside -log p(y | x) in the hybrid rule."""
    num_chains: int = 100  # Persistent chains of the generative term.
    resume: bool = False  # Go on with the study in workdir; more arms and seeds may be asked for.

    bounds: ClassVar = {"dropout": (0, 1), "input_dropout": (0, 1)}


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
    num_pixels = data["train"].images.shape[1]
    if arm == "features":
        assert layer is not None
        steps = config.regression_steps
        return arms.regress_on_features(layer, data, config.penalties, steps, report)
    if arm in ("fine-tuned", "random-start"):
        init_key, train_key = jax.random.split(key)
        options: dict[str, Any] = {"rngs": nnx.Rngs(init_key), "dropout": config.dropout}
        if layer is not None:
            network = nn.Classifier.from_stack([layer], supervised.NUM_CLASSES, **options)
        else:
            sizes = (num_pixels, config.num_hidden)
            network = nn.Classifier(sizes, supervised.NUM_CLASSES, **options)
        return arms.fine_tune(
            train_key,
            network,
            data,
            config.network_rate,
            report,
            num_epochs=config.network_epochs,
            batch_size=config.batch_size,
            average_decay=0.999,
            augment=arms.NoisyBits(config.input_dropout),
        )
    weights = {
        "generative": (0.0, 1.0),
        "discriminative": (1.0, 0.0),
        "hybrid": (1.0, config.generative_weight),
    }
    model = arms.classification_rbm(num_pixels, config.joint_hidden)
    rule = arms.label_rule(model, *weights[arm], num_chains=config.num_chains)
    make_tx, rate = optax.adam, config.discriminative_rate
    if arm == "generative":
        rule = pj.estimators.centered(rule)
        make_tx, rate = optax.sgd, config.generative_rate
    return arms.train_classification_rbm(
        key, rule, make_tx, rate, data, config.joint_epochs, config.batch_size, report
    )


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
    data = {n: supervised.examples(getattr(loaded, n)) for n in ("train", "validation", "test")}
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
    plotting.save(draw(cells.values, len(loaded.test.labels)), workdir / "figures" / "errors.png")
    return cells.values


def _rbm(
    config: Config, seed: int, train: supervised.Examples, cells: Cells, workdir: Path, bar: Any
) -> nn.Layer:
    """Return the RBM of a seed, from disk if it is there."""
    path, name = workdir / "rbm" / f"seed{seed}", f"rbm/seed{seed}"
    if name in cells:
        model = pj.models.rbm(train.images.shape[1], config.num_hidden)
        return model, checkpoint.load_params(path)
    started = time.perf_counter()
    layer = arms.train_rbm(
        jax.random.key(seed),
        train.images,
        config.num_hidden,
        config.rbm_epochs,
        config.batch_size,
        config.rbm_rate,
        _reporter(bar, "RBM"),
    )
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
