"""Mixtures of products of Bernoullis, for binary data."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks
from poejax._numerics import at_least_float32
from poejax.mixtures import _checks as checks
from poejax.mixtures import _em as em
from poejax.mixtures import _frame as frames
from poejax.mixtures._clusters import named_start
from poejax.mixtures._em import Climb, EMReport
from poejax.types import Array


class BernoulliMixtureParams(NamedTuple):
    """p(x) = Σ_k π_k Π_d σ(l_kd)^x_d σ(-l_kd)^(1-x_d), x in {0, 1}^D.

    log_weights: log π [K], Σ π = 1.
    logits: l [K, D].
    """

    log_weights: Array
    logits: Array

    @property
    def num_features(self) -> int:
        """D, the size of one event."""
        return int(self.logits.shape[-1])

    def component_log_probs(self, x: Array) -> Array:
        """Return log p_k(x) [K] of one event [D]."""
        all_off = jnp.sum(jax.nn.log_sigmoid(-self.logits), axis=1)
        return em.matmul(self.logits, jnp.asarray(x, self.logits.dtype)) + all_off

    def relative_log_probs(self, x: Array) -> tuple[Array, Array]:
        """Return 0 and log p_k(x) [K] of one event [D]."""
        log_probs = self.component_log_probs(x)
        return jnp.zeros((), log_probs.dtype), log_probs

    def sample_component(self, rng_key: Array, component: Array) -> Array:
        """Draw one event [D] from component k."""
        p = jax.nn.sigmoid(self.logits[component])
        return jax.random.bernoulli(rng_key, p).astype(self.logits.dtype)


def fit_em_bernoulli(
    rng_key: Array,
    x: Array,
    num_components: int,
    *,
    weights: Array | None = None,
    smoothing: float = 0.1,
    max_steps: int = 200,
    tol: float = 1e-4,
    init: str | Array = "kmeans++",
    num_restarts: int = 1,
    params: BernoulliMixtureParams | None = None,
) -> tuple[BernoulliMixtureParams, EMReport]:
    """Fit a mixture of products of Bernoullis to a batch of binary rows [N, D] by EM.

    E: r_nk = π_k p_k(x_n) / Σ_j ...
    M: N_k = Σ_n r_nk, π_k = N_k/N, σ(l_kd) = (Σ_n r_nk x_nd + s) / (N_k + 2 s).

    s > 0 pseudo-counts of each value keep every probability inside (0, 1). They are those of a
    Beta(1 + s, 1 + s) prior on each probability, so what never falls is the log posterior,
    `report.objective` = log-likelihood + s/N Σ_kd [log σ(l_kd) + log σ(-l_kd)]; the log-likelihood
    alone may. A component that explains no example goes to probabilities of ½, at a weight of
    about 0. Compiled once per shape and set of options.

    Args:
      rng_key: one typed key; only the named starts draw from it.
      x: batch [N, D] of values in {0, 1}, in any dtype: uint8 takes the least memory.
      num_components: K, in 1 ... N.
      weights: [N] >= 0, not all 0; a row of weight 2 counts as two such rows, one of weight 0 as
        none, and N above is their sum. 1 when None.
      smoothing: s, pseudo-counts per pixel and value in every component, > 0.
      max_steps: upper limit of the number of steps.
      tol: stop when a step gains less, in nats per example, >= 0.
      init: "kmeans++" (seeds), "kmeans" (seeds moved by Lloyd's algorithm), or responsibilities
        [N, K], of which the first M step is taken. Named starts take half the responsibility from
        the clusters and half evenly, so that small clusters do not start certain.
      num_restarts: independent named starts, of which the best is kept; more are never worse.
      params: start here instead, e.g. from an earlier fit.

    Returns:
      `(params, report)`.

    Raises:
      ValueError: naming the argument, if `x` is empty, not [N, D] or not binary, if an option is
        unknown or out of range, or if a start does not fit.

    Source: Bishop (2006), "Pattern recognition and machine learning", section 9.3.3.
    """
    rows: Any = checks.fit(
        rng_key, x, "num_components", num_components, max_steps, num_restarts, weights
    )
    if (
        not _border.is_abstract(rows)
        and (place := _border.first_failure(rows, _is_bit)) is not None
    ):
        raise ValueError(
            f"x: expected values in {{0, 1}}, got others, such as {_border.entry(rows, place)}"
            f"{_border.where(place)}"
        )
    checks.non_negative("tol", tol)
    checks.non_negative("smoothing", smoothing)
    if _checks.is_concrete(smoothing) and smoothing == 0:
        raise ValueError("smoothing: expected a number > 0, got 0; a logit could become infinite")
    num_rows, num_features = rows.shape
    name, given = checks.start(init, params, num_rows, num_components, num_restarts)
    if params is not None:
        checks.params(
            params,
            BernoulliMixtureParams,
            log_weights=(num_components,),
            logits=(num_components, num_features),
        )
    weights, mean_weight = checks.mean_one(weights, frames.working_dtype(rows))
    relative = smoothing / mean_weight
    if _checks.is_concrete(relative) and float(relative) < np.finfo(np.float32).tiny:
        raise ValueError(
            f"smoothing: expected pseudo-counts that show beside weights of mean {mean_weight:.3g},"
            f" got {smoothing}"
        )
    climb = _fit(
        rng_key, rows, weights, given, params, relative, tol, num_components, max_steps, name,
        num_restarts,
    )  # fmt: skip
    return climb.params, climb.report


@functools.partial(jax.jit, static_argnames=("num_components", "max_steps", "init", "num_restarts"))
def _fit(
    rng_key: Array,
    x: Array,
    weights: Array | None,
    given: Array | None,
    params: BernoulliMixtureParams | None,
    smoothing: Array,
    tol: Array,
    num_components: int,
    max_steps: int,
    init: str,
    num_restarts: int,
) -> Climb:
    x = at_least_float32(jnp.asarray(x))
    smoothing = jnp.asarray(smoothing, x.dtype)
    weights = None if weights is None else weights.astype(x.dtype)

    def weigh(r: Array) -> Array:
        return r if weights is None else weights[:, None] * r

    def m_step(old: BernoulliMixtureParams | None, r: Array) -> BernoulliMixtureParams:
        del old
        on = em.matmul(r.T, x) + smoothing
        # Not N_k - on: their difference can round to below zero where a pixel is always on.
        off = em.matmul(r.T, 1 - x) + smoothing
        return BernoulliMixtureParams(em.log_shares(r.sum(axis=0)), jnp.log(on) - jnp.log(off))

    def log_prior(params: BernoulliMixtureParams) -> Array:
        terms = jax.nn.log_sigmoid(params.logits) + jax.nn.log_sigmoid(-params.logits)
        return smoothing * terms.sum()

    def start(key: Array) -> BernoulliMixtureParams:
        if params is not None:
            return jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), params)
        if given is not None:
            return m_step(None, weigh(jnp.asarray(given, x.dtype)))
        # Bits are of order one about zero, where distances by a matmul lose nothing.
        _, assignments = named_start(init, key, x, num_components, weights=weights, exact=False)
        membership = jax.nn.one_hot(assignments, num_components, dtype=x.dtype)
        return m_step(None, weigh(0.5 * membership + 0.5 / num_components))

    return em.best_climb(
        lambda key: em.climb(m_step, log_prior, start(key), x, max_steps, tol, weights),
        rng_key,
        num_restarts,
    )


def _is_bit(x: Any) -> Any:
    return (x == 0) | (x == 1)
