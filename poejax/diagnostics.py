"""Cheap figures to watch while a model trains."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax.product import Product
from poejax.types import Array, Event, Params
from poejax.units import Bernoulli, Categorical
from poejax.units.base import as_float
from poejax.units.discrete import BinaryUnit


def pseudo_log_likelihood(
    rng_key: Array, model: Product, params: Params, x: Event, num_sites: int | None = None
) -> Array:
    """Log pseudo-likelihood of one event of discrete units, in nats.

    Σ_i log p(x_i | x_rest) = -Σ_i log(1 + Σ_v f(x with site i set to v ≠ x_i) / f(x))

    Args:
      rng_key: one typed key, used to choose sites.
      model: a product over Bernoulli, Spin or Categorical units.
      params: its parameters.
      x: one event [D] or, if categorical, [D, C]; use `jax.vmap` for a batch.
      num_sites: number of distinct sites drawn at random and scaled up by D / num_sites, an
        unbiased estimate; all D sites when None.

    Returns:
      The log pseudo-likelihood, []. It is no likelihood, and tends to rank models more kindly.

    Raises:
      ValueError: if the units are others, or `num_sites` is not in [1, D].

    Source: Besag (1975); Hyvärinen (2006) for Boltzmann machines.
    """
    num_sites = check_sites(model, num_sites)
    size = model.visible.num_sites
    sites = jnp.arange(size)
    if num_sites < size:
        sites = jax.random.choice(rng_key, size, (num_sites,), replace=False)
    log_ratios = neighbour_log_ratios(model, params, x, sites)
    return -jnp.mean(jax.nn.softplus(jax.nn.logsumexp(log_ratios, axis=-1))) * size


def neighbour_log_ratios(model: Product, params: Params, x: Event, sites: Array) -> Array:
    """Return log f(x') - log f(x) for every x' that differs from x at one of `sites`.

    Args:
      model: a product over Bernoulli, Spin or Categorical units of C values.
      params: its parameters.
      x: one event.
      sites: indices of sites, [S].

    Returns:
      Log ratios of unnormalised densities, [S, C - 1]: one for each other value of the site.
    """
    visible = model.visible
    _checks.shape("x", x, visible.event_shape, visible)
    x = as_float(x)

    def other_values(value: Array) -> Array:
        if isinstance(visible, Categorical):
            return jnp.stack([jnp.roll(value, shift) for shift in range(1, visible.num_classes)])
        return (1 - value if isinstance(visible, Bernoulli) else -value)[None]

    def log_densities(site: Array) -> Array:
        changed = jax.vmap(x.at[site].set)(other_values(x[site]))
        return jax.vmap(model.log_density, in_axes=(None, 0))(params, changed)

    return jax.vmap(log_densities)(sites) - model.log_density(params, x)


def check_sites(model: Product, num_sites: int | None = None) -> int:
    """Return `num_sites`, all if None, or raise unless the units are discrete and have as many."""
    _checks.model("model", model)
    visible = model.visible
    if not isinstance(visible, (BinaryUnit, Categorical)):
        raise ValueError(
            f"model: expected Bernoulli, Spin or Categorical visible units, got {visible}"
        )
    size = visible.num_sites
    num_sites = size if num_sites is None else _checks.positive_int("num_sites", num_sites)
    if num_sites > size:
        raise ValueError(f"num_sites: expected at most {size}, got {num_sites}")
    return num_sites
