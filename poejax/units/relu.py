"""Rectified real units: a Gaussian base on the half-line z >= 0."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from poejax._numerics import at_least_float32, mean_of_rows
from poejax.tails import Tails, bounded
from poejax.types import Array, Event, Field, Params
from poejax.units.checks import require_values
from poejax.units.gaussian import RealUnit

__all__ = ["ReLU"]

_HALF_LOG_PI_OVER_2 = 0.5 * math.log(math.pi / 2)
# From here down moments come from a continued fraction, which converges in few terms; above from
# erfc, which up to here loses no more than a digit.
_CROSSOVER = -2.0


@dataclasses.dataclass(frozen=True)
class ReLU(RealUnit):
    """`size` real hidden units z >= 0 with base exp(-z²/2): z ~ N(field, 1) truncated to z >= 0.

    A(field) = Σ log ∫_0^∞ exp(field z - z²/2) dz = Σ log(√(π/2) erfcx(-field / √2))
    E[z] = field + φ(field) / Φ(field)

    Nearly max(0, field) plus noise where field >> 0, and exponential with mean 1 / |field| where
    field << 0. Value, mean and higher derivatives are correct in the working precision for fields
    of either sign and any size; they and draws are in float32 or wider.

    A grows like ½ max(0, field)², so over real visible units a bank takes up to Σ_j w_j w_jᵀ away
    from their precision, the sum over the hidden units that are on: the product is normalisable
    only if the other experts add more than that. Over discrete visible units any weights will do.

    Source: Nair & Hinton (2010) for rectified hidden units; Su, Liao, Li, Gan & Carin (2017),
    Unsupervised learning with truncated Gaussian graphical models, for this exponential family.
    """

    @property
    def has_proper_base(self) -> bool:
        return True

    @property
    def is_real(self) -> bool:
        return False

    def bank_tails(self, weights: np.ndarray) -> Tails:
        return bounded(len(weights))._replace(half_square=weights.T)

    def log_base(self, x: Event) -> Array:
        z = self.linear_statistic(x)
        return jnp.sum(jnp.where(z < 0, -jnp.inf, -0.5 * z**2))

    def log_partitions(self, field: Field) -> Array:
        return _log_integral(at_least_float32(field))

    def mean(self, field: Field) -> Event:
        return _mean(at_least_float32(field))

    def sample(self, rng_key: Array, field: Field) -> Event:
        """Draw by inversion: two random numbers per unit and a fixed number of operations."""
        field = at_least_float32(field)
        uniform_key, side_key = jax.random.split(rng_key)
        w = jax.random.uniform(uniform_key, field.shape, field.dtype)
        # Above zero: on either side of the mode the distance to it is a half-normal variable,
        # below cut off where z would be negative.
        mode = jnp.maximum(field, 0)
        within = jax.lax.erf(mode / math.sqrt(2))
        above = jax.random.bernoulli(side_key, 1 / (1 + within))
        distance = math.sqrt(2) * jax.lax.erf_inv(w * jnp.where(above, 1, within))
        near_mode = jnp.maximum(jnp.where(above, mode + distance, mode - distance), 0)
        return jnp.where(field > 0, near_mode, _tail_quantile(jnp.maximum(-field, 0), w))

    def fit_field(self, x: Event, smoothing: float, weights: Array | None = None) -> Params:
        """Return the field with the mean of `x`, mixed with the mean √(2/π) at field zero."""
        mean = (1 - smoothing) * mean_of_rows(x, weights) + smoothing * math.sqrt(2 / math.pi)
        positive = jnp.where(mean > 0, mean, 1.0)

        def newton(_: int, field: Array) -> Array:
            value, slope = jax.jvp(_mean, (field,), (jnp.ones_like(field),))
            return field - (value - positive) / slope

        field = jax.lax.fori_loop(0, 8, newton, positive - 1 / positive)
        return jnp.where(mean > 0, field, -jnp.inf)

    def check(self, name: str, x: Event) -> None:
        super().check(name, x)
        require_values(name, x, _not_negative, "values >= 0", self)


def _not_negative(v: Array) -> Array:
    return v >= 0


@jax.custom_jvp
def _log_integral(field: Array) -> Array:
    """Return log ∫_0^∞ exp(field z - z²/2) dz, elementwise."""
    above = jnp.maximum(field, 0)
    log_erfc = jnp.log(jax.lax.erfc(-above / math.sqrt(2)))
    below = jnp.minimum(field, 0)
    return jnp.where(
        field > 0,
        0.5 * above**2 + log_erfc + _HALF_LOG_PI_OVER_2,
        -jnp.log(_moment_ratio(1, below) - below),
    )


@_log_integral.defjvp
def _log_integral_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (field,), (tangent,) = primals, tangents
    return _log_integral(field), _mean(field) * tangent


def _mean(field: Array) -> Array:
    """Return field + φ(field) / Φ(field), elementwise."""
    # Selections rather than maxima: at zero a maximum would take half of the derivative.
    above = jnp.where(field > 0, field, 0)
    below = jnp.where(field > 0, 0, field)
    return jnp.where(field > 0, above + _hazard(above), _moment_ratio(1, below))


def _hazard(field: Array) -> Array:
    """Return φ/Φ, elementwise; well conditioned above the crossover."""
    density = math.sqrt(2 / math.pi) * jnp.exp(-0.5 * field**2)
    return density / jax.lax.erfc(-field / math.sqrt(2))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _moment_ratio(n: int, field: Array) -> Array:
    """Return K_n = E[zⁿ] / E[zⁿ⁻¹] at fields <= 0, elementwise; K_1 is the mean.

    By parts, K_n (K_{n+1} - field) = n. Forwards from K_1 = field + φ/Φ this loses digits far
    below zero, where backwards from a large n it is a continued fraction, that of Mills' ratio.
    Since ∂K_n = K_n (K_{n+1} - K_n), derivatives of every order are such ratios too.
    """
    near = jnp.maximum(field, _CROSSOVER)
    forwards = near + _hazard(near)
    for k in range(1, n):
        forwards = k / forwards + near
    backwards = _continued_fraction(n, -jnp.minimum(field, _CROSSOVER))
    return jnp.where(field > _CROSSOVER, forwards, backwards)


@_moment_ratio.defjvp
def _moment_ratio_jvp(n: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (field,), (tangent,) = primals, tangents
    ratio = _moment_ratio(n, field)
    return ratio, ratio * (_moment_ratio(n + 1, field) - ratio) * tangent


def _continued_fraction(n: int, u: Array) -> Array:
    """Return K_n at field -u, u >= 2, as n / (u + (n+1) / (u + ...))."""
    num_terms = n + (60 if u.dtype == jnp.float64 else 18)
    # The terms left out are summed as if K_{n+1} were K_n; exact to leading order at u = 0 too.
    ratio = 2 * num_terms / (u + jnp.sqrt(u**2 + 4 * num_terms - 2))
    for k in reversed(range(n, num_terms)):
        ratio = k / (u + ratio)
    return ratio


def _tail_quantile(u: Array, w: Array) -> Array:
    """Return z with P(Z <= z) = w for Z ~ N(-u, 1) truncated to z >= 0, at u >= 0.

    Halley's method for -log P(Z > z) = uz + z²/2 + log(h(u + z) / h(u)), where h(u) = u + K_1(-u)
    is the hazard of a standard normal variable; the slope here is h(u + z), and h' = h K_1.
    """
    target = -jnp.log1p(-w)
    ratio = _moment_ratio(1, -u)
    hazard = u + ratio
    # Exact to second order in z but for a slope of the hazard of 1, which it approaches from below.
    z = 2 * target / (hazard + jnp.sqrt(hazard**2 + 2 * target))
    # One step leaves 2e-4 at most, two 1e-12.
    for _ in range(3 if z.dtype == jnp.float64 else 2):
        ratio_z = _moment_ratio(1, -(u + z))
        slope = u + z + ratio_z
        excess = z * (u + z / 2) + jnp.log1p((z + ratio_z - ratio) / hazard) - target
        z = jnp.maximum(z - excess / (slope - 0.5 * excess * ratio_z), 0)
    return z
