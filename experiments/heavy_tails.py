"""Block Gibbs of Student-t experts at exponent 1, in float32: long runs without a NaN.

    python -m experiments.heavy_tails

Draws random directions, runs chains from random starts and counts those that were ever not
finite; beside it the largest |x| that was met, which shows how far the tails reach.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import poejax as pj
from experiments import runs


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything the runs depend on."""

    sizes: tuple[int, ...] = (8, 64, 144)
    """Dimensions, one run each, with as many experts."""
    num_chains: tuple[int, ...] = (10_000, 100, 100)
    """Chains of each run."""
    num_steps: int = 1_000
    """Sweeps of every chain."""
    exponent: float = 1.0
    """Exponent of every expert; 1 is the heaviest tail usually drawn."""
    seed: int = 0
    """Seed of directions and chains."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        if len(self.sizes) != len(self.num_chains):
            raise ValueError(
                f"num_chains: expected one number per size, got {self.num_chains} for {self.sizes}"
            )
        if min(*self.sizes, *self.num_chains, self.num_steps) < 1:
            raise ValueError("sizes, num_chains, num_steps: expected at least 1")


class Run(NamedTuple):
    """One run: chains that were ever not finite, the largest |x| met, and the speed."""

    size: int
    num_chains: int
    num_broken: int
    largest: float
    chain_steps_per_second: float


def reach(params: Any, state: Any, info: Any) -> jax.Array:
    """Return the largest |x_i| of a chain, NaN if any is."""
    del params, info
    return jnp.max(jnp.abs(state.x))


def train_and_evaluate(config: Config) -> list[Run]:
    """Run the chains of every size."""
    found = []
    num_chunks = 10 if config.num_steps % 10 == 0 else 1
    with runs.progress(len(config.sizes) * num_chunks, "sampling", "chunk") as bar:
        for size, num_chains in zip(config.sizes, config.num_chains, strict=True):
            visible = pj.units.Gaussian(size)
            heavy = pj.experts.StudentT(visible, size, init_exponent=config.exponent)
            model = pj.product(visible, heavy=heavy)
            params = model.init(jax.random.key(config.seed))
            kernel = pj.kernels.block_gibbs(model)
            states = pj.chains.init(jax.random.key(config.seed + 1), kernel, params, num_chains)
            furthest = jnp.zeros(num_chains)
            start = time.perf_counter()
            for chunk in range(num_chunks):
                key = jax.random.fold_in(jax.random.key(config.seed + 2), chunk)
                states, met = pj.chains.run(
                    key, kernel, params, states, config.num_steps // num_chunks,
                    pj.chains.History(reach),
                )  # fmt: skip
                furthest = jnp.maximum(furthest, jnp.max(met, axis=0))  # NaN stays NaN
                bar.update()
            seconds = time.perf_counter() - start
            finite = jnp.isfinite(furthest)
            largest = float(jnp.max(jnp.where(finite, furthest, 0.0)))
            speed = num_chains * config.num_steps / seconds
            found.append(Run(size, num_chains, int((~finite).sum()), largest, speed))
    return found


@runs.command
def main() -> int:
    """Run from the command line; returns the exit status, 1 if a chain broke."""
    config = runs.parse({"default": Config()}, __doc__ or "")
    found = train_and_evaluate(config)
    print(f"\n{config.num_steps} sweeps each, exponent {config.exponent}; {runs.machine()}")
    print(f"{'D':>4}{'chains':>8}{'broken':>8}{'largest |x|':>13}{'chain-steps/s':>15}")
    for run in found:
        print(
            f"{run.size:>4}{run.num_chains:>8}{run.num_broken:>8}{run.largest:>13.2g}"
            f"{run.chain_steps_per_second:>15,.0f}"
        )
    return 1 if any(run.num_broken for run in found) else 0


if __name__ == "__main__":
    sys.exit(main())
