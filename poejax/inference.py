"""What a trained product is for."""

from __future__ import annotations

from poejax.product import Product
from poejax.types import Event, Params


def reconstruct(model: Product, params: Params, x: Event) -> Event:
    """One mean-field pass up and down, E[x | z = E[z | x]], for one event.

    Args:
      model: a product whose fields are linear in its latents (Bias, HiddenBank).
      params: its parameters.
      x: one event; use `jax.vmap` for a batch.

    Returns:
      Means of the visible units, shaped as `x`: probabilities for binary units.

    Source: Hinton (2002), section 8.
    """
    return model.visible_mean(params, model.latent_mean(params, x))
