"""Student-t experts on unit-norm projections: heavy tails, exact block Gibbs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln

from poejax import _checks
from poejax._numerics import widen
from poejax.experts._base import Expert, get_beta, set_beta
from poejax.experts._forms import StudentTTerms
from poejax.tails import Tails, as_float64, bounded
from poejax.types import Array, Event, Field, Latent, Params
from poejax.units.gaussian_full import require_full


@dataclasses.dataclass(frozen=True)
class StudentT(Expert):
    """log f_j(x) = -ν_j log(α_j + y_j²), y_j = w_jᵀx, |w_j| = 1.

    The latents are v_j = log u_j with u_j ~ Gamma(ν_j, rate α_j + y_j²) given x; the log is drawn
    and kept, since for small ν u itself underflows. They add the precision 2 u_j w_j w_jᵀ, as a
    row √(2 u_j) w_jᵀ. `temper` scales ν.

    Params: {"w": [D, J], "log_scale": [J], "log_exponent": [J]} with α = exp(log_scale),
    ν = exp(log_exponent). Columns of w are normalised where they are used, so that they are unit
    vectors under any optimizer; only their directions matter. To hold α or ν fixed, mask their
    updates (`optax.masked`, or `optax.set_to_zero` in `optax.multi_transform`).

    Args:
      visible: Gaussian units (full precision).
      num_experts: number J of projections; the product is proper if for every subspace L
        2 Σ{ν_j : w_j not orthogonal to L} > dim L.
      init_scale: α at init.
      init_exponent: ν at init; 1 in the usual picture, larger for lighter tails.

    Source: Welling, Hinton & Osindero (2002); Teh, Welling, Osindero & Hinton (2003).
    """

    num_experts: int
    init_scale: float = 1.0
    init_exponent: float = 1.0

    def __post_init__(self) -> None:
        require_full(self.visible)
        _checks.positive_int("num_experts", self.num_experts)
        if self.init_scale <= 0 or self.init_exponent <= 0:
            raise ValueError(
                "init_scale, init_exponent: expected positive numbers, got "
                f"{self.init_scale} and {self.init_exponent}"
            )

    @property
    def temper_is_power(self) -> bool:
        return True

    @property
    def has_scale_latents(self) -> bool:
        return True

    @property
    def num_factors(self) -> int:
        return self.num_experts

    @property
    def num_latent_states(self) -> None:
        return None

    @property
    def is_student_t(self) -> bool:
        return True

    def student_t_terms(self, params: Params) -> StudentTTerms:
        log_scale = widen(params["log_scale"])
        return StudentTTerms(self.directions(params), log_scale, self.exponent(params))

    def init(self, rng_key: Array) -> Params:
        w = jax.random.normal(rng_key, (self.visible.num_linear, self.num_experts))
        return {
            "w": w / jnp.linalg.norm(w, axis=0),
            "log_scale": jnp.full(self.num_experts, jnp.log(self.init_scale)),
            "log_exponent": jnp.full(self.num_experts, jnp.log(self.init_exponent)),
        }

    def directions(self, params: Params) -> Array:
        """Return the unit vectors w_j as columns, [D, J]."""
        w = widen(params["w"])
        return w / jnp.linalg.norm(w, axis=0)

    def exponent(self, params: Params) -> Array:
        """Return the tempered exponents beta ν, [J]."""
        return get_beta(params) * jnp.exp(widen(params["log_exponent"]))

    def log_factors(self, params: Params, x: Event) -> Array:
        return -self.exponent(params) * self._log_rate(params, x)

    def latent_log_weight(self, params: Params, z: Latent) -> Array:
        nu = self.exponent(params)
        # The density of v = log u: the Jacobian turns u^(ν-1) du into exp(ν v) dv.
        rate = jnp.exp(widen(params["log_scale"]) + z)
        return jnp.sum(nu * z - rate - gammaln(nu))

    def sample_latent(self, rng_key: Array, params: Params, x: Event) -> Latent:
        nu = self.exponent(params)
        # At exponent 0 (β = 0) the expert is absent: u = 0, which no Gamma draw can say.
        drawn = jax.random.loggamma(rng_key, jnp.where(nu > 0, nu, 1.0))
        return jnp.where(nu > 0, drawn - self._log_rate(params, x), -jnp.inf)

    def latent_mean(self, params: Params, x: Event) -> Latent:
        return digamma(self.exponent(params)) - self._log_rate(params, x)

    def visible_field(self, params: Params, z: Latent) -> Field:
        lengths = jnp.exp(0.5 * (jnp.log(2.0) + z))
        rows = lengths[:, None] * self.directions(params).T
        return {"linear": jnp.zeros(self.visible.num_linear, rows.dtype), "rows": rows}

    def temper(self, params: Params, beta: Array | float) -> Params:
        return set_beta(params, beta)

    def tails(self, params: Params) -> Tails:
        w = as_float64(params["w"]).T
        power = w / np.linalg.norm(w, axis=1, keepdims=True)
        exponent = as_float64(get_beta(params)) * np.exp(as_float64(params["log_exponent"]))
        return bounded(w.shape[1])._replace(power=power, exponent=exponent)

    def _log_rate(self, params: Params, x: Event) -> Array:
        """Return log(α + y²), without squaring a large y."""
        params = widen(params)
        y = self.visible.linear_statistic(x) @ self.directions(params)
        small = jnp.abs(y) < 1
        # Both branches see arguments that keep their derivatives finite and right.
        near = jnp.log1p(jnp.where(small, y, 0.0) ** 2 * jnp.exp(-params["log_scale"]))
        log_square = 2 * jnp.log(jnp.where(small, 1.0, jnp.abs(y)))
        far = jnp.logaddexp(params["log_scale"], log_square)
        return jnp.where(small, params["log_scale"] + near, far)
