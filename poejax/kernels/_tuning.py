"""Step sizes by dual averaging."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from poejax import _checks, _random, chains
from poejax.kernels._hamiltonian import GradientKernel, import_blackjax
from poejax.types import Array, Params

K = TypeVar("K", bound=GradientKernel)


def tune_step_size(
    rng_key: Array,
    kernel: K,
    params: Params,
    states: Any,
    target: float = 0.65,
    num_steps: int = 200,
) -> tuple[K, Any]:
    """Run a batch of chains while their common step size settles at a target acceptance rate.

    The mean acceptance over chains drives a dual averaging of log ε. Draws made while it adapts
    are not draws from the model: keep the kernel, and run it before measuring anything.

    Args:
      rng_key: one typed key.
      kernel: from `mala` or `hmc`; its step size is the first guess.
      params: parameters of `kernel.model`.
      states: kernel states with a leading chain axis [C, ...], from `chains.init`.
      target: acceptance rate in (0, 1); 0.65 suits HMC, 0.57 MALA.
      num_steps: number of steps; another number compiles anew, another first guess does not.

    Returns:
      `(kernel, states)`: the kernel with the tuned step size, rounded to three digits, and the
      states where the chains have got to.

    Raises:
      ValueError: if an argument is out of range, or no finite step size is found.

    Source: Hoffman & Gelman (2014), section 3.2; Nesterov (2009).
    """
    _checks.rng_key("rng_key", rng_key)
    _checks.positive_int("num_steps", num_steps)
    if not 0 < target < 1:
        raise ValueError(f"target: expected a number in (0, 1), got {target}")
    if not isinstance(kernel, GradientKernel):
        raise TypeError(f"kernel: expected one from mala or hmc, got {kernel!r}")
    _checks.leading_axis("states", states)
    kernel.model.check_params(params)
    unsized = dataclasses.replace(kernel, step_size=1.0)
    step_size, states = _tune(rng_key, unsized, params, states, kernel.step_size, target, num_steps)
    _checks.finite("step_size: adapted on a model of finite density, ", step_size)
    return dataclasses.replace(kernel, step_size=float(f"{float(step_size):.3g}")), states


@functools.partial(jax.jit, static_argnames=("kernel", "num_steps"))
def _tune(
    rng_key: Array,
    kernel: GradientKernel,
    params: Params,
    states: Any,
    first: Array,
    target: Array,
    num_steps: int,
) -> tuple[Array, Any]:
    step_size = import_blackjax().adaptation.step_size
    init, update, final = step_size.dual_averaging_adaptation(target)
    num_chains = _checks.leading_axis("states", states)

    def body(carry: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], None]:
        states, average = carry
        keys = chains.chain_keys(_random.fold_in(rng_key, index), num_chains)
        states, info = jax.vmap(kernel.step_by, in_axes=(0, None, 0, None))(
            keys, params, states, jnp.exp(average.log_step_size)
        )
        return (states, update(average, jnp.mean(info.acceptance_rate))), None

    (states, average), _ = jax.lax.scan(body, (states, init(first)), jnp.arange(num_steps))
    return final(average), states
