"""What the pre-training study depends on; its stacks, and its networks, trained side by side."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import poejax as pj
from experiments.lab import runs, supervised
from experiments.lab.cells import Cells
from experiments.lab.supervised import NUM_CLASSES, Examples, Fit, decayed
from poejax import checkpoint, datasets, nn, stacks
from poejax.types import Array

Arm = Literal["pre-trained", "random", "modern"]


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything the study depends on, with its data."""

    num_validation: int = 10_000
    """Training digits of mnist held out; the other data sets have splits of their own."""
    labels: tuple[int, ...] = (100, 300, 1_000, 0)
    """Numbers of labelled examples; 0 stands for the whole training set."""
    depths: tuple[int, ...] = (1, 2, 3, 4)  # Numbers of hidden layers.
    arms: tuple[Arm, ...] = ("pre-trained", "random", "modern")
    """How networks start; the last is ReLU, the others sigmoid."""
    layer_size: int = 500  # Units of every hidden layer.
    num_seeds: int = 10  # Seeds 0, 1, ... up to few_labels labels.
    num_seeds_above: int = 3  # Seeds with more labels.
    few_labels: int = 1_000  # Up to so many labels, num_seeds seeds and all learning rates are run.
    pretraining_epochs: int = 60  # Passes over the unlabelled images per layer.
    pretraining_rate: float = 0.3
    """Learning rate of centred CD-1, lowered linearly to a hundredth over the second half."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """Of Adam, lowered to zero along a cosine; above few_labels only the (lower) middle one."""
    min_updates: int = 800
    """Least number of updates of a network; decides the number of epochs when labels are few."""
    min_epochs: int = 15  # Least number of epochs; decides it when there are many.
    batch_size: int = 100  # Examples per update; a quarter of the labelled set if that is less.
    together: int = 4
    """Networks trained at once by vmap, up to few_labels labels; one by one above."""
    resume: bool = False  # Go on with the study in workdir.

    bounds: ClassVar = {"labels": 0}

    def check(self) -> None:
        """Refuse fewer labels than classes."""
        enough = min(n or 10 for n in self.labels) >= 10
        self.expect(enough, "labels", "at least 10, or 0 for all")


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


class Cell(NamedTuple):
    """What one network is: `labels` 0 stands for all."""

    labels: int
    depth: int
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Its key in results.json."""
        return f"labels{self.labels or 'all'}/depth{self.depth}/{self.arm}/seed{self.seed}"


def all_cells(config: Config) -> list[Cell]:
    """Return the cells that a config asks for, few labels first."""
    order = sorted(config.labels, key=lambda n: n or np.inf)
    return [
        Cell(n, depth, arm, seed)
        for n in order
        for depth in sorted(config.depths)
        for arm in config.arms
        for seed in range(config.num_seeds if _is_few(config, n) else config.num_seeds_above)
    ]


def run(config: Config, data: datasets.Dataset, cells: Cells, workdir: Path) -> None:
    """Train whatever is not done, saving as it goes; the bar counts layers and networks."""
    splits = supervised.splits(data)
    todo = [cell for cell in all_cells(config) if cell.name not in cells]
    depths = {
        seed: max(c.depth for c in todo if c.seed == seed and c.arm == "pre-trained")
        for seed in {c.seed for c in todo if c.arm == "pre-trained"}
    }
    with runs.progress(len(todo) + sum(depths.values()), "study", "network") as bar:
        for seed, depth in sorted(depths.items()):
            _pretrain(config, splits["train"].images, workdir, seed, depth, bar)
        for (labels, depth, arm), group in _groups(config, todo):
            _train_group(config, splits, cells, workdir, group)
            name = f"{labels or 'all'} labels, depth {depth}, {arm}"
            errors = [cells[c.name]["test_error"] for c in group]
            bar.update(len(group))
            bar.set_postfix({name: f"{np.mean(errors):.2%}"}, refresh=False)


def _is_few(config: Config, labels: int) -> bool:
    return 0 < labels <= config.few_labels


