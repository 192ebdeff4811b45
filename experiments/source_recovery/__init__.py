"""Independent sources found by products of Student-t experts, rule by rule, beside FastICA.

    python -m experiments.source_recovery

Eight heavy-tailed sources are mixed by a random matrix; the mixtures are whitened, and a square
product of Student-t experts learns to take them apart by the exact gradient, by CD-1 (block Gibbs;
Hamiltonian Monte Carlo) and by score matching. How well is the Amari distance to the mixing matrix.
Writes config.json, results.json and recovery.png to the working directory.

All rules come as near as FastICA. What they need:

- exact gradient: nothing but exponents above 1/2. Unit directions and free scales leave only order
  and sign open, so it is well-posed; whitening only makes it quick (without it, condition numbers
  of 12 to 36 take up to 10,000 updates).
- CD-1: a learning rate that goes to zero, without which block Gibbs stays near 0.010. Where the
  directions are right a step leaves independent sources uncorrelated in every odd function, so
  they are a fixed point whatever the marginals.
- HMC: a trajectory of about the sources' width, or the signal is weak and learning slow.
- score matching: exponents held. For Laplace sources, whose density has a kink, it lets the
  exponents and scales run towards 0.
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
from experiments.lab import figures, ica, runs, tables
from poejax import plotting, training

SOURCES = {"student_t": "Student-t", "laplace": "Laplace"}


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the study depends on."""

    num_sources: int = 8  # Sources, mixtures and experts.
    num_samples: int = 10_000  # Mixtures to learn from.
    degrees: float = 3.0
    """Degrees of freedom of the Student-t sources; exponents of (degrees + 1) / 2 are true."""
    exponent: float = 2.0
    """Exponents of the experts, held fixed; scales are learned. Above 0.5 for a proper model."""
    num_steps: int = 2_000  # Updates.
    batch_size: int = 500  # Mixtures per update.
    learning_rate: float = 0.03
    """Of Adam, lowered to zero along a cosine: without that the noise of the batches stays."""
    hmc_step_size: float = 0.3  # Leapfrog step in whitened units; acceptance is about 0.94.
    hmc_leapfrog: int = 10  # Leapfrog steps per CD step.
    num_seeds: int = 5  # Seeds 0, 1, ... of sources, mixing matrix and learning.
    num_reports: int = 20  # Points of the curves.

    bounds: ClassVar = {"num_sources": 2}

    def check(self) -> None:
        """Refuse data without variances, improper products, and steps that make no reports."""
        self.expect(self.degrees > 2, "degrees", "more than 2, as whitening needs variances")
        self.expect(self.exponent > 0.5, "exponent", "more than 0.5, or the product is improper")
        runs.require_batch(self.batch_size, self.num_samples)
        self.expect_multiple("num_steps", of="num_reports")


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        num_sources=3,
        num_samples=2_000,
        num_steps=300,
        batch_size=200,
        learning_rate=0.05,
        num_seeds=1,
        num_reports=2,
    ),
}


