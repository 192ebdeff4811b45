"""Contrastive divergence and its persistent form."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from poejax import _checks, chains
from poejax._moves import moved
from poejax._numerics import relative_weights
from poejax._product import Product
from poejax.estimators._common import Rule, advance, contrast, own_kernel, with_rows
from poejax.types import Array, EstimatorInfo, Event, Kernel, Params, PersistentInfo, Weighted


@dataclasses.dataclass(frozen=True)
class ContrastiveDivergence(Rule):
    """CD-k: the model's samples are the data after k steps of the kernel. Build with `cd`."""

    kernel: Kernel
    num_steps: int

    def grad(
        self, rng_key: Array, params: Params, state: tuple[()], batch: Event
    ) -> tuple[Params, tuple[()], EstimatorInfo]:
        """Estimate the gradient from a batch [B, ...]."""
        init_key, run_key = jax.random.split(rng_key)
        keys = chains.chain_keys(init_key, _checks.leading_axis("batch", batch))
        x = batch.x if isinstance(batch, Weighted) else batch
        starts = jax.vmap(self.kernel.init, in_axes=(0, None, 0))(keys, params, x)
        x_model = advance(run_key, self.kernel, params, starts, self.num_steps).x
        grads, info = contrast(self.model, params, batch, with_rows(batch, x_model))
        return grads, state, info


@dataclasses.dataclass(frozen=True)
class PersistentContrastiveDivergence(Rule):
    """PCD-k: the model's samples are chains that go on from update to update. Build with `pcd`."""

    num_chains: int
    kernel: Kernel
    num_steps: int

    def init(self, rng_key: Array, params: Params, data: Event) -> Any:
        """Start the chains at random rows of `data` [N, ...]."""
        row_key, init_key = jax.random.split(rng_key)
        num_rows = _checks.leading_axis("data", data)
        if isinstance(data, Weighted):
            data, weights = data
            log_weights = jnp.log(jnp.asarray(relative_weights(weights)))
            rows = jax.random.categorical(row_key, log_weights, shape=(self.num_chains,))
        else:
            rows = jax.random.randint(row_key, (self.num_chains,), 0, num_rows)
        x = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data)
        keys = chains.chain_keys(init_key, self.num_chains)
        return jax.vmap(self.kernel.init, in_axes=(0, None, 0))(keys, params, x)

    def grad(
        self, rng_key: Array, params: Params, state: Any, batch: Event
    ) -> tuple[Params, Any, PersistentInfo]:
        """Advance the chains under the current params and contrast them with the batch [B, ...]."""
        before = state.x
        state = advance(rng_key, self.kernel, params, state, self.num_steps)
        grads, info = contrast(self.model, params, batch, state.x)
        return grads, state, PersistentInfo(*info, *moved(self.model.visible, before, state.x))


def cd(model: Product, kernel: Kernel | None = None, num_steps: int = 1) -> ContrastiveDivergence:
    """Contrastive divergence: chains of k steps from the data.

    grad = -E_data[∂ log f] + E_{T^k data}[∂ log f]; biased, low variance, exact as k → ∞.

    Args:
      model: the product.
      kernel: transition kernel; block Gibbs when None.
      num_steps: k >= 1.

    Raises:
      ValueError: if `kernel` samples another model, or `num_steps` is not positive.
      TypeError: if `kernel` is none.

    Source: Hinton (2002), section 3.
    """
    return ContrastiveDivergence(
        model, own_kernel(model, kernel), _checks.positive_int("num_steps", num_steps)
    )


def pcd(
    model: Product, num_chains: int, kernel: Kernel | None = None, num_steps: int = 1
) -> PersistentContrastiveDivergence:
    """Persistent contrastive divergence (stochastic maximum likelihood).

    grad = -E_data[∂ log f] + mean over chains of ∂ log f; unbiased for chains at equilibrium. Its
    info is a PersistentInfo, which says how far the update moved the chains.

    Args:
      model: the product.
      num_chains: number of persistent chains.
      kernel: transition kernel; block Gibbs when None.
      num_steps: steps of every chain per update.

    Raises:
      ValueError: if `kernel` samples another model, or a count is not positive.
      TypeError: if `kernel` is none.

    Source: Younes (1989); Tieleman (2008).
    """
    return PersistentContrastiveDivergence(
        model,
        _checks.positive_int("num_chains", num_chains),
        own_kernel(model, kernel),
        _checks.positive_int("num_steps", num_steps),
    )
