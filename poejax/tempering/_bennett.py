"""Bennett's acceptance ratio: log Z_b - log Z_a from samples of two models that overlap."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax._numerics import at_least_float32
from poejax.types import Array

_NUM_HALVINGS = 60  # from any bracket to the last digit of float64


class LogRatio(NamedTuple):
    """An estimate of log Z_b - log Z_a, in nats.

    log_ratio: the estimate, [].
    std_err: its standard error, from chains as independent replicas where there are any, [].
    overlap: mean acceptance of moves between the two, in [0, 1]; an estimate by the few samples
      where they meet is worth little, whatever std_err says, [].
    """

    log_ratio: Array
    std_err: Array
    overlap: Array


def bennett(up: Array, down: Array) -> LogRatio:
    """Estimate the ratio of two partition functions from samples of both, at least error.

    Σ_{x ~ a} σ(u(x) - c) = Σ_{x ~ b} σ(c - u(x)),  u = log f_b - log f_a,
    log Z_b - log Z_a = c + log(N_b / N_a)

    Args:
      up: u at samples of a: independent ones [N_a], or [num_steps, num_chains] of chains.
      down: u at samples of b, [N_b], or [num_steps, num_chains] of the same ladders' chains, so
        that chain c of both is one replica of the whole measurement, whose steps may depend on one
        another in any way.

    Returns:
      LogRatio.

    Raises:
      ValueError: if the shapes are none of these, or there are fewer than two samples (chains).

    Source: Bennett (1976), Efficient estimation of free energy differences from Monte Carlo data;
    Shirts, Bair, Hooker & Pande (2003).
    """
    for name, value in (("up", up), ("down", down)):
        if not hasattr(value, "dtype") or jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise TypeError(f"{name}: expected an array of real numbers, got {value!r:.50}")
    up, down = at_least_float32(jnp.asarray(up)), at_least_float32(jnp.asarray(down))
    is_few = 0 in (up.size, down.size) or min(up.shape[-1:] + down.shape[-1:], default=0) < 2
    if up.ndim != down.ndim or up.ndim not in (1, 2) or is_few:
        raise ValueError(
            "up, down: expected [N_a] and [N_b], or [num_steps, num_chains] both, of at least two "
            f"samples (chains), got {up.shape} and {down.shape}"
        )
    if up.ndim == 2 and up.shape[1] != down.shape[1]:
        raise ValueError(f"down: expected {up.shape[1]} chains, as of up, got {down.shape[1]}")
    _checks.finite("up", up)
    _checks.finite("down", down)
    return _bennett(up, down)


@jax.jit
def _bennett(up: Array, down: Array) -> LogRatio:
    c = crossing(up, down)
    log_ratio = c + math.log(down.size / up.size)
    rises, falls = relative(jax.nn.log_sigmoid(up - c)), relative(jax.nn.log_sigmoid(c - down))
    if up.ndim == 2:  # a chain's steps depend on one another, and up on down
        gap = jnp.mean(rises, axis=0) - jnp.mean(falls, axis=0)
        variance = jnp.var(gap, ddof=1) / gap.size
    else:
        variance = jnp.var(rises, ddof=1) / rises.size + jnp.var(falls, ddof=1) / falls.size
    accepted = jnp.mean(jnp.minimum(1, jnp.exp(up - log_ratio)))
    back = jnp.mean(jnp.minimum(1, jnp.exp(log_ratio - down)))
    return LogRatio(log_ratio, jnp.sqrt(variance), (accepted + back) / 2)


def crossing(up: Array, down: Array) -> Array:
    """Return the c at which Σ σ(up - c) = Σ σ(c - down), []; the difference falls in c."""
    reach = abs(math.log(down.size / up.size)) + 1
    low = jnp.minimum(jnp.min(up), jnp.min(down)) - reach
    high = jnp.maximum(jnp.max(up), jnp.max(down)) + reach

    def halve(
        up: Array, down: Array, _: Array, bracket: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        low, high = bracket
        middle = low + (high - low) / 2
        rises = jax.nn.logsumexp(jax.nn.log_sigmoid(up - middle))
        is_below = rises > jax.nn.logsumexp(jax.nn.log_sigmoid(middle - down))
        return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

    held = jax.lax.stop_gradient((up, down))
    low, high = jax.lax.stop_gradient((low, high))
    low, high = jax.lax.fori_loop(0, _NUM_HALVINGS, functools.partial(halve, *held), (low, high))
    c = low + (high - low) / 2
    # One step of Newton's, of next to nothing: what it is differentiated by is the equation.
    rises, falls = jax.nn.sigmoid(up - c), jax.nn.sigmoid(c - down)
    slope = jnp.sum(rises * (1 - rises)) + jnp.sum(falls * (1 - falls))
    slope = jax.lax.stop_gradient(jnp.where(slope > 0, slope, jnp.inf))
    return c + (jnp.sum(rises) - jnp.sum(falls)) / slope


def relative(log_v: Array) -> Array:
    """Return v over its mean; in logs, as all of v may be below the smallest number."""
    return jnp.exp(log_v - jax.nn.logsumexp(log_v) + math.log(log_v.size))
