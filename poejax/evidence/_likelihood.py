"""Log-likelihoods that carry the error of log Z."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks
from poejax._product import Product, log_densities
from poejax._weights import LogZ
from poejax.evidence._bracket import Bracket
from poejax.types import Array, Event, Params


class LogLikelihood(NamedTuple):
    """Mean log-likelihood of a batch, nats per example, with the 95 % interval of log Z's estimate.

    ess: effective sample size of log Z, the smaller one of a Bracket's two, NaN where log Z was
      given as a number.
    values: each example's log-likelihood at the point estimate of log Z, [N].
    """

    mean: Array
    ci_low: Array
    ci_high: Array
    ess: Array
    values: Array


def log_likelihood(
    model: Product, params: Params, x: Event, log_z: LogZ | Bracket | Array | float
) -> LogLikelihood:
    """Mean log-likelihood of a batch `x` [N, ...], in nats per example.

    Args:
      model: the product.
      params: its parameters.
      x: batch of events.
      log_z: LogZ from `ais`, or Bracket from `bracket`, whose interval is passed on, or an exact
        value, with no width.

    Returns:
      LogLikelihood. Its interval covers the error of log Z only, not the choice of the examples.

    Raises:
      ValueError: if `x` is empty or holds no events of the visible units.
    """
    _checks.model("model", model)
    x = _border.events("x", model.visible, x)
    model.check_params(params)
    _check_log_z(log_z)
    density = log_densities(model, params, x)
    mean = jnp.mean(density)
    if isinstance(log_z, Bracket):
        ess = jnp.minimum(log_z.forward.ess, log_z.reverse.ess)
        low, high = mean - log_z.high, mean - log_z.low
        return LogLikelihood(mean - log_z.log_z, low, high, ess, density - log_z.log_z)
    if not isinstance(log_z, LogZ):
        value = mean - log_z
        # Of NumPy: under jax_debug_nans an array of JAX must not hold NaN.
        no_ess: Any = np.asarray(np.nan, value.dtype)
        return LogLikelihood(value, value, value, no_ess, density - log_z)
    return LogLikelihood(
        mean - log_z.log_z,
        mean - log_z.ci_high,
        mean - log_z.ci_low,
        log_z.ess,
        density - log_z.log_z,
    )


def _check_log_z(log_z: Any) -> None:
    if isinstance(log_z, LogZ | Bracket):
        return
    if not _checks.is_real(log_z):
        raise TypeError(
            "log_z: expected a LogZ of evidence.ais, a Bracket, or one number, got "
            f"{_checks.describe(log_z)}"
        )
    if _checks.is_concrete(log_z) and not np.isfinite(log_z):
        raise ValueError(f"log_z: expected a finite value, got {log_z}")
