"""Bars and stripes, exactly scored: learning by the exact gradient, PCD and CD-1.

    python -m experiments.bars_and_stripes

Trains a small RBM on the 16 patterns (14 distinct) of 3x3 bars and stripes by each rule, seed by
seed, and prints exact log-likelihoods in nats per sample; the ceiling is the entropy, -2.5993.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import poejax as pj
from experiments import runs
from poejax import datasets, training


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything the study depends on."""

    side: int = 3
    """Side of the square."""
    num_hidden: int = 16
    """Hidden units."""
    num_steps: int = 20_000
    """Updates, each on all patterns."""
    learning_rate: float = 0.05
    """Of plain gradient descent, lowered to zero along a cosine."""
    exact_learning_rate: float = 0.5
    """The same for the exact gradient, which has no noise to average out."""
    num_chains: int = 500
    """Persistent chains of PCD."""
    num_seeds: int = 5
    """Seeds 0, 1, ... of every rule."""


def train_and_evaluate(config: Config) -> dict[str, np.ndarray]:
    """Return exact mean log-likelihoods by rule, nats per sample, one per seed."""
    x = jnp.asarray(datasets.bars_and_stripes(config.side))
    model = pj.models.rbm(x.shape[1], config.num_hidden)
    rules: dict[str, Any] = {
        "exact": pj.estimators.exact(model),
        "pcd": pj.estimators.pcd(model, config.num_chains),
        "cd-1": pj.estimators.cd(model),
    }
    results = {}
    with runs.progress(len(rules) * config.num_seeds, "training", "run") as bar:
        for name, estimator in rules.items():
            rate = config.exact_learning_rate if name == "exact" else config.learning_rate
            tx = optax.sgd(optax.cosine_decay_schedule(rate, config.num_steps))
            values = []
            for seed in range(config.num_seeds):
                state = training.init(jax.random.key(seed), model, estimator, tx, x)
                state, _ = training.train_steps(estimator, tx, state, x, len(x), config.num_steps)
                log_z = pj.exact.log_z(model, state.params)
                values.append(float(pj.evidence.log_likelihood(model, state.params, x, log_z).mean))
                bar.update()
                bar.set_postfix({name: f"{values[-1]:.4f}"}, refresh=False)
            results[name] = np.array(values)
    return results


@runs.command
def main() -> int:
    """Run from the command line; returns the exit status."""
    config = runs.parse({"default": Config()}, __doc__ or "")
    results = train_and_evaluate(config)
    _, counts = np.unique(datasets.bars_and_stripes(config.side), axis=0, return_counts=True)
    p = counts / counts.sum()
    print(f"\nexact log-likelihood, nats per sample; ceiling {np.sum(p * np.log(p)):.4f}")
    print(f"{'rule':<8}{'mean':>9}{'std':>9}{'worst':>9}{'best':>9}   seeds")
    for name, values in results.items():
        figures = (values.mean(), values.std(ddof=1) if len(values) > 1 else 0.0)
        row = "".join(f"{v:>9.4f}" for v in (*figures, values.min(), values.max()))
        print(f"{name:<8}{row}   {len(values)}")
    print(f"all patterns in every batch, binary data; {runs.machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