def _rates(config: Config, labels: int) -> tuple[float, ...]:
    rates = config.learning_rates
    return rates if _is_few(config, labels) else (sorted(rates)[(len(rates) - 1) // 2],)


def _schedule(config: Config, num_labels: int) -> tuple[int, int]:
    """Return the numbers of epochs and of rows per update."""
    size = min(config.batch_size, num_labels // 4)
    return max(config.min_epochs, math.ceil(config.min_updates / (num_labels // size))), size


def _layer_path(workdir: Path, seed: int, number: int) -> Path:
    return workdir / "stacks" / f"seed{seed}" / f"layer{number}"


def _pretrain(
    config: Config, images: Array, workdir: Path, seed: int, depth: int, bar: Any
) -> None:
    """Learn the layers of a seed's stack that are not on disk yet."""
    below = _load_stack(config, workdir, seed, depth)
    bar.update(len(below))
    if len(below) == depth:
        return
    num_steps = config.pretraining_epochs * (images.shape[0] // config.batch_size)

    def save(number: int, state: Any) -> None:
        path = _layer_path(workdir, seed, number)
        checkpoint.save_params(path, state.params, config=runs.jsonable(config))
        bar.update()
        bar.set_postfix({"pre-trained": f"seed {seed}, layer {number + 1}"}, refresh=False)

    stacks.fit_greedy(
        jax.random.fold_in(jax.random.key(seed), 0x57),
        supervised.scaled(images),
        [config.layer_size] * depth,
        _estimator,
        optax.sgd(decayed(config.pretraining_rate, num_steps)),
        config.batch_size,
        num_steps,
        on_layer=save,
        below=below,
    )


def _estimator(model: pj.Product) -> pj.types.Estimator:
    return pj.estimators.centered(pj.estimators.cd(model))


def _load_stack(config: Config, workdir: Path, seed: int, depth: int) -> list[nn.Layer]:
    """Return as many of the lowest `depth` layers as are on disk."""
    layers: list[nn.Layer] = []
    for number in range(depth):
        if not (path := _layer_path(workdir, seed, number)).exists():
            break
        params = checkpoint.load_params(path)
        layers.append((pj.models.rbm(params["hidden"]["w"].shape[0], config.layer_size), params))
    return layers


def _groups(config: Config, todo: list[Cell]) -> list[tuple[tuple[int, int, str], list[Cell]]]:
    """Cut the cells into groups that are trained at once: they differ by their seed only."""
    groups = []
    for kind, of_kind in itertools.groupby(todo, key=lambda cell: cell[:3]):
        few, cells = _is_few(config, kind[0]), list(of_kind)
        size = max(1, config.together // len(config.learning_rates)) if few else 1
        groups += [(kind, cells[i : i + size]) for i in range(0, len(cells), size)]
    return groups


def _train_group(
    config: Config,
    splits: dict[str, Examples],
    cells: Cells,
    workdir: Path,
    group: list[Cell],
) -> None:
    """Train the cells of a group at every learning rate, and save what their rule chose."""
    started = time.perf_counter()
    labels, depth, _, _ = group[0]
    rates, train, validation = _rates(config, labels), splits["train"], splits["validation"]
    num_pixels, num_labels = train.images.shape[1], labels or len(train.labels)
    starts = []
    for cell in group:
        key = jax.random.fold_in(jax.random.key(cell.seed), depth)
        graph, params = nnx.split(_network(config, workdir, cell, num_pixels))
        rows, held_out = (
            balanced_rows(split.labels, cell.seed)[:num_labels] for split in (train, validation)
        )
        # The rates of one seed stand side by side and share its order of examples.
        starts += [(key, params, jnp.asarray(rate), rows, held_out) for rate in rates]
    trainer = supervised.Trainer(graph, *_schedule(config, num_labels))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    fit, losses = _train(trainer, stacked, train, validation)
    if not np.isfinite(losses).all():
        raise FloatingPointError(f"training loss {losses} in {group[0].name} and the like")
    errors = np.asarray(_test(graph, fit.best, splits["test"])).reshape(len(group), -1)
    score = np.asarray(fit.score).reshape(errors.shape)
    epoch = np.asarray(fit.best_epoch).reshape(errors.shape)
    seconds = (time.perf_counter() - started) / len(group)
    for row, (cell, best) in enumerate(zip(group, score.argmin(axis=1), strict=True)):
        found = {
            "test_error": float(errors[row, best]),
            "validation_error": int(score[row, best]) / len(held_out),
            "learning_rate": rates[best],
            "epoch": int(epoch[row, best]) + 1,
            "num_epochs": trainer.num_epochs,
            "seconds": round(seconds, 2),
        }
        cells.save(cell.name, found)


def _network(config: Config, workdir: Path, cell: Cell, num_pixels: int) -> nn.Classifier:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(cell.seed), 0x1E7), cell.depth)
    rngs = nnx.Rngs(key)
    if cell.arm == "pre-trained":
        stack = _load_stack(config, workdir, cell.seed, cell.depth)
        return nn.Classifier.from_stack(stack, NUM_CLASSES, rngs=rngs)
    sizes = [num_pixels] + [config.layer_size] * cell.depth
    if cell.arm == "random":
        return nn.Classifier(sizes, NUM_CLASSES, rngs=rngs)
    return nn.Classifier(
        sizes,
        NUM_CLASSES,
        rngs=rngs,
        activation=jax.nn.relu,
        kernel_init=nnx.initializers.he_normal(),
    )


def balanced_rows(labels: Any, seed: int) -> np.ndarray:
    """Return all rows in an order whose every start has classes as equal as can be."""
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), int)
    for label in np.unique(labels):
        of_class = labels[order] == label
        rank[of_class] = np.arange(of_class.sum())
    return order[np.argsort(rank, kind="stable")]


def _chosen(data: Examples, rows: Array) -> Examples:
    return Examples(data.images[rows], data.labels[rows])


@functools.partial(jax.jit, static_argnames="trainer")
def _train(
    trainer: supervised.Trainer, starts: Any, train: Examples, validation: Examples
) -> tuple[Fit, Array]:
    """Train many networks at once, each from its start; returns fits and last losses.

    Args:
      trainer: how.
      starts: key, parameters, learning rate, and the rows of `train` and of `validation` that are
        used, each with a leading axis.
      train: all examples to learn from.
      validation: all examples to validate by.
    """

    def one(
        key: Array, params: Any, rate: Array, rows: Array, held_out: Array
    ) -> tuple[Fit, Array]:
        own, chosen = _chosen(train, rows), _chosen(validation, held_out)

        def epoch(fit: Fit, _: None) -> tuple[Fit, Array]:
            return trainer.epoch(fit, own, chosen)

        fit = trainer.start(key, params, rate, own)
        fit, losses = jax.lax.scan(epoch, fit, length=trainer.num_epochs)
        return fit, losses[-1]

    return jax.vmap(one)(*starts)


@functools.partial(jax.jit, static_argnames="graph")
def _test(graph: supervised.Graph, params: Any, test: Examples) -> Array:
    return jax.lax.map(lambda p: supervised.error_rate(graph, p, test), params)
