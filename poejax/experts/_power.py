"""Experts raised to a power: the weights of a generalised product of experts."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from poejax._numerics import widen
from poejax.experts._base import Expert, get_beta, set_beta
from poejax.experts._neural import refuse_opaque
from poejax.tails import Tails, as_float64, raised
from poejax.types import Array, Event, Field, Latent, Params


@dataclasses.dataclass(frozen=True)
class Power(Expert):
    """log f(x) = w Σ_k log g_k(x), the factors of another expert weighted by w.

    For experts whose `temper` is a power (Bias, Gaussian, StudentT and products of them) and w > 0
    the result has the inner expert's latents and is sampled by block Gibbs. A power of an expert
    that sums over latents (a bank, a mixture) is no such sum itself, and one with a negative
    weight, which divides by the expert, adds no field: these are opaque.

    Params: {"expert": the inner expert's, "log_weight": []}, w = exp(log_weight), or
    {"expert", "weight": []} when signed; w = 1 at init. To hold w fixed, or let it be the output
    of a network, leave it out of what the optimizer updates.

    Args:
      visible: the inner expert's units.
      expert: the expert to weight.
      signed: whether w may be negative or zero.

    Source: Heskes (1998), Selecting weighting factors in logarithmic opinion pools; Cao & Fleet
    (2014), Generalized product of experts.
    """

    expert: Expert
    signed: bool = False

    def __post_init__(self) -> None:
        if self.expert.visible != self.visible:
            raise ValueError(f"expert: expected units {self.visible}, got {self.expert.visible}")

    @property
    def is_opaque(self) -> bool:
        return self.signed or self.expert.is_opaque or not self.expert.temper_is_power

    @property
    def temper_is_power(self) -> bool:
        return True

    @property
    def has_scale_latents(self) -> bool:
        return self.expert.has_scale_latents

    @property
    def num_factors(self) -> int:
        return self.expert.num_factors

    @property
    def num_latent_states(self) -> int | None:
        return None if self.is_opaque else self.expert.num_latent_states

    def init(self, rng_key: Array) -> Params:
        params = self.expert.init(rng_key)
        return {"expert": params} | (
            {"weight": jnp.ones(())} if self.signed else {"log_weight": jnp.zeros(())}
        )

    def weight(self, params: Params) -> Array:
        """Return the weight w, []."""
        return widen(params["weight"]) if self.signed else jnp.exp(widen(params["log_weight"]))

    def log_factors(self, params: Params, x: Event) -> Array:
        weight = get_beta(params) * self.weight(params)
        return weight * self.expert.log_factors(params["expert"], x)

    def log_ratios(self, params: Params, x: Array, sites: Array, values: Array) -> Array:
        weight = get_beta(params) * self.weight(params)
        return weight * self.expert.log_ratios(params["expert"], x, sites, values)

    def log_joint(self, params: Params, x: Event, z: Latent) -> Array:
        if self.is_opaque:
            return jnp.sum(self.log_factors(params, x))
        return self.expert.log_joint(self._inner(params), x, z)

    def latent_log_weight(self, params: Params, z: Latent) -> Array:
        return self.expert.latent_log_weight(self._inner(params), z)

    def latent_state_at(self, index: Array) -> Latent:
        return self.expert.latent_state_at(index)

    def sample_latent(self, rng_key: Array, params: Params, x: Event) -> Latent:
        if self.is_opaque:
            return ()
        return self.expert.sample_latent(rng_key, self._inner(params), x)

    def latent_mean(self, params: Params, x: Event) -> Latent:
        return () if self.is_opaque else self.expert.latent_mean(self._inner(params), x)

    def visible_field(self, params: Params, z: Latent) -> Field:
        return self.expert.visible_field(self._inner(params), z)

    def temper(self, params: Params, beta: Array | float) -> Params:
        return set_beta(params, beta)

    def tails(self, params: Params) -> Tails | None:
        inner = self.expert.tails(params["expert"])
        weight = float(as_float64(get_beta(params)) * as_float64(self.weight(params)))
        return None if inner is None or weight < 0 else raised(inner, weight)

    def _inner(self, params: Params) -> Params:
        if self.is_opaque:
            refuse_opaque(self)
        return self.expert.temper(params["expert"], get_beta(params) * self.weight(params))
