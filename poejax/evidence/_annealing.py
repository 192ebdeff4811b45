"""Annealed importance sampling, from a proper base to the model and back."""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poejax import _border, _checks, _meshes, _random, chains
from poejax import _weights as weights
from poejax._bases import Base
from poejax._numerics import add
from poejax._paths import (
    check_betas,
    check_path,
    log_z_at_start,
    path_of,
    path_params,
    require_resolution,
)
from poejax._product import Product, split_coordinates
from poejax._weights import LogZ
from poejax.chains import ModelKernel
from poejax.kernels._binding import bound_to
from poejax.types import Array, Event, Kernel, Params


class AISState(NamedTuple):
    """A run in progress; saved and restored, it goes on as if it had not stopped.

    direction: 1 from base to model, -1 from model to base.
    rest: what is below the last digit of the log weights, sums of many small terms.
    is_heavy: whether the weights will have infinite variance, as the base's tails are too light.
    """

    step: Array
    direction: Array
    chains: Any
    log_weights: Array
    rng_key: Array
    rest: Array
    is_heavy: Array | bool = False


def ais(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base,
    betas: Array,
    num_chains: int,
    kernel: ModelKernel | None = None,
) -> LogZ:
    """Estimate log Z by annealed importance sampling over a batch of chains.

    f_β(x) = base(x)^(1-β) temper(model, β)(x),
    log w = log Z_0 + Σ_t [log f_{β_t}(x_{t-1}) - log f_{β_{t-1}}(x_{t-1})], x_t ~ T_{β_t}(x_{t-1})

    The path is itself a product of experts, base times model, sampled by the same kernel. The
    weights are unbiased for Z; `ais_init`, `ais_steps` and `ais_result` do the same in pieces.
    Its loop cannot be differentiated in reverse: for the gradient of log Z differentiate
    `exact.log_z` where states can be enumerated, and otherwise take the mean gradient of
    `log_density` over samples of the model, as the estimators do.

    Args:
      rng_key: one typed key.
      model: the product.
      params: its parameters.
      base: a proper base: `base_rate`, `gaussian_base`, or `student_t_base` for heavy tails.
      betas: inverse temperatures from 0 to 1, not decreasing, [T + 1].
      num_chains: number of independent chains, at least 2 for a standard error.
      kernel: a kernel of `model`, whose settings serve all along the path; `block_gibbs(model)`
        when None.

    Returns:
      LogZ, with standard error, effective sample size, 95 % interval and log weights.

    Raises:
      ValueError: if `betas` is no path from 0 to 1, params, base and model do not fit, or the model
        is known to be improper, lies too far from the origin of its coordinates, or has a log Z
        that its dtype cannot resolve.

    Warns:
      UserWarning: if the base's tails are lighter than the model's: the weights then have infinite
        variance; or if a few weights outweigh the others (see LogZ): take more temperatures.

    Source: Neal (2001); Salakhutdinov & Murray (2008), section 3.
    """
    state = ais_init(rng_key, model, params, base, betas, num_chains, kernel=kernel)
    num_steps = jnp.shape(betas)[0] - 1
    return ais_result(ais_steps(state, model, params, base, betas, num_steps, kernel))


def reverse_ais(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base,
    betas: Array,
    x: Event,
    kernel: ModelKernel | None = None,
) -> LogZ:
    """Estimate log Z by annealing samples of the model back to the base.

    log w = -log Z_0 + Σ_t [log f_{β_{t-1}}(x_t) - log f_{β_t}(x_t)], E[w] = 1/Z,
    x_{t-1} ~ T_{β_{t-1}}(x_t)

    With exact samples `x` the expectation of log_z is above log Z as that of `ais` is below it, so
    that together they bracket it. From long chains the upper side is approximate: samples that
    miss a mode of the model hide it from both sides.

    Args:
      rng_key: one typed key.
      model: the product.
      params: its parameters.
      base: a proper base, e.g. from `base_rate`.
      betas: inverse temperatures from 0 to 1, as for `ais`; they are walked backwards, [T + 1].
      x: independent samples of the model, one per chain, [num_chains, ...].
      kernel: as for `ais`; it must be reversible in x, as all of `kernels` are.

    Returns:
      LogZ.

    Raises:
      ValueError: as `ais`, or if `x` holds no events of the visible units.

    Source: Burda, Grosse & Salakhutdinov (2015); Grosse, Ancha & Roy (2016).
    """
    _checks.model("model", model)
    x = _border.events("x", model.visible, x)
    num_chains = _checks.leading_axis("x", x)
    state = ais_init(rng_key, model, params, base, betas, num_chains, x, kernel)
    num_steps = jnp.shape(betas)[0] - 1
    return ais_result(ais_steps(state, model, params, base, betas, num_steps, kernel))


