"""Rules of learning side by side: log-likelihood against updates, and against time.

    python -m experiments.training_rules

CD-1, CD-25, PCD, fast PCD, PCD of ladders (tempered), PTT and reweighted chains (Jarzynski), each
centred and not, and the exact gradient, at one learning rate, batch size and number of chains for
each data set. All log-likelihoods are exact, of the rows that are learned. For bars and stripes and
the labelled shifter the best is known; for zeros and ones of MNIST the model's share of ones is
told beside that of the rule's own chains, which lie apart once chains no longer mix.

Time is that of updates, without compilation and evaluation. Writes to the working directory:
figures/curves.png, results.json.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab import runs
from experiments.lab.scoring import exact_log_likelihood
from experiments.training_rules import report, rules, tasks
from experiments.training_rules.rules import Setting
from poejax import plotting, training

_BARS = Setting(12, 6_000, 32, 0.1)
_SHIFTER = Setting(20, 6_000, 48, 0.5)
_ONES = Setting(12, 1_440, 100, 0.02, num_rungs=16, has_exact=False)
_DIGITS = Setting(20, 2_400, 100, 0.02, num_rungs=16, has_exact=False)


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the study depends on."""

    data: tuple[Literal["bars", "shifter", "ones", "digits"], ...] = ("bars", "shifter", "ones")
    """Data sets, in order."""
    bars: Setting = _BARS  # Bars and stripes, all in every batch.
    shifter: Setting = _SHIFTER  # The labelled shifter, all in every batch.
    ones: Setting = _ONES  # Zeros and ones of MNIST.
    digits: Setting = _DIGITS  # All digits of MNIST.
    pooling: Literal[1, 2, 4] = 1  # Side of the squares of MNIST's pixels that make one.
    num_points: int = 12  # Evaluations after the first, at equal numbers of updates.
    num_samples: int = 2_000  # Exact samples of a model in which ones are counted.
    num_seeds: int = 3  # Seeds 0, 1, ... of every rule.

    def check(self) -> None:
        """Refuse pieces of unequal length, which would be programs of their own."""
        for name in self.data:
            steps = getattr(self, name).num_steps
            is_even = steps % self.num_points == 0
            self.expect(is_even, "num_points", f"a divisor of the {steps} updates of {name}")


def _small(setting: Setting) -> Setting:
    return dataclasses.replace(setting, num_hidden=8, num_steps=200, num_chains=20, num_rungs=3)


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        data=("bars", "ones"),
        bars=_small(_BARS),
        ones=_small(_ONES),
        pooling=4,
        num_points=4,
        num_samples=200,
        num_seeds=1,
    ),
    "full": Config(
        preset="full",
        data=("bars", "shifter", "ones", "digits"),
        bars=dataclasses.replace(_BARS, num_steps=24_000, num_chains=500),
        shifter=dataclasses.replace(_SHIFTER, num_steps=24_000, num_chains=500),
        ones=dataclasses.replace(_ONES, num_steps=6_000, num_chains=200, has_exact=True),
        num_seeds=5,
    ),
}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train by every rule and seed; returns what results.json holds."""
    start = time.perf_counter()
    found: dict[str, dict[str, Any]] = {}
    arms = {
        name: [
            (rule, is_centered)
            for rule in rules.RULES
            for is_centered in (False, True)
            if rule != "exact" or getattr(config, name).has_exact
        ]
        for name in config.data
    }
    total = config.num_seeds * sum(map(len, arms.values()))
    with runs.progress(total, "training", "run") as bar:
        for name in config.data:
            task = tasks.load(name, config.pooling)
            trained: list[dict[str, Any]] = []
            for rule, is_centered in arms[name]:
                run = rules.run_of(rule, is_centered, getattr(config, name), task.x)
                for seed in range(config.num_seeds):
                    about = {"rule": rule, "centered": is_centered, "seed": seed}
                    trained.append(about | learn(run, task, seed, config, getattr(config, name)))
                    bar.set_postfix_str(f"{name}, {rule}: {trained[-1]['log_likelihood'][-1]:.3f}")
                    bar.update()
            found[name] = {
                "title": tasks.TITLES[name],
                "rows": task.x.shape,
                "independent": tasks.independent(task.x),
                "ceiling": task.ceiling,
                "share_of_ones": task.ones and task.ones.share,
                "misjudged_as_ones_or_zeros": task.ones and task.ones.error,
                "runs": trained,
            }
    plotting.save(report.figure(found), workdir / "figures" / "curves.png")
    return runs.write_results(workdir, config, {"data": found}, start, report.table)


def learn(
    run: training.Run, task: tasks.Task, seed: int, config: Config, setting: Setting
) -> dict[str, Any]:
    """Train once; returns log-likelihoods and seconds along the way, and what came of it."""
    key, x = jax.random.key(seed), jnp.asarray(task.x)
    model, every = run.estimator.model, setting.num_steps // config.num_points
    state = run.init(key, x, model.init_from(jax.random.fold_in(key, 1), x))
    if seed == 0:
        jax.block_until_ready(run.steps(state, x, every)[0])  # compiles
    values, seconds = [exact_log_likelihood(model, state.params, x)], [0.0]
    for _ in range(config.num_points):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(run.steps(state, x, every))
        seconds.append(seconds[-1] + time.perf_counter() - began)
        values.append(exact_log_likelihood(model, state.params, x))
    result: dict[str, Any] = {
        "updates": [every * k for k in range(config.num_points + 1)],
        "log_likelihood": values,
        "seconds": seconds,
    }
    if task.held_out is not None:
        held_out = jnp.asarray(task.held_out)
        result["held_out"] = exact_log_likelihood(model, state.params, held_out)
    if task.ones is not None:
        sample_key = jax.random.fold_in(key, 2)
        own = rules.exact_samples(sample_key, model, state.params, config.num_samples)
        chains = rules.chains_of(run.estimator, state.params, state.estimator_state)
        result["ones"] = float(np.mean(task.ones.of(own)))
        result["ones_of_chains"] = chains and float(task.ones.of(chains[0]) @ chains[1])
    return result


main = runs.main_of(PRESETS, __doc__, "training_rules", train_and_evaluate, report.table)
