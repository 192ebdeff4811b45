"""Centring: the same gradient in coordinates where data and hidden units have mean zero."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax._product import Product
from poejax.estimators._common import Rule, banks_of, mean_statistics, own_model
from poejax.types import Array, Estimator, Event, Params, PyTree


class CenteredState(NamedTuple):
    """State of the wrapped estimator, and the offsets of visible [M] and hidden [N] statistics."""

    inner: Any
    visible_offset: Array
    hidden_offsets: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Centered(Rule):
    """Wraps an estimator; build with `centered`."""

    estimator: Estimator
    decay: float
    bias: str | None

    def init(self, rng_key: Array, params: Params, data: Event) -> CenteredState:
        """Start at the offsets of `data` [N, ...] under `params`."""
        inner = self.estimator.init(rng_key, params, data)
        return CenteredState(inner, *mean_statistics(self.model, params, data))

    def grad(
        self, rng_key: Array, params: Params, state: CenteredState, batch: Event
    ) -> tuple[Params, CenteredState, PyTree]:
        """Estimate the gradient from a batch [B, ...], move the offsets, centre the gradient."""
        grads, inner, info = self.estimator.grad(rng_key, params, state.inner, batch)
        old, new = (
            (state.visible_offset, state.hidden_offsets),
            mean_statistics(self.model, params, batch),
        )
        mu, lambdas = jax.tree.map(
            lambda a, b: (self.decay * a + (1 - self.decay) * b).astype(a.dtype), old, new
        )
        return self._center(grads, mu, lambdas), CenteredState(inner, mu, lambdas), info

    def _center(self, grads: Params, mu: Array, lambdas: dict[str, Array]) -> Params:
        grads = dict(grads)
        visible = self.model.visible
        visible_grad = visible_shift = jnp.zeros_like(mu)
        if self.bias is not None:
            visible_grad = visible.linear_part(grads[self.bias]["field"])
        for name, bank in banks_of(self.model).items():
            lam = lambdas[name] if self.bias is not None else jnp.zeros_like(lambdas[name])
            hidden_grad = bank.hidden.linear_part(grads[name]["b"])
            w = grads[name]["w"] - jnp.outer(mu, hidden_grad) - jnp.outer(visible_grad, lam)
            b = bank.hidden.shift_linear(grads[name]["b"], -mu @ w)
            grads[name] = grads[name] | {"w": w, "b": b}
            visible_shift = visible_shift - w @ lam
        if self.bias is not None:
            field = visible.shift_linear(grads[self.bias]["field"], visible_shift)
            grads[self.bias] = grads[self.bias] | {"field": field}
        return grads


def centered(
    estimator: Estimator,
    model: Product | None = None,
    decay: float = 0.99,
    hidden_offsets: bool = True,
) -> Centered:
    """Centre the gradient of every hidden bank, whatever estimator it comes from.

    With offsets μ = E_data[t(x)] and λ_k = E_data[z_k], moving averages, the gradient of the model
    in which W_k couples to (t(x) - μ) and (z_k - λ_k), carried back to ordinary parameters:

    ∇W_k ← ∇W_k - μ ∇b_kᵀ - ∇a λ_kᵀ;  ∇b_k ← ∇b_k - ∇W_kᵀ μ;  ∇a ← ∇a - Σ_k ∇W_k λ_k

    The direction no longer depends on which value of a unit is called zero. The model, its density
    and its fixed points are unchanged.

    Args:
      estimator: the estimator to wrap, e.g. `pcd(model, 100)`.
      model: its product, which need not be named again: one with at least one HiddenBank, and a
        Bias to take up W λ.
      decay: share of the old offset kept at each update, in [0, 1).
      hidden_offsets: False centres the visible units only, which needs no Bias.

    Returns:
      An estimator.

    Raises:
      ValueError: if `estimator` is of another model, there is no bank to centre, a bank is hidden
        inside a nested product, or there is no Bias to take up the hidden offsets.
      TypeError: if `estimator` is none.

    Source: Montavon & Müller (2012); Melchior, Fischer & Wiskott (2016), Algorithm 1.
    """
    _checks.fraction("decay", decay)
    model = own_model("estimator", estimator, model)
    for name, expert in model.items:
        if expert.parts:
            raise ValueError(
                f"centered: cannot centre inside the nested product {name!r}; "
                "multiply its experts into one product instead"
            )
    if not banks_of(model):
        raise ValueError(f"centered: expected a HiddenBank to centre, got {list(model.experts)}")
    bias = next((name for name, expert in model.items if expert.has_free_field), None)
    if bias is None and hidden_offsets:
        raise ValueError(
            "centered: expected a Bias expert to take up the hidden offsets, got "
            f"{list(model.experts)}; pass hidden_offsets=False to centre the visible units only"
        )
    return Centered(model, estimator, decay, bias if hidden_offsets else None)
