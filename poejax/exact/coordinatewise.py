"""Products that fall apart into coordinates, each a sum of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax.exact.enumeration import draw_index, log_sum_exp, table
from poejax.exact.factors import Factor, factors, params_at
from poejax.experts import Bias, Gaussian, GaussianMixture
from poejax.experts.base import get_beta
from poejax.product import Product
from poejax.types import Array, Event, Params
from poejax.units import GaussianDiag
from poejax.units.base import widen
from poejax.units.gaussian import HALF_LOG_2PI


class Components(NamedTuple):
    """One expert as Σ_k exp(log_peak_k - ½ precision_k (x - mean_k)²) on every coordinate, [K, D].

    Measured from each component's own mean, so that means far from zero cost no precision.
    """

    log_peak: Array
    mean: Array
    precision: Array


def applies(model: Product) -> bool:
    """Whether all experts factorise over coordinates, some of them into mixtures."""
    kinds = [_kind(factor, model) for factor in factors(model)]
    return all(kinds) and "mixture" in kinds


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
    parts = [_components(factor, model, params) for factor in factors(model)]

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


def _components(factor: Factor, model: Product, params: Params) -> Components:
    expert, size = factor.expert, model.visible.num_linear
    own, present = params_at(params, factor.path)
    own = widen(own)
    if isinstance(expert, Bias):
        field = expert.visible.field(own["field"])
        mean, precision = field["linear"] / field["precision"], field["precision"]
        log_peak = jnp.zeros_like(mean)
    else:
        mean, precision = own["mean"], jnp.exp(own["log_precision"])
        log_peak = 0.5 * own["log_precision"] - HALF_LOG_2PI
    count = 1
    if isinstance(expert, GaussianMixture):
        # [D, K, 1] to [K, D]
        mean, precision, log_peak = (v[:, :, 0].T for v in (mean, precision, log_peak))
        log_peak = log_peak + jax.nn.log_softmax(own["logits"], axis=-1).T
        count = expert.num_components
    beta = get_beta(own)
    log_peak, mean, precision = (
        v.reshape(count, -1) for v in (beta * log_peak, mean, beta * precision)
    )
    if isinstance(expert, Gaussian) and expert.coordinate is not None:
        site = jax.nn.one_hot(expert.coordinate, size)
        log_peak, mean, precision = site * log_peak, site * mean, site * precision
    found = Components(log_peak, mean, precision)
    if present is None:
        return found
    # An absent expert is the factor 1, shared by its components.
    silent = Components(jnp.full_like(log_peak, -math.log(count)), mean, jnp.zeros_like(precision))
    return jax.tree.map(lambda heard, one: jnp.where(present, heard, one), found, silent)


def _kind(factor: Factor, model: Product) -> str | None:
    expert = factor.expert
    if type(expert) is GaussianMixture and not expert.joint:
        return "mixture"
    if type(expert) is Gaussian and expert.covariance == "diag":
        return "gaussian"
    if type(expert) is Bias and type(model.visible) is GaussianDiag:
        return "bias"
    return None


def _num_choices(model: Product) -> int:
    experts = [factor.expert for factor in factors(model)]
    return math.prod(e.num_components for e in experts if isinstance(e, GaussianMixture))


def _width(model: Product) -> int:
    return model.visible.num_linear * len(factors(model))
