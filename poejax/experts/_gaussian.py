"""A Gaussian factor: on one coordinate, axis-aligned, or with a full precision."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from poejax._numerics import HALF_LOG_2PI, widen
from poejax.experts._base import Expert, get_beta, set_beta
from poejax.experts._forms import CoordinateTerms
from poejax.tails import Tails, as_float64, bounded
from poejax.types import Array, Event, Field, Latent, Params
from poejax.units.gaussian import moments, require_real
from poejax.units.gaussian_full import triangular_rows, upper_triangle


@dataclasses.dataclass(frozen=True)
class Gaussian(Expert):
    """log f(x) = beta log N(x; μ, Λ⁻¹); no latents; adds the field of mean μ and precision Λ.

    Params, all unconstrained: {"mean": [D], "log_precision": [D]} when diagonal;
    {"mean": [D], "log_diagonal": [D], "off_diagonal": [D (D - 1) / 2]} when full, with
    Λ = RᵀR and R upper triangular. With `coordinate` set, D = 1 and the factor is N(x_i; μ, 1/λ).

    Args:
      visible: GaussianDiag or Gaussian units; "full" needs Gaussian.
      covariance: "diag" or "full".
      coordinate: the only coordinate this factor sees; all when None.
    """

    covariance: Literal["diag", "full"] = "diag"
    coordinate: int | None = None

    def __post_init__(self) -> None:
        visible = require_real(self.visible)
        if self.covariance not in ("diag", "full"):
            raise ValueError(f"covariance: expected 'diag' or 'full', got {self.covariance!r}")
        if self.covariance == "full" and visible.is_diagonal({}):
            raise ValueError(f"covariance: 'full' needs units.Gaussian, got {visible}")
        if self.coordinate is not None and not 0 <= self.coordinate < visible.size:
            raise ValueError(f"coordinate: expected 0 to {visible.size - 1}, got {self.coordinate}")
        if self.coordinate is not None and self.covariance == "full":
            raise ValueError("coordinate: expected with covariance='diag', got 'full'")

    @property
    def temper_is_power(self) -> bool:
        return True

    @property
    def num_factors(self) -> int:
        return 1

    @property
    def is_gaussian(self) -> bool:
        return True

    @property
    def num_coordinate_terms(self) -> int | None:
        return 1 if self.covariance == "diag" else None

    def coordinate_terms(self, params: Params) -> CoordinateTerms:
        params, beta = widen(params), get_beta(params)
        mean, precision = params["mean"], beta * jnp.exp(params["log_precision"])
        log_peak = beta * (0.5 * params["log_precision"] - HALF_LOG_2PI)
        if self.coordinate is not None:
            site = jax.nn.one_hot(self.coordinate, self.visible.num_linear)
            log_peak, mean, precision = site * log_peak, site * mean, site * precision
        return CoordinateTerms(log_peak[None], mean[None], precision[None])

    def init(self, rng_key: Array) -> Params:
        size = 1 if self.coordinate is not None else require_real(self.visible).size
        mean = jax.random.normal(rng_key, (size,))
        if self.covariance == "diag":
            return {"mean": mean, "log_precision": jnp.zeros(size)}
        off_diagonal = jnp.zeros(size * (size - 1) // 2)
        return {"mean": mean, "log_diagonal": jnp.zeros(size), "off_diagonal": off_diagonal}

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
        del rng_key
        y = y if self.coordinate is None else y[:, self.coordinate][:, None]
        mean, variance = moments(y, weights=weights)
        mean = jnp.asarray(mean, params["mean"].dtype)
        if self.covariance == "diag":
            return {"mean": mean, "log_precision": jnp.log(share / jnp.asarray(variance))}
        # A field's free parameters are the same rows beside another parameter of location.
        fitted = self.visible.power(self.visible.fit_field(y, 0.0, weights), share)
        return {"mean": mean} | {name: fitted[name] for name in ("log_diagonal", "off_diagonal")}

    def log_factors(self, params: Params, x: Event) -> Array:
        # Through the centred residual, not the field: μᵀΛμ would cancel badly far from zero.
        params = widen(params)
        centred = self._seen(self.visible.linear_statistic(x)) - params["mean"]
        if self.covariance == "diag":
            log_scale = 0.5 * params["log_precision"]
            residual = jnp.exp(log_scale) * centred
        else:
            log_scale = params["log_diagonal"]
            residual = triangular_rows(params) @ centred
        log_density = jnp.sum(log_scale - HALF_LOG_2PI - 0.5 * residual**2)
        return (get_beta(params) * log_density)[None]

    def log_joint(self, params: Params, x: Event, z: Latent) -> Array:
        del z
        return self.log_factors(params, x)[0]

    def latent_log_weight(self, params: Params, z: Latent) -> Array:
        # <field, t(x)> leaves out what does not depend on x: the factor at zero.
        return self.log_factors(params, jnp.zeros(require_real(self.visible).size))[0]

    def visible_field(self, params: Params, z: Latent) -> Field:
        params = widen(params)
        visible, beta = require_real(self.visible), get_beta(params)
        if self.covariance == "full":
            rows = triangular_rows(params)
            field = {"linear": rows.T @ (rows @ params["mean"]), "rows": rows}
        elif self.coordinate is None:
            precision = jnp.exp(params["log_precision"])
            field = visible.diagonal_field(params["mean"] * precision, precision)
        else:
            site = jax.nn.one_hot(self.coordinate, visible.size)
            precision = site * jnp.exp(params["log_precision"])
            field = visible.diagonal_field(params["mean"] * precision, precision)
        return visible.scale(field, beta)

    def temper(self, params: Params, beta: Array | float) -> Params:
        return set_beta(params, beta)

    def tails(self, params: Params) -> Tails:
        if self.covariance == "full":
            rows = upper_triangle(params)
        else:
            root = np.exp(0.5 * as_float64(params["log_precision"]))
            every = np.eye(self.visible.num_linear)
            seen = every if self.coordinate is None else every[[self.coordinate]]
            rows = root[:, None] * seen
        root_beta = np.sqrt(as_float64(get_beta(params)))
        return bounded(self.visible.num_linear)._replace(decay=root_beta * rows)

    def _seen(self, x: Array) -> Array:
        return x if self.coordinate is None else x[self.coordinate][None]
