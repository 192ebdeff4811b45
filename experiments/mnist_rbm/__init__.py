"""Train an RBM on digits or on data of your own, estimate its likelihood, draw what it learned.

    python -m experiments.mnist_rbm                      # 5,000 embedded MNIST digits
    python -m experiments.mnist_rbm --preset full        # all 60,000, 2,000 hidden units, 20 min
    python -m experiments.mnist_rbm --preset record      # more copies and epochs, an hour
    python -m experiments.mnist_rbm --data FILE          # .npy, .npz, .csv, IDX, or four IDX files
    python -m experiments.mnist_rbm --resume --workdir W # goes on with the run in W, bitwise
    python -m experiments.mnist_rbm --coordinator-address HOST:PORT --num-processes 2 --process-id 0
                                                         # with another such command, of id 1

Writes to the working directory: config.json, metrics.jsonl, checkpoints/, params/, results.json,
figures/, and data.json about data of your own.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

import poejax as pj
from experiments.lab import devices, own_data, rbm_recipe, runs, warps
from experiments.lab.tables import text
from experiments.mnist_rbm import report
from experiments.mnist_rbm.config import PRESETS, Config
from poejax import checkpoint, datasets, training


class Problem(NamedTuple):
    """A config made concrete."""

    data: own_data.Data
    model: pj.Product  # As it is evaluated.
    run: training.Run
    steps_per_epoch: int
    mesh: Mesh | None


def build(config: Config) -> Problem:
    """Load the data and build the run."""
    if config.data is not None:
        data = own_data.load(
            config.data, config.visible, config.binarization, config.num_validation
        )
    elif config.visible is not None:
        raise ValueError("visible: expected a file in --data that it speaks of, got none")
    else:
        loaded = runs.load(config.dataset, config.num_validation)
        data = own_data.built_in(loaded, config.binarization)
    runs.require_batch(config.batch_size, len(data.train))
    are_intensities = data.preprocess in (datasets.stochastic, datasets.threshold)
    if config.warped_copies and not (data.shape and are_intensities):
        raise ValueError(
            f"warped_copies: expected 0, as {data.name} holds no images of intensities from 0 to "
            f"255, got {config.warped_copies}"
        )
    low = None if config.compute_dtype == "float32" else config.compute_dtype
    model, trained = (
        rbm_recipe.make_model(data.visible, config.num_hidden, dtype) for dtype in (None, low)
    )
    estimator = rbm_recipe.make_estimator(
        trained, config.estimator, config.num_chains, config.num_gibbs_steps, config.centered
    )
    mesh = devices.make_mesh(config.data_devices, config.model_devices)
    shared = {"batch_size": config.batch_size, "ais_chains": config.ais_chains}
    shared |= {"num_chains": config.num_chains} if config.estimator != "cd" else {}
    devices.require_shares(mesh, shared, {"num_hidden": config.num_hidden})
    steps_per_epoch = len(data.train) // config.batch_size
    optimizer = rbm_recipe.optimizer_of_reals if data.coordinates else rbm_recipe.optimizer
    epochs = (config.num_epochs, config.warmup_epochs)
    run = training.Run(
        estimator,
        optimizer(
            config.learning_rate, config.weight_decay, *(steps_per_epoch * n for n in epochs)
        ),
        config.batch_size,
        preprocess=devices.spread(data.preprocess, mesh),
        average=True,
        average_decay=config.average_decay,
        rollback=training.Rollback() if config.estimator == "ptt" else None,
    )
    return Problem(data, model, run, steps_per_epoch, mesh)


def train(config: Config, problem: Problem, workdir: Path) -> tuple[training.TrainState, list[Any]]:
    """Train from the last checkpoint in `workdir`, or from the start; returns state and metrics."""
    directory, (data, model, run, per_epoch, mesh) = workdir / "checkpoints", problem
    rows = jnp.asarray(data.train)
    total, chunk = config.num_epochs * per_epoch, config.epochs_per_report * per_epoch
    warped_until = config.num_warped * per_epoch
    state = rbm_recipe.initial_state(jax.random.key(config.seed), run, rows)
    state, rows = devices.place((state, rows), mesh)
    latest = devices.agree(_last_step(workdir))
    if latest < 0:
        checkpoint.save(directory, state, config=described(config))
    else:
        state = checkpoint.restore(directory, state, step=latest)
    step = int(state.step)
    log = runs.MetricsLog(workdir / "metrics.jsonl", step)
    clock, seconds = time.perf_counter(), log.last("seconds", step)
    monitor, watch = report.Monitor(model, data, config.seed), report.ChainWatch(state)

    def note(state: training.TrainState, metrics: training.Metrics) -> None:
        nonlocal clock, seconds
        elapsed, step = time.perf_counter() - clock, int(state.step)
        seconds += elapsed
        taken = len(metrics.grad_norm)
        record = {
            "step": step,
            "epoch": step / per_epoch,
            "seconds": round(seconds, 3),
            "examples_per_second": round(taken * config.batch_size / elapsed, 1),
            "grad_norm": float(metrics.grad_norm.mean()),
            **monitor(state.average),
            **watch(state, metrics),
        }
        # Before the checkpoint: a kill in between leaves a line too many, which a resume drops.
        log.append(record)
        checkpoint.save(
            directory,
            state,
            config=described(config),
            metrics=record,
            best_metric=monitor.best_metric,
            best_mode=monitor.best_mode,
        )
        bar.update(taken)
        bar.set_postfix(report.live_figures(record), refresh=False)
        clock = time.perf_counter()

    clock = time.perf_counter()
    if step >= total:
        return state, log.records
    copies, last = _warped(config, data, step < warped_until)
    with runs.progress(total, "training", "step", initial=step) as bar:
        if copies is not None:
            placed = devices.place(jnp.asarray(copies), mesh)
            del copies  # far more than the images
            state, _ = run.steps(state, placed, warped_until - step, note, chunk)
            del placed
        if last is not None:
            rows = devices.place(jnp.asarray(last), mesh)
        state, _ = run.steps(state, rows, total - int(state.step), note, chunk)
    return state, log.records


def _warped(
    config: Config, data: own_data.Data, are_due: bool
) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    """Return the copies, if they are due, and what is learned after them, if not images alone."""
    kept = config.kept_copies
    number = config.warped_copies if are_due else kept
    if not number:
        return None, None
    assert data.shape is not None
    copies = warps.warped(data.train, data.shape, number, config.seed)
    last = np.concatenate([data.train, copies[: kept * len(data.train)]]) if kept else None
    return copies if are_due else None, last


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train, evaluate and draw; returns the numbers that results.json holds.

    Raises:
      FileExistsError: if a run lies in `workdir` and `config.resume` is not set.
      FileNotFoundError: if none does and it is set, or there are no such data.
      ValueError: if it has another config or other data, or the config fits no data set.
      FloatingPointError: if training diverges; the last good checkpoint stays.
    """
    workdir = workdir.expanduser()
    devices.connect(config.coordinator_address, config.num_processes, config.process_id)
    if config.data is not None:
        config = dataclasses.replace(config, data=config.data.expanduser().absolute())
    problem = build(config)
    taken = max(0, _last_step(workdir)) / problem.steps_per_epoch
    if config.resume and config.num_epochs < taken:
        raise ValueError(
            f"num_epochs: expected at least {taken:g}, which the run in {workdir} has taken, got "
            f"{config.num_epochs}"
        )
    adjustable = ("num_epochs", "ais_chains", "ais_steps", "sample_steps")
    elsewhere = ("workdir", "resume", *devices.OPTIONS)
    runs.open_workdir(workdir, config, config.resume, elsewhere, adjustable)
    if description := problem.data.description:
        own_data.require_same(workdir / "data.json", description)
        if devices.is_first():
            print(own_data.said(problem.data))
    state, records = train(config, problem, workdir)
    checkpoint.save_params(
        workdir / "params", state.average, config=described(config), overwrite=True
    )
    betas = (
        pj.evidence.linear_betas(config.ais_steps)
        if config.ais_steps
        else pj.evidence.salakhutdinov_murray_betas()
    )
    evaluation = report.Evaluation(
        problem.model, state.average, problem.data, config.seed, problem.mesh
    )
    results = evaluation.score(betas, config.ais_chains, config.sample_steps)
    seconds = records[-1]["seconds"] if records else math.nan  # metrics.jsonl may have been lost
    results |= {
        "binarization": config.binarization,
        "seed": config.seed,
        "steps": int(state.step),
        "training_seconds": seconds,
        "examples_per_second": int(state.step) * config.batch_size / seconds,
        "seconds": seconds + results["evaluation_seconds"],
        "machine": runs.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "config": described(config),
    }
    if description:
        results["data"] = description
    runs.write_json(workdir / "results.json", results | {"tables": report.table(results)})
    evaluation.draw(workdir / "figures", records, config.sample_steps)
    return results


def described(config: Config) -> dict[str, Any]:
    """Return what is written down of a config: not where the run took place."""
    return {k: v for k, v in runs.jsonable(config).items() if k not in devices.OPTIONS}


def _last_step(workdir: Path) -> int:
    latest = checkpoint.latest_step(workdir / "checkpoints")
    return -1 if latest is None else latest


def default_workdir(config: Config) -> Path:
    """Return where a run lives that states no workdir."""
    of = "" if config.data is None else f"{config.data.stem}-"
    return Path("runs") / "mnist_rbm" / f"{of}{config.preset}-seed{config.seed}"


@runs.command
def main() -> int:
    """Run from the command line; returns the exit status."""
    config = runs.parse(PRESETS, __doc__ or "", name=default_workdir)
    assert config.workdir is not None
    results = train_and_evaluate(config, config.workdir)
    if devices.is_first():
        print(text(report.table(results)))
        print(f"figures, parameters and metrics: {config.workdir}")
    return 0
