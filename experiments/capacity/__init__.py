"""How the likelihood of digits grows with hidden units and with epochs, and where it stops.

    python -m experiments.capacity
    python -m experiments.capacity --preset full    # on all of MNIST

Trains one RBM for every number of hidden units and of epochs, each with a schedule of its own, and
scores training and test digits from both sides. Where training digits go on gaining and test digits
do not, the family has learned what the data can teach it.

Writes to the working directory: capacity.png, results.json.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import poejax as pj
from experiments.lab import figures, rbm_recipe, runs, scoring, tables
from poejax import datasets, plotting

_NUM_TRAIN = 10_000  # training digits that are scored, at most


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything the study depends on."""

    num_hidden: tuple[int, ...] = (50, 100, 200, 400)  # Numbers of hidden units.
    num_epochs: tuple[int, ...] = (10, 40, 160)  # Passes over the training set.
    seeds: tuple[int, ...] = (0, 1, 2)  # One run of every size and length for each.
    num_chains: int = 500  # Persistent chains.
    batch_size: int = 100  # Examples per update.
    learning_rate: float = 0.1  # Held for 30 % of the updates, then lowered linearly to 2 %.
    weight_decay: float = 1e-4  # L2 rate on the weight matrix.
    average_decay: float = 0.999  # Decay of the moving average of the parameters.
    ais_steps: int = 3_000  # Temperatures, placed by pilot runs.
    ais_chains: int = 100  # Annealed chains in each direction.
    sample_steps: int = 1_000  # Gibbs sweeps of the chains that are annealed back.

    bounds: ClassVar = {
        "seeds": 0,
        "weight_decay": 0.0,
        "average_decay": (0.0, 1.0),
        "ais_chains": 2,
    }

    def check(self) -> None:
        """Refuse what would be counted twice."""
        for name in ("num_hidden", "num_epochs", "seeds"):
            values = getattr(self, name)
            self.expect(len(set(values)) == len(values), name, "different ones")


PRESETS = {
    "default": Config(),
    "full": Config(
        preset="full",
        dataset="mnist",
        num_hidden=(125, 250, 500, 1000),
        num_epochs=(10, 30, 100),
        seeds=(0,),
        batch_size=250,
        learning_rate=0.4,
        weight_decay=0.0,
        ais_steps=10_000,
        sample_steps=3_000,
    ),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        num_hidden=(4, 16),
        num_epochs=(2, 5),
        seeds=(0,),
        num_chains=20,
        ais_steps=100,
        ais_chains=20,
        sample_steps=20,
    ),
}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train and score all sizes and lengths; returns what results.json holds."""
    start, data = time.perf_counter(), runs.load(config.dataset, 500)
    runs.require_batch(config.batch_size, len(data.train.images))
    cells = [(n, e, s) for e in config.num_epochs for n in config.num_hidden for s in config.seeds]
    rows = []
    with runs.progress(len(cells), "sizes and lengths", "run") as bar:
        for cell in cells:
            rows.append(measured(config, data, *cell))
            bar.set_postfix({"test": f"{rows[-1]['test']:.1f}"}, refresh=False)
            bar.update()
    workdir.mkdir(parents=True, exist_ok=True)
    plotting.save(figure(rows), workdir / "capacity.png")
    return runs.write_results(workdir, config, {"runs": rows}, start, table)


def measured(
    config: Config, data: datasets.Dataset, num_hidden: int, num_epochs: int, seed: int
) -> dict[str, Any]:
    """Train one RBM and score it, in nats per digit."""
    fit_key, train_key, test_key, score_key = jax.random.split(jax.random.key(seed), 4)
    recipe = rbm_recipe.Recipe(
        num_hidden=num_hidden,
        num_chains=config.num_chains,
        num_steps=num_epochs * (len(data.train.images) // config.batch_size),
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        average_decay=config.average_decay,
    )
    start = time.perf_counter()
    model, params = recipe.fit(fit_key, data.train.images, datasets.stochastic, None)
    seconds = time.perf_counter() - start
    choice = np.random.default_rng(seed).permutation(len(data.train.images))[:_NUM_TRAIN]
    x_train = datasets.stochastic(train_key, jnp.asarray(data.train.images[np.sort(choice)]))
    x_test = datasets.stochastic(test_key, jnp.asarray(data.test.images))
    found = scoring.two_sided(
        score_key,
        model,
        params,
        x_test,
        data=x_train,
        betas=config.ais_steps,
        num_chains=config.ais_chains,
        num_sweeps=config.sample_steps,
    )
    train = pj.evidence.log_likelihood(model, params, x_train, found.log_z)
    return {
        "hidden": num_hidden,
        "epochs": num_epochs,
        "seed": seed,
        "test": float(found.mean),
        "low": float(found.low),
        "high": float(found.high),
        "ess": float(found.ess),
        "train": float(train.mean),
        "seconds": round(seconds, 1),
    }


def _of_cells(rows: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    cells: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["hidden"], row["epochs"]), []).append(row)
    return cells


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Draw test and training likelihood by epochs, and that of the test digits by time."""
    drawn = Figure((8, 3.4), dpi=150, layout="constrained")
    by_epochs, by_time = drawn.subplots(1, 2, sharey=True)
    cells = _of_cells(rows)
    for size in sorted({hidden for hidden, _ in cells}):
        lengths = sorted(epochs for hidden, epochs in cells if hidden == size)
        mean = {
            name: [np.mean([r[name] for r in cells[size, e]]) for e in lengths]
            for name in ("test", "train", "seconds")
        }
        (line,) = by_epochs.plot(lengths, mean["test"], "o-", label=f"{size} hidden units")
        by_epochs.plot(lengths, mean["train"], "--", color=line.get_color())
        by_time.plot(mean["seconds"], mean["test"], "o-", color=line.get_color())
    by_epochs.plot([], [], "--", color="0.5", label="training digits")
    by_epochs.set(xscale="log", xlabel="epochs", ylabel="log-likelihood (nats per digit)")
    by_time.set(xscale="log", xlabel="seconds of training")
    by_epochs.legend(frameon=False, fontsize="small")
    for axes in (by_epochs, by_time):
        axes.grid(color="0.92")
        figures.bare(axes)
    return drawn


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    rows = []
    for (hidden, epochs), found in _of_cells(results["runs"]).items():
        test, train = ([row[name] for row in found] for name in ("test", "train"))
        low, high = (np.mean([row[end] for row in found]) for end in ("low", "high"))
        rows.append(
            (
                str(hidden),
                str(epochs),
                tables.plus_minus(test),
                f"[{low:.2f}, {high:.2f}]",
                tables.plus_minus(train),
                "exact" if np.isnan(found[0]["ess"]) else f"{min(row['ess'] for row in found):.0f}",
                f"{np.mean([row['seconds'] for row in found]):.0f}",
            )
        )
    config = results["config"]
    caption = (
        f"log-likelihood of digits ({config['dataset']}), nats, binarisation stochastic; where "
        f"log Z is not exact, both sides of it by {config['ais_steps']} temperatures and "
        f"{config['ais_chains']} chains; "
        "mean ± standard deviation over seeds"
    )
    columns = ("hidden units", "epochs", "test", "interval of log Z, mean", "train")
    return [tables.table(caption, (*columns, "least ESS", "seconds of training"), rows)]


main = runs.main_of(PRESETS, __doc__, "capacity", train_and_evaluate, table)
