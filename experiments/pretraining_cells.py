"""The cells of the pre-training study: greedy stacks, and networks trained side by side."""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import poejax as pj
from experiments import runs, supervised
from experiments.cells import Cells
from experiments.classifiers import NUM_CLASSES, decayed, examples
from experiments.supervised import Examples, Fit
from poejax import checkpoint, datasets, nn, stacks
from poejax.types import Array

if TYPE_CHECKING:
    from experiments.pretraining import Config


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
    """Train whatever is not done, saving as it goes; the bar counts work, not cells."""
    splits = {name: examples(getattr(data, name)) for name in ("train", "validation", "test")}
    num_rows, num_pixels = splits["train"].images.shape
    todo = [cell for cell in all_cells(config) if cell.name not in cells]
    depths = {
        seed: max(c.depth for c in todo if c.seed == seed and c.arm == "pre-trained")
        for seed in {c.seed for c in todo if c.arm == "pre-trained"}
    }
    work = {cell: _work(config, cell, num_rows, num_pixels) for cell in todo}
    layer_work = {
        (seed, number): 4e-6
        * config.pretraining_epochs
        * num_rows
        * (config.layer_size if number else num_pixels)
        * config.layer_size
        for seed, depth in depths.items()
        for number in range(depth)
        if not _layer_path(workdir, seed, number).exists()
    }
    total = sum(work.values()) + sum(layer_work.values())
    with runs.progress(round(total), "study", "MMAC") as bar:
        for seed, depth in sorted(depths.items()):
            _pretrain(config, splits["train"].images, workdir, seed, depth, layer_work, bar)
        for (labels, depth, arm), group in _groups(config, todo):
            _train_group(config, splits, cells, workdir, group, work, bar)
            name = f"{labels or 'all'} labels, depth {depth}, {arm}"
            errors = [cells[c.name]["test_error"] for c in group]
            bar.set_postfix({name: f"{np.mean(errors):.2%}"}, refresh=False)


def _is_few(config: Config, labels: int) -> bool:
    return 0 < labels <= config.few_labels


