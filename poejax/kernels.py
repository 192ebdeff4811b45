"""Transition kernels that leave a product of experts invariant."""

from __future__ import annotations

import dataclasses

import jax

from poejax.product import Product
from poejax.types import Array, Event, GibbsInfo, GibbsState, Params, PyTree
from poejax.units.base import as_float


@dataclasses.dataclass(frozen=True)
class BlockGibbs:
    """Alternate z ~ p(z | x) and x ~ p(x | z), each block in parallel. Build with `block_gibbs`."""

    model: Product

    def init(self, rng_key: Array, params: Params, x: Event, clamp: PyTree = None) -> GibbsState:
        """Return the state of a chain at `x`.

        Args:
          rng_key: unused, for the interface.
          params: unused, for the interface.
          x: one visible event.
          clamp: boolean mask, one entry per site ([D], a dict for joint blocks): True keeps that
            site of `x` for ever. It lives in the state: a new mask compiles nothing.
        """
        del rng_key, params
        if clamp is not None:
            self.model.visible.check_mask("clamp", clamp)
        return GibbsState(jax.tree.map(as_float, x), clamp)

    def step(
        self, rng_key: Array, params: Params, state: GibbsState
    ) -> tuple[GibbsState, GibbsInfo]:
        """Draw the latents, then the visible sites that are not clamped."""
        latent_key, visible_key = jax.random.split(rng_key)
        z = self.model.sample_latent(latent_key, params, state.x)
        visible, field = self.model.visible, self.model.visible_field(params, z)
        if state.clamp is None:
            x = visible.sample(visible_key, field)
        else:
            x = visible.sample_clamped(visible_key, field, state.x, state.clamp)
        # A chain keeps the dtype it started in, whatever the precision of the parameters.
        x = jax.tree.map(lambda new, old: new.astype(old.dtype), x, state.x)
        return GibbsState(x, state.clamp), GibbsInfo(z)


def block_gibbs(model: Product) -> BlockGibbs:
    """Block Gibbs sampling: all latents given x, then all visibles given the latents.

    z_k ~ p(z_k | x) for all k;  x ~ p(x | z) ∝ h(x) exp<Σ_k field_k(z_k), t(x)>

    Args:
      model: a product of experts whose latents are known.

    Returns:
      A kernel for one chain; `chains.run` runs many.

    Source: Geman & Geman (1984); for products of experts, Hinton (2002), section 2.
    """
    return BlockGibbs(model)
