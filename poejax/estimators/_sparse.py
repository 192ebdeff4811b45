"""Hidden units that are on as rarely as wanted, whatever the learning rule."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax._product import Product
from poejax.estimators._common import Rule, banks_of, mean_statistics, own_model
from poejax.types import Array, Estimator, Event, Params, PyTree


class SparseState(NamedTuple):
    """State of the wrapped estimator, and how often each bank's units are on, {name: [N]}."""

    inner: Any
    activity: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Sparse(Rule):
    """Wraps an estimator; build with `sparse`."""

    estimator: Estimator
    target: float
    cost: float
    decay: float

    def init(self, rng_key: Array, params: Params, data: Event) -> SparseState:
        """Start at the activity of `data` [N, ...] under `params`."""
        return SparseState(
            self.estimator.init(rng_key, params, data), mean_statistics(self.model, params, data)[1]
        )

    def grad(
        self, rng_key: Array, params: Params, state: SparseState, batch: Event
    ) -> tuple[Params, SparseState, PyTree]:
        """Estimate the gradient from a batch [B, ...], and add the penalty's."""
        grads, inner, info = self.estimator.grad(rng_key, params, state.inner, batch)
        mean, now = mean_statistics(self.model, params, batch)
        activity = jax.tree.map(
            lambda old, new: (self.decay * old + (1 - self.decay) * new).astype(old.dtype),
            state.activity,
            now,
        )
        grads = dict(grads)
        for name, bank in banks_of(self.model).items():
            push = self.cost * (activity[name] - self.target)
            w = grads[name]["w"] + jnp.outer(mean, push).astype(grads[name]["w"].dtype)
            b = bank.hidden.shift_linear(grads[name]["b"], push)
            grads[name] = grads[name] | {"w": w, "b": b}
        return grads, SparseState(inner, activity), info


def sparse(
    estimator: Estimator,
    model: Product | None = None,
    *,
    target: float = 0.05,
    cost: float = 0.1,
    decay: float = 0.95,
) -> Sparse:
    """Push the hidden units of every bank towards a mean activity, whatever estimator is wrapped.

    ∇b ← ∇b + cost (q - target),  ∇W ← ∇W + cost E_data[t(x)] (q - target)ᵀ,  q = E_data[z],

    a moving average: the gradient of the cross entropy of q from its target, taken at the units'
    mean input. The fixed point is no longer maximum likelihood.

    Args:
      estimator: the estimator to wrap, e.g. `pcd(model, 100)`.
      model: its product, which need not be named again: one with at least one HiddenBank.
      target: wanted mean of the hidden units, in (0, 1) for binary ones.
      cost: weight of the penalty, >= 0.
      decay: share of the old average kept at each update, in [0, 1).

    Returns:
      An estimator.

    Raises:
      ValueError: if `estimator` is of another model, there is no bank, or a number is out of range.
      TypeError: if `estimator` is none.

    Source: Lee, Ekanadham & Ng (2008); Hinton (2010), A practical guide to training restricted
    Boltzmann machines, section 11.
    """
    _checks.fraction("decay", decay)
    for name, value in (("target", target), ("cost", cost)):
        if not _checks.is_real(value) or not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
    model = own_model("estimator", estimator, model)
    if not banks_of(model):
        raise ValueError(f"sparse: expected a HiddenBank, got {list(model.experts)}")
    return Sparse(model, estimator, float(target), float(cost), float(decay))
