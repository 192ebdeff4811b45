"""The laws of a transition kernel: it leaves its model's density invariant."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks, exact
from poejax._numerics import as_float
from poejax._product import Product
from poejax.propriety import require_proper
from poejax.testing._laws import (
    Laws,
    check_retrace,
    compile_once,
    flat_rows,
    noisy,
    rounding,
    rows_of,
)
from poejax.testing._points import MAX_STATES
from poejax.testing._unit import every_other, held
from poejax.types import Array, Event, Kernel, Params, PyTree


def check_kernel(
    kernel: Kernel,
    params: Params | None = None,
    *,
    rng_key: Array,
    model: Product | None = None,
    x: Event | None = None,
    num_chains: int = 8192,
    num_steps: int = 2,
    clamps: bool = True,
    level: float = 1e-5,
    tolerance: float | None = None,
) -> tuple[str, ...]:
    """Check a kernel of a small model against the laws of a Markov chain that leaves it invariant.

    "init":      the state holds the event that it is given as `state.x`, in floating point, and
                 nothing of the params, which may change between two steps
    "step":      a step returns a state like the one it got, so that it can be scanned
    "invariant": chains that start at exact samples of the model are samples after `num_steps` steps
    "moves":     every site has moved in some of them
    "clamp":     sites that a mask holds do not move, and the chains are samples of the model still:
                 the others are drawn given those
    "jit", "vmap", "scan": compiled = eager, batched = one by one, scanned = step by step
    "retrace":   an equal kernel, and other params, compile nothing new

    Where the model has at most 1024 events, frequencies of all of them are compared with their
    probabilities, else characteristic functions of two sets of samples.

    Args:
      kernel: a kernel of `model`.
      params: the model's; drawn by `model.init`, with normal noise, when None.
      rng_key: one typed key; the verdict is a function of it.
      model: what the kernel samples; `kernel.model` when None.
      x: exact samples of the model, [2 * num_chains, ...]; drawn by `exact.sample` when None.
      num_chains: chains that are compared.
      num_steps: steps of each.
      clamps: whether the kernel promises to hold sites.
      level: probability, per law, that a right kernel fails by chance.
      tolerance: rounding allowed, relative to the largest term; 64 units in the last place if None.

    Returns:
      The names of the laws that were checked.

    Raises:
      AssertionError: at the first law that fails, with its name, expected and found values.
      ValueError: if there are no exact samples, or the params give no normalisable model.
    """
    _checks.rng_key("rng_key", rng_key)
    _checks.positive_int("num_chains", num_chains)
    _checks.positive_int("num_steps", num_steps)
    found = getattr(kernel, "model", None) if model is None else model
    _checks.model("model", found)
    model = cast(Product, found)
    init_key, noise_key, x_key, run_key, clamp_key = jax.random.split(rng_key, 5)
    if params is None:
        params = noisy(noise_key, model.init(init_key), 0.7)
    require_proper(model, params)
    laws = Laws(kernel, "kernel", "", tolerance or rounding(params), level)
    if x is None:
        x = _samples(model, jax.random.split(x_key, 2 * num_chains), params)
    start, fresh = rows_of(x, slice(num_chains)), rows_of(x, slice(num_chains, None))
    keys = jax.random.split(run_key, num_chains)
    try:
        _check_contract(laws, model, params, keys[0], rows_of(start, 0), num_steps)
        end = _run(kernel, params, keys, start, None, num_steps)
        _check_invariant(laws, "invariant", model, params, end, fresh)
        moved = np.any(flat_rows(end, (num_chains,)) != flat_rows(start, (num_chains,)), axis=0)
        laws.require("moves", "sites that no chain moved", [], np.flatnonzero(~moved).tolist())
        if clamps:
            mask, keys = every_other(model.visible), jax.random.split(clamp_key, num_chains)
            end = _run(kernel, params, keys, start, mask, num_steps)
            both = [jax.vmap(held, (None, 0))(mask, v) for v in (start, end)]
            laws.equal("clamp", "sites that are held", *map(flat_rows, both))
            _check_invariant(laws, "clamp", model, params, end, fresh)
    except jax.errors.JAXTypeError as error:
        what = f"law 'jit' fails: expected {kernel} to compile, found {error}"
        raise AssertionError(what) from error
    checked = ("init", "step", "invariant", "moves", "jit", "vmap", "scan", "retrace")
    return (*checked, "clamp") if clamps else checked


@compile_once
def _samples(model: Product, keys: Array, params: Params) -> Event:
    return jax.vmap(lambda key: exact.sample(key, model, params))(keys)


@functools.partial(jax.jit, static_argnames=("kernel", "num_steps"))
def _run(
    kernel: Kernel, params: Params, keys: Array, x: Event, clamp: PyTree, num_steps: int
) -> Event:
    """Return where chains [C, ...] are after `num_steps` steps."""

    def chain(key: Array, x: Event) -> Event:
        return _walk(kernel, params, key, x, clamp, num_steps)[0].x

    return jax.vmap(chain)(keys, x)


def _walk(
    kernel: Kernel, params: Params, key: Array, x: Event, clamp: PyTree, num_steps: int
) -> tuple[Any, Any]:
    """Return the last state of one chain, and all of them."""
    init_key, run_key = jax.random.split(key)
    state = kernel.init(init_key, params, x, clamp)

    def step(state: Any, index: Array) -> tuple[Any, Any]:
        state, _ = kernel.step(jax.random.fold_in(run_key, index), params, state)
        return state, state

    return jax.lax.scan(step, state, jnp.arange(num_steps))


def _step(kernel: Kernel, params: Params, key: Array, state: Any) -> tuple[Any, Any]:
    return kernel.step(key, params, state)


def _check_contract(
    laws: Laws, model: Product, params: Params, key: Array, x: Event, num_steps: int
) -> None:
    """Check one chain: its states, and that they do not depend on how it is run."""
    kernel: Kernel = laws.subject
    init_key, run_key = jax.random.split(key)
    state = kernel.init(init_key, params, x)
    laws.trees("init", "state.x", jax.tree.map(as_float, x), state.x)
    elsewhere = kernel.init(init_key, model.temper(params, 0.5), x)
    laws.trees("init", "state, of other params", state, elsewhere)
    check_retrace("kernel", kernel, _step, params, run_key, state)
    compiled = jax.jit(_step, static_argnums=0)
    batched = jax.vmap(functools.partial(_step, kernel, params))
    for index in range(num_steps):
        step_key = jax.random.fold_in(run_key, index)
        after, info = _step(kernel, params, step_key, state)
        laws.alike("step", "the next state", state, after)
        both = compiled(kernel, params, step_key, state)
        laws.trees("jit", "state and info", (after, info), both)
        pair = [jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), v) for v in (step_key, state)]
        laws.trees("vmap", "state and info", (after, info), rows_of(batched(*pair), 0))
        state = after
    walked, _ = _walk(kernel, params, key, x, None, num_steps)
    laws.trees("scan", f"state after {num_steps} steps", state, walked)


def _check_invariant(
    laws: Laws, law: str, model: Product, params: Params, end: Event, fresh: Event
) -> None:
    """Check that events [C, ...] are samples of the model, as the `fresh` ones are."""
    visible, rows = model.visible, jax.tree.leaves(end)[0].shape[:1]
    draws = np.asarray(flat_rows(end, rows))
    if visible.num_states is not None and visible.num_states <= MAX_STATES:
        states = flat_rows(visible.states(), (visible.num_states,))
        p = np.asarray(exact.probabilities(model, params), float)[None]
        laws.frequencies(law, p, np.asarray(states)[None], draws[None])
    else:
        laws.same_law(law, np.asarray(flat_rows(fresh, rows)), draws)
