"""Timing in interleaved rounds: a noisy machine slows all contestants alike."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Contestant(NamedTuple):
    """What is timed: `run` takes `num_steps` steps."""

    run: Callable[[], Any]
    num_steps: int


class Timing(NamedTuple):
    """Seconds a step, in every round; seconds of the first call beyond that; MiB it added."""

    seconds: list[float]
    compile_seconds: float
    peak_mib: float

    @property
    def median(self) -> float:
        """The median over rounds."""
        return float(np.median(self.seconds))

    def ratio(self, other: Timing) -> float:
        """Return how many times as long another takes, the median over rounds."""
        return float(np.median(np.divide(other.seconds, self.seconds)))


def timed(
    contestants: Mapping[str, Contestant],
    num_rounds: int,
    pause: float,
    tick: Callable[[], Any] = lambda: None,
) -> dict[str, Timing]:
    """Time every contestant once a round.

    Before each timing a pause and a call that is not timed: threads of other libraries go on
    spinning after a call, and slow what comes next.

    Args:
      contestants: by name.
      num_rounds: number of timings of each.
      pause: seconds of rest.
      tick: called after every timing.

    Returns:
      Timings by name. The memory is what the first call added to the process's largest size.
    """
    first, memory = {}, {}
    for name, (run, _) in contestants.items():
        before = _peak_mib()
        first[name] = seconds_of(run)
        memory[name] = _peak_mib() - before
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(num_rounds):
        for name, (run, num_steps) in contestants.items():
            time.sleep(pause)
            run_once(run)
            seconds[name].append(seconds_of(run) / num_steps)
            tick()
    return {
        name: Timing(
            seconds[name],
            max(0.0, first[name] - float(np.median(seconds[name])) * num_steps),
            memory[name],
        )
        for name, (_, num_steps) in contestants.items()
    }


def run_once(run: Callable[[], Any]) -> None:
    """Call a contestant, and wait for what it computes."""
    jax.block_until_ready(run())


def seconds_of(run: Callable[[], Any]) -> float:
    """Return how long a contestant's call takes."""
    start = time.perf_counter()
    run_once(run)
    return time.perf_counter() - start


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
