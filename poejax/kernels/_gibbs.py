"""Block Gibbs: latents given the visible units, then visible units given the latents."""

from __future__ import annotations

import dataclasses

import jax

from poejax import _checks, _random
from poejax._product import Product
from poejax.experts._combine import factors
from poejax.kernels._base import EventKernel
from poejax.types import Array, ChainState, Event, GibbsInfo, Params


@dataclasses.dataclass(frozen=True)
class BlockGibbs(EventKernel):
    """Alternate z ~ p(z | x) and x ~ p(x | z), each block in parallel. Build with `block_gibbs`."""

    def step(
        self, rng_key: Array, params: Params, state: ChainState
    ) -> tuple[ChainState, GibbsInfo]:
        """Draw the latents, then the visible sites that are not clamped."""
        latent_key, visible_key = _random.split(rng_key)
        z = self.model.sample_latent(latent_key, params, state.x)
        x = self.model.sample_visible(visible_key, params, z, state.x, state.clamp)
        # A chain keeps the dtype it started in, whatever the precision of the parameters.
        x = jax.tree.map(lambda new, old: new.astype(old.dtype), x, state.x)
        return ChainState(x, state.clamp), GibbsInfo(z)

    def conditional_mean(self, params: Params, state: ChainState, info: GibbsInfo) -> Event:
        """Return the mean of the draw that `state` holds, given the latents it came from."""
        return self.model.visible_mean(params, info.z, state.x, state.clamp)


def block_gibbs(model: Product) -> BlockGibbs:
    """Block Gibbs sampling: all latents given x, then all visibles given the latents.

    z_k ~ p(z_k | x) for all k;  x ~ p(x | z) ∝ h(x) exp<Σ_k field_k(z_k), t(x)>

    Args:
      model: a product of experts whose latents are known.

    Returns:
      A kernel for one chain; `chains.run` runs many.

    Raises:
      ValueError: if an expert is opaque: only its density is known.

    Source: Geman & Geman (1984); for products of experts, Hinton (2002), section 2.
    """
    _checks.model("model", model)
    if model.is_opaque:
        opaque = [".".join(path) for expert, path in factors(model) if expert.is_opaque]
        raise ValueError(
            f"block_gibbs: only the density is known of the experts {opaque}; sample the "
            "product with kernels.mala or kernels.hmc (real visible units), or with "
            "kernels.gibbs_with_gradients (discrete visible units)"
        )
    return BlockGibbs(model)