def _rates(config: Config, labels: int) -> tuple[float, ...]:
    rates = config.learning_rates
    return rates if _is_few(config, labels) else (sorted(rates)[(len(rates) - 1) // 2],)


def _schedule(config: Config, num_labels: int) -> supervised.Options:
    batch_size = min(config.batch_size, num_labels // 4)
    epochs = max(config.min_epochs, math.ceil(config.min_updates / (num_labels // batch_size)))
    return supervised.Options(epochs, batch_size)


def _work(config: Config, cell: Cell, num_rows: int, num_pixels: int) -> float:
    """Millions of multiply-adds of one cell; an update of the weights costs about 100 examples."""
    n = cell.labels or num_rows
    options = _schedule(config, n)
    weights = config.layer_size * (num_pixels + (cell.depth - 1) * config.layer_size)
    examples = options.num_epochs * (n // options.batch_size) * (options.batch_size + 100)
    return 3e-6 * examples * weights * len(_rates(config, cell.labels))


def _layer_path(workdir: Path, seed: int, number: int) -> Path:
    return workdir / "stacks" / f"seed{seed}" / f"layer{number}"


def _pretrain(
    config: Config,
    images: Array,
    workdir: Path,
    seed: int,
    depth: int,
    work: dict[tuple[int, int], float],
    bar: Any,
) -> None:
    """Learn the layers of a seed's stack that are not on disk yet."""
    below = _load_stack(config, workdir, seed, depth)
    if len(below) == depth:
        return
    num_steps = config.pretraining_epochs * (images.shape[0] // config.batch_size)

    def save(number: int, state: Any) -> None:
        path = _layer_path(workdir, seed, number)
        checkpoint.save_params(path, state.params, config=runs.jsonable(config))
        bar.update(round(work[seed, number]))
        bar.set_postfix({"pre-trained": f"seed {seed}, layer {number + 1}"}, refresh=False)

    stacks.fit_greedy(
        jax.random.fold_in(jax.random.key(seed), 0x57),
        supervised.scaled(images),
        [config.layer_size] * depth,
        _estimator,
        _optimizer(config.pretraining_rate, num_steps),
        config.batch_size,
        num_steps,
        on_layer=save,
        below=below,
    )


def _estimator(model: pj.Product) -> pj.types.Estimator:
    return pj.estimators.centered(pj.estimators.cd(model), model)


@functools.cache  # optimizers compare by identity: one for all seeds, or each compiles anew
def _optimizer(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    return optax.sgd(decayed(learning_rate, num_steps))


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
    work: dict[Cell, float],
    bar: Any,
) -> None:
    """Train the cells of a group at every learning rate, and save what their rule chose."""
    started = time.perf_counter()
    labels, depth, _, _ = group[0]
    rates = _rates(config, labels)
    num_pixels = splits["train"].images.shape[1]
    networks, row_lists, held_out_lists = [], [], []
    for cell in group:
        network = _network(config, workdir, cell, num_pixels)
        graph, params = nnx.split(network)
        networks += [params] * len(rates)
        num_labels = labels or len(splits["train"].labels)
        row_lists.append(balanced_rows(splits["train"].labels, cell.seed)[:num_labels])
        held_out_lists.append(balanced_rows(splits["validation"].labels, cell.seed)[:num_labels])
    # The rates of one seed stand side by side and share its order of examples.
    keys = jnp.stack([jax.random.fold_in(jax.random.key(c.seed), depth) for c in group])
    keys = jnp.repeat(keys, len(rates), axis=0)
    rows = jnp.repeat(jnp.asarray(row_lists), len(rates), axis=0)
    held_out = jnp.repeat(jnp.asarray(held_out_lists), len(rates), axis=0)
    options = _schedule(config, num_labels)
    fit = jax.vmap(supervised.start)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks))
    all_rates = jnp.tile(jnp.asarray(rates), len(group))
    first, pieces = 0, min(5, options.num_epochs)
    for piece in range(pieces):
        last = options.num_epochs * (piece + 1) // pieces
        fit, losses = _epochs(
            keys,
            graph,
            options,
            last - first,
            fit,
            first,
            all_rates,
            splits["train"],
            rows,
            splits["validation"],
            held_out,
        )
        if not np.isfinite(losses).all():
            raise FloatingPointError(f"training loss {losses} in {group[0].name} and the like")
        first = last
        bar.update(round(sum(work[cell] for cell in group) / pieces))
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
            "num_epochs": options.num_epochs,
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


@functools.partial(jax.jit, static_argnames=("graph", "options", "num_epochs"))
def _epochs(
    keys: Array,
    graph: supervised.Graph,
    options: supervised.Options,
    num_epochs: int,
    fit: Fit,
    first: int,
    rates: Array,
    train: Examples,
    rows: Array,
    validation: Examples,
    held_out: Array,
) -> tuple[Fit, Array]:
    """Take epochs of many networks at once; leaves of `fit` and the rows have a leading axis."""

    def one(key: Array, fit: Fit, rate: Array, rows: Array, held_out: Array) -> tuple[Fit, Array]:
        chosen = Examples(validation.images[held_out], validation.labels[held_out])

        def epoch(fit: Fit, number: Array) -> tuple[Fit, Array]:
            return supervised.fit_epoch(key, graph, options, fit, number, rate, train, rows, chosen)

        fit, losses = jax.lax.scan(epoch, fit, first + jnp.arange(num_epochs))
        return fit, losses[-1]

    return jax.vmap(one)(keys, fit, rates, rows, held_out)


@functools.partial(jax.jit, static_argnames="graph")
def _test(graph: supervised.Graph, params: Any, test: Examples) -> Array:
    return jax.lax.map(lambda p: supervised.error_rate(graph, p, test), params)
