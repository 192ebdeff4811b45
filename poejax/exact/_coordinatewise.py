"""Products that fall apart into coordinates, each a sum of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from poejax._numerics import HALF_LOG_2PI
from poejax._product import Product
from poejax.exact._enumeration import draw_index, log_sum_exp, table
from poejax.exact._factors import params_at
from poejax.experts._combine import factors
from poejax.types import Array, Event, Params


def applies(model: Product) -> bool:
    """Whether all experts factorise over coordinates into sums of Gaussians."""
    return all(e.num_coordinate_terms is not None for e, _ in factors(model))


def num_states(model: Product) -> int:
    """Return D Π K, the number of terms that are added."""
    return model.visible.num_linear * _num_choices(model)


def log_z(model: Product, params: Params) -> Array:
    """Return log Z = Σ_i log Σ_c ∫ Π_e component_{c_e}(x_i) dx_i, at cost D Π K, not (Π K)^D.

    c chooses a component of every expert.
    """
    weight = _log_weight(model, params)
    return jnp.sum(log_sum_exp(lambda i: weight(i)[0], _num_choices(model), _width(model)))


def sample(rng_key: Array, model: Product, params: Params) -> Event:
    """Draw a component of every expert on every coordinate, then x."""
    choice_key, noise_key = jax.random.split(rng_key)
    weight = _log_weight(model, params)
    log_weights = table(lambda i: weight(i)[0], _num_choices(model), _width(model))
    size = model.visible.num_linear
    index = jax.vmap(draw_index, (0, 1))(jax.random.split(choice_key, size), log_weights)
    _, mean, precision = jax.vmap(weight)(index)
    mean, precision = jnp.diagonal(mean), jnp.diagonal(precision)
    noise = jax.random.normal(noise_key, (size,), mean.dtype)
    proper = jnp.all(jax.nn.logsumexp(log_weights, axis=0) < jnp.inf)
    return jnp.where(proper, mean + noise * jax.lax.rsqrt(precision), jnp.nan)


def _log_weight(model: Product, params: Params) -> Callable[[Array], tuple[Array, Array, Array]]:
    """Return a function from a choice of components to log integral, mean and precision, [D]."""
    parts = [e.coordinate_terms(params_at(params, path)) for e, path in factors(model)]

    def weight(index: Array) -> tuple[Array, Array, Array]:
        chosen = []
        for part in parts:
            count = part.mean.shape[0]
            chosen.append(jax.tree.map(lambda leaf, i=index % count: leaf[i], part))
            index = index // count
        log_peak, mean, precision = (jnp.stack(leaves) for leaves in zip(*chosen, strict=True))
        total = jnp.sum(precision, axis=0)
        proper = total > 0
        total = jnp.where(proper, total, 1.0)
        # The first estimate of the mean only serves as the origin, which the result does not
        # depend on, so it carries no gradient.
        origin = jax.lax.stop_gradient(jnp.sum(precision * mean, axis=0) / total)
        shift = jnp.sum(precision * (mean - origin), axis=0) / total
        misfit = jnp.sum(precision * (mean - origin - shift) ** 2, axis=0)
        value = jnp.sum(log_peak, axis=0) - 0.5 * (misfit + jnp.log(total)) + HALF_LOG_2PI
        return jnp.where(proper, value, jnp.inf), origin + shift, total

    return weight


def _num_choices(model: Product) -> int:
    return math.prod(e.num_coordinate_terms or 1 for e, _ in factors(model))


def _width(model: Product) -> int:
    return model.visible.num_linear * len(factors(model))
