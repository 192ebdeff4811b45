"""Real tables: does a Gaussian RBM learn safely, whatever the units, rates and optimizer?

    python -m experiments.real_tables

Three tables of scikit-learn in the units they come in (wine, ten columns of breast cancer,
diabetes). On each, over learning rates and optimizers, `recipes.fit_gaussian_rbm` is held against
plain training of the same model from `model.init`, without coordinates, clipping or rows held out.
A quarter of the rows tests: exact log-likelihoods in nats per row, above a single Gaussian of full
covariance; beside them a mixture of Gaussians whose size cross-validation chose. Then a tenth of
the test entries is taken away and put back: by posterior means under the RBM, by scikit-learn's
IterativeImputer, by column means.

Writes results.json and figures/.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import optax
import sklearn.datasets
from matplotlib.figure import Figure
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, train_test_split

import poejax as pj
from experiments.lab import runs, tables
from experiments.lab.scoring import exact_log_likelihood
from poejax import plotting, recipes, training

Matrix = npt.NDArray[np.float64]
_NUM_COLUMNS = 10
_MARGIN = 0.05  # nats: the start of the recipe is a Gaussian 1 % broader, better or worse by less


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the study depends on, with its data."""

    tables: tuple[str, ...] = ("wine", "breast cancer", "diabetes")  # Which tables.
    learning_rates: tuple[float, ...] = (1e-3, 1e-2, 1e-1)  # Of the first step.
    optimizers: tuple[str, ...] = ("adam", "sgd")  # Which optimizers.
    num_hidden: int = 8  # Binary hidden units; log Z is a sum over their states.
    num_passes: int = 100  # Passes over the training rows.
    batch_size: int = 20  # Rows per update.
    num_chains: int = 100  # Persistent chains.
    max_components: int = 5  # Sizes of the mixture to choose from.
    num_seeds: int = 10  # Seeds 0, 1, ... of splits and of everything random.

    def check(self) -> None:
        """Refuse what is not known."""
        unknown = set(self.tables) - set(_TABLES) or set(self.optimizers) - set(recipes.OPTIMIZERS)
        if unknown:
            raise ValueError(
                f"tables, optimizers, learning_rates: expected some of {[*_TABLES]}, some of "
                f"{[*recipes.OPTIMIZERS]} and at least one rate, got {unknown}"
            )


_TABLES: dict[str, Callable[..., Any]] = {
    "wine": sklearn.datasets.load_wine,
    "breast cancer": sklearn.datasets.load_breast_cancer,
    "diabetes": functools.partial(sklearn.datasets.load_diabetes, scaled=False),
}
PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        tables=("wine",),
        learning_rates=(1e-2,),
        num_passes=4,
        max_components=2,
        num_seeds=2,
    ),
}


def load(name: str) -> Matrix:
    """Return a table [N, D] in the units it comes in."""
    return np.asarray(_TABLES[name]().data, np.float64)[:, : 13 if name == "wine" else _NUM_COLUMNS]


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Run the study and draw it; returns what results.json holds."""
    start = time.perf_counter()
    cells_of: dict[str, Any] = {}
    arms = list(itertools.product(config.optimizers, config.learning_rates))
    total = len(config.tables) * config.num_seeds * len(arms)
    with runs.progress(total, "real tables", "run") as bar:
        for name in config.tables:
            x, cells = load(name), []
            for seed in range(config.num_seeds):
                learned, tested = train_test_split(x, test_size=0.25, random_state=seed)
                reference = _single_gaussian(learned, tested)
                cell: dict[str, Any] = {"seed": seed, "single Gaussian": reference}
                cell["mixture"] = _mixture(config, seed, learned, tested) - reference
                for optimizer, rate in arms:
                    fit = _recipe(config, seed, learned, optimizer, rate)
                    score = exact_log_likelihood(fit.model, fit.params, tested)
                    cell[f"recipe {optimizer} {rate:g}"] = score - reference
                    score = _plain(config, seed, learned, tested, optimizer, rate)
                    cell[f"plain {optimizer} {rate:g}"] = score - reference
                    bar.update(1)
                cell |= _imputation(seed, fit, learned, tested)
                cells.append(cell)
            cells_of[name] = cells
    results = {"cells": cells_of, "summary": {n: summarize(c) for n, c in cells_of.items()}}
    plotting.save(draw(config, cells_of), workdir / "figures" / "gain.png")
    return runs.write_results(workdir, config, results, start, table)


def _single_gaussian(learned: Matrix, tested: Matrix) -> float:
    """Return the mean log-likelihood of one Gaussian, fitted by moments; columns of any size."""
    scale = learned.std(0)
    learned, tested = learned / scale, tested / scale
    gaussian = multivariate_normal(learned.mean(0), np.cov(learned.T, ddof=0))
    return float(gaussian.logpdf(tested).mean() - np.log(scale).sum())


def _recipe(
    config: Config, seed: int, x: Matrix, optimizer: str, rate: float
) -> recipes.GaussianFit:
    return recipes.fit_gaussian_rbm(
        jax.random.key(seed),
        x,
        config.num_hidden,
        num_passes=config.num_passes,
        optimizer=optimizer,
        learning_rate=rate,
        batch_size=config.batch_size,
        num_chains=config.num_chains,
    )


def _plain(config: Config, seed: int, x: Matrix, tested: Matrix, method: str, rate: float) -> float:
    """Return the test score of training as it comes, NaN if it diverges."""
    model = pj.models.gaussian_rbm(x.shape[1], config.num_hidden)
    tx = {"adam": optax.adam, "sgd": optax.sgd}[method](rate)
    run = training.Run(pj.estimators.pcd(model, config.num_chains), tx, config.batch_size)
    try:
        state = run.init(jax.random.key(seed), x)
        state, _ = run.steps(state, x, config.num_passes * (len(x) // config.batch_size))
        return exact_log_likelihood(model, state.params, tested)
    except (FloatingPointError, ValueError):
        return math.nan


def _mixture(config: Config, seed: int, x: Matrix, tested: Matrix) -> float:
    mean, scale = x.mean(0), x.std(0)
    sizes = {"n_components": range(1, config.max_components + 1)}
    mixture = GaussianMixture(reg_covar=1e-3, n_init=3, random_state=seed)
    search = GridSearchCV(mixture, sizes, cv=4).fit((x - mean) / scale)
    return float(search.score((tested - mean) / scale) - np.log(scale).sum())


def _imputation(seed: int, fit: recipes.GaussianFit, x: Matrix, tested: Matrix) -> dict[str, float]:
    """Return root mean square errors of a tenth of the entries, in each column's spread."""
    observed = np.random.default_rng(seed).random(tested.shape) > 0.1
    mean, scale = x.mean(0), x.std(0)
    found = pj.inference.inpaint(
        jax.random.key(seed), fit.model, fit.params, tested, observed, num_chains=8, num_steps=200
    )
    standard = np.where(observed, (tested - mean) / scale, np.nan)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        peer = IterativeImputer(random_state=seed, max_iter=30).fit((x - mean) / scale)
        by_peer = mean + scale * peer.transform(standard)

    def error(values: Any) -> float:
        return float(np.sqrt(np.mean(((np.asarray(values) - tested) / scale)[~observed] ** 2)))

    by_mean = np.broadcast_to(mean, tested.shape)
    return {
        "imputed by RBM": error(found.mean),
        "imputed by IterativeImputer": error(by_peer),
        "imputed by mean": error(by_mean),
    }


