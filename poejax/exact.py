"""Exact evidence by enumeration of the smaller side, visible or latent, in chunks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax.product import Product
from poejax.types import Array, Event, Params

MAX_STATES = 2**26
_CHUNK_NUMBERS = 2**21  # about 8 MiB of float32 in flight, so that a chunk stays in cache


def log_z(model: Product, params: Params, max_states: int = MAX_STATES) -> Array:
    """Exact log partition function, in nats.

    log Z = logsumexp_x [log h(x) + Σ_k log f_k(x)]
          = logsumexp_z [Σ_k g_k(z_k) + A_visible(Σ_k field_k(z_k))]

    Takes whichever side has fewer states, in chunks of a few MiB. Differentiable: its gradient is
    the model's expected gradient, in the same memory.

    Args:
      model: a product with finitely many visible or latent states.
      params: its parameters.
      max_states: budget; the default 2**26 takes a few minutes for 784 visible units on two cores.

    Returns:
      log Z, [].

    Raises:
      ValueError: if neither side is finite or within the budget, or the model is not normalisable.
    """
    return _enumerate(model, params, max_states)


def log_prob(model: Product, params: Params, x: Event, log_z: Array | None = None) -> Array:
    """Normalised log probability of one event, log_density(x) - log Z, [].

    Args:
      model: the product.
      params: its parameters.
      x: one event; use `jax.vmap` for a batch, passing `log_z`.
      log_z: log partition function; computed by enumeration when None.
    """
    if log_z is None:
        log_z = _enumerate(model, params, MAX_STATES)
    return model.log_density(params, x) - log_z


def probabilities(model: Product, params: Params) -> Array:
    """Probabilities of all visible events, [num_states], in the order of `visible.states()`.

    Raises:
      ValueError: if the visible units are continuous or have more than 2**24 states.
    """
    count = _budget("probabilities", "visible", model.visible.num_states, 2**24)
    model.check_params(params)
    return _probabilities(model, params, count)


def _enumerate(model: Product, params: Params, max_states: int) -> Array:
    on_visible = _enumerate_visible(model, max_states)
    model.check_params(params)
    value = _log_z(model, params, on_visible)
    if _checks.is_concrete(value) and not bool(jnp.isfinite(value)):
        raise ValueError(
            f"log_z: expected a normalisable model, got log Z = {value}; for real visible units "
            "some expert must add a positive precision"
        )
    return value


@functools.partial(jax.jit, static_argnames=("model", "on_visible"))
def _log_z(model: Product, params: Params, on_visible: bool) -> Array:
    if on_visible:
        return _log_sum_exp(*_visible_side(model, params))
    count = model.num_latent_states
    assert count is not None

    def log_weight(index: Array) -> Array:
        z = model.latent_state_at(index)
        log_a = model.visible.log_partition(model.visible_field(params, z))
        return model.latent_log_weight(params, z) + log_a

    return _log_sum_exp(log_weight, count, model.visible.num_linear)


@functools.partial(jax.jit, static_argnames=("model", "count"))
def _probabilities(model: Product, params: Params, count: int) -> Array:
    log_weight, _, _ = _visible_side(model, params)
    return jax.nn.softmax(jax.lax.map(log_weight, jnp.arange(count), batch_size=min(count, 4096)))


def _visible_side(model: Product, params: Params) -> tuple[Callable[[Array], Array], int, int]:
    count = model.visible.num_states
    assert count is not None
    return (
        lambda index: model.log_density(params, model.visible.state_at(index)),
        count,
        max(model.num_factors, model.visible.num_linear),
    )


def _log_sum_exp(log_weight: Callable[[Array], Array], count: int, width: int) -> Array:
    """Return logsumexp of `log_weight(i)` over i < count, in chunks of rows of `width` numbers."""
    chunk = max(1, min(count, _CHUNK_NUMBERS // width))

    # Recomputing a chunk in the backward pass keeps the gradient's memory that of one chunk.
    @jax.checkpoint
    def body(total: Array, start: Array) -> tuple[Array, None]:
        index = start + jnp.arange(chunk)
        values = jax.vmap(log_weight)(jnp.minimum(index, count - 1))
        part = jax.nn.logsumexp(values, where=index < count)
        return jnp.logaddexp(total, part), None

    dtype = jax.eval_shape(log_weight, jax.ShapeDtypeStruct((), jnp.arange(1).dtype)).dtype
    starts = chunk * jnp.arange(-(-count // chunk))
    # The most negative finite number, not -inf: the latter has a NaN gradient in logaddexp.
    total, _ = jax.lax.scan(body, jnp.array(jnp.finfo(dtype).min, dtype), starts)
    return total


def _enumerate_visible(model: Product, max_states: int) -> bool:
    sides = {"visible": model.visible.num_states, "latent": model.num_latent_states}
    finite = {side: count for side, count in sides.items() if count is not None}
    if not finite:
        raise ValueError(
            "log_z: expected finitely many visible or latent states, got continuous units on both "
            "sides; estimate it with evidence.ais"
        )
    side = min(finite, key=lambda name: finite[name])
    _budget("log_z", side, finite[side], max_states)
    return side == "visible"


def _budget(name: str, side: str, count: int | None, max_states: int) -> int:
    if count is None:
        raise ValueError(f"{name}: expected discrete {side} units, got continuous ones")
    if count > max_states:
        raise ValueError(
            f"{name}: expected at most {max_states} states to enumerate, got {_size(count)} on the "
            f"smaller ({side}) side; estimate log Z with evidence.ais"
        )
    return count


def _size(count: int) -> str:
    power = count.bit_length() - 1
    return f"2**{power}" if count == 2**power else f"about 2**{power}"
