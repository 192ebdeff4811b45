"""As many Student-t experts as dimensions: independent components of a linear map (ICA)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from poejax._product import Product
from poejax.exact._factors import params_at
from poejax.experts._combine import factors
from poejax.types import Array, Event, Params

_LOG_PI = 1.1447298858494002


def applies(model: Product) -> bool:
    """Whether the product is one of D Student-t experts and nothing else."""
    experts = [factor.expert for factor in factors(model)]
    square = sum(e.num_factors for e in experts) == model.visible.num_linear
    return square and all(e.is_student_t for e in experts)


def log_z(model: Product, params: Params) -> Array:
    """Return log Z, by y = Wᵀx.

    log Z = -log|det W| + Σ_j [½ log π + lgamma(ν_j - ½) - lgamma(ν_j) + (½ - ν_j) log α_j]

    +inf where some ν_j <= ½ or the directions do not span the space.
    """
    w, log_scale, nu, proper = _bank(model, params)
    # A second where keeps the gradient of the unused branch finite.
    nu = jnp.where(nu > 0.5, nu, 1.0)
    one = 0.5 * _LOG_PI + gammaln(nu - 0.5) - gammaln(nu) + (0.5 - nu) * log_scale
    pivots = jnp.diagonal(jnp.linalg.qr(w, mode="r"))
    return jnp.where(proper, jnp.sum(one - jnp.log(jnp.abs(pivots))), jnp.inf)


def sample(rng_key: Array, model: Product, params: Params) -> Event:
    """Draw x = W⁻ᵀy, with √((2ν_j - 1)/α_j) y_j of a Student-t law of 2ν_j - 1 degrees of freedom.

    y_j = n_j √(α_j / 2u_j), n_j ~ N(0, 1), u_j ~ Gamma(ν_j - ½); the log of u_j is drawn, since u_j
    itself underflows near ν_j = ½.
    """
    w, log_scale, nu, proper = _bank(model, params)
    normal_key, gamma_key = jax.random.split(rng_key)
    noise = jax.random.normal(normal_key, nu.shape, nu.dtype)
    log_gamma = jax.random.loggamma(gamma_key, jnp.where(nu > 0.5, nu - 0.5, 1.0), dtype=nu.dtype)
    y = noise * jnp.exp(0.5 * (log_scale - jnp.log(2.0) - log_gamma))
    return jnp.where(proper, jnp.linalg.solve(w.T, y), jnp.nan)


def _bank(model: Product, params: Params) -> tuple[Array, Array, Array, Array]:
    """Return directions [D, D], log α [D], tempered ν [D], and whether they are proper."""
    terms = [e.student_t_terms(params_at(params, path)) for e, path in factors(model)]
    w = jnp.concatenate([t.directions for t in terms], axis=1)
    log_scale, nu = (
        jnp.concatenate([getattr(t, name) for t in terms]) for name in ("log_scale", "exponent")
    )
    pivots = jnp.abs(jnp.diagonal(jnp.linalg.qr(jax.lax.stop_gradient(w), mode="r")))
    spans = jnp.all(pivots > len(nu) * jnp.finfo(w.dtype).eps)
    w = jnp.where(spans, w, jnp.eye(len(nu), dtype=w.dtype))
    return w, log_scale, nu, spans & jnp.all(nu > 0.5)
