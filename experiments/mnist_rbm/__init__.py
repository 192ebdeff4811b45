"""Train an RBM on digits or on data of your own, estimate its likelihood, draw what it learned.

    python -m experiments.mnist_rbm                      # 5,000 embedded MNIST digits
    python -m experiments.mnist_rbm --preset full        # all 60,000, 1,000 hidden units, 20 min
    python -m experiments.mnist_rbm --preset record      # 2,000 hidden units, an hour
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
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import poejax as pj
from experiments.lab import devices, own_data, rbm_recipe, runs, warps
from experiments.lab.tables import text
from experiments.mnist_rbm import report
from poejax import checkpoint, training


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything a run depends on, with its data."""

    data: Path | None = None
    """A file of rows to learn instead, or a folder with the four IDX files of a set like MNIST."""
    visible: own_data.Units | None = None
    """What the values of that file are; by default found from them, and said."""
    num_validation: int = 500
    """Training digits of mnist held out to watch; the other data sets have splits of their own."""
    binarization: Literal["stochastic", "threshold"] = "stochastic"
    """stochastic: pixel intensity is the probability, redrawn for every batch; fixed for tests."""
    num_hidden: int = 200  # Number of hidden units, that is of experts.
    estimator: Literal["pcd", "ptt", "cd"] = "pcd"
    """Persistent contrastive divergence; parallel trajectory tempering, whose chains jump between
    modes and whose log-likelihood is live; or contrastive divergence."""
    centered: bool = True  # Centre the gradient.
    num_chains: int = 500  # Persistent chains (pcd and ptt).
    num_gibbs_steps: int = 1  # Gibbs sweeps per update, the k of CD-k and PCD-k.
    num_epochs: int = 100
    """Passes over the training set. A run that is resumed with more of them goes on training, at
    the rates that the longer schedule has from there on."""
    batch_size: int = 100  # Examples per update.
    learning_rate: float = 0.1
    """Held for the first 30 % of the updates, then lowered linearly to 2 % of itself. Of SGD; real
    values are learned by Adam at a twentieth of it."""
    warmup_epochs: int = 0
    """Epochs over which the rate rises to it; with high rates and many hidden units, spares the
    first updates a blow that takes long to heal."""
    weight_decay: float = 1e-4  # L2 rate on the weight matrix; biases are spared.
    warped_copies: int = 0
    """Copies of the training images, each image turned, scaled, sheared and bent a little anew,
    that are learned in their place at first."""
    warped_share: float = 0.9  # Share of the updates that learn from them.
    average_decay: float = 0.999
    """Decay of the moving average of the parameters, which is what gets evaluated."""
    epochs_per_report: int = 5  # Epochs between two lines of metrics.jsonl and two checkpoints.
    ais_chains: int = 100  # Annealed importance sampling runs.
    ais_steps: int = 10_000
    """Temperatures between base and model; 0 is the 14,500 of Salakhutdinov & Murray (2008)."""
    sample_steps: int = 3_000
    """Gibbs sweeps before samples are shown (from random starts) or annealed back (from data)."""
    seed: int = 0  # Seed of everything random.
    resume: bool = False
    """Go on with the run in workdir, with its config. Epochs may be added, and what the evaluation
    depends on (ais_chains, ais_steps, sample_steps) may change; so may devices and processes."""
    coordinator_address: str | None = None
    """host:port of process 0, where several processes run this command; see
    jax.distributed.initialize. They share a file system."""
    num_processes: int | None = None  # How many of them there are.
    process_id: int | None = None  # Which of them this is, from 0.
    data_devices: int | None = None
    """Devices that share chains and rows of a batch; one, or all those of several processes."""
    model_devices: int = 1  # Devices that share the hidden units.

    bounds: ClassVar = {
        "seed": -math.inf,
        "ais_chains": 2,
        "ais_steps": 0,
        "weight_decay": 0.0,
        "warped_copies": 0,
        "warped_share": (0.0, 1.0),
        "warmup_epochs": 0,
        "average_decay": (0.0, 1.0),
        "process_id": 0,
    }


# Batches and chains of one size bring the least noise into the gradient for the work; as large as
# these are, they bear a high rate.
_ALL_OF_MNIST = Config(
    preset="full",
    dataset="mnist",
    num_hidden=1000,
    num_epochs=350,
    batch_size=500,
    learning_rate=0.5,
    weight_decay=0.0,
    epochs_per_report=10,
    ais_steps=0,
    sample_steps=5_000,
)
PRESETS = {
    "default": Config(),
    "full": _ALL_OF_MNIST,
    "record": dataclasses.replace(
        _ALL_OF_MNIST,
        preset="record",
        num_hidden=2000,
        num_epochs=850,
        learning_rate=0.6,
        warmup_epochs=10,
        warped_copies=16,
    ),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        num_hidden=16,
        num_chains=20,
        num_epochs=4,
        epochs_per_report=2,
        ais_chains=20,
        ais_steps=200,
        sample_steps=50,
    ),
}


class Problem(NamedTuple):
    """A config made concrete."""

    data: own_data.Data
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
    if config.warped_copies and (data.shape is None or data.train.dtype != np.uint8):
        raise ValueError(
            f"warped_copies: expected 0, as {data.name} holds no images of intensities from 0 to "
            f"255, got {config.warped_copies}"
        )
    model = rbm_recipe.make_model(data.visible, config.num_hidden)
    estimator = rbm_recipe.make_estimator(
        model, config.estimator, config.num_chains, config.num_gibbs_steps, config.centered
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
    return Problem(data, run, steps_per_epoch, mesh)


def train(config: Config, problem: Problem, workdir: Path) -> tuple[training.TrainState, list[Any]]:
    """Train from the last checkpoint in `workdir`, or from the start; returns state and metrics."""
    directory, (data, run, per_epoch, mesh) = workdir / "checkpoints", problem
    rows = jnp.asarray(data.train)
    total, chunk = config.num_epochs * per_epoch, config.epochs_per_report * per_epoch
    warped_until = int(config.warped_share * total / chunk) * chunk if config.warped_copies else 0
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
    monitor, watch = report.Monitor(run.model, data, config.seed), report.ChainWatch(state)

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
    copies = _warped(config, problem) if step < warped_until else None
    if step < total:
        with runs.progress(total, "training", "step", initial=step) as bar:
            if copies is not None:
                state, _ = run.steps(state, copies, warped_until - step, note, chunk)
                del copies  # far more than the images
            state, _ = run.steps(state, rows, total - int(state.step), note, chunk)
    return state, log.records


def _warped(config: Config, problem: Problem) -> Any:
    data = problem.data
    assert data.shape is not None
    copies = warps.warped(data.train, data.shape, config.warped_copies, config.seed)
    return devices.place(jnp.asarray(copies), problem.mesh)


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
    assert problem.run.model is not None
    evaluation = report.Evaluation(
        problem.run.model, state.average, problem.data, config.seed, problem.mesh
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
