"""Deterministic passes through the latents: features and mean-field reconstructions."""

from __future__ import annotations

from poejax._product import Product
from poejax.types import Array, Event, Params


def features(
    model: Product, params: Params, x: Event, bank: str = "hidden", bias: bool = True
) -> Array:
    """Features of one event, the means of a bank's hidden units.

    φ(x) = E[z | x], for binary hidden units sigm(Wᵀ t(x) + b), or sigm(Wᵀ t(x)) without bias

    Args:
      model: a product with a HiddenBank of that name.
      params: its parameters.
      x: one event; use `jax.vmap` for a batch.
      bank: name of the bank.
      bias: whether to add the hidden bias.

    Returns:
      [H], in (0, 1) for Bernoulli hidden units, (-1, 1) for Spin; one number per class of
      categorical ones; joint hidden units one block after the other. Zeros where a mask leaves the
      bank out.

    Raises:
      ValueError: if the product has no HiddenBank of that name.

    Source: Hinton & Salakhutdinov (2006); Erhan et al. (2010).
    """
    expert = model.experts.get(bank)
    hidden = expert.bank if expert is not None else None
    if hidden is None:
        raise ValueError(f"bank: expected the name of a HiddenBank, got {bank!r}: {expert}")
    params, x = model.standardize(params, x)
    return hidden.features(params[bank], x, bias)


def reconstruct(model: Product, params: Params, x: Event) -> Event:
    """One mean-field pass up and down, E[x | z = E[z | x]], for one event.

    Args:
      model: a product whose latents act through linear fields (banks, mixtures, unigauss).
      params: its parameters.
      x: one event; use `jax.vmap` for a batch.

    Returns:
      Means of the visible units, shaped as `x`: probabilities for binary units.

    Raises:
      ValueError: if an expert's latents set precisions only (StudentT), where a mean-field pass
        would say nothing about x; use `denoise`.

    Source: Hinton (2002), section 8.
    """
    if model.has_scale_latents:
        raise ValueError(
            "model: expected latents with a linear field, got a product with Student-t experts, "
            "whose mean-field pass is the same for every x; use inference.denoise"
        )
    return model.visible_mean(params, model.latent_mean(params, x))
