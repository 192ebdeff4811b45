"""Sequential Monte Carlo along an annealing path: samples of the model, and log Z with them."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks, _meshes, _random, chains
from poejax import _weights as weights
from poejax._bases import Base
from poejax._numerics import at_least_float32
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
from poejax.evidence._schedule import adaptive_betas
from poejax.kernels._binding import bound_to
from poejax.types import Array, Event, Kernel, Params


def smc(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base,
    betas: Array | int,
    num_chains: int,
    kernel: ModelKernel | None = None,
    *,
    num_groups: int = 10,
    threshold: float = 0.5,
) -> tuple[Event, LogZ]:
    """Sample a model, and estimate log Z, by chains that are resampled on their way from a base.

    Z = Z_0 Π_t Σ_i W_i f_{β_t}(x_i) / f_{β_{t-1}}(x_i),  x_i ~ T_{β_t}(x_a), a ~ W

    Population annealing: the path of `ais`, where chains of little weight give way to copies of
    those of much weight, by systematic resampling whenever a group's effective sample size falls
    below `threshold` of it. Where modes part at high temperatures, copies are what moves between
    them. Works for compositions of trained models too: `product(visible, a=model_a, b=model_b)`.

    Chains that are copies of one another depend on each other, and a variance within one population
    lies. So they run in groups that never meet, each with an unbiased estimate of Z, and the error
    is what these differ by. At the end all chains are resampled once, by the groups' estimates too,
    and move one more step.

    Args:
      rng_key: one typed key.
      model: the product.
      params: its parameters.
      base: a proper base, e.g. from `base_rate`.
      betas: inverse temperatures from 0 to 1, not decreasing, [T + 1]; or a number T of them, to be
        placed by `adaptive_betas` from pilot runs.
      num_chains: number C of chains (particles) in all, a multiple of `num_groups`.
      kernel: as for `ais`.
      num_groups: number G of independent groups, at least 2; of ten chains each or more.
      threshold: in [0, 1]; 0 never resamples on the way, 1 at every temperature.

    Returns:
      `(x, log_z)`: samples of the model of equal weight [C, ...], dependent where they descend from
      one chain; and LogZ whose `log_weights` [G] are the groups' estimates of log Z, and `ess`
      their effective number of G. Its interval is by Student's t with G - 1 degrees of freedom.

    Raises:
      ValueError: as `ais`, or if `num_chains` is no multiple of `num_groups`.

    Warns:
      UserWarning: as `ais`, of groups in place of chains.

    Source: Del Moral, Doucet & Jasra (2006), Sequential Monte Carlo samplers; Hukushima & Iba
    (2003), Population annealing.
    """
    _checks.rng_key("rng_key", rng_key)
    if _checks.positive_int("num_groups", num_groups) < 2:
        raise ValueError("num_groups: expected at least 2 for a standard error, got 1")
    if not _checks.is_real(threshold) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a number in [0, 1], got {threshold!r}")
    if _checks.positive_int("num_chains", num_chains) % num_groups:
        raise ValueError(
            f"num_chains: expected a multiple of num_groups = {num_groups}, got {num_chains}"
        )
    is_light = check_path(model, params, base, kernel, num_chains, stacklevel=3)
    run_key, pilot_key = _random.split(rng_key)
    if isinstance(betas, int | np.integer):
        with warnings.catch_warnings():  # said above
            warnings.simplefilter("ignore", UserWarning)
            betas = adaptive_betas(pilot_key, model, params, base, betas, kernel=kernel)
    check_betas(betas)
    _meshes.require_auto("params", params)
    rest, coordinates = split_coordinates(params)
    base = base.within(coordinates)
    path_kernel = bound_to(path_of(model, base), kernel)
    limit = jnp.asarray(threshold, jnp.result_type(float))
    x, log_w = _smc(
        run_key,
        model,
        rest,
        base,
        jnp.asarray(betas),
        limit,
        num_chains=num_chains,
        num_groups=num_groups,
        kernel=path_kernel,
    )
    _checks.finite("smc: chains of a normalisable model with finite parameters: ", (x, log_w))
    found = weights.estimate(log_w, 1, weights.student_t(num_groups - 1, 0.05), is_light)
    if _checks.is_concrete(found):
        require_resolution("smc", found)
        if bool(weights.is_open(found)):
            warnings.warn(
                f"smc: {weights.describe(found, 'groups')}: the error bar means nothing, and the "
                "interval is open on one side; "
                f"{weights.remedy(is_light, 'more chains in a group')}",
                UserWarning,
                stacklevel=2,
            )
    return jax.vmap(lambda y: model.restore(params, y))(x), found


@functools.partial(jax.jit, static_argnames=("model", "num_chains", "num_groups", "kernel"))
def _smc(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base,
    betas: Array,
    threshold: Array,
    *,
    num_chains: int,
    num_groups: int,
    kernel: Kernel,
) -> tuple[Event, Array]:
    path, size = path_of(model, base), num_chains // num_groups
    base_key, step_key, choice_key, final_key = jax.random.split(rng_key, 4)
    x = jax.vmap(base.sample)(chains.chain_keys(base_key, num_chains))
    states = jax.vmap(kernel.init, in_axes=(0, None, 0))(
        chains.chain_keys(step_key, num_chains), path_params(path, params, base, betas[0]), x
    )
    log_z_0 = log_z_at_start(path, params, base, jax.tree.map(lambda leaf: leaf[0], x))
    first_in_group = size * jnp.arange(num_groups)[:, None]

    def step(
        carry: tuple[Any, Array, Array], index: Array
    ) -> tuple[tuple[Any, Array, Array], None]:
        states, log_z, log_w = carry
        old = path_params(path, params, base, betas[index])
        new = path_params(path, params, base, betas[index + 1])
        change = jax.vmap(lambda x: path.log_change(old, new, x))(states.x)
        log_w = log_w + at_least_float32(change).reshape(num_groups, size).astype(log_w.dtype)
        keys = chains.chain_keys(_random.fold_in(choice_key, index), num_groups)
        chosen = jax.vmap(weights.systematic)(keys, log_w)
        log_mean = jax.nn.logsumexp(log_w, axis=1) - math.log(size)
        is_due = weights.effective_size(log_w) < threshold * size
        chosen = jnp.where(is_due[:, None], chosen, jnp.arange(size)) + first_in_group
        states = jax.tree.map(lambda leaf: leaf[chosen.reshape(-1)], states)
        # What resampling takes from the weights goes to the group's estimate.
        log_z = log_z + jnp.where(is_due, log_mean, 0.0)
        log_w = jnp.where(is_due[:, None], 0.0, log_w)
        states, _ = chains.step_all(_random.fold_in(step_key, index), kernel, new, states)
        return (states, log_z, log_w), None

    carry = (states, jnp.full(num_groups, log_z_0), jnp.zeros((num_groups, size), log_z_0.dtype))
    carry = _meshes.settled(lambda c: step(c, jnp.zeros((), int))[0], carry)
    carry, _ = jax.lax.scan(step, carry, jnp.arange(betas.shape[0] - 1))
    states, log_z, log_w = carry
    chosen = weights.systematic(final_key, (log_z[:, None] + log_w).reshape(-1))
    states = jax.tree.map(lambda leaf: leaf[chosen], states)
    end = path_params(path, params, base, betas[-1])
    last_key = _random.fold_in(step_key, betas.shape[0] - 1)
    states, _ = chains.step_all(last_key, kernel, end, states)
    return states.x, log_z + jax.nn.logsumexp(log_w, axis=1) - math.log(size)
