"""Hinton's unigauss experts: a Gaussian opinion that may be withheld."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax._numerics import HALF_LOG_2PI, widen
from poejax.experts._base import Expert, get_beta, set_beta
from poejax.tails import Tails, bounded
from poejax.types import Array, Event, Field, Latent, Params
from poejax.units import Bernoulli
from poejax.units.gaussian import require_real


@dataclasses.dataclass(frozen=True)
class Unigauss(Expert):
    """log f_j(x) = log[(1 - π_j) c + π_j N(x; μ_j, diag(1/λ_j))], c the density of a uniform.

    The latent z_j in {0, 1} tells whether expert j speaks; it adds z_j times its Gaussian's field.
    The uniform is unbounded here, so a product is proper only beside a proper expert, such as a
    broad Gaussian.

    Params, all unconstrained: {"logit": [J], "mean": [J, D], "log_precision": [J, D]} with
    π = sigm(logit).

    Args:
      visible: GaussianDiag or Gaussian units.
      num_experts: number J of experts.
      uniform_density: c, positive; one over the volume the uniform stands for.

    Source: Hinton (2002), section 5.
    """

    num_experts: int
    uniform_density: float = 1.0

    def __post_init__(self) -> None:
        require_real(self.visible)
        _checks.positive_int("num_experts", self.num_experts)
        if self.uniform_density <= 0:
            raise ValueError(
                f"uniform_density: expected a positive number, got {self.uniform_density}"
            )

    @property
    def num_factors(self) -> int:
        return self.num_experts

    @property
    def num_latent_states(self) -> int:
        return int(2**self.num_experts)

    def init(self, rng_key: Array) -> Params:
        mean = jax.random.normal(rng_key, (self.num_experts, require_real(self.visible).size))
        return {
            "logit": jnp.zeros(self.num_experts),
            "mean": mean,
            "log_precision": jnp.zeros_like(mean),
        }

    def log_factors(self, params: Params, x: Event) -> Array:
        return jnp.logaddexp(*self._log_joints(params, x))

    def log_joint(self, params: Params, x: Event, z: Latent) -> Array:
        # Through centred residuals, not the field: μᵀΛμ would cancel badly far from zero.
        silent, speaks = self._log_joints(params, x)
        return jnp.sum((1 - z) * silent + z * speaks)

    def latent_log_weight(self, params: Params, z: Latent) -> Array:
        return self.log_joint(params, jnp.zeros(require_real(self.visible).size), z)

    def latent_state_at(self, index: Array) -> Latent:
        return Bernoulli(self.num_experts).state_at(index)

    def sample_latent(self, rng_key: Array, params: Params, x: Event) -> Latent:
        silent, speaks = self._log_joints(params, x)
        return Bernoulli(self.num_experts).sample(rng_key, speaks - silent)

    def latent_mean(self, params: Params, x: Event) -> Latent:
        silent, speaks = self._log_joints(params, x)
        return jax.nn.sigmoid(speaks - silent)

    def visible_field(self, params: Params, z: Latent) -> Field:
        visible, params = require_real(self.visible), widen(params)
        precision = z[:, None] * jnp.exp(params["log_precision"])
        linear = jnp.sum(precision * params["mean"], axis=0)
        field = visible.diagonal_field(linear, jnp.sum(precision, axis=0))
        return visible.scale(field, get_beta(params))

    def temper(self, params: Params, beta: Array | float) -> Params:
        return set_beta(params, beta)

    def tails(self, params: Params) -> Tails:
        return bounded(self.visible.num_linear)._replace(
            note="the uniform parts of unigauss experts do not decay and need a proper expert "
            "beside them, such as a broad Gaussian"
        )

    def _log_joints(self, params: Params, x: Event) -> tuple[Array, Array]:
        """Return beta log [(1 - π) c] and beta log [π N(x; μ, 1/λ)], [J] each."""
        params = widen(params)
        half_log = 0.5 * params["log_precision"]
        residual = jnp.exp(half_log) * (self.visible.linear_statistic(x) - params["mean"])
        log_normal = jnp.sum(half_log - HALF_LOG_2PI - 0.5 * residual**2, axis=-1)
        silent = jax.nn.log_sigmoid(-params["logit"]) + jnp.log(self.uniform_density)
        speaks = jax.nn.log_sigmoid(params["logit"]) + log_normal
        beta = get_beta(params)
        return beta * silent, beta * speaks