def ais_init(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base,
    betas: Array,
    num_chains: int,
    reverse_from: Event | None = None,
    kernel: ModelKernel | None = None,
) -> AISState:
    """Draw the chains from the base, or take model samples to go back from; see `ais`."""
    _checks.rng_key("rng_key", rng_key)
    is_light = check_path(model, params, base, kernel, num_chains)
    check_betas(betas)
    if reverse_from is not None:
        reverse_from = _border.events("reverse_from", model.visible, reverse_from)
        _checks.one_row_per_chain("reverse_from", reverse_from, num_chains)
    params, coordinates = split_coordinates(params)
    base = base.within(coordinates)
    if reverse_from is not None:
        reverse_from = model.visible.standardize_rows(coordinates, reverse_from)
    kernel_of_path = bound_to(path_of(model, base), kernel)
    state = _ais_init(rng_key, model, params, base, num_chains, reverse_from, kernel_of_path)
    return state._replace(is_heavy=jnp.asarray(is_light and reverse_from is None))


def ais_steps(
    state: AISState,
    model: Product,
    params: Params,
    base: Base,
    betas: Array,
    num_steps: int | Array,
    kernel: ModelKernel | None = None,
) -> AISState:
    """Advance a run by up to `num_steps` temperatures; another number of steps compiles nothing.

    Chains are in the coordinates of `params`, if they hold any.
    """
    _meshes.require_auto("state", state)
    _meshes.require_auto("params", params)
    _checks.kernel_of("kernel", kernel, model, alone=True)
    params, coordinates = split_coordinates(params)
    base = base.within(coordinates)
    kernel_of_path = bound_to(path_of(model, base), kernel)
    return _ais_steps(state, model, params, base, jnp.asarray(betas), num_steps, kernel_of_path)


def ais_result(state: AISState) -> LogZ:
    """Summarise the weights of a run; raises ValueError if they or the chains are not finite."""
    result = estimate_of(state)
    if _checks.is_concrete(result) and bool(weights.is_open(result)):
        warnings.warn(
            f"ais: {weights.describe(result)}: the error bar means nothing, and the interval is "
            f"open on one side; {weights.remedy(state.is_heavy)}",
            UserWarning,
            stacklevel=3,
        )
    return result


def estimate_of(state: AISState) -> LogZ:
    """Do what `ais_result` does, without a warning."""
    log_w = state.log_weights
    what = "chains of a normalisable model with finite parameters: "
    _checks.finite(f"ais: {what}", (state.chains, log_w))
    result = weights.estimate(log_w, state.direction, is_heavy=state.is_heavy)
    if _checks.is_concrete(result):
        require_resolution("ais", result)
    return result


@functools.partial(jax.jit, static_argnames=("model", "num_chains", "kernel"))
def _ais_init(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base,
    num_chains: int,
    reverse_from: Event | None,
    kernel: Kernel,
) -> AISState:
    base_key, run_key = jax.random.split(rng_key)
    x = reverse_from
    if x is None:
        x = jax.vmap(base.sample)(chains.chain_keys(base_key, num_chains))
    path = path_of(model, base)
    beta = jnp.asarray(0.0 if reverse_from is None else 1.0)
    states = jax.vmap(kernel.init, in_axes=(0, None, 0))(
        chains.chain_keys(run_key, num_chains), path_params(path, params, base, beta), x
    )
    log_z_0 = log_z_at_start(path, params, base, jax.tree.map(lambda leaf: leaf[0], x))
    direction = 1 if reverse_from is None else -1
    return AISState(
        step=jnp.zeros((), jnp.int32),
        direction=jnp.asarray(direction, jnp.int32),
        chains=states,
        log_weights=jnp.full(num_chains, direction * log_z_0),
        rng_key=run_key,
        rest=jnp.zeros(num_chains, log_z_0.dtype),
    )


@functools.partial(jax.jit, static_argnames=("model", "kernel"))
def _ais_steps(
    state: AISState,
    model: Product,
    params: Params,
    base: Base,
    betas: Array,
    num_steps: Array,
    kernel: Kernel,
) -> AISState:
    path = path_of(model, base)
    last = betas.shape[0] - 1

    def beta_at(index: Array) -> Array:
        return betas[jnp.where(state.direction > 0, index, last - index)]

    def body(index: Array, state: AISState) -> AISState:
        old = path_params(path, params, base, beta_at(index))
        new = path_params(path, params, base, beta_at(index + 1))
        increments = jax.vmap(lambda x: path.log_change(old, new, x))(state.chains.x)
        step_key = _random.fold_in(state.rng_key, index)
        states, _ = chains.step_all(step_key, kernel, new, state.chains)
        log_weights, rest = add(
            state.log_weights, state.rest, increments.astype(state.log_weights.dtype)
        )
        return state._replace(step=index + 1, chains=states, log_weights=log_weights, rest=rest)

    stop = jnp.minimum(state.step + num_steps, last).astype(state.step.dtype)
    state = _meshes.settled(lambda s: body(s.step, s), state)
    return jax.lax.fori_loop(state.step, stop, body, state)
