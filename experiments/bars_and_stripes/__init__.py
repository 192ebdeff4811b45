"""Bars and stripes, exactly scored: learning by the exact gradient, PCD and CD-1.

    python -m experiments.bars_and_stripes

Trains a small RBM on the 16 patterns (14 distinct) of 3x3 bars and stripes by each rule, seed by
seed, and prints exact log-likelihoods in nats per sample; the ceiling is the entropy, -2.5993.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import entropy

import poejax as pj
from experiments.lab import runs, tables
from experiments.lab.scoring import exact_log_likelihood
from poejax import datasets, training


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the study depends on."""

    side: int = 3  # Side of the square.
    num_hidden: int = 16  # Hidden units.
    num_steps: int = 20_000  # Updates, each on all patterns.
    learning_rate: float = 0.05  # Of plain gradient descent, lowered to zero along a cosine.
    exact_learning_rate: float = 0.5
    """The same for the exact gradient, which has no noise to average out."""
    num_chains: int = 500  # Persistent chains of PCD.
    num_seeds: int = 5  # Seeds 0, 1, ... of every rule.


PRESETS = {"default": Config()}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train by every rule and seed; returns what results.json holds."""
    start = time.perf_counter()
    x = jnp.asarray(datasets.bars_and_stripes(config.side))
    model = pj.models.rbm(x.shape[1], config.num_hidden)
    rules: dict[str, Any] = {
        "exact": pj.estimators.exact(model),
        "pcd": pj.estimators.pcd(model, config.num_chains),
        "cd-1": pj.estimators.cd(model),
    }
    found: dict[str, list[float]] = {name: [] for name in rules}
    with runs.progress(len(rules) * config.num_seeds, "training", "run") as bar:
        for name, estimator in rules.items():
            rate = config.exact_learning_rate if name == "exact" else config.learning_rate
            tx = optax.sgd(optax.cosine_decay_schedule(rate, config.num_steps))
            run = training.Run(estimator, tx, len(x))
            for seed in range(config.num_seeds):
                state, _ = run.steps(run.init(jax.random.key(seed), x), x, config.num_steps)
                value = exact_log_likelihood(model, state.params, x)
                found[name].append(value)
                bar.update()
                bar.set_postfix({name: f"{value:.4f}"}, refresh=False)
    _, counts = np.unique(x, axis=0, return_counts=True)
    results = {"log_likelihood": found, "ceiling": float(-entropy(counts))}
    return runs.write_results(workdir, config, results, start, table)


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    rows = {
        name: [tables.plus_minus(v, 4), f"{min(v):.4f}", f"{max(v):.4f}", len(v)]
        for name, v in results["log_likelihood"].items()
    }
    caption = (
        "exact log-likelihood, nats per sample, mean ± standard deviation over seeds, all patterns "
        f"in every batch; ceiling {results['ceiling']:.4f}"
    )
    return [tables.table(caption, ("rule", "mean", "worst", "best", "seeds"), rows)]


main = runs.main_of(PRESETS, __doc__, "bars_and_stripes", train_and_evaluate, table)
