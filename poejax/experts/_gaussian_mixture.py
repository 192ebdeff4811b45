"""Mixtures of Gaussians as experts: one per coordinate, or one over all of them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks
from poejax._numerics import HALF_LOG_2PI, tempered_logsumexp, widen
from poejax.experts._base import Expert, get_beta, set_beta
from poejax.experts._forms import CoordinateTerms
from poejax.mixtures import fit_em
from poejax.tails import Tails, as_float64, bounded
from poejax.types import Array, Event, Field, Latent, Params
from poejax.units import Categorical
from poejax.units.gaussian import require_real


@dataclasses.dataclass(frozen=True)
class GaussianMixture(Expert):
    """Mixture experts with diagonal components.

    Per coordinate (default): log f_i(x) = log Σ_k π_ik N(x_i; μ_ik, 1/λ_ik), D factors.
    Joint: log f(x) = log Σ_k π_k N(x; μ_k, diag(1/λ_k)), one factor.

    The latent is one-hot, the component chosen, [D, K] or [1, K]; it adds that component's field.
    Params, all unconstrained: {"logits": [M, K], "mean": [M, K, D/M], "log_precision" alike}, with
    M = D per coordinate and M = 1 joint, π = softmax(logits). `temper` scales the joint log density
    of (x, component), so that at 0 every component weighs the same.

    Args:
      visible: GaussianDiag or Gaussian units.
      num_components: K of each mixture.
      joint: one mixture over all coordinates instead of one for each.
    """

    num_components: int
    joint: bool = False

    def __post_init__(self) -> None:
        require_real(self.visible)
        _checks.positive_int("num_components", self.num_components)

    @property
    def num_factors(self) -> int:
        return 1 if self.joint else require_real(self.visible).size

    @property
    def num_latent_states(self) -> int:
        return int(self.num_components**self.num_factors)

    @property
    def num_coordinate_terms(self) -> int | None:
        return None if self.joint else self.num_components

    def coordinate_terms(self, params: Params) -> CoordinateTerms:
        params, beta = widen(params), get_beta(params)
        # [D, K, 1] to [K, D]
        mean, log_precision = (params[name][:, :, 0].T for name in ("mean", "log_precision"))
        log_peak = 0.5 * log_precision - HALF_LOG_2PI
        log_peak = log_peak + jax.nn.log_softmax(params["logits"], axis=-1).T
        return CoordinateTerms(beta * log_peak, mean, beta * jnp.exp(log_precision))

    def init(self, rng_key: Array) -> Params:
        shape = (self.num_factors, self.num_components)
        mean = jax.random.normal(rng_key, (*shape, require_real(self.visible).size // shape[0]))
        return {"logits": jnp.zeros(shape), "mean": mean, "log_precision": jnp.zeros_like(mean)}

    @property
    def carries_base_rate(self) -> bool:
        return True

    def fit(
        self,
        rng_key: Array,
        params: Params,
        y: Event,
        share: float,
        weights: Array | None = None,
    ) -> Params:
        y = jnp.moveaxis(jnp.reshape(y, (len(y), self.num_factors, -1)), 1, 0)
        keys = jax.random.split(rng_key, self.num_factors)
        fits = [
            fit_em(key, part, self.num_components, covariance="diag", weights=weights)[0]
            for key, part in zip(keys, y, strict=True)
        ]
        return {
            "logits": jnp.stack([found.log_weights for found in fits]),
            "mean": jnp.stack([found.means for found in fits]),
            "log_precision": jnp.log(share) - jnp.log(jnp.stack([f.covariances for f in fits])),
        }

    def log_factors(self, params: Params, x: Event) -> Array:
        return tempered_logsumexp(get_beta(params), self._untempered(params, x))

    def log_joint(self, params: Params, x: Event, z: Latent) -> Array:
        # Through centred residuals, not the field: μᵀΛμ would cancel badly far from zero.
        return jnp.sum(z * self._log_joints(params, x))

    def latent_log_weight(self, params: Params, z: Latent) -> Array:
        at_zero = self._log_joints(params, jnp.zeros(require_real(self.visible).size))
        return jnp.sum(z * at_zero)

    def latent_state_at(self, index: Array) -> Latent:
        if self.num_components == 1:
            return jnp.ones((self.num_factors, 1))
        return self._choice().state_at(index)

    def sample_latent(self, rng_key: Array, params: Params, x: Event) -> Latent:
        if self.num_components == 1:
            return jnp.ones_like(self._log_joints(params, x))
        return self._choice().sample(rng_key, self._log_joints(params, x))

    def latent_mean(self, params: Params, x: Event) -> Latent:
        return jax.nn.softmax(self._log_joints(params, x), axis=-1)

    def visible_field(self, params: Params, z: Latent) -> Field:
        visible, params = require_real(self.visible), widen(params)
        precision = jnp.exp(params["log_precision"])
        linear = jnp.einsum("mk,mkd->md", z, params["mean"] * precision).reshape(-1)
        chosen = jnp.einsum("mk,mkd->md", z, precision).reshape(-1)
        return visible.scale(visible.diagonal_field(linear, chosen), get_beta(params))

    def temper(self, params: Params, beta: Array | float) -> Params:
        return set_beta(params, beta)

    def tails(self, params: Params) -> Tails:
        # The broadest component decides; jointly, no component need be the broadest everywhere.
        log_precision = as_float64(params["log_precision"])
        slowest = log_precision.min(axis=1, keepdims=True)
        is_exact = bool((log_precision == slowest).all(axis=2).any(axis=1).all())
        root = np.sqrt(as_float64(get_beta(params))) * np.exp(0.5 * slowest.reshape(-1))
        return bounded(root.size)._replace(decay=np.diag(root), is_exact=is_exact)

    def _choice(self) -> Categorical:
        return Categorical(self.num_factors, self.num_components)

    def _log_joints(self, params: Params, x: Event) -> Array:
        """Return beta log (π_mk N(x_m; μ_mk, 1/λ_mk)), [M, K]."""
        return get_beta(params) * self._untempered(params, x)

    def _untempered(self, params: Params, x: Event) -> Array:
        params = widen(params)
        x = self.visible.linear_statistic(x).reshape(self.num_factors, 1, -1)
        half_log = 0.5 * params["log_precision"]
        residual = jnp.exp(half_log) * (x - params["mean"])
        log_normal = jnp.sum(half_log - HALF_LOG_2PI - 0.5 * residual**2, axis=-1)
        return jax.nn.log_softmax(params["logits"], axis=-1) + log_normal
