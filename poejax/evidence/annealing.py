"""Annealed importance sampling, from a proper base to the model and back."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, chains, propriety
from poejax.evidence.base import Base
from poejax.kernels import block_gibbs
from poejax.product import Product, product
from poejax.types import Array, Event, Kernel, Params

KernelFactory = Callable[[Product], Kernel]


class LogZ(NamedTuple):
    """An estimate of log Z in nats. The interval is a confidence interval, not a bound.

    log_z: by `ais` the log of the mean weight, whose expectation is below log Z (Jensen), by about
      std_err²/2; by `reverse_ais` minus that log, whose expectation is above it.
    std_err: standard error of log_z, sd(weights) / (mean(weights) sqrt(num_chains)).
    ess: effective sample size (Σw)²/Σw², in [1, num_chains].
    ci_low, ci_high: 95 % confidence interval, log_z ± 1.96 std_err.
    log_weights: [num_chains], of mean exp Z (`ais`) or 1/Z (`reverse_ais`).
    """

    log_z: Array
    std_err: Array
    ess: Array
    ci_low: Array
    ci_high: Array
    log_weights: Array


class AISState(NamedTuple):
    """A run in progress; saved and restored, it goes on as if it had not stopped.

    direction: 1 from base to model, -1 from model to base.
    """

    step: Array
    direction: Array
    chains: Any
    log_weights: Array
    rng_key: Array


def linear_betas(num_steps: int) -> Array:
    """Return `num_steps` + 1 equally spaced inverse temperatures from 0 to 1."""
    return jnp.linspace(0.0, 1.0, _checks.positive_int("num_steps", num_steps) + 1)


def salakhutdinov_murray_betas() -> Array:
    """Return the 14,501 inverse temperatures 0:1e-3:0.5, 0.5:1e-4:0.9, 0.9:1e-5:1.

    Source: Salakhutdinov & Murray (2008), section 5.
    """
    pieces = [np.linspace(0, 0.5, 501)[:-1], np.linspace(0.5, 0.9, 4001)[:-1]]
    return jnp.asarray(np.concatenate([*pieces, np.linspace(0.9, 1.0, 10_001)]))


def ais(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base,
    betas: Array,
    num_chains: int,
    kernel: KernelFactory | None = None,
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
      kernel: builds the transition kernel from the path's product; `block_gibbs` when None. A
        function is compared by identity: define it once (`def by_hmc(path): return
        kernels.hmc(path, 0.1)`), since a lambda written in the call compiles anew every time.

    Returns:
      LogZ, with standard error, effective sample size, 95 % interval and log weights.

    Raises:
      ValueError: if `betas` is no path from 0 to 1, params, base and model do not fit, or the model
        is known to be improper.

    Warns:
      UserWarning: if the base's tails are lighter than the model's: the weights then have infinite
        variance.

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
    kernel: KernelFactory | None = None,
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
      kernel: builds the transition kernel from the path's product; `block_gibbs` when None. It
        must be reversible in x, as all of `kernels` are.

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
    kernel: KernelFactory | None = None,
) -> AISState:
    """Draw the chains from the base, or take model samples to go back from; see `ais`."""
    _checks.rng_key("rng_key", rng_key)
    if _checks.positive_int("num_chains", num_chains) < 2:
        raise ValueError("num_chains: expected at least 2 for a standard error, got 1")
    _checks.model("model", model)
    if not isinstance(base, Base):
        raise TypeError(
            "base: expected a base such as evidence.base_rate(model, data), got "
            f"{_checks.describe(base)}"
        )
    if base.model.visible != model.visible:
        raise ValueError(f"base: expected units {model.visible}, got {base.model.visible}")
    model.check_params(params)
    propriety.require_proper(model, params)
    _warn_if_base_is_light(model, params, base)
    _check_betas(betas)
    _checks.kernel_factory("kernel", kernel)
    if reverse_from is not None:
        reverse_from = _border.events("reverse_from", model.visible, reverse_from)
        _checks.one_row_per_chain("reverse_from", reverse_from, num_chains)
    return _ais_init(rng_key, model, params, base, num_chains, reverse_from, kernel or block_gibbs)


def ais_steps(
    state: AISState,
    model: Product,
    params: Params,
    base: Base,
    betas: Array,
    num_steps: int | Array,
    kernel: KernelFactory | None = None,
) -> AISState:
    """Advance a run by up to `num_steps` temperatures; another number of steps compiles nothing."""
    return _ais_steps(
        state, model, params, base, jnp.asarray(betas), num_steps, kernel or block_gibbs
    )


def ais_result(state: AISState) -> LogZ:
    """Summarise the weights of a run; raises ValueError if they or the chains are not finite."""
    log_w = state.log_weights
    what = "chains of a normalisable model with finite parameters: "
    _checks.finite(f"ais: {what}", (state.chains, log_w))
    num_chains = log_w.shape[0]
    log_mean = jax.nn.logsumexp(log_w) - jnp.log(num_chains)
    relative = jnp.exp(log_w - log_mean)  # weights over their mean
    std_err = jnp.std(relative, ddof=1) / jnp.sqrt(num_chains)
    ess = num_chains / jnp.mean(relative**2)
    log_z = state.direction * log_mean
    return LogZ(log_z, std_err, ess, log_z - 1.96 * std_err, log_z + 1.96 * std_err, log_w)


def _path(model: Product, base: Base) -> Product:
    return product(model.visible, base=base.model, target=model)


def _path_params(path: Product, params: Params, base: Base, beta: Array) -> Params:
    base_model, model = path.experts["base"], path.experts["target"]
    return {
        "base": base_model.temper(base.params, 1 - beta),
        "target": model.temper(params, beta),
    }


@functools.partial(jax.jit, static_argnames=("model", "num_chains", "make_kernel"))
def _ais_init(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base,
    num_chains: int,
    reverse_from: Event | None,
    make_kernel: KernelFactory,
) -> AISState:
    base_key, run_key = jax.random.split(rng_key)
    x = reverse_from
    if x is None:
        x = jax.vmap(base.sample)(chains.chain_keys(base_key, num_chains))
    path = _path(model, base)
    beta = jnp.asarray(0.0 if reverse_from is None else 1.0)
    states = jax.vmap(make_kernel(path).init, in_axes=(0, None, 0))(
        chains.chain_keys(run_key, num_chains), _path_params(path, params, base, beta), x
    )
    # Tempering to β = 0 leaves constants: the model's at the start (H log 2 for binary hidden
    # units) multiply Z_0, the base's at the end would multiply Z.
    start = jax.tree.map(lambda leaf: leaf[0], x)
    left_at_start = jnp.sum(model.log_factors(model.temper(params, 0.0), start))
    left_at_end = jnp.sum(base.model.log_factors(base.model.temper(base.params, 0.0), start))
    log_z_0 = base.log_z + left_at_start - left_at_end
    direction = 1 if reverse_from is None else -1
    return AISState(
        step=jnp.zeros((), jnp.int32),
        direction=jnp.asarray(direction, jnp.int32),
        chains=states,
        log_weights=jnp.full(num_chains, direction * log_z_0),
        rng_key=run_key,
    )


@functools.partial(jax.jit, static_argnames=("model", "make_kernel"))
def _ais_steps(
    state: AISState,
    model: Product,
    params: Params,
    base: Base,
    betas: Array,
    num_steps: Array,
    make_kernel: KernelFactory,
) -> AISState:
    path = _path(model, base)
    kernel = make_kernel(path)
    last = betas.shape[0] - 1

    def beta_at(index: Array) -> Array:
        return betas[jnp.where(state.direction > 0, index, last - index)]

    def body(index: Array, state: AISState) -> AISState:
        old = _path_params(path, params, base, beta_at(index))
        new = _path_params(path, params, base, beta_at(index + 1))
        # Differences before sums: the factors are large, their increments small.
        increments = jax.vmap(
            lambda x: jnp.sum(path.log_factors(new, x) - path.log_factors(old, x))
        )(state.chains.x)
        step_key = jax.random.fold_in(state.rng_key, index)
        states, _ = chains.step_all(step_key, kernel, new, state.chains)
        log_weights = (state.log_weights + increments).astype(state.log_weights.dtype)
        return state._replace(step=index + 1, chains=states, log_weights=log_weights)

    stop = jnp.minimum(state.step + num_steps, last).astype(state.step.dtype)
    return jax.lax.fori_loop(state.step, stop, body, state)


def _warn_if_base_is_light(model: Product, params: Params, base: Base) -> None:
    ours = propriety.total_tails(model, params)
    theirs = propriety.total_tails(base.model, base.params)
    if ours is None or theirs is None:
        return
    if propriety.sees(theirs.decay, propriety.uncovered(ours)).any():
        warnings.warn(
            "base: its Gaussian tails are lighter than the model's, which decays only as a power "
            "in some direction: the weights have infinite variance and the error bar lies; take "
            "evidence.student_t_base",
            UserWarning,
            stacklevel=4,
        )


def _check_betas(betas: Array) -> None:
    if jnp.ndim(betas) != 1 or jnp.shape(betas)[0] < 2:
        raise ValueError(f"betas: expected shape (T + 1,), T >= 1, got {jnp.shape(betas)}")
    if _checks.is_concrete(betas):
        values = np.asarray(betas)
        if values[0] != 0 or values[-1] != 1 or not np.all(np.diff(values) >= 0):
            raise ValueError(
                f"betas: expected to rise from 0 to 1, got {values[0]} ... {values[-1]}"
                f"{'' if np.all(np.diff(values) >= 0) else ', not monotone'}"
            )
