"""The experts of nested products as one flat list, with their parameters."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax.experts import Expert
from poejax.types import Array, Params


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


def params_at(params: Params, path: tuple[str, ...]) -> Params:
    """Return the parameters of an expert."""
    for name in path:
        params = params[name]
    return params


def in_default_float(params: Params) -> Params:
    """Return the parameters in JAX's default float, or wider: sums and inverses need its digits."""

    def one(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.result_type(float)))

    return jax.tree.map(one, params)
