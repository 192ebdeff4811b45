"""Chains that carry weights for what the parameters did while they were on their way."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poejax import _checks, _random, chains
from poejax import _weights as weights
from poejax._bases import base_rate
from poejax._product import Product
from poejax._weights import LogZ
from poejax.estimators._common import Rule, advance, contrast, own_kernel
from poejax.types import Array, Event, Kernel, Params, Weighted


class JarzynskiState(NamedTuple):
    """Chains of the parameters of the last update, with weights of mean Z.

    states: of the kernel, [C, ...].
    log_weights: log w less `log_z`, [C].
    log_z: log mean weight when the chains were last resampled, [].
    params: what the weights are for.
    """

    states: Any
    log_weights: Array
    log_z: Array
    params: Params


class JarzynskiInfo(NamedTuple):
    """Diagnostics of one update; densities and log Z in nats, [] each.

    data_log_density, model_log_density: unnormalised means, the second one weighted.
    log_z: of the present model; data_log_density - log_z is the log-likelihood of the batch.
    ess: effective number of chains, in [1, C].
    """

    data_log_density: Array
    model_log_density: Array
    log_z: Array
    ess: Array


@dataclasses.dataclass(frozen=True)
class Jarzynski(Rule):
    """Persistent chains, reweighted. Build with `jarzynski`."""

    num_chains: int
    kernel: Kernel
    num_steps: int
    threshold: float

    def init(self, rng_key: Array, params: Params, data: Event) -> JarzynskiState:
        """Draw chains from the base rates of `data` [N, ...], weighted for `params`."""
        draw_key, init_key = _random.split(rng_key)
        given = params if "coordinates" in params else None
        base = base_rate(self.model, data, params=given)
        x = jax.vmap(base.sample)(chains.chain_keys(draw_key, self.num_chains))
        keys = chains.chain_keys(init_key, self.num_chains)
        states = jax.vmap(self.kernel.init, in_axes=(0, None, 0))(keys, params, x)

        def log_weight(x: Event) -> Array:
            normalised = base.model.log_density(base.params, x) - base.log_z
            return self.model.log_density(params, x) - normalised

        log_weights = jax.vmap(log_weight)(x)
        return JarzynskiState(states, log_weights, jnp.zeros((), log_weights.dtype), params)

    def grad(
        self, rng_key: Array, params: Params, state: JarzynskiState, batch: Event
    ) -> tuple[Params, JarzynskiState, JarzynskiInfo]:
        """Weigh the chains for the present params, resample them if few matter, and advance."""
        choice_key, run_key = _random.split(rng_key)

        log_weights = self._log_weights(params, state)
        found = weights.summarize(log_weights)
        is_poor = found.ess < self.threshold * self.num_chains
        rows = jnp.where(
            is_poor, weights.systematic(choice_key, log_weights), jnp.arange(self.num_chains)
        )
        states = jax.tree.map(lambda leaf: leaf[rows], state.states)
        log_z = jnp.where(is_poor, state.log_z + found.log_mean, state.log_z)
        log_weights = jnp.where(is_poor, jnp.zeros_like(log_weights), log_weights)
        states = advance(run_key, self.kernel, params, states, self.num_steps)
        x_model = Weighted(states.x, jax.nn.softmax(log_weights))
        grads, info = contrast(self.model, params, batch, x_model)
        state = JarzynskiState(states, log_weights, log_z, params)
        total = log_z + jax.nn.logsumexp(log_weights) - math.log(self.num_chains)
        return grads, state, JarzynskiInfo(*info, total, found.ess)

    def log_z(self, params: Params, state: JarzynskiState) -> LogZ:
        """Estimate log Z of `params`, those of the last update or any near them.

        The error bar knows of the chains since they were last resampled, not of those before.
        """
        return weights.estimate(state.log_z + self._log_weights(params, state), 1)

    def _log_weights(self, params: Params, state: JarzynskiState) -> Array:
        change = functools.partial(self.model.log_change, state.params, params)
        return state.log_weights + jax.vmap(change)(state.states.x)


def jarzynski(
    model: Product,
    num_chains: int,
    kernel: Kernel | None = None,
    num_steps: int = 1,
    *,
    threshold: float = 0.5,
) -> Jarzynski:
    """Persistent contrastive divergence, made unbiased by weights, with log Z along the way.

    log w_t = log w_{t-1} + log f_{θ_t}(x_{t-1}) - log f_{θ_{t-1}}(x_{t-1}),  x_t ~ T_{θ_t}(x_{t-1})
    grad = -E_data[∂ log f] + Σ_i w_i ∂ log f(x_i) / Σ_i w_i,  E[w_t] = Z(θ_t)

    Training is annealed importance sampling along the path that the parameters take: however far
    chains lag behind, weighted they are the model's. They start from the data's base rates, whose Z
    is known, so that the log-likelihood is too. Weights spread with every update; where few are
    left that matter, chains are resampled by them.

    Args:
      model: the product.
      num_chains: number C of persistent chains; the error of log Z grows as training is long.
      kernel: transition kernel; block Gibbs when None.
      num_steps: steps of every chain per update.
      threshold: share of C, in [0, 1), that the effective number of chains may fall to.

    Raises:
      ValueError: if `kernel` samples another model, or a number is out of range.
      TypeError: if `kernel` is none.

    Source: Jarzynski (1997); Carbone, Hua, Coste & Vanden-Eijnden (2023), Efficient training of
    energy-based models using Jarzynski equality.
    """
    _checks.fraction("threshold", threshold)
    _checks.law_of_event("kernel", kernel)
    return Jarzynski(
        model,
        _checks.positive_int("num_chains", num_chains),
        own_kernel(model, kernel),
        _checks.positive_int("num_steps", num_steps),
        float(threshold),
    )
