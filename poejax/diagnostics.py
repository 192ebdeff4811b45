"""Cheap figures to watch while a model trains."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax._health import Health as Health
from poejax._health import has_mixed as has_mixed
from poejax._health import health as health
from poejax._moves import autocorrelation as autocorrelation
from poejax._moves import flip_rate as flip_rate
from poejax._numerics import as_float, at_least_float32
from poejax._online_health import OnlineHealth as OnlineHealth
from poejax._online_health import OnlineHealthResult as OnlineHealthResult
from poejax._product import Product
from poejax.types import Array, Event, Params
from poejax.units import Unit

__all__ = [
    "Health",
    "OnlineHealth",
    "OnlineHealthResult",
    "autocorrelation",
    "check_sites",
    "flip_rate",
    "has_mixed",
    "health",
    "neighbour_log_ratios",
    "pseudo_log_likelihood",
    "spectral_norms",
]


def pseudo_log_likelihood(
    rng_key: Array, model: Product, params: Params, x: Event, num_sites: int | None = None
) -> Array:
    """Log pseudo-likelihood of one event of discrete units, in nats.

    Σ_i log p(x_i | x_rest) = -Σ_i log(1 + Σ_v f(x with site i set to v ≠ x_i) / f(x))

    Args:
      rng_key: one typed key, used to choose sites.
      model: a product over one block of units of finitely many values (Bernoulli, Spin,
        Categorical, Binomial).
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
      model: a product over one block of units of C values.
      params: its parameters.
      x: one event.
      sites: indices of sites, [S].

    Returns:
      Log ratios of unnormalised densities, [S, C - 1]: one for each other value of the site, in
      ascending order, 0 to C - 1 without the present one.

    Raises:
      ValueError: if the units are others, or `x` is no single event.
    """
    check_sites(model)
    visible = model.visible
    _checks.shape("x", x, visible.event_shape, visible)
    x, sites = as_float(x), jnp.asarray(sites)
    values = _other_values(visible, visible.value_index(x)[sites], x.dtype)

    # Of sites that are independent in the base: beside a sum over all of them digits would be lost.
    rest = visible.value_at(jnp.zeros(visible.num_sites, int), x.dtype).reshape(x.shape)

    def log_bases(site: Array, values: Array) -> Array:
        return jax.vmap(lambda value: visible.log_base(rest.at[site].set(value)))(values)

    here = jax.vmap(log_bases)(sites, x[sites][:, None])
    return jax.vmap(log_bases)(sites, values) - here + model.log_ratios(params, x, sites, values)


def _other_values(visible: Unit, x: Array, dtype: Any) -> Array:
    """Return the other values of sites of which `x` [S] is the value's number, [S, C - 1, ...]."""
    others = jnp.arange((visible.num_values or 1) - 1)
    return visible.value_at(others + (others >= x[:, None]).astype(others.dtype), dtype)


def check_sites(model: Product, num_sites: int | None = None) -> int:
    """Return `num_sites`, all if None, or raise unless the units are discrete and have as many."""
    _checks.model("model", model)
    visible = model.visible
    if visible.num_values is None:
        raise ValueError(f"model: expected visible units of finitely many values, got {visible}")
    size = visible.num_sites
    num_sites = size if num_sites is None else _checks.positive_int("num_sites", num_sites)
    if num_sites > size:
        raise ValueError(f"num_sites: expected at most {size}, got {num_sites}")
    return num_sites


def spectral_norms(params: Params) -> dict[str, Array]:
    """Return the largest singular value of every weight matrix "w", by its path in the params.

    Where it outgrows what the field of the visible units can balance, a model has parted into modes
    that block Gibbs no longer passes between; learning one mode more is one singular value more
    that leaves the bulk.

    Args:
      params: parameters of a product, nested or not.

    Returns:
      {"hidden": []}, or {"outer.hidden": []} in nested products; with the leading axes of stacked
      params.

    Raises:
      TypeError: if `params` is no dict.

    Source: Decelle, Fissore & Furtlehner (2018), Thermodynamics of restricted Boltzmann machines
    and related learning dynamics.
    """
    if not isinstance(params, dict):
        raise TypeError(f"params: expected a dict by expert, got {_checks.describe(params)}")
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *names, last = (getattr(key, "key", None) for key in path)
        if last == "w" and jnp.ndim(leaf) >= 2:
            wide = at_least_float32(jnp.asarray(leaf))
            found[".".join(map(str, names))] = jnp.linalg.norm(wide, ord=2, axis=(-2, -1))
    return found
