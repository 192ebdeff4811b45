"""Sums over all finite latent states; Gaussian latents of linear banks are integrated out."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax.exact.enumeration import draw_index, log_sum_exp, table
from poejax.exact.factors import Factor, factors, masked, params_at
from poejax.experts import Bias, Gaussian, HiddenBank
from poejax.experts.base import get_beta
from poejax.product import Product
from poejax.types import Array, Event, Field, Params
from poejax.units import Gaussian as FullGaussian
from poejax.units import StandardGaussian, Unit
from poejax.units.gaussian import HALF_LOG_2PI, QuadraticUnit


class Coupling(NamedTuple):
    """All Gaussian latents together: bias [N], and weights to the visible units [D, N]."""

    b: Array
    w: Array


class Marginal(NamedTuple):
    """What is left of the Gaussian latents given the finite ones: N(mean, (LLᵀ)⁻¹).

    proper: whether both this and the visible units given it can be normalised.
    """

    mean: Array
    factor: Array
    proper: Array


def num_states(model: Product) -> int | None:
    """Return the number of finite latent states, None if any other latent is continuous."""
    counts = [None if e.is_opaque else e.num_latent_states for e, _ in _split(model)[0]]
    return math.prod(c for c in counts if c is not None) if None not in counts else None


def is_gaussian(model: Product) -> bool:
    """Whether the product is one Gaussian."""
    known = all(type(f.expert) in (Bias, Gaussian) for f in _split(model)[0])
    return known and isinstance(model.visible, QuadraticUnit)


def log_z(model: Product, params: Params) -> Array:
    """Return log Z = logsumexp_z [Σ_k g_k(z_k) + A(Σ_k field_k(z_k))].

    z are the finite latents. With banks of Gaussian latents s beside them, of bias b and weights W,
    A(field) stands for log ∫∫ exp(<field, t(x)> + xᵀW s + bᵀs - ½ |s|²) ds dx.
    """
    return log_sum_exp(lambda i: _log_weight(model, params, i), _count(model), _width(model))


def sample(rng_key: Array, model: Product, params: Params) -> Event:
    """Draw the finite latents, the Gaussian ones given them, and one event given both."""
    index_key, latent_key, visible_key = jax.random.split(rng_key, 3)
    log_weights = table(lambda i: _log_weight(model, params, i), _count(model))
    _, field = _finite(model, params, draw_index(index_key, log_weights))
    coupling = _coupling(model, params)
    if coupling is not None:
        marginal = _marginal(model.visible, field, coupling)
        noise = jax.random.normal(latent_key, marginal.mean.shape, marginal.mean.dtype)
        noise = jax.scipy.linalg.solve_triangular(marginal.factor, noise, trans=1, lower=True)
        field = _shift(field, coupling.w @ (marginal.mean + noise))
    x = model.visible.sample(visible_key, field)
    proper = jax.nn.logsumexp(log_weights) < jnp.inf
    return jax.tree.map(lambda leaf: jnp.where(proper, leaf, jnp.nan), x) if _real(model) else x


def gaussian_log_z(model: Product, params: Params) -> Array:
    """Return log Z of a product that is one Gaussian, of precision Λ - WWᵀ.

    log Z = log f(c) + ½ gᵀ(Λ - WWᵀ)⁻¹g - ½ log|Λ - WWᵀ| + ½ D log 2π,  g = ∇ log f(c)

    True for every c; with c at the mean, held fixed, the large terms that means far from zero bring
    do not arise.
    """
    _, field = _finite(model, params, jnp.zeros((), int))
    coupling = _coupling(model, params)
    centred = field | {"linear": jnp.zeros_like(field["linear"])}
    value = model.visible.log_partition(centred)
    marginal = None if coupling is None else _marginal(model.visible, field, coupling)
    if coupling is None or marginal is None:
        mean = model.visible.mean(field)
    else:
        mean = model.visible.mean(_shift(field, coupling.w @ marginal.mean))
        value = value - jnp.sum(jnp.log(jnp.diagonal(marginal.factor)))
        value = jnp.where(marginal.proper, value, jnp.inf)
    # An improper product has no mean; any point keeps the rest finite.
    mean = jax.lax.stop_gradient(jnp.where(jnp.isfinite(mean), mean, 0.0))
    density, slope = jax.value_and_grad(lambda x: model.log_density(params, x))(mean)
    step = model.visible.mean(centred | {"linear": slope})
    square = jnp.sum(slope * step)
    if coupling is not None and marginal is not None:
        reduced = jax.scipy.linalg.solve_triangular(
            marginal.factor, coupling.w.T @ step, lower=True
        )
        square = square + jnp.sum(reduced**2)
    return jnp.where(value < jnp.inf, value + density + 0.5 * square, jnp.inf)


def _log_weight(model: Product, params: Params, index: Array) -> Array:
    weight, field = _finite(model, params, index)
    value = weight + model.visible.log_partition(field)
    coupling = _coupling(model, params)
    if coupling is None:
        return value
    marginal = _marginal(model.visible, field, coupling)
    # ½ mᵀ(LLᵀ)m - log|L| + ½ N log 2π
    value = value + 0.5 * jnp.sum((marginal.factor.T @ marginal.mean) ** 2)
    value = value - jnp.sum(jnp.log(jnp.diagonal(marginal.factor)) - HALF_LOG_2PI)
    return jnp.where(marginal.proper, value, jnp.inf)


def _finite(model: Product, params: Params, index: Array) -> tuple[Array, Field]:
    """Return Σ g(z) and Σ field(z) over the finite latents, in their state number `index`."""
    weights, fields = [jnp.zeros(())], []
    for expert, path in _split(model)[0]:
        own, present = params_at(params, path)
        states = expert.num_latent_states or 1
        count = min(states, 2**31 - 1)
        z = expert.latent_state_at(index % count)
        index = index // count
        # An absent expert is the factor 1, shared by its states.
        weights.append(masked(present, expert.latent_log_weight(own, z), -math.log(states)))
        fields.append(masked(present, expert.visible_field(own, z)))
    return sum(weights[1:], weights[0]), model.visible.combine(fields)


def _coupling(model: Product, params: Params) -> Coupling | None:
    banks = []
    for expert, path in _split(model)[1]:
        assert isinstance(expert, HiddenBank)
        own, present = params_at(params, path)
        beta = get_beta(own)
        bank = Coupling(beta * expert.hidden.field(own["b"]), beta * own["w"])
        banks.append(masked(present, bank))
    if not banks:
        return None
    return Coupling(
        jnp.concatenate([bank.b for bank in banks]),
        jnp.concatenate([bank.w for bank in banks], axis=1),
    )


def _marginal(visible: Unit, field: Field, coupling: Coupling) -> Marginal:
    b, w = coupling
    solved = jax.vmap(lambda v: visible.mean(field | {"linear": v}), 1, 1)(w)
    reduction = jnp.matmul(w.T, solved, precision="highest")
    identity = jnp.eye(len(b), dtype=reduction.dtype)
    precision = identity - 0.5 * (reduction + reduction.T)
    pivots = jnp.diagonal(jnp.linalg.cholesky(jax.lax.stop_gradient(precision))) ** 2
    # Below this a pivot is rounding, of numbers around one. NaN is not above it either.
    proper = jnp.all(pivots > 4 * len(b) * jnp.finfo(pivots.dtype).eps)
    # A second where keeps the gradient of the unused branch finite.
    factor = jnp.linalg.cholesky(jnp.where(proper, precision, identity))
    mean = jax.scipy.linalg.cho_solve((factor, True), b + w.T @ visible.mean(field))
    return Marginal(mean, factor, proper & (visible.log_partition(field) < jnp.inf))


def _shift(field: Field, v: Array) -> Field:
    return field | {"linear": field["linear"] + v}


def _split(model: Product) -> tuple[list[Factor], list[Factor]]:
    """Return the experts whose latents are enumerated, and those whose latents are integrated."""
    finite: list[Factor] = []
    gaussian: list[Factor] = []
    for factor in factors(model):
        expert = factor.expert
        is_linear = type(expert) is HiddenBank and type(expert.hidden) is StandardGaussian
        (gaussian if is_linear and _real(model) else finite).append(factor)
    return finite, gaussian


def _real(model: Product) -> bool:
    return isinstance(model.visible, QuadraticUnit)


def _width(model: Product) -> int:
    size = model.visible.num_linear
    num_gaussian = sum(e.num_factors for e, _ in _split(model)[1])
    if num_gaussian or isinstance(model.visible, FullGaussian):
        return size * (size + num_gaussian) + num_gaussian**2
    return size


def _count(model: Product) -> int:
    count = num_states(model)
    assert count is not None
    return count
