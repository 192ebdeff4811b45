"""What products and mixtures of named experts share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp

from poejax import _random
from poejax.experts._base import Expert
from poejax.types import Array, Latent
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
    return [(n, e, _random.fold_in(rng_key, i)) for i, (n, e) in enumerate(items)]


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


class Factor(NamedTuple):
    """One expert and where its parameters lie."""

    expert: Expert
    path: tuple[str, ...]


def factors(model: Expert) -> list[Factor]:
    """Return the experts of a product and of the products nested in it, in order."""
    found = []
    for name, expert in model.parts:
        inner = factors(expert) if expert.parts else [Factor(expert, ())]
        found += [Factor(f.expert, (name, *f.path)) for f in inner]
    return found
