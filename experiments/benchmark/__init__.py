"""Speed as ratios within one run: Gibbs sweeps against bare matrix products and scikit-learn.

    python -m experiments.benchmark

One sweep of a 784 x 500 RBM costs 1.57 MFLOP per chain. Rounds are interleaved, so that a noisy
machine slows all contestants alike; medians are reported.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from sklearn.neural_network import BernoulliRBM

import poejax as pj
from experiments.lab import runs, tables
from poejax import training


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Sizes and repetitions."""

    num_visible: int = 784  # Visible units.
    num_hidden: int = 500  # Hidden units.
    num_chains: int = 500  # Parallel chains.
    num_steps: int = 20  # Sweeps per timing.
    num_rounds: int = 9  # Interleaved timings of each contestant.


PRESETS = {"default": Config()}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Time all contestants; returns median seconds per step by contestant."""
    begin, contestants = time.perf_counter(), _contestants(config)
    for run in contestants.values():
        run()  # compile and warm up
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with runs.progress(config.num_rounds, "timing", "round") as bar:
        for _ in range(config.num_rounds):
            for name, run in contestants.items():
                start = time.perf_counter()
                run()
                seconds[name].append((time.perf_counter() - start) / config.num_steps)
            bar.update()
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    return runs.write_results(workdir, config, {"seconds_per_step": medians}, begin, table)


def _contestants(config: Config) -> dict[str, Callable[[], Any]]:
    model = pj.models.rbm(config.num_visible, config.num_hidden)
    key = jax.random.key(0)
    params = model.init(key)
    kernel = pj.kernels.block_gibbs(model)
    chains = pj.chains.init(key, kernel, params, config.num_chains)
    w, x = params["hidden"]["w"], chains.x

    @jax.jit
    def products(x: jax.Array, w: jax.Array) -> jax.Array:
        # The two products of a sweep and nothing else.
        return jax.lax.scan(lambda x, _: ((x @ w) @ w.T, None), x, length=config.num_steps)[0]

    base = pj.evidence.base_rate(model, x)
    betas = pj.evidence.linear_betas(config.num_steps)
    annealing = pj.evidence.ais_init(key, model, params, base, betas, config.num_chains)
    learning = training.Run(pj.estimators.pcd(model, config.num_chains), optax.sgd(0.01), 100)
    state = learning.init(key, x)
    peer = BernoulliRBM(n_components=config.num_hidden, random_state=0)
    peer.partial_fit(np.asarray(x[:10]))
    v = np.asarray(x, np.float64)

    def peer_sweeps() -> None:
        sample = v
        for _ in range(config.num_steps):
            sample = peer.gibbs(sample)

    return {
        "matrix products only": lambda: products(x, w).block_until_ready(),
        "Gibbs sweep": lambda: jax.block_until_ready(
            pj.chains.run(key, kernel, params, chains, config.num_steps)
        ),
        "AIS step": lambda: jax.block_until_ready(
            pj.evidence.ais_steps(annealing, model, params, base, betas, config.num_steps)
        ),
        "PCD-1 update, batch 100": lambda: jax.block_until_ready(
            learning.steps(state, x, config.num_steps)
        ),
        "Gibbs sweep, scikit-learn": peer_sweeps,
    }


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    config, seconds = results["config"], results["seconds_per_step"]
    ours = seconds["Gibbs sweep"]
    rows = {
        name: (f"{1e3 * v:.2f}", f"{config['num_chains'] / v:,.0f}", f"{v / ours:.2f}")
        for name, v in seconds.items()
    }
    caption = (
        f"{config['num_visible']} x {config['num_hidden']}, {config['num_chains']} chains, medians "
        f"of {config['num_rounds']} interleaved rounds; scikit-learn computes in float64"
    )
    return [tables.table(caption, ("", "ms", "chain-steps/s", "Gibbs sweeps"), rows)]


main = runs.main_of(PRESETS, __doc__, "benchmark", train_and_evaluate, table)
