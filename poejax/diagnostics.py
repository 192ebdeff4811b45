"""Cheap figures to watch while a model trains."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax.product import Product
from poejax.types import Array, Event, Params
from poejax.units import Bernoulli
from poejax.units.discrete import BinaryUnit


def pseudo_log_likelihood(
    rng_key: Array, model: Product, params: Params, x: Event, num_sites: int | None = None
) -> Array:
    """Log pseudo-likelihood of one event of binary units, in nats.

    Σ_i log p(x_i | x_rest) = -Σ_i softplus(log f(x with site i flipped) - log f(x))

    Args:
      rng_key: one typed key, used to choose sites.
      model: a product over Bernoulli or Spin units.
      params: its parameters.
      x: one event [D]; use `jax.vmap` for a batch.
      num_sites: number of distinct sites drawn at random and scaled up by D / num_sites, an
        unbiased estimate; all D sites when None.

    Returns:
      The log pseudo-likelihood, []. It is no likelihood, and tends to rank models more kindly.

    Raises:
      ValueError: if the units are not binary, or `num_sites` is not in [1, D].

    Source: Besag (1975); Hyvärinen (2006) for Boltzmann machines.
    """
    visible = model.visible
    if not isinstance(visible, BinaryUnit):
        raise ValueError(f"model: expected Bernoulli or Spin visible units, got {visible}")
    size = visible.size
    num_sites = size if num_sites is None else _checks.positive_int("num_sites", num_sites)
    if num_sites > size:
        raise ValueError(f"num_sites: expected at most {size}, got {num_sites}")
    x = visible.linear_statistic(x)
    sites = jax.random.choice(rng_key, size, (num_sites,), replace=False)

    def flipped(site: Array) -> Array:
        value = 1 - x[site] if isinstance(visible, Bernoulli) else -x[site]
        return model.log_density(params, x.at[site].set(value))

    gaps = jax.vmap(flipped)(sites) - model.log_density(params, x)
    return -jnp.mean(jax.nn.softplus(gaps)) * size
