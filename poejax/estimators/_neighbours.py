"""Losses for discrete visible units that compare an event with those one site away."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from poejax import _checks, diagnostics
from poejax._product import Product
from poejax.estimators._losses import LossEstimator
from poejax.types import Array, Event, Params


@dataclasses.dataclass(frozen=True)
class PseudoLikelihood(LossEstimator):
    """Build with `pseudo_likelihood`."""

    num_sites: int | None

    def loss(self, rng_key: Array, params: Params, x: Event) -> Array:
        """Return -Σ_i log p(x_i | x_rest), or its estimate from a few sites."""
        return -diagnostics.pseudo_log_likelihood(rng_key, self.model, params, x, self.num_sites)


@dataclasses.dataclass(frozen=True)
class MinimumProbabilityFlow(LossEstimator):
    """Build with `minimum_probability_flow`."""

    def loss(self, rng_key: Array, params: Params, x: Event) -> Array:
        """Return Σ_x' √(f(x') / f(x)) over the neighbours of x; `rng_key` is not used."""
        del rng_key
        return jnp.sum(jnp.exp(0.5 * _log_ratios(self.model, params, x)))


@dataclasses.dataclass(frozen=True)
class RatioMatching(LossEstimator):
    """Build with `ratio_matching`."""

    def loss(self, rng_key: Array, params: Params, x: Event) -> Array:
        """Return Σ_i (1 - p(x_i | x_rest))²; `rng_key` is not used."""
        del rng_key
        return jnp.sum(jax.nn.sigmoid(_log_ratios(self.model, params, x)) ** 2)


def pseudo_likelihood(model: Product, num_sites: int | None = None) -> PseudoLikelihood:
    """Maximum pseudo-likelihood: predict each site from all others.

    J = -E_data Σ_i log p(x_i | x_rest)

    Args:
      model: a product over one block of units of finitely many values.
      num_sites: distinct sites drawn per event and scaled up, an unbiased estimate of J and its
        gradient; all sites when None.

    Returns:
      An estimator; its info holds the mean loss J.

    Raises:
      ValueError: if the visible units are others, or `num_sites` is not in [1, size].

    Source: Besag (1975); Hyvärinen (2006) for Boltzmann machines.
    """
    diagnostics.check_sites(model, num_sites)
    return PseudoLikelihood(model, num_sites)


def minimum_probability_flow(model: Product) -> MinimumProbabilityFlow:
    """Minimum probability flow: let as little probability as possible leave the data at once.

    J = E_data Σ_x' √(f(x') / f(x)) over all x' that differ from x at one site

    is the initial rate of flow out of the data under dynamics that lead to the model. Neighbours
    that are data themselves count too, so that a minibatch will do: under the model flows between
    them cancel. A ratio beyond e^177 overflows float32: start from small weights.

    Args:
      model: a product over one block of units of finitely many values.

    Returns:
      An estimator; its info holds the mean loss J.

    Raises:
      ValueError: if the visible units are others.

    Source: Sohl-Dickstein, Battaglino & DeWeese (2011), Minimum probability flow learning.
    """
    diagnostics.check_sites(model)
    return MinimumProbabilityFlow(model)


def ratio_matching(model: Product) -> RatioMatching:
    """Ratio matching: fit the ratios of probabilities of events that differ at one site.

    J = E_data Σ_i g(f(x) / f(x with site i flipped))²,  g(u) = 1 / (1 + u)
      = E_data Σ_i (1 - p(x_i | x_rest))²

    Bounded, unlike the pseudo-likelihood: outliers and events that the model deems impossible
    hardly move it.

    Args:
      model: a product over Bernoulli or Spin units.

    Returns:
      An estimator; its info holds the mean loss J.

    Raises:
      ValueError: if the visible units are not binary.

    Source: Hyvärinen (2007), Some extensions of score matching.
    """
    _checks.model("model", model)
    if model.visible.num_values != 2:
        raise ValueError(
            f"model: expected visible units of two values, Bernoulli or Spin, got {model.visible}"
        )
    return RatioMatching(model)


def _log_ratios(model: Product, params: Params, x: Event) -> Array:
    sites = jnp.arange(model.visible.num_sites)
    return diagnostics.neighbour_log_ratios(model, params, x, sites)
