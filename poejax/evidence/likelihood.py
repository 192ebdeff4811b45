"""Log-likelihoods that carry the error of log Z."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from poejax.evidence.annealing import LogZ
from poejax.product import Product, log_densities
from poejax.types import Array, Event, Params


class LogLikelihood(NamedTuple):
    """Mean log-likelihood of a batch, nats per example, with the 95 % interval of log Z's estimate.

    ess: effective sample size of log Z, NaN where log Z was given as a number.
    values: each example's log-likelihood at the point estimate of log Z, [N].
    """

    mean: Array
    ci_low: Array
    ci_high: Array
    ess: Array
    values: Array


def log_likelihood(
    model: Product, params: Params, x: Event, log_z: LogZ | Array | float
) -> LogLikelihood:
    """Mean log-likelihood of a batch `x` [N, ...], in nats per example.

    Args:
      model: the product.
      params: its parameters.
      x: batch of events.
      log_z: LogZ from `ais`, whose interval is passed on, or an exact value, with no width.

    Returns:
      LogLikelihood. Its interval covers the error of log Z only, not the choice of the examples.

    Raises:
      ValueError: if `x` is empty or holds no events of the visible units.
    """
    model.visible.check("x", x)
    model.check_params(params)
    density = log_densities(model, params, x)
    mean = jnp.mean(density)
    if not isinstance(log_z, LogZ):
        value = mean - log_z
        return LogLikelihood(value, value, value, jnp.asarray(jnp.nan), density - log_z)
    return LogLikelihood(
        mean - log_z.log_z,
        mean - log_z.ci_high,
        mean - log_z.ci_low,
        log_z.ess,
        density - log_z.log_z,
    )
