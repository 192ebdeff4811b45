"""Block Gibbs of Student-t experts at exponent 1, in float32: long runs without a NaN.

    python -m experiments.heavy_tails

Draws random directions, runs chains from random starts and counts those that were ever not
finite; beside it the largest |x| that was met, which shows how far the tails reach.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

import poejax as pj
from experiments.lab import runs, tables


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the runs depend on."""

    sizes: tuple[int, ...] = (8, 64, 144)  # Dimensions, one run each, with as many experts.
    num_chains: tuple[int, ...] = (10_000, 100, 100)  # Chains of each run.
    num_steps: int = 1_000  # Sweeps of every chain.
    exponent: float = 1.0  # Exponent of every expert; 1 is the heaviest tail usually drawn.
    seed: int = 0  # Seed of directions and chains.

    bounds: ClassVar = {"seed": 0}

    def check(self) -> None:
        """Refuse lists of different lengths."""
        if len(self.sizes) != len(self.num_chains):
            raise ValueError(
                f"num_chains: expected one number per size, got {self.num_chains} for {self.sizes}"
            )


PRESETS = {"default": Config()}


def reach(params: Any, state: Any, info: Any) -> jax.Array:
    """Return the largest |x_i| of a chain, NaN if any is."""
    del params, info
    return jnp.max(jnp.abs(state.x))


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Run the chains of every size; returns what results.json holds."""
    begin, found = time.perf_counter(), []
    num_chunks = 10 if config.num_steps % 10 == 0 else 1
    num_steps = config.num_steps // num_chunks
    with runs.progress(len(config.sizes) * num_chunks, "sampling", "chunk") as bar:
        for size, num_chains in zip(config.sizes, config.num_chains, strict=True):
            visible = pj.units.Gaussian(size)
            heavy = pj.experts.StudentT(visible, size, init_exponent=config.exponent)
            model = pj.product(visible, heavy=heavy)
            params = model.init(jax.random.key(config.seed))
            kernel = pj.kernels.block_gibbs(model)
            states = pj.chains.init(jax.random.key(config.seed + 1), kernel, params, num_chains)
            furthest = jnp.zeros(num_chains)
            start, watch = time.perf_counter(), pj.chains.History(reach)
            for chunk in range(num_chunks):
                key = jax.random.fold_in(jax.random.key(config.seed + 2), chunk)
                states, met = pj.chains.run(key, kernel, params, states, num_steps, watch)
                furthest = jnp.maximum(furthest, jnp.max(met, axis=0))  # NaN stays NaN
                bar.update()
            finite = jnp.isfinite(furthest)
            speed = num_chains * config.num_steps / (time.perf_counter() - start)
            found.append(
                {
                    "size": size,
                    "chains": num_chains,
                    "broken": int((~finite).sum()),
                    "largest": float(jnp.max(jnp.where(finite, furthest, 0.0))),
                    "chain_steps_per_second": speed,
                }
            )
    results = {"runs": found, "failed": any(run["broken"] for run in found)}
    return runs.write_results(workdir, config, results, begin, table)


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    columns = {
        "D": "{size}",
        "chains": "{chains}",
        "ever not finite": "{broken}",
        "largest |x|": "{largest:.2g}",
        "chain-steps/s": "{chain_steps_per_second:,.0f}",
    }
    config = results["config"]
    caption = f"{config['num_steps']} sweeps each, exponent {config['exponent']}"
    return [tables.of_records(caption, columns, results["runs"])]


main = runs.main_of(PRESETS, __doc__, "heavy_tails", train_and_evaluate, table)
