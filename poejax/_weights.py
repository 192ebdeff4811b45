"""Estimates of log Z, and what importance weights are worth: their mean, its error, their tail."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from poejax.types import Array

_MIN_TAIL = 5
_MAX_PARETO_K = 0.7
_MIN_ESS = 10


class LogZ(NamedTuple):
    """An estimate of log Z in nats. The interval is a confidence interval, not a bound.

    log_z: by `ais` the log of the mean weight, whose expectation is below log Z (Jensen), by about
      std_err²/2; by `reverse_ais` minus that log, whose expectation is above it.
    std_err: standard error of log_z, sd(weights) / (mean(weights) sqrt(num_chains)).
    ess: effective sample size (Σw)²/Σw², in [1, num_chains].
    ci_low, ci_high: 95 % confidence interval, log_z ± 1.96 std_err.
    log_weights: [num_chains], of mean exp Z (`ais`) or 1/Z (`reverse_ais`).
    pareto_k: k̂ of the weights' tail: their variance is finite below ½, and the estimate usable
      below 0.7; NaN of fewer than 25 chains.

    A few heavy weights make std_err meaningless: where ess is below 10 (half the chains, if these
    are fewer than 20) or k̂ above 0.7, the interval is open on the side that log_z tends to miss,
    +inf for `ais` and -inf for `reverse_ais`, and 3.69 = -log 0.025 wide on the other, by Markov's
    inequality for weights that are positive and unbiased.
    """

    log_z: Array
    std_err: Array
    ess: Array
    ci_low: Array
    ci_high: Array
    log_weights: Array
    pareto_k: Array


class WeightSummary(NamedTuple):
    """Of n weights w: log mean(w), its standard error, and (Σw)²/Σw², in [1, n], [] each.

    pareto_k: shape of a generalised Pareto law fitted to the largest weights, NaN below n = 25.
    is_degenerate: whether pareto_k or ess tell that the standard error means nothing.
    """

    log_mean: Array
    std_err: Array
    ess: Array
    pareto_k: Array
    is_degenerate: Array


def summarize(log_weights: Array) -> WeightSummary:
    """Summarise log weights [n]; taken off their largest first, so that their size is no matter.

    Source: the effective sample size, Kong (1992); the tail, Vehtari et al., Pareto smoothed
    importance sampling.
    """
    n = log_weights.shape[0]
    top = jnp.max(log_weights)
    w = jnp.exp(log_weights - top)
    mean = jnp.mean(w)
    relative = w / mean
    std_err = jnp.std(relative, ddof=1) / math.sqrt(n)
    ess = jnp.clip(n / jnp.mean(relative**2), 1, n)
    k = pareto_k(log_weights)
    is_degenerate = (ess < min(_MIN_ESS, n / 2)) | (k > _MAX_PARETO_K)
    return WeightSummary(top + jnp.log(mean), std_err, ess, k, is_degenerate)


def pareto_k(log_weights: Array) -> Array:
    """Return the shape k̂ of a generalised Pareto law of the min(n/5, 3√n) largest weights, [].

    By the estimator of Zhang & Stephens, shrunk towards ½ as if by ten more observations; NaN if
    there are fewer than five such weights.

    Source: Zhang & Stephens (2009), A new and efficient estimation method for the generalized
    Pareto distribution; Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance
    sampling, appendix C.
    """
    n = log_weights.shape[0]
    size = min(n // 5, math.ceil(3 * math.sqrt(n)))
    if size < _MIN_TAIL:
        # Of NumPy: under jax_debug_nans an array of JAX must not hold NaN.
        unknown: Any = np.asarray(np.nan, log_weights.dtype)
        return unknown
    ordered = jnp.sort(log_weights)
    ordered = jnp.exp(ordered - ordered[-1])
    x = ordered[-size:] - ordered[-size - 1]  # excesses over the cut, rising
    largest = jnp.where(x[-1] > 0, x[-1], 1.0)
    quarter = x[int(size / 4 + 0.5) - 1]
    # Where a quarter of the tail ties with the cut there is no scale to measure it by.
    has_scale = quarter > 0
    quarter = jnp.where(has_scale, quarter, 1.0)
    num_theta = 30 + math.isqrt(size)
    grid = 1 - jnp.sqrt(num_theta / (jnp.arange(1, num_theta + 1) - 0.5))
    theta = 1 / largest + grid / (3 * quarter)
    shapes = jnp.mean(jnp.log1p(-theta[:, None] * x), axis=1)
    profile = size * (jnp.log(-theta / shapes) - shapes - 1)
    share = jnp.exp(profile - jnp.max(profile))
    best = jnp.sum(theta * share) / jnp.sum(share)
    k = jnp.mean(jnp.log1p(-best * x))
    k = (size * k + 10 * 0.5) / (size + 10)
    # Without a scale, either all weights are alike, or a few outweigh the rest beyond measure.
    alike = x[-1] <= ordered[-size - 1]
    return jnp.where(has_scale, k, jnp.where(alike, 0.0, jnp.inf)).astype(log_weights.dtype)


def describe(found: WeightSummary, num_chains: int) -> str:
    """Say how few weights carry the estimate, e.g. "the weights have an ESS of 1.3 of 100"."""
    k = float(found.pareto_k)
    tail = "" if np.isnan(k) else f" and a Pareto k of {k:.2g}"
    return f"the weights have an ESS of {float(found.ess):.3g} of {num_chains}{tail}"
