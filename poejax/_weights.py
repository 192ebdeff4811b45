"""Estimates of log Z, and what importance weights are worth: their mean, its error, their tail."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax.types import Array

_MIN_TAIL = 5
_MAX_PARETO_K = 0.7
_MIN_ESS = 10
_ALIKE = 0.9  # share of the chains: a relative variance below 0.11
_PRIOR = 10  # observations that k̂ is shrunk by, towards a half
_ONE_SIDED = 1.645  # 5 % of a normal law lie above
NORMAL_95 = 1.96


class LogZ(NamedTuple):
    """An estimate of log Z in nats. The interval is a confidence interval, not a bound.

    log_z: by `ais` the log of the mean weight, whose expectation is below log Z (Jensen), by about
      std_err²/2; by `reverse_ais` minus that log, whose expectation is above it.
    std_err: standard error of log_z, sd(weights) / (mean(weights) sqrt(num_chains)).
    ess: effective sample size (Σw)²/Σw², in [1, num_chains].
    ci_low, ci_high: 95 % confidence interval, log_z ± t std_err, with t of Student's law of
      num_chains - 1 degrees of freedom: 1.98 for 100 chains.
    log_weights: [num_chains], of mean exp Z (`ais`) or 1/Z (`reverse_ais`).
    pareto_k: k̂ of the weights' tail: their variance is finite below ½, and the estimate usable
      below 0.7; NaN of fewer than 25 chains. Where the variance is known to be infinite, from tails
      of the base that are too light, k̂ is at least ½ and the interval open, whatever was drawn.

    A few heavy weights make std_err meaningless: where ess is below 10 (half the chains, if these
    are fewer than 20) or k̂ above 0.7, the interval is open on the side that log_z tends to miss,
    +inf for `ais` and -inf for `reverse_ais`, and 3.69 = -log 0.025 wide on the other, by Markov's
    inequality for weights that are positive and unbiased. Of weights that are alike, ess above 0.9
    of the chains, k̂ opens it only where it exceeds ½ beyond its own noise.
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


def summarize(log_weights: Array, is_heavy: Array | bool = False) -> WeightSummary:
    """Summarise log weights [n]; taken off their largest first, so that their size is no matter.

    `is_heavy` [] says that their variance is known to be infinite, which draws need not show.

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
    k: Any = pareto_k(log_weights)  # of NumPy where unknown
    # The shape of a tail knows no size: noise among equal weights looks as heavy as any. There k̂
    # counts if it tells an infinite variance from its own error, (1 + k) / sqrt(tail).
    is_sure = k - _ONE_SIDED * (1 + k) / math.sqrt(_tail_size(n) + _PRIOR) > 0.5
    looks_heavy = (k > _MAX_PARETO_K) & ((ess < _ALIKE * n) | is_sure)
    is_degenerate = (ess < min(_MIN_ESS, n / 2)) | looks_heavy | is_heavy
    if not isinstance(k, np.ndarray) or isinstance(is_heavy, jax.core.Tracer):
        k = jnp.where(is_heavy, jnp.fmax(k, 0.5), k)
    elif is_heavy:
        k = np.asarray(0.5, k.dtype)
    return WeightSummary(top + jnp.log(mean), std_err, ess, k, is_degenerate)


def pareto_k(log_weights: Array) -> Array:
    """Return the shape k̂ of a generalised Pareto law of the min(n/5, 3√n) largest weights, [].

    By the estimator of Zhang & Stephens, shrunk towards ½ as if by ten more observations; NaN if
    there are fewer than five such weights.

    Source: Zhang & Stephens (2009), A new and efficient estimation method for the generalized
    Pareto distribution; Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance
    sampling, appendix C.
    """
    size = _tail_size(log_weights.shape[0])
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
    k = (size * k + _PRIOR * 0.5) / (size + _PRIOR)
    # Without a scale, either all weights are alike, or a few outweigh the rest beyond measure.
    alike = x[-1] <= ordered[-size - 1]
    return jnp.where(has_scale, k, jnp.where(alike, 0.0, jnp.inf)).astype(log_weights.dtype)


def _tail_size(num_weights: int) -> int:
    return min(num_weights // 5, math.ceil(3 * math.sqrt(num_weights)))


def estimate(
    log_weights: Array,
    direction: Array | int,
    quantile: float | None = None,
    is_heavy: Array | bool = False,
) -> LogZ:
    """Return the estimate of log Z by weights of mean Z (direction 1) or 1/Z (-1).

    Args:
      log_weights: [n].
      direction: 1 or -1, [].
      quantile: standard errors from the estimate to either end of a closed interval; those of
        Student's t with n - 1 degrees of freedom when None.
      is_heavy: whether the weights are known to have infinite variance, [].
    """
    found = summarize(log_weights, is_heavy)
    log_z = jnp.asarray(direction, log_weights.dtype) * found.log_mean
    if quantile is None:
        quantile = student_t(len(log_weights) - 1, 0.05)
    closed, markov = quantile * found.std_err, -math.log(0.025)
    is_forward = jnp.asarray(direction) > 0
    below = jnp.where(found.is_degenerate, jnp.where(is_forward, markov, jnp.inf), closed)
    above = jnp.where(found.is_degenerate, jnp.where(is_forward, jnp.inf, markov), closed)
    low, high = log_z - below, log_z + above
    return LogZ(log_z, found.std_err, found.ess, low, high, log_weights, found.pareto_k)


def effective_size(log_weights: Array) -> Array:
    """Return (Σw)²/Σw² over the last axis, [...]."""
    total, squares = (jax.nn.logsumexp(power * log_weights, axis=-1) for power in (1, 2))
    return jnp.exp(2 * total - squares)


def student_t(degrees: int, level: float) -> float:
    """Return the |t| of `degrees` of freedom that is exceeded with probability `level`."""
    from scipy.special import stdtrit  # of JAX's own dependencies, but it takes long to import

    return float(stdtrit(degrees, 1 - level / 2))


def systematic(rng_key: Array, log_weights: Array) -> Array:
    """Return n indices, index i floor(n W_i) or ceil(n W_i) times, n W_i on average, rising, [n].

    By one uniform number u: those where the sums of W pass (j + u) / n, j = 0 ... n - 1.

    Source: Kitagawa (1996), Monte Carlo filter and smoother.
    """
    n = log_weights.shape[0]
    sums = jnp.cumsum(jax.nn.softmax(log_weights))
    u = jax.random.uniform(rng_key, (), sums.dtype)
    points = (jnp.arange(n, dtype=sums.dtype) + u) / n * sums[-1]
    return jnp.minimum(jnp.searchsorted(sums, points, side="right"), n - 1)


def is_open(found: LogZ) -> Array:
    """Whether its weights were found degenerate, so that one end is infinite, []."""
    return jnp.isinf(found.ci_low) | jnp.isinf(found.ci_high)


def remedy(is_heavy: Array | bool, other: str = "a base closer to the model") -> str:
    """Say what to do about degenerate weights."""
    return f"take {'evidence.student_t_base' if is_heavy else f'more temperatures, or {other}'}"


def describe(found: LogZ, what: str = "weights") -> str:
    """Say how few weights carry the estimate, e.g. "the weights have an ESS of 1.3 of 100"."""
    size = len(found.log_weights)
    k = float(found.pareto_k)
    tail = "" if np.isnan(k) else f" and a Pareto k of {k:.2g}"
    return f"the {what} have an ESS of {float(found.ess):.3g} of {size}{tail}"
