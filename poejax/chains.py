"""Many chains at once: a scan over steps of a vmap over chains, one key per chain."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from poejax import _border, _checks, _meshes, _random, propriety
from poejax._numerics import add
from poejax._product import Product
from poejax.types import Array, Event, Kernel, Params, PyTree

__all__ = [
    "History",
    "ModelKernel",
    "Moments",
    "MomentsResult",
    "ObserveFn",
    "Observer",
    "chain_keys",
    "init",
    "run",
    "step_all",
]


class ModelKernel(Kernel, Protocol):
    """A kernel of a model: a frozen dataclass with a field `model`.

    Wherever a driver takes one it is of the model at hand, and `dataclasses.replace` makes it one
    of what the driver needs, such as the path of `evidence.ais`.
    """

    @property
    def model(self) -> Product: ...


ObserveFn = Callable[[Params, Any, Any], PyTree]
"""`(params, state, info) -> statistics` of one chain after one step."""


class Observer(Protocol):
    """Folds what is seen at each observed step into a running summary, or emits it."""

    def init(self, value: PyTree) -> PyTree: ...

    def update(self, carry: PyTree, value: PyTree) -> tuple[PyTree, PyTree]: ...

    def result(self, carry: PyTree, emitted: PyTree) -> PyTree: ...

    def value(self, params: Params, state: Any, info: Any) -> PyTree: ...


class MomentsResult(NamedTuple):
    """Mean and variance over observed steps, one entry per chain; nothing else was stored."""

    mean: PyTree
    variance: PyTree
    num_observed: Array


@dataclasses.dataclass(frozen=True)
class Moments:
    """Running mean and variance (Welford) of `fn(params, state, info)` over steps, per chain."""

    fn: ObserveFn

    def value(self, params: Params, state: Any, info: Any) -> PyTree:
        return jax.tree.map(
            lambda v: jnp.asarray(v, jnp.result_type(float)), self.fn(params, state, info)
        )

    def init(self, value: PyTree) -> PyTree:
        zeros = jax.tree.map(jnp.zeros_like, value)
        return jnp.zeros((), int), zeros, zeros, zeros, zeros

    def update(self, carry: PyTree, value: PyTree) -> tuple[PyTree, PyTree]:
        count, *summaries = carry
        count = count + 1

        def one(v: Array, mean: Array, rest: Array, square: Array, square_rest: Array) -> Any:
            # With their rests: after 1e5 steps what is new is below half an ulp of the mean.
            gap = (v - mean) - rest
            mean, rest = add(mean, rest, gap / count)
            square, square_rest = add(square, square_rest, gap * ((v - mean) - rest))
            return mean, rest, square, square_rest

        leaves, tree = jax.tree.flatten(value)
        new = [one(*leaf) for leaf in zip(leaves, *map(jax.tree.leaves, summaries), strict=True)]
        parts = (jax.tree.unflatten(tree, part) for part in zip(*new, strict=True))
        return (count, *parts), None

    def result(self, carry: PyTree, emitted: PyTree) -> MomentsResult:
        count, mean, _, square, _ = carry
        return MomentsResult(mean, jax.tree.map(lambda s: s / count, square), count)


@dataclasses.dataclass(frozen=True)
class History:
    """Store `fn(params, state, info)` at every observed step, [num_observed, num_chains, ...]."""

    fn: ObserveFn

    def value(self, params: Params, state: Any, info: Any) -> PyTree:
        return self.fn(params, state, info)

    def init(self, value: PyTree) -> PyTree:
        return ()

    def update(self, carry: PyTree, value: PyTree) -> tuple[PyTree, PyTree]:
        return carry, value

    def result(self, carry: PyTree, emitted: PyTree) -> PyTree:
        return emitted


def init(
    rng_key: Array,
    kernel: ModelKernel,
    params: Params,
    num_chains: int,
    x: Event | None = None,
    clamp: PyTree = None,
) -> Any:
    """Start a batch of `num_chains` chains, at random or at the rows of `x`.

    Args:
      rng_key: one typed key.
      kernel: the transition kernel.
      params: parameters of `kernel.model`.
      num_chains: number C of chains.
      x: events to start from, [C, ...]; random starts by `model.init_visible` when None.
      clamp: boolean mask of sites to hold at their value in `x`: one for all chains, or with a
        leading chain axis; clamping needs `x`.

    Returns:
      Kernel states with a leading chain axis.

    Raises:
      ValueError: if `x` or `clamp` do not fit, or nothing is clamped and the parameters are known
        to give no normalisable model.
    """
    _checks.rng_key("rng_key", rng_key)
    _checks.positive_int("num_chains", num_chains)
    _checks.kernel("kernel", kernel)
    if clamp is None:
        propriety.require_proper(kernel.model, params)
    else:  # what is left of an improper model may be proper
        kernel.model.check_params(params)
    keys = chain_keys(rng_key, num_chains)
    visible = kernel.model.visible
    if x is None:
        if clamp is not None:
            raise ValueError("clamp: expected together with x, the values to hold, got x=None")
        x = jax.vmap(lambda key: kernel.model.init_visible(key, params))(keys)
    else:
        x = _border.events("x", visible, x)
        _checks.one_row_per_chain("x", x, num_chains)
    if clamp is None:
        return jax.vmap(lambda key, x: kernel.init(key, params, x))(keys, x)
    if all(jnp.ndim(mask) == 1 for mask in jax.tree.leaves(clamp)):
        visible.check_mask("clamp", clamp)
        clamp = jax.tree.map(lambda m: jnp.broadcast_to(m, (num_chains, *jnp.shape(m))), clamp)
    else:
        _checks.one_row_per_chain("clamp", clamp, num_chains)
    return jax.vmap(lambda key, x, c: kernel.init(key, params, x, c))(keys, x, clamp)


def run(
    rng_key: Array,
    kernel: Kernel,
    params: Params,
    states: Any,
    num_steps: int,
    observe: Observer | ObserveFn | None = None,
    thin: int = 1,
) -> tuple[Any, PyTree]:
    """Run a batch of chains for `num_steps` steps, compiled once for equal kernels and shapes.

    The key of chain c at step s is fold_in(fold_in(rng_key, s), c): what a chain draws does not
    depend on the number of devices, nor on how many chains run beside it. Steps count from 0 in
    every call, so a later run of the same chains needs another key. To use several devices shard
    the chain axis of `states` over a mesh whose axes are Auto (`jax.sharding.AxisType.Auto`).

    Args:
      rng_key: one typed key.
      kernel: the transition kernel of one chain.
      params: model parameters, shared by all chains.
      states: kernel states with a leading chain axis [C, ...], from `chains.init` or a former run.
      num_steps: number of steps, a multiple of `thin`.
      observe: None; or a function `(params, state, info) -> statistics` of one chain, whose mean
        and variance over steps are kept per chain (as `Moments(fn)`); or `History(fn)`, which
        stores every observed value; or any other Observer. Functions are compared by identity:
        define them once, outside the loop, or each call compiles anew.
      thin: observe every `thin`-th step only.

    Returns:
      `(states, observed)`; `observed` is None, a MomentsResult, or stacked
      [num_steps / thin, C, ...].

    Raises:
      ValueError: if there is no chain, or `num_steps` is not a positive multiple of `thin`.
    """
    _checks.rng_key("rng_key", rng_key)
    _checks.positive_int("num_steps", num_steps)
    _checks.positive_int("thin", thin)
    if num_steps % thin:
        raise ValueError(f"num_steps: expected a multiple of thin={thin}, got {num_steps}")
    _checks.kernel("kernel", kernel)
    _checks.leading_axis("states", states)
    if hasattr(kernel, "model"):
        kernel.model.check_params(params)
        _check_states(kernel.model, states)
    if callable(observe) and not hasattr(observe, "update"):
        observe = Moments(observe)
    if observe is not None and not hasattr(observe, "update"):
        raise TypeError(
            "observe: expected a function (params, state, info) -> statistics, or an Observer such "
            f"as History(fn), got {_checks.describe(observe)}"
        )
    return _run(rng_key, kernel, params, states, num_steps, observe, thin)


def _check_states(model: Product, states: Any) -> None:
    if not hasattr(states, "x"):
        raise TypeError(
            "states: expected kernel states such as those of chains.init, got "
            f"{_checks.describe(states)}"
        )
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(jnp.shape(v), float), states.x)
    model.visible.check("states.x", shapes)


@functools.partial(jax.jit, static_argnames=("kernel", "num_steps", "observe", "thin"))
def _run(
    rng_key: Array,
    kernel: Kernel,
    params: Params,
    states: Any,
    num_steps: int,
    observe: Observer | None,
    thin: int,
) -> tuple[Any, PyTree]:
    def step(states: Any, index: Array) -> tuple[Any, Any]:
        return step_all(_random.fold_in(rng_key, index), kernel, params, states)

    states = _meshes.settled(lambda s: step(s, jnp.zeros((), int))[0], states)
    if observe is None:
        states, _ = jax.lax.scan(lambda s, i: (step(s, i)[0], None), states, jnp.arange(num_steps))
        return states, None

    def observed_step(carry: Any, index: Array) -> tuple[Any, PyTree]:
        states, summary = carry
        skipped = index * thin + jnp.arange(thin - 1)
        states, _ = jax.lax.scan(lambda s, i: (step(s, i)[0], None), states, skipped)
        states, info = step(states, index * thin + thin - 1)
        value = jax.vmap(observe.value, in_axes=(None, 0, 0))(params, states, info)
        summary, emitted = observe.update(summary, value)
        return (states, summary), emitted

    def first_value(states: Any) -> PyTree:
        states, info = step(states, jnp.zeros((), int))
        return jax.vmap(observe.value, in_axes=(None, 0, 0))(params, states, info)

    shapes = jax.eval_shape(first_value, states)
    summary = observe.init(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    carry = _meshes.settled(lambda c: observed_step(c, jnp.zeros((), int))[0], (states, summary))
    carry, emitted = jax.lax.scan(observed_step, carry, jnp.arange(num_steps // thin))
    return carry[0], observe.result(carry[1], emitted)


def step_all(rng_key: Array, kernel: Kernel, params: Params, states: Any) -> tuple[Any, Any]:
    """Take one step of every chain of the batch `states`; returns `(states, infos)`."""
    keys = chain_keys(rng_key, _checks.leading_axis("states", states))
    return jax.vmap(kernel.step, in_axes=(0, None, 0))(keys, params, states)


def chain_keys(rng_key: Array, num_chains: int) -> Array:
    """Return one key per chain, [num_chains]; key c does not depend on `num_chains`."""
    return jax.vmap(functools.partial(_random.fold_in, rng_key))(jnp.arange(num_chains))