def mixtures(config: Config, source: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mixed data [N, D] and the mixing matrix [D, D], x = A s."""
    rng = np.random.default_rng(seed)
    shape = (config.num_samples, config.num_sources)
    sources = (
        rng.standard_t(config.degrees, shape) if source == "student_t" else rng.laplace(size=shape)
    )
    mixing = rng.normal(size=(config.num_sources, config.num_sources))
    return sources @ mixing.T, mixing


def rules(config: Config, model: pj.Product) -> dict[str, pj.types.Estimator]:
    """Return the learning rules by name."""
    hmc = pj.kernels.hmc(model, config.hmc_step_size, config.hmc_leapfrog)
    return {
        "exact gradient": pj.estimators.exact(model),
        "CD-1, block Gibbs": pj.estimators.cd(model),
        "CD-1, HMC": pj.estimators.cd(model, hmc),
        "score matching": pj.estimators.score_matching(model),
    }


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Learn by every rule from every kind of source; returns what results.json holds.

    Raises:
      ValueError: if `workdir` holds a study with another config.
    """
    runs.open_workdir(workdir, config, resume=None, unchecked=("workdir",))
    size = config.num_sources
    model = ica.student_t_product(size, size, config.exponent, scale=1.0)
    tx = ica.optimizer(config.learning_rate, config.num_steps, frozen=("log_exponent",))
    learned = rules(config, model)
    names = ("whitening only", "FastICA", *learned)
    results: dict[str, Any] = {}
    rows: dict[str, dict[str, list[Any]]]
    with runs.progress(len(SOURCES) * config.num_seeds * len(learned), "training", "run") as bar:
        for source in SOURCES:
            rows = {name: {"amari": [], "seconds": [], "curves": []} for name in names}
            for seed in range(config.num_seeds):
                x, mixing = mixtures(config, source, seed)
                white = ica.whitening(x)
                z = white(x)

                def distance(w: np.ndarray, white: Any = white, mixing: Any = mixing) -> float:
                    return ica.amari_distance(w.T @ white.forward.T, mixing)

                _add(rows["whitening only"], distance(np.eye(size)), 0.0)
                start = time.perf_counter()
                w = ica.fastica(z, seed)
                _add(rows["FastICA"], distance(w), time.perf_counter() - start)
                for name, estimator in learned.items():
                    curve, seconds = _learn(config, estimator, tx, z, seed, distance)
                    _add(rows[name], curve[-1], seconds)
                    rows[name]["curves"].append(curve)
                    bar.update()
                    bar.set_postfix({name: f"{curve[-1]:.4f}"}, refresh=False)
            results[source] = rows
    about = {"machine": runs.machine(), "tables": table(results)}
    runs.write_json(workdir / "results.json", results | about)
    plotting.save(draw(config, results), workdir / "recovery.png")
    return results


def _add(row: dict[str, Any], amari: float, seconds: float) -> None:
    row["amari"].append(amari)
    row["seconds"].append(round(seconds, 3))


def _learn(
    config: Config, estimator: Any, tx: Any, z: np.ndarray, seed: int, distance: Any
) -> tuple[list[float], float]:
    """Return the Amari distance after each report, and the seconds (the first with compiling)."""
    data = jnp.asarray(z, jnp.float32)
    run = training.Run(estimator, tx, config.batch_size)
    state = run.init(jax.random.key(seed), data)
    curve = [distance(ica.directions(state.params))]

    def look(state: training.TrainState, metrics: training.Metrics) -> None:
        curve.append(distance(ica.directions(state.params)))

    start = time.perf_counter()
    run.steps(state, data, config.num_steps, look, config.num_steps // config.num_reports)
    return curve, time.perf_counter() - start


def draw(config: Config, results: dict[str, Any]) -> Figure:
    """Draw the distances of every seed, and how they came down."""
    figure = Figure((10.5, 3.4 * len(SOURCES)), dpi=150, layout="tight")
    steps = np.linspace(0, config.num_steps, config.num_reports + 1)
    for i, source in enumerate(SOURCES):
        table = results[source]
        named = {name: {"": of["amari"]} for name, of in table.items() if name != "whitening only"}
        left, right = (figure.add_subplot(len(SOURCES), 2, 2 * i + k) for k in (1, 2))
        figures.by_group(left, named)
        for k, name in enumerate(named):
            if curves := table[name]["curves"]:
                right.plot(steps, np.median(curves, axis=0), color=f"C{k}", label=name)
        left.set(xlabel="Amari distance, one dot per seed", xlim=(0, None))
        fastica = np.median(table["FastICA"]["amari"])
        right.axhline(fastica, color="C0", linestyle="--", label="FastICA")
        right.set(yscale="log", xlabel="update", ylabel="Amari distance, median of seeds")
        right.legend(frameon=False, fontsize="small")
        for axes in (left, right):
            axes.set_title(f"{config.num_sources} {SOURCES[source]} sources")
        right.grid(color="0.9")
        figures.bare(right)
    return figure


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return a table for every kind of source."""
    found = []
    for source, name in SOURCES.items():
        fastica = np.array(results[source]["FastICA"]["amari"])
        rows = {}
        for rule, row in results[source].items():
            d = np.array(row["amari"])
            gap = f"{(d - fastica).mean():.4f} ± {tables.std_err(d - fastica):.4f}"
            rows[rule] = (d.mean(), d.max(), gap, f"{np.median(row['seconds']):.1f}")
        caption = f"{name} sources: Amari distance in [0, 1], {len(fastica)} seeds"
        heads = ("", "mean", "worst", "minus FastICA, ± standard error", "seconds")
        found.append(tables.table(caption, heads, rows, ".4f"))
    return found


main = runs.main_of(PRESETS, __doc__, "source_recovery", train_and_evaluate, table, resumes=True)
