"""Annealed evidence of square Student-t products beside their closed form.

    python -m experiments.student_t_evidence

From a Student-t base, whose tails are at least as heavy as the model's, the estimate and its error
bar can be trusted; from a Gaussian base they cannot, which is why annealing warns there.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

import poejax as pj
from experiments import runs


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything the study depends on."""

    size: int = 8
    """Dimensions, and experts."""
    exponents: tuple[float, ...] = (1.7, 1.0)
    """Exponents of the experts, above 0.5."""
    num_betas: int = 200
    """Temperatures between base and model."""
    num_chains: int = 400
    """Annealed chains."""
    num_seeds: int = 3
    """Seeds 0, 1, ... of directions, scales and chains."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        runs.at_least(self, 1, "size", "num_betas", "num_seeds")
        runs.at_least(self, 2, "num_chains")
        if min(self.exponents) <= 0.5:
            raise ValueError(f"exponents: expected above 0.5, got {self.exponents}")


class Row(NamedTuple):
    """One estimate: its error and standard error in nats, and the effective sample size."""

    exponent: float
    base: str
    seed: int
    error: float
    std_err: float
    ess: float
    warned: bool


def train_and_evaluate(config: Config) -> list[Row]:
    """Return an estimate for every exponent, seed and base."""
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
                bases = {
                    "Student-t": pj.evidence.student_t_base(model, params),
                    "Gaussian": pj.evidence.gaussian_base(
                        model, draw(jax.random.split(data_key, 1000))
                    ),
                }
                for name, base in bases.items():
                    with warnings.catch_warnings(record=True) as caught:
                        warnings.simplefilter("always")
                        found = pj.evidence.ais(
                            ais_key, model, params, base, betas, config.num_chains
                        )
                    rows.append(
                        Row(
                            exponent,
                            name,
                            seed,
                            float(found.log_z - truth),
                            float(found.std_err),
                            float(found.ess),
                            any("tails" in str(w.message) for w in caught),
                        )
                    )
                    bar.update()
    return rows


@runs.command
def main() -> int:
    """Run from the command line; returns the exit status."""
    config = runs.parse({"default": Config()}, __doc__ or "")
    rows = train_and_evaluate(config)
    print(f"\nD = {config.size}, {config.num_betas} temperatures; {runs.machine()}")
    print(f"{'exponent':>8}{'base':>11}{'seed':>6}{'error':>9}{'s.e.':>8}{'ESS':>6}  warned")
    for row in rows:
        print(
            f"{row.exponent:>8}{row.base:>11}{row.seed:>6}{row.error:>+9.3f}{row.std_err:>8.3f}"
            f"{row.ess:>6.0f}  {row.warned}"
        )
    print(f"errors in nats; ESS of {config.num_chains}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
