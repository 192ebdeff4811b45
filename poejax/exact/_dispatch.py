"""Which exact method suits a product, and the functions that use it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax import _checks, _meshes
from poejax._product import Product, split_coordinates
from poejax.exact import _coordinatewise as coordinatewise
from poejax.exact import _cubature as cubature
from poejax.exact import _enumeration as enumeration
from poejax.exact import _latent as latent
from poejax.exact import _square_student_t as square_student_t
from poejax.exact._factors import in_default_float
from poejax.propriety import require_proper
from poejax.types import Array, Event, Params

MAX_STATES = 2**26


class _Method(NamedTuple):
    log_z: Callable[[Product, Params], Array]
    sample: Callable[[Array, Product, Params], Event] | None


_METHODS = {
    "square student-t": _Method(square_student_t.log_z, square_student_t.sample),
    "gaussian": _Method(latent.gaussian_log_z, latent.sample),
    "coordinatewise mixtures": _Method(coordinatewise.log_z, coordinatewise.sample),
    "visible enumeration": _Method(enumeration.visible_log_z, enumeration.visible_sample),
    "latent enumeration": _Method(latent.log_z, latent.sample),
    "quadrature": _Method(cubature.log_z, None),
}


def method(model: Product, max_states: int = MAX_STATES) -> str:
    """Name the exact method that `log_z` uses for a product: the cheapest that applies.

    "square student-t"         D Student-t experts on D units: a determinant
    "gaussian"                 one Gaussian: Bias, Gaussian and banks of StandardGaussian units
    "coordinatewise mixtures"  axis-aligned Gaussians and mixtures: D Π K terms
    "visible enumeration"      a sum over all visible events
    "latent enumeration"       a sum over all finite latents, Gaussian ones beside them integrated
    "quadrature"               1 to 3 real visible units, whatever the experts

    Args:
      model: the product.
      max_states: budget of terms to add.

    Returns:
      One of these names; it depends on the model alone, not on its parameters.

    Raises:
      ValueError: if none applies within the budget.
    """
    return _method("log_z", model, max_states)


def log_z(model: Product, params: Params, max_states: int = MAX_STATES) -> Array:
    """Exact log partition function, in nats, by a closed form, a sum or quadrature.

    log Z = log ∫ h(x) Π_k f_k(x) dx, by the way that `method` names, e.g.
          = logsumexp_x [log h(x) + Σ_k log f_k(x)]                      (visible enumeration)
          = logsumexp_z [Σ_k g_k(z_k) + A_visible(Σ_k field_k(z_k))]     (latent enumeration)

    Sums run in chunks of a few MiB. Differentiable: its gradient is the model's expected gradient,
    in the same memory. Quadrature is good to 1e-3 nats, in general far better; `quadrature` tells.

    Args:
      model: a product that `method` knows a way for.
      params: its parameters.
      max_states: budget, at most 2**30 unless JAX's 64-bit mode is on; the default 2**26 takes a
        few minutes for 784 visible units on two cores.

    Returns:
      log Z, []. Under a trace values cannot be looked at: a model that is not normalisable then
      gives +inf, and quadrature that does not converge NaN; never a wrong finite number.

    Raises:
      ValueError: if no method applies within the budget, the model is not normalisable, or
        quadrature does not converge.
    """
    return _log_z(model, params, max_states)


def log_prob(model: Product, params: Params, x: Event, log_z: Array | None = None) -> Array:
    """Normalised log probability of one event, log_density(x) - log Z, [].

    Args:
      model: the product.
      params: its parameters.
      x: one event; use `jax.vmap` for a batch, passing `log_z`.
      log_z: log partition function; computed by `log_z` when None.
    """
    if log_z is None:
        log_z = _log_z(model, params, MAX_STATES)
    return model.log_density(params, x) - log_z


def probabilities(model: Product, params: Params) -> Array:
    """Probabilities of all visible events, [num_states], in the order of `visible.states()`.

    Raises:
      ValueError: if the visible units are continuous or have more than 2**24 states.
    """
    _budget("probabilities", "visible", model.visible.num_states, enumeration.MAX_TABLE)
    model.check_params(params)
    return _probabilities(model, params)


def sample(rng_key: Array, model: Product, params: Params) -> Event:
    """Draw one exact event x ~ exp(log_density(x)) / Z.

    Args:
      rng_key: one typed key; use `jax.vmap` over keys for many, which share all sums.
      model: a product with a closed form, or at most 2**24 visible or latent states.
      params: its parameters.

    Returns:
      One event; NaN, under a trace, where a product of real units is not normalisable.

    Raises:
      ValueError: if only quadrature or nothing applies, or the model is not normalisable.
    """
    _checks.rng_key("rng_key", rng_key)
    name = _method("sample", model, enumeration.MAX_TABLE)
    if _METHODS[name].sample is None:
        raise ValueError(
            "sample: expected a product with a closed form or finitely many visible or latent "
            "states, got one that only quadrature integrates; run a chain, e.g. "
            "kernels.block_gibbs"
        )
    require_proper(model, params)
    rest, _ = split_coordinates(params)
    x = model.restore(params, _sample(rng_key, model, rest, name))
    if _checks.is_concrete(x) and not all(bool(jnp.all(v == v)) for v in jax.tree.leaves(x)):
        raise ValueError(f"sample ({name}): expected a normalisable model, got a NaN draw")
    return x


def _log_z(model: Product, params: Params, max_states: int) -> Array:
    name = _method("log_z", model, max_states)
    require_proper(model, params)
    params, _ = split_coordinates(params)  # Z is the same number in all coordinates
    value = _evaluate(model, params, name)
    if not _checks.is_concrete(value) or bool(jnp.isfinite(value)):
        return value
    if name == "quadrature" and bool(jnp.isnan(value)):
        error = float(cubature.integrate(model, params).error)
        raise ValueError(
            f"log_z (quadrature): expected to converge to {cubature.TOLERANCE:g} nats, quadrature "
            f"did not converge: an error of {error:.2g} was left; the density has ridges or peaks "
            "that are too narrow, or tails too heavy; estimate log Z with evidence.ais"
        )
    raise ValueError(
        f"log_z ({name}): expected a normalisable model, got log Z = {value}; for real visible "
        "units some expert must add a positive precision, or tails that fall off fast enough"
    )


@functools.partial(jax.jit, static_argnames=("model", "name"))
def _evaluate(model: Product, params: Params, name: str) -> Array:
    (params,) = _meshes.alike(params)  # the closed forms differentiate within
    return _METHODS[name].log_z(model, in_default_float(params))


@functools.partial(jax.jit, static_argnames=("model", "name"))
def _sample(rng_key: Array, model: Product, params: Params, name: str) -> Event:
    draw = _METHODS[name].sample
    assert draw is not None
    rng_key, params = _meshes.alike(rng_key, params)
    return draw(rng_key, model, in_default_float(params))


@functools.partial(jax.jit, static_argnames="model")
def _probabilities(model: Product, params: Params) -> Array:
    return jax.nn.softmax(enumeration.visible_table(model, in_default_float(params)))


def _method(caller: str, model: Product, max_states: int) -> str:
    max_states = min(max_states, enumeration.max_count())
    if square_student_t.applies(model):
        return "square student-t"
    if latent.is_gaussian(model):
        return "gaussian"
    if coordinatewise.applies(model) and coordinatewise.num_states(model) <= max_states:
        return "coordinatewise mixtures"
    sides = {"visible": model.visible.num_states, "latent": latent.num_states(model)}
    finite = {side: count for side, count in sides.items() if count is not None}
    side = min(finite, key=lambda name: finite[name]) if finite else None
    if side is not None and finite[side] <= max_states:
        return f"{side} enumeration"
    if cubature.applies(model):
        return "quadrature"
    if side is None:
        raise ValueError(
            f"{caller}: expected finitely many visible or latent states, a closed form, or at most "
            f"{cubature.MAX_DIMS} real visible units, got infinitely many on both sides; "
            "estimate log Z with evidence.ais"
        )
    _budget(caller, side, finite[side], max_states)
    raise AssertionError


def _budget(caller: str, side: str, count: int | None, max_states: int) -> None:
    if count is None:
        raise ValueError(f"{caller}: expected finitely many {side} states, got infinitely many")
    if count > max_states:
        more = "" if max_states < enumeration.max_count() else "numbering more takes 64 bits; "
        raise ValueError(
            f"{caller}: expected at most {max_states} states to enumerate, got {_size(count)} on "
            f"the smaller ({side}) side; {more}estimate log Z with evidence.ais"
        )


def _size(count: int) -> str:
    power = count.bit_length() - 1
    return f"2**{power}" if count == 2**power else f"about 2**{power}"
