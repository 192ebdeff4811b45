"""The rules that are compared, each with the same number of chains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import optax

import poejax as pj
from experiments.lab import runs
from experiments.training_rules.tasks import Bits
from poejax import estimators, training
from poejax.types import Estimator, Params


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes and rates on one data set, the same for every rule."""

    num_hidden: int  # Hidden units.
    num_steps: int  # Updates.
    batch_size: int  # Rows per update.
    learning_rate: float  # Of plain gradient descent, lowered to zero along a cosine.
    num_chains: int = 100  # Persistent chains; ladders of tempered PCD.
    fast_rate: float = 0.02  # Of fast weights, held.
    num_rungs: int = 5  # Of each ladder, equally spaced from the base rates to the model.
    has_exact: bool = True  # Whether the exact gradient can be afforded.

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        runs.check_numbers(self, {"num_chains": 2, "num_rungs": 2})


Rule = Callable[[pj.Product, Setting, Bits], Estimator]
"""`(model, setting, rows) -> estimator`."""


def tempered(model: pj.Product, setting: Setting, x: Bits) -> Estimator:
    """PCD whose chains are the last rungs of ladders."""
    base = pj.evidence.base_rate(model, x)
    betas = np.linspace(0, 1, setting.num_rungs).tolist()
    kernel = pj.tempering.replica_exchange(model, betas, base)
    return estimators.pcd(model, setting.num_chains, kernel)


RULES: dict[str, Rule] = {
    "exact": lambda model, setting, x: estimators.exact(model),
    "CD-1": lambda model, setting, x: estimators.cd(model),
    "CD-25": lambda model, setting, x: estimators.cd(model, num_steps=25),
    "PCD": lambda model, setting, x: estimators.pcd(model, setting.num_chains),
    "fast PCD": lambda model, setting, x: estimators.fast_pcd(
        model, setting.num_chains, fast_rate=setting.fast_rate
    ),
    "tempered PCD": tempered,
    "PTT": lambda model, setting, x: estimators.ptt(model, setting.num_chains),
    "Jarzynski": lambda model, setting, x: estimators.jarzynski(model, setting.num_chains),
}


def run_of(name: str, is_centered: bool, setting: Setting, x: Bits) -> training.Run:
    """Return the run by a rule, equal by value for all seeds, so that they share what compiles."""
    model = pj.models.rbm(x.shape[1], setting.num_hidden)
    estimator = RULES[name](model, setting, x)
    if is_centered:
        estimator = estimators.centered(estimator)
    tx = optax.sgd(optax.cosine_decay_schedule(setting.learning_rate, setting.num_steps))
    rollback = training.Rollback() if name == "PTT" else None
    return training.Run(estimator, tx, setting.batch_size, rollback=rollback)


def chains_of(
    estimator: Any, params: Params, state: Any
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Return the rule's chains [C, D] with weights of sum 1, None if it keeps none."""
    if hasattr(estimator, "estimator"):  # centred
        estimator, state = estimator.estimator, state.inner
    if hasattr(state, "population"):
        x = estimator.samples(params, state)
    elif hasattr(state, "log_weights"):
        return np.asarray(state.states.x), np.asarray(jax.nn.softmax(state.log_weights))
    elif state == ():
        return None
    else:
        x = getattr(state, "chains", state).x
    return np.asarray(x), np.full(len(x), 1 / len(x))


def exact_samples(key: Any, model: pj.Product, params: Params, num: int) -> npt.NDArray[Any]:
    """Return exact samples of the model [num, D]."""
    draw = jax.vmap(lambda key: pj.exact.sample(key, model, params))
    return np.asarray(draw(jax.random.split(key, num)))
