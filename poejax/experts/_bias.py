"""The simplest expert: a fixed field on the visible units."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from poejax.experts._base import Expert, get_beta, require_units, set_beta, statistic_changes
from poejax.experts._forms import CoordinateTerms
from poejax.tails import Tails, as_float64, bounded
from poejax.types import Array, Event, Field, Latent, Params


@dataclasses.dataclass(frozen=True)
class Bias(Expert):
    """log f(x) = <a, t(x)>; it has no latents and adds the field a.

    Over real units log f is measured from its largest value, so that it is -½ λ (x - μ)² with
    μ = linear / λ: the constant ½ λ μ², which Z would hold too, drowns all else far from zero.

    Params: {"field": free parameters of a field}, for Bernoulli units an array [D], for
    GaussianDiag units {"linear", "log_precision"}. All zero (unit precision) at init.
    """

    def __post_init__(self) -> None:
        require_units("visible", self.visible)

    @property
    def temper_is_power(self) -> bool:
        return True

    @property
    def num_factors(self) -> int:
        return 1

    @property
    def has_free_field(self) -> bool:
        return True

    @property
    def is_gaussian(self) -> bool:
        return self.visible.is_quadratic

    @property
    def num_coordinate_terms(self) -> int | None:
        visible = self.visible
        return 1 if visible.is_quadratic and visible.is_diagonal({}) else None

    def coordinate_terms(self, params: Params) -> CoordinateTerms:
        field = self.visible.field(params["field"])
        mean, precision = field["linear"] / field["precision"], field["precision"]
        precision = get_beta(params) * precision
        return CoordinateTerms(jnp.zeros_like(mean)[None], mean[None], precision[None])

    def depth(self, params: Params) -> Array:
        return self.visible.peak(params["field"])

    def init(self, rng_key: Array) -> Params:
        del rng_key
        return {"field": self.visible.init_field()}

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
        del rng_key, params
        fitted = self.visible.fit_field(y, smoothing=0.01, weights=weights)
        return {"field": fitted if share == 1 else self.visible.power(fitted, share)}

    def log_factors(self, params: Params, x: Event) -> Array:
        return (get_beta(params) * self.visible.log_factor(params["field"], x))[None]

    def log_joint(self, params: Params, x: Event, z: Latent) -> Array:
        del z
        return self.log_factors(params, x)[0]

    def latent_log_weight(self, params: Params, z: Latent) -> Array:
        del z
        return -get_beta(params) * self.visible.peak(params["field"])

    def log_ratios(self, params: Params, x: Array, sites: Array, values: Array) -> Array:
        terms = sum(leaf.size for leaf in jax.tree.leaves(params["field"]))
        if terms > self.visible.num_linear:  # of squares, say, which change too
            return super().log_ratios(params, x, sites, values)
        changes = statistic_changes(self.visible, x, sites, values)
        field = self.visible.linear_part(params["field"]).reshape(self.visible.num_sites, -1)
        return get_beta(params) * jnp.sum(changes * field[sites][:, None], axis=-1)

    def visible_field(self, params: Params, z: Latent) -> Field:
        del z
        return self.visible.scale(self.visible.field(params["field"]), get_beta(params))

    def temper(self, params: Params, beta: Array | float) -> Params:
        return set_beta(params, beta)

    def tails(self, params: Params) -> Tails | None:
        rows = self.visible.decay_rows(params["field"])
        if rows is None:
            return None
        root = np.sqrt(as_float64(get_beta(params)))
        return bounded(self.visible.num_linear)._replace(decay=root * rows)
