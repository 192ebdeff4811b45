"""Sums over all finite latent states; Gaussian latents of linear banks are integrated out."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax import _meshes
from poejax._product import Product
from poejax.exact._enumeration import draw_index, log_sum_exp, table
from poejax.exact._factors import params_at
from poejax.experts import Expert
from poejax.experts._combine import Factor, factors
from poejax.experts._forms import Coupling
from poejax.types import Array, Event, Field, Latent, Params
from poejax.units import Unit
from poejax.units._index import divide_index


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
    return _real(model) and all(e.is_gaussian for e, _ in _split(model)[0])


def log_z(model: Product, params: Params) -> Array:
    """Return log Z = logsumexp_z [Σ_k g_k(z_k) + A(Σ_k field_k(z_k))].

    z are the finite latents. With banks of Gaussian latents s beside them, of bias b and weights W,
    A(field) stands for log ∫∫ exp(<field, t(x)> + xᵀW s + bᵀs - ½ |s|²) ds dx.
    """
    return log_sum_exp(lambda i: _log_weight(model, params, i), _count(model), _width(model))


def sample(rng_key: Array, model: Product, params: Params) -> Event:
    """Draw the finite latents, the Gaussian ones given them, and one event given both."""
    index_key, latent_key, visible_key = jax.random.split(rng_key, 3)
    log_weights = table(lambda i: _log_weight(model, params, i), _count(model), _width(model))
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
    linear, banks = field["linear"], []
    if coupling is not None:
        marginal = _marginal(model.visible, field, coupling)
        value = value - jnp.sum(jnp.log(jnp.diagonal(marginal.factor)))
        value = jnp.where(marginal.proper, value, jnp.inf)
        linear = linear + coupling.w @ marginal.mean
        banks = [(marginal.factor, coupling.w)]
    mean = jax.lax.stop_gradient(_solve(model.visible, field, linear))
    density, slope = jax.value_and_grad(lambda x: model.log_density(params, x))(mean)
    step = _solve(model.visible, field, slope)
    square = jnp.sum(slope * step)
    for factor, w in banks:
        square += jnp.sum(jax.scipy.linalg.solve_triangular(factor, w.T @ step, lower=True) ** 2)
    return jnp.where(value < jnp.inf, value + density + 0.5 * square, jnp.inf)


def _log_weight(model: Product, params: Params, index: Array) -> Array:
    weight, field = _finite(model, params, index)
    coupling = _coupling(model, params)
    if coupling is None and _real(model):
        return _centred_log_weight(model, params, index, field)
    value = weight + model.visible.log_partition(field)
    if coupling is None:
        return value
    marginal = _marginal(model.visible, field, coupling)
    # ½ mᵀ(LLᵀ)m - log|L| + ½ N log 2π
    value = value + 0.5 * jnp.sum((marginal.factor.T @ marginal.mean) ** 2)
    value = value + jnp.sum(coupling.log_volume - jnp.log(jnp.diagonal(marginal.factor)))
    return jnp.where(marginal.proper, value, jnp.inf)


def _centred_log_weight(model: Product, params: Params, index: Array, field: Field) -> Array:
    """Return log ∫ exp(log_joint(x, z)) dx, the joint a Gaussian in x, as `gaussian_log_z` does.

    From g(z) and the field, narrow components away from zero would cancel to few digits.
    """
    visible = model.visible
    value = visible.log_partition(field | {"linear": jnp.zeros_like(field["linear"])})

    def log_joint(x: Array) -> Array:
        joints = [e.log_joint(own, x, z) for e, own, z in _states(model, params, index)]
        return sum(joints[1:], joints[0])

    mean = jax.lax.stop_gradient(_solve(visible, field, field["linear"]))
    joint, slope = jax.value_and_grad(log_joint)(mean)
    square = jnp.sum(slope * _solve(visible, field, slope))
    return jnp.where(value < jnp.inf, value + joint + 0.5 * square, jnp.inf)


def _states(model: Product, params: Params, index: Array) -> list[tuple[Expert, Params, Latent]]:
    """Return each expert with its params and z, in the finite latents' state number `index`."""
    states = []
    for expert, path in _split(model)[0]:
        index, remainder = divide_index(index, expert.num_latent_states or 1)
        states.append((expert, params_at(params, path), expert.latent_state_at(remainder)))
    return states


def _finite(model: Product, params: Params, index: Array) -> tuple[Array, Field]:
    """Return Σ g(z) and Σ field(z) over the finite latents, in their state number `index`."""
    weights, fields = [jnp.zeros(())], []
    for expert, own, z in _states(model, params, index):
        weights.append(expert.latent_log_weight(own, z))
        fields.append(expert.visible_field(own, z))
    return sum(weights[1:], weights[0]), model.visible.combine(fields)


def _coupling(model: Product, params: Params) -> Coupling | None:
    banks = [expert.coupling(params_at(params, path)) for expert, path in _split(model)[1]]
    if not banks:
        return None
    return Coupling(
        jnp.concatenate([bank.b for bank in banks]),
        jnp.concatenate([bank.w for bank in banks], axis=1),
        jnp.concatenate([bank.log_volume for bank in banks]),
    )


def _marginal(visible: Unit, field: Field, coupling: Coupling) -> Marginal:
    b, w, _ = coupling
    solved = jax.vmap(lambda v: _solve(visible, field, v), 1, 1)(w)
    reduction = jnp.matmul(w.T, solved, precision="highest")
    identity = jnp.eye(len(b), dtype=reduction.dtype)
    precision = identity - 0.5 * (reduction + reduction.T)
    pivots = jnp.diagonal(jnp.linalg.cholesky(jax.lax.stop_gradient(precision))) ** 2
    # Below this a pivot is rounding, of numbers around one. NaN is not above it either.
    proper = jnp.all(pivots > 4 * len(b) * jnp.finfo(pivots.dtype).eps)
    # A second where keeps the gradient of the unused branch finite.
    factor = jnp.linalg.cholesky(jnp.where(proper, precision, identity))
    mean = jax.scipy.linalg.cho_solve(
        (factor, True), b + w.T @ _solve(visible, field, field["linear"])
    )
    return Marginal(mean, factor, proper & (visible.log_partition(field) < jnp.inf))


def _solve(visible: Unit, field: Field, v: Array) -> Array:
    """Return Λ⁻¹v, 0 if Λ is singular.

    As the gradient of the log partition function, which for full precisions has derivatives of its
    own, as the solver behind `visible.mean` has not.
    """
    field, v = _meshes.alike(field, v)
    return jax.grad(lambda linear: visible.log_partition(field | {"linear": linear}))(v)


def _shift(field: Field, v: Array) -> Field:
    return field | {"linear": field["linear"] + v}


def _split(model: Product) -> tuple[list[Factor], list[Factor]]:
    """Return the experts whose latents are enumerated, and those whose latents are integrated."""
    finite: list[Factor] = []
    gaussian: list[Factor] = []
    for factor in factors(model):
        is_integrated = factor.expert.has_gaussian_latents and _real(model)
        (gaussian if is_integrated else finite).append(factor)
    return finite, gaussian


def _real(model: Product) -> bool:
    return model.visible.is_quadratic


def _width(model: Product) -> int:
    size = model.visible.num_linear
    num_gaussian = sum(e.num_factors for e, _ in _split(model)[1])
    if num_gaussian or not model.visible.is_diagonal({}):
        return size * (size + num_gaussian) + num_gaussian**2
    return size


def _count(model: Product) -> int:
    count = num_states(model)
    assert count is not None
    return count
