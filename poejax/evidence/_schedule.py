"""Temperatures placed where the log weights of an annealing path fluctuate."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from poejax import _checks, _meshes, _random, chains
from poejax._bases import Base
from poejax._numerics import at_least_float32
from poejax._paths import (
    check_path,
    linear_betas,
    path_of,
    path_params,
)
from poejax._product import Product, split_coordinates
from poejax.chains import ModelKernel
from poejax.kernels._binding import bound_to
from poejax.types import Array, Kernel, Params

_FLOOR = 0.02
"""Share of the temperatures that stay evenly spread, where the pilot runs saw no fluctuation."""
_SWEEPS = 4
"""Sweeps at every temperature, over which what is correlated is seen to add up."""
_ROUNDING = 1e-3
"""Length, in nats, below which fluctuations are those of rounding."""


def adaptive_betas(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base,
    num_steps: int,
    num_chains: int = 100,
    kernel: ModelKernel | None = None,
    *,
    pilot_steps: int = 100,
    num_pilots: int = 3,
) -> Array:
    """Place temperatures of `ais` and `reverse_ais` where they are needed, by short pilot runs.

    ∫_0^β_t sd(d log f_β(x) / dβ) dβ = t / T ∫_0^1 sd(d log f_β(x) / dβ) dβ,  x ~ p_β

    The variance of log w is Σ_t of that of the increments, (β_t - β_{t-1})² var(d log f_β / dβ),
    where chains keep up with the temperatures: least, for a given number of them, where all
    increments are alike, of equal thermodynamic length. What moves slowly lags behind and adds up:
    fluctuations are measured over a few sweeps at each temperature, and times the root of their
    autocorrelation time. Each pilot anneals a batch of chains along
    the temperatures that the one before has placed, the first along equally spaced ones. The result
    depends on no chain that the estimate is made of, so that weights stay unbiased.

    Args:
      rng_key: one typed key; another one than that of the estimate.
      model: the product.
      params: its parameters.
      base: a proper base, e.g. from `base_rate`.
      num_steps: number T of temperatures after the first.
      num_chains: number of chains that the fluctuations are measured by.
      kernel: as for `ais`.
      pilot_steps: temperatures of a pilot run.
      num_pilots: number of pilot runs, one after the other.

    Returns:
      Inverse temperatures from 0 to 1, rising, [num_steps + 1].

    Raises:
      ValueError: as `ais`, or if the chains of a pilot run are not finite.

    Source: Gelman & Meng (1998), Simulating normalizing constants, section 4; Crooks (2007),
    Measuring thermodynamic length; Sivak & Crooks (2012), Thermodynamic metrics and optimal paths.
    """
    _checks.rng_key("rng_key", rng_key)
    counts = {"num_steps": num_steps, "pilot_steps": pilot_steps, "num_pilots": num_pilots}
    for name, value in counts.items():
        _checks.positive_int(name, value)
    check_path(model, params, base, kernel, num_chains, stacklevel=3)
    params, coordinates = split_coordinates(params)
    base = base.within(coordinates)
    kernel_of_path = bound_to(path_of(model, base), kernel)
    betas = linear_betas(pilot_steps)
    for pilot in range(num_pilots):
        key = _random.fold_in(rng_key, pilot)
        lengths = _lengths(key, model, params, base, betas, num_chains, kernel_of_path)
        _checks.finite("adaptive_betas: chains of a normalisable model: ", lengths)
        is_last = pilot == num_pilots - 1
        betas = _placed(betas, lengths, num_steps if is_last else pilot_steps)
    return betas


@functools.partial(jax.jit, static_argnames=("model", "num_chains", "kernel"))
def _lengths(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base,
    betas: Array,
    num_chains: int,
    kernel: Kernel,
) -> Array:
    """Return the standard deviation over chains of every increment of log w, [T]."""
    path = path_of(model, base)
    base_key, run_key = _random.split(rng_key)
    x = jax.vmap(base.sample)(chains.chain_keys(base_key, num_chains))
    states = jax.vmap(kernel.init, in_axes=(0, None, 0))(
        chains.chain_keys(run_key, num_chains), path_params(path, params, base, betas[0]), x
    )

    def step(states: Any, index: Array) -> tuple[Any, Array]:
        old = path_params(path, params, base, betas[index])
        new = path_params(path, params, base, betas[index + 1])
        step_key = _random.fold_in(run_key, index)

        def sweep(carry: tuple[Any, Array], number: Array) -> tuple[tuple[Any, Array], None]:
            states, total = carry
            change = jax.vmap(lambda x: path.log_change(old, new, x))(states.x)
            key = _random.fold_in(step_key, number)
            states, _ = chains.step_all(key, kernel, old, states)
            return (states, total + at_least_float32(change)), None

        carry = (states, jnp.zeros(num_chains))
        carry = _meshes.settled(lambda c: sweep(c, jnp.zeros((), int))[0], carry)
        (states, total), _ = jax.lax.scan(sweep, carry, jnp.arange(_SWEEPS))
        states, _ = chains.step_all(_random.fold_in(step_key, _SWEEPS), kernel, new, states)
        # The standard deviation of one, times the root of their autocorrelation time.
        return states, jnp.std(total, ddof=1) / jnp.sqrt(_SWEEPS)

    states = _meshes.settled(lambda s: step(s, jnp.zeros((), int))[0], states)
    return jax.lax.scan(step, states, jnp.arange(betas.shape[0] - 1))[1]


@functools.partial(jax.jit, static_argnames="num_steps")
def _placed(betas: Array, lengths: Array, num_steps: int) -> Array:
    """Return temperatures at equal sums of `lengths` [T], and of a little that is spread evenly."""
    width = jnp.diff(betas)
    share = lengths + (_FLOOR * jnp.sum(lengths) + _ROUNDING) * width
    reached = jnp.concatenate([jnp.zeros(1, share.dtype), jnp.cumsum(share)])
    placed = jnp.interp(jnp.linspace(0, 1, num_steps + 1), reached / reached[-1], betas)
    # The ends are exact, whatever the sums were rounded to.
    return placed.at[0].set(0.0).at[-1].set(1.0)
