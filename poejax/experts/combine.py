"""What products and mixtures of named experts share, and how an expert is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp

from poejax.experts.base import Expert
from poejax.types import Array, Event, Field, Latent, Params, PyTree
from poejax.units import Unit
from poejax.units._index import divide_index

Items: TypeAlias = tuple[tuple[str, Expert], ...]


def named(owner: str, visible: Unit, experts: Mapping[str, Expert]) -> Items:
    """Return named experts as static items; each must see exactly these units."""
    for name, expert in experts.items():
        if not isinstance(expert, Expert):
            raise TypeError(f"{owner}: expected {name!r} to be an Expert, got {expert!r}")
        if expert.visible != visible:
            raise ValueError(
                f"{owner}: expected expert {name!r} to see {visible}, got {expert.visible}"
            )
    return tuple(experts.items())


def keyed(items: Items, rng_key: Array) -> list[tuple[str, Expert, Array]]:
    """Pair each expert with a key of its own."""
    # Keys go by position, so that an expert's draw does not depend on how many come after it.
    return [(n, e, jax.random.fold_in(rng_key, i)) for i, (n, e) in enumerate(items)]


def num_latent_states(items: Items) -> int | None:
    """Return the number of joint latent configurations, None if there is no finite number."""
    counts = [expert.num_latent_states for _, expert in items]
    return math.prod(c for c in counts if c is not None) if None not in counts else None


def latent_states_at(items: Items, index: Array) -> dict[str, Latent]:
    """Return the joint latent configuration number `index`, {name: z}."""
    z, index = {}, jnp.asarray(index)
    for name, expert in items:
        index, remainder = divide_index(index, expert.num_latent_states or 1)
        z[name] = expert.latent_state_at(remainder)
    return z


def zero_unless(condition: Array, tree: PyTree) -> PyTree:
    """Return `tree` where `condition` [] holds, zeros elsewhere."""
    return jax.tree.map(lambda leaf: jnp.where(condition, leaf, jnp.zeros_like(leaf)), tree)


def idle_log_weight(expert: Expert, params: Params, z: Latent) -> Array:
    """Return the log density of z given x = 0: what latents do while their expert is not heard.

    There t(x) = 0, so that the joint is g(z), and ∫ exp g(z) dz = exp Σ_k log_factors(0).
    """
    zero = jax.tree.map(
        jnp.zeros, expert.visible.event_shape, is_leaf=lambda shape: isinstance(shape, tuple)
    )
    return expert.latent_log_weight(params, z) - jnp.sum(expert.log_factors(params, zero))


def set_present(params: Params, present: Array | bool) -> Params:
    """Return `params` with the leaf `present`, 0 where the expert is left out."""
    dtype = jnp.result_type(float, *jax.tree.leaves(params))
    return params | {"present": jnp.asarray(present, bool).astype(dtype)}


def split_present(params: Params) -> tuple[Params, Array | None]:
    """Split off the leaf `present`; an expert that is left out gets ones for parameters.

    They go in before any arithmetic: whatever an absent expert holds, NaN included, reaches
    neither values nor gradients. Parameters are unconstrained, so ones are valid.
    """
    # A nested product may hold an expert of that name.
    if "present" not in params or isinstance(params["present"], dict):
        return params, None
    present = params["present"] > 0.5
    kept = {name: value for name, value in params.items() if name != "present"}
    ones = jax.tree.map(lambda leaf: jnp.where(present, leaf, jnp.ones_like(leaf)), kept)
    return ones, present


def log_factors(expert: Expert, params: Params, x: Event) -> Array:
    """Return the expert's votes, zeros if it is left out."""
    params, present = split_present(params)
    if present is None:
        return expert.log_factors(params, x)
    # The event is taken away too, or its gradient could be 0 · NaN.
    return zero_unless(present, expert.log_factors(params, zero_unless(present, x)))


def log_ratios(expert: Expert, params: Params, x: Array, sites: Array, values: Array) -> Array:
    """Return what the expert says of changes at single sites, zeros if it is left out."""
    params, present = split_present(params)
    if present is None:
        return expert.log_ratios(params, x, sites, values)
    x, values = zero_unless(present, (x, values))
    return zero_unless(present, expert.log_ratios(params, x, sites, values))


def log_joint(expert: Expert, params: Params, x: Event, z: Latent) -> Array:
    """Return the expert's joint, without x if it is left out."""
    params, present = split_present(params)
    if present is None:
        return expert.log_joint(params, x, z)
    joint = expert.log_joint(params, zero_unless(present, x), z)
    idle = 0.0 if expert.is_opaque else idle_log_weight(expert, params, z)
    return jnp.where(present, joint, idle)


def latent_log_weight(expert: Expert, params: Params, z: Latent) -> Array:
    """Return g(z), normalised over z if the expert is left out."""
    params, present = split_present(params)
    if present is None:
        return expert.latent_log_weight(params, z)
    used, idle = expert.latent_log_weight(params, z), idle_log_weight(expert, params, z)
    return jnp.where(present, used, idle)


def sample_latent(expert: Expert, rng_key: Array, params: Params, x: Event) -> Latent:
    """Draw z given x, or given x = 0 if the expert is left out."""
    params, present = split_present(params)
    return expert.sample_latent(rng_key, params, x if present is None else zero_unless(present, x))


def latent_mean(expert: Expert, params: Params, x: Event) -> Latent:
    """Return E[z | x], or E[z | 0] if the expert is left out."""
    params, present = split_present(params)
    return expert.latent_mean(params, x if present is None else zero_unless(present, x))


def visible_field(expert: Expert, params: Params, z: Latent) -> Field:
    """Return the expert's field, zero if it is left out."""
    params, present = split_present(params)
    field = expert.visible_field(params, z)
    return field if present is None else zero_unless(present, field)
