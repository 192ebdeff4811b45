"""The cells of the pre-training study: greedy stacks, and networks trained side by side."""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import poejax as pj
from experiments.lab import runs, supervised
from experiments.lab.cells import Cells
from experiments.lab.supervised import NUM_CLASSES, Examples, Fit, decayed, examples
from experiments.pretraining.config import Config
from poejax import checkpoint, datasets, nn, stacks
from poejax.types import Array


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
    splits = {name: examples(getattr(data, name)) for name in ("train", "validation", "test")}
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
    kinds: dict[tuple[int, int, str], list[Cell]] = {}
    for cell in todo:
        kinds.setdefault(cell[:3], []).append(cell)
    groups = []
    for kind, cells in kinds.items():
        few = _is_few(config, kind[0])
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
    rates = _rates(config, labels)
    num_pixels = splits["train"].images.shape[1]
    networks, row_lists, held_out_lists = [], [], []
    num_labels = labels or len(splits["train"].labels)
    for cell in group:
        graph, params = nnx.split(_network(config, workdir, cell, num_pixels))
        networks += [params] * len(rates)
        row_lists.append(balanced_rows(splits["train"].labels, cell.seed)[:num_labels])
        held_out_lists.append(balanced_rows(splits["validation"].labels, cell.seed)[:num_labels])

    def repeated(lists: list[np.ndarray]) -> Array:
        # The rates of one seed stand side by side and share its order of examples.
        return jnp.repeat(jnp.asarray(lists), len(rates), axis=0)

    keys = jnp.stack([jax.random.fold_in(jax.random.key(c.seed), depth) for c in group])
    keys = jnp.repeat(keys, len(rates), axis=0)
    rows, held_out = repeated(row_lists), repeated(held_out_lists)
    trainer = supervised.Trainer(graph, *_schedule(config, num_labels))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    all_rates = jnp.tile(jnp.asarray(rates), len(group))
    fit = _start(keys, trainer, stacked, all_rates, splits["train"], rows)
    fit, losses = _epochs(trainer, fit, splits["train"], rows, splits["validation"], held_out)
    if not np.isfinite(losses).all():
        raise FloatingPointError(f"training loss {losses} in {group[0].name} and the like")
    errors = np.asarray(_test(graph, fit.best, splits["test"])).reshape(len(group), -1)
    score = np.asarray(fit.score).reshape(errors.shape)
    epoch = np.asarray(fit.best_epoch).reshape(errors.shape)
    seconds = (time.perf_counter() - started) / len(group)
    for cell, best, row in zip(group, score.argmin(axis=1), range(len(group)), strict=True):
        found = {
            "test_error": float(errors[row, best]),
            "validation_error": int(score[row, best]) / held_out.shape[1],
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
def _start(
    keys: Array,
    trainer: supervised.Trainer,
    params: Any,
    rates: Array,
    train: Examples,
    rows: Array,
) -> Fit:
    """Start many networks at once; all but the examples have a leading axis."""

    def one(key: Array, params: Any, rate: Array, rows: Array) -> Fit:
        return trainer.start(key, params, rate, _chosen(train, rows))

    return jax.vmap(one)(keys, params, rates, rows)


@functools.partial(jax.jit, static_argnames="trainer")
def _epochs(
    trainer: supervised.Trainer,
    fit: Fit,
    train: Examples,
    rows: Array,
    validation: Examples,
    held_out: Array,
) -> tuple[Fit, Array]:
    """Take all epochs of many networks at once; all but the examples have a leading axis."""

    def one(fit: Fit, rows: Array, held_out: Array) -> tuple[Fit, Array]:
        own, chosen = _chosen(train, rows), _chosen(validation, held_out)

        def epoch(fit: Fit, _: None) -> tuple[Fit, Array]:
            return trainer.epoch(fit, own, chosen)

        fit, losses = jax.lax.scan(epoch, fit, length=trainer.num_epochs)
        return fit, losses[-1]

    return jax.vmap(one)(fit, rows, held_out)


@functools.partial(jax.jit, static_argnames="graph")
def _test(graph: supervised.Graph, params: Any, test: Examples) -> Array:
    return jax.lax.map(lambda p: supervised.error_rate(graph, p, test), params)
