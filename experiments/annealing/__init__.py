"""Where the temperatures of an annealing path should lie, beside exact log Z.

    python -m experiments.annealing

Anneals to an RBM of 5,000 digits and to the two-dimensional Ising model on a torus, whose white
squares are hidden units of the black ones. Temperatures are equally spaced, or placed by
`evidence.adaptive_betas`; then the same path by `evidence.smc`, whose chains are resampled.

Writes to the working directory: annealing.png, results.json.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import poejax as pj
from experiments.lab import figures, ising, runs, tables
from poejax import plotting
from poejax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything the study depends on."""

    num_hidden: int = 20  # Hidden units of the RBM.
    num_updates: int = 4000  # Updates of the RBM by PCD, of 100 rows each.
    ising_size: int = 6  # Squares along a side of the torus, even.
    coupling: float = 0.6  # Between neighbours, beyond the critical 0.44.
    temperatures: tuple[int, ...] = (30, 100, 300, 1000)  # Numbers of temperatures.
    num_chains: int = 500  # Chains of every estimate, a multiple of 10.
    seed: int = 0  # Of the whole run.

    bounds: ClassVar = {"seed": 0, "num_chains": 20, "ising_size": 2}

    def check(self) -> None:
        """Refuse a torus without a chessboard, and groups of unequal size."""
        self.expect(self.ising_size % 2 == 0, "ising_size", "an even number")
        self.expect(self.num_chains % 10 == 0, "num_chains", "a multiple of 10")


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        num_hidden=6,
        num_updates=100,
        ising_size=4,
        temperatures=(10, 20),
        num_chains=50,
    ),
}


class Target(NamedTuple):
    """What is annealed to, and from where."""

    model: pj.Product
    params: Params
    base: pj.evidence.Base


def targets(config: Config) -> dict[str, Target]:
    """Train the RBM, and build the Ising model."""
    data_key, run_key = jax.random.split(jax.random.key(config.seed))
    images = jnp.asarray(runs.load(config.dataset, 500).train.images)
    data = pj.datasets.stochastic(data_key, images)
    rbm = pj.models.rbm(data.shape[1], config.num_hidden)
    run = pj.training.Run(pj.estimators.pcd(rbm, 100), optax.sgd(0.05), batch_size=100)
    params = runs.train(run, run.init(run_key, data), data, config.num_updates).params
    model, couplings = ising.ising(config.ising_size, config.coupling)
    return {
        "RBM of digits": Target(rbm, params, pj.evidence.base_rate(rbm, data)),
        "2-D Ising model": Target(model, couplings, ising.even_base(model)),
    }


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Anneal to both models; returns what results.json holds."""
    start, rows, placed = time.perf_counter(), [], {}
    found = targets(config)
    with runs.progress(len(found) * len(config.temperatures), "annealing", "path") as bar:
        for name, target in found.items():
            truth = float(pj.exact.log_z(target.model, target.params))
            for number, count in enumerate(config.temperatures):
                key = jax.random.fold_in(jax.random.key(config.seed), number)
                keys = jax.random.split(key, 4)
                betas = {
                    "linear": pj.evidence.linear_betas(count),
                    "adaptive": pj.evidence.adaptive_betas(keys[0], *target, count),
                }
                placed[name] = np.asarray(betas["adaptive"]).tolist()
                for schedule, values in betas.items():
                    rows.append(
                        {"model": name, "temperatures": count, "schedule": schedule}
                        | measured(keys[1], target, values, config.num_chains, truth)
                    )
                bar.update()
    workdir.mkdir(parents=True, exist_ok=True)
    plotting.save(figure(rows, placed), workdir / "annealing.png")
    return runs.write_results(workdir, config, {"estimates": rows}, start, table)


def measured(
    rng_key: Array, target: Target, betas: Array, num_chains: int, truth: float
) -> dict[str, float]:
    """Return the spread of the log weights, and the errors of AIS and of SMC, in nats."""
    with warnings.catch_warnings():  # few temperatures are a part of the study
        warnings.simplefilter("ignore", UserWarning)
        ais = pj.evidence.ais(rng_key, *target, betas, num_chains)
        _, smc = pj.evidence.smc(rng_key, *target, betas, num_chains)
    return {
        "variance": float(jnp.var(ais.log_weights, ddof=1)),
        "ess": float(ais.ess),
        "error": float(ais.log_z) - truth,
        "std_err": float(ais.std_err),
        "smc_error": float(smc.log_z) - truth,
        "smc_std_err": float(smc.std_err),
    }


def figure(rows: list[dict[str, Any]], placed: dict[str, list[float]]) -> Figure:
    """Draw the variance of log weights by the number of temperatures, and where these lie."""
    drawn = Figure((9, 3), dpi=150, layout="constrained")
    panels = drawn.subplots(1, len(placed) + 1)
    for axes, name in zip(panels, placed, strict=False):
        for schedule, marker in (("linear", "o"), ("adaptive", "s")):
            own = [r for r in rows if (r["model"], r["schedule"]) == (name, schedule)]
            x, y = [r["temperatures"] for r in own], [r["variance"] for r in own]
            axes.loglog(x, y, f"{marker}-", label=schedule)
        axes.set(title=name, xlabel="temperatures", ylabel="variance of log weights (nats²)")
        axes.legend(frameon=False)
        figures.bare(axes)
    for name, betas in placed.items():
        panels[-1].plot(np.linspace(0, 1, len(betas)), betas, label=name)
    panels[-1].plot([0, 1], [0, 1], "--", color="0.7", label="linear")
    panels[-1].set(title="adaptive", xlabel="t / T", ylabel="inverse temperature β")
    panels[-1].legend(frameon=False)
    figures.bare(panels[-1])
    return drawn


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    config = results["config"]
    columns = {"model": "{model}", "temperatures": "{temperatures}", "placed": "{schedule}"}
    columns |= {"variance of log w": "{variance:.3g}", "ESS": "{ess:.0f}"}
    columns |= {"AIS error": "{error:+.3f} ± {std_err:.3f}"}
    columns |= {"SMC error": "{smc_error:+.3f} ± {smc_std_err:.3f}"}
    caption = f"errors of log Z in nats, {config['num_chains']} chains, ± one standard error"
    return [tables.of_records(caption, columns, results["estimates"])]


main = runs.main_of(PRESETS, __doc__, "annealing", train_and_evaluate, table)
