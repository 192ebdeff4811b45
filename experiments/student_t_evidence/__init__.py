"""Annealed evidence of square Student-t products beside their closed form.

    python -m experiments.student_t_evidence

From a Student-t base, whose tails are at least as heavy as the model's, the estimate and its error
bar can be trusted; from a Gaussian base they cannot, which is why annealing warns there.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

import poejax as pj
from experiments.lab import runs, tables


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the study depends on."""

    size: int = 8  # Dimensions, and experts.
    exponents: tuple[float, ...] = (1.7, 1.0)  # Exponents of the experts, above 0.5.
    num_betas: int = 200  # Temperatures between base and model.
    num_chains: int = 400  # Annealed chains.
    num_seeds: int = 3  # Seeds 0, 1, ... of directions, scales and chains.

    bounds: ClassVar = {"num_chains": 2}

    def check(self) -> None:
        """Refuse improper products."""
        self.expect(min(self.exponents) > 0.5, "exponents", "above 0.5")


PRESETS = {"default": Config()}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Estimate for every exponent, seed and base; returns what results.json holds."""
    start = time.perf_counter()
    visible = pj.units.Gaussian(config.size)
    model = pj.product(visible, heavy=pj.experts.StudentT(visible, config.size))
    betas = pj.evidence.linear_betas(config.num_betas)
    rows = []
    with runs.progress(2 * len(config.exponents) * config.num_seeds, "annealing", "run") as bar:
        for exponent in config.exponents:
            for seed in range(config.num_seeds):
                init_key, scale_key, data_key, ais_key = jax.random.split(jax.random.key(seed), 4)
                params = model.init(init_key)
                log_scale = 0.5 * jax.random.normal(scale_key, (config.size,))
                log_exponent = jnp.full(config.size, jnp.log(exponent))
                params["heavy"] |= {"log_scale": log_scale, "log_exponent": log_exponent}
                truth = pj.exact.log_z(model, params)
                draw = jax.vmap(lambda key, p=params: pj.exact.sample(key, model, p))
                drawn = draw(jax.random.split(data_key, 1000))
                bases = {
                    "Student-t": pj.evidence.student_t_base(model, params),
                    "Gaussian": pj.evidence.gaussian_base(model, drawn),
                }
                for name, base in bases.items():
                    with warnings.catch_warnings(record=True, action="always") as caught:
                        found = pj.evidence.ais(
                            ais_key, model, params, base, betas, config.num_chains
                        )
                    rows.append(
                        {
                            "exponent": exponent,
                            "base": name,
                            "seed": seed,
                            "error": float(found.log_z - truth),
                            "std_err": float(found.std_err),
                            "ess": float(found.ess),
                            "warned": any("tails" in str(w.message) for w in caught),
                        }
                    )
                    bar.update()
    return runs.write_results(workdir, config, {"estimates": rows}, start, table)


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    config = results["config"]
    columns = {key: f"{{{key}}}" for key in ("exponent", "base", "seed")}
    columns |= {"error": "{error:+.3f}", "standard error": "{std_err:.3f}"}
    columns |= {"ESS": "{ess:.0f}", "warned": "{warned}"}
    caption = (
        f"error of log Z in nats, D = {config['size']}, {config['num_betas']} temperatures, ESS of "
        f"{config['num_chains']} chains"
    )
    return [tables.of_records(caption, columns, results["estimates"])]


main = runs.main_of(PRESETS, __doc__, "student_t_evidence", train_and_evaluate, table)
