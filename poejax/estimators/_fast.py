"""Persistent contrastive divergence whose chains see weights of their own beside the model's."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from poejax import _checks
from poejax._moves import moved
from poejax._product import Product, split_coordinates
from poejax.estimators._common import advance, contrast, own_kernel
from poejax.estimators._contrastive import PersistentContrastiveDivergence
from poejax.types import Array, Event, Kernel, Params, PersistentInfo


class FastState(NamedTuple):
    """The chains, and what is added to the parameters that they move by."""

    chains: Any
    fast: Params


@dataclasses.dataclass(frozen=True)
class FastPCD(PersistentContrastiveDivergence):
    """FPCD-k: chains are driven off where they are by fast weights. Build with `fast_pcd`."""

    fast_rate: float
    decay: float

    def init(self, rng_key: Array, params: Params, data: Event) -> FastState:
        """Start the chains at random rows of `data` [N, ...], and the fast weights at zero."""
        learned = split_coordinates(params)[0]
        return FastState(
            super().init(rng_key, params, data), jax.tree.map(lambda v: 0 * v, learned)
        )

    def grad(
        self, rng_key: Array, params: Params, state: FastState, batch: Event
    ) -> tuple[Params, FastState, PersistentInfo]:
        """Advance the chains under params + fast weights, and contrast them with the batch."""
        learned, coordinates = split_coordinates(params)
        driven = jax.tree.map(lambda v, f: v + f, learned, state.fast)
        driven |= {"coordinates": coordinates} if coordinates else {}
        before = state.chains.x
        chains = advance(rng_key, self.kernel, driven, state.chains, self.num_steps)
        grads, info = contrast(self.model, params, batch, chains.x)
        fast = jax.tree.map(
            lambda f, g: (self.decay * f - self.fast_rate * g).astype(f.dtype),
            state.fast,
            split_coordinates(grads)[0],
        )
        shown = PersistentInfo(*info, *moved(self.model.visible, before, chains.x))
        return grads, FastState(chains, fast), shown


def fast_pcd(
    model: Product,
    num_chains: int,
    kernel: Kernel | None = None,
    num_steps: int = 1,
    *,
    fast_rate: float = 0.01,
    decay: float = 0.95,
) -> FastPCD:
    """Persistent contrastive divergence with fast weights.

    x_t ~ T_{θ + φ_t}(x_{t-1}),  φ_{t+1} = decay φ_t - fast_rate grad_t

    What the chains visit becomes less likely under θ + φ, so that they leave it: they mix fast, but
    are samples of no model. The gradient is biased, and its fixed point is not maximum likelihood.

    Args:
      model: the product.
      num_chains: number of persistent chains.
      kernel: transition kernel; block Gibbs when None.
      num_steps: steps of every chain per update.
      fast_rate: learning rate of the fast weights, as large as chains stand.
      decay: share of the fast weights kept at each update, in [0, 1).

    Raises:
      ValueError: if `kernel` samples another model, or a number is out of range.
      TypeError: if `kernel` is none.

    Source: Tieleman & Hinton (2009), Using fast weights to improve persistent contrastive
    divergence.
    """
    _checks.fraction("decay", decay)
    if not _checks.is_real(fast_rate) or not 0 <= fast_rate < float("inf"):
        raise ValueError(f"fast_rate: expected a finite number >= 0, got {fast_rate!r}")
    return FastPCD(
        model,
        _checks.positive_int("num_chains", num_chains),
        own_kernel(model, kernel),
        _checks.positive_int("num_steps", num_steps),
        float(fast_rate),
        float(decay),
    )