def summarize(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and spread of every figure over seeds, and how many runs went wrong."""
    summary: dict[str, Any] = {}
    for name in cells[0].keys() - {"seed"}:
        values = np.array([cell[name] for cell in cells])
        summary[name] = [math.nan, math.nan]
        if np.isfinite(values).sum() > 1:
            summary[name] = [float(np.nanmean(values)), float(np.nanstd(values, ddof=1))]
    for arm in ("plain", "recipe"):
        values = np.array([v for cell in cells for n, v in cell.items() if n.startswith(arm)])
        summary[f"{arm}: runs"] = len(values)
        summary[f"{arm}: diverged"] = int((~np.isfinite(values)).sum())
        summary[f"{arm}: below a single Gaussian"] = int((values < -_MARGIN).sum())
        summary[f"{arm}: worst"] = float(np.nanmin(values)) if np.isfinite(values).any() else None
    return summary


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return two tables for every table of data: how runs ended, and their scores."""
    found = []
    for name, summary in results["summary"].items():
        counts = ("runs", "diverged", "below a single Gaussian", "worst")
        ends = {arm: [summary[f"{arm}: {c}"] for c in counts] for arm in ("plain", "recipe")}
        single = f"{summary['single Gaussian'][0]:.2f}"
        caption = f"{name}: how runs ended (single Gaussian {single} nats per test row)"
        found.append(tables.table(caption, ("", *counts), ends, ".3g"))
        means = {
            key: [f"{summary[key][0]:.3f} ± {summary[key][1]:.3f}"]
            for key in sorted(k for k in summary if ":" not in k and k != "single Gaussian")
        }
        of = "nats per test row above it, imputed: errors in spreads; mean ± std over seeds"
        found.append(tables.table(f"{name}: {of}", ("", "score"), means))
    return found


def draw(config: Config, cells_of: dict[str, Any]) -> Figure:
    """Draw every run of the recipe against the mixture, by table, optimizer and rate."""
    figure = Figure(figsize=(4.2 * len(cells_of), 3.6), layout="constrained")
    axes = figure.subplots(1, len(cells_of), squeeze=False)[0]
    arms = [f"{o} {r:g}" for o, r in itertools.product(config.optimizers, config.learning_rates)]
    for ax, (name, cells) in zip(axes, cells_of.items(), strict=True):
        groups = [[cell[f"recipe {arm}"] for cell in cells] for arm in arms]
        groups.append([cell["mixture"] for cell in cells])
        ax.boxplot(groups, tick_labels=[*arms, "mixture"])
        ax.axhline(0, color="0.5", linewidth=1)
        ax.tick_params(axis="x", rotation=60)
        ax.set_title(name)
    axes[0].set_ylabel("nats per test row\nabove a single Gaussian")
    return figure


main = runs.main_of(PRESETS, __doc__, "real_tables", train_and_evaluate, table)
