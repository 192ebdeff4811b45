"""The experts of nested products as one flat list, with their parameters."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax.experts import Expert
from poejax.product import Product
from poejax.types import Array, Params, PyTree


class Factor(NamedTuple):
    """One expert and where its parameters lie."""

    expert: Expert
    path: tuple[str, ...]


def factors(model: Product) -> list[Factor]:
    """Return the experts of a product and of the products nested in it, in order."""
    found = []
    for name, expert in model.items:
        inner = factors(expert) if type(expert) is Product else [Factor(expert, ())]
        found += [Factor(f.expert, (name, *f.path)) for f in inner]
    return found


def params_at(params: Params, path: tuple[str, ...]) -> tuple[Params, Array | None]:
    """Return an expert's parameters, and whether it is present (None: always).

    A boolean leaf "present" among the parameters of an expert, or of a product around it, that is
    False replaces its factor by 1.
    """
    present = None
    for name in path:
        params = params[name]
        if "present" in params:
            here = jnp.asarray(params["present"], bool)
            present = here if present is None else present & here
    return params, present


def masked(present: Array | None, tree: PyTree, absent: float = 0.0) -> PyTree:
    """Return `tree`, its leaves replaced by `absent` where the expert is not present."""
    if present is None:
        return tree
    return jax.tree.map(lambda leaf: jnp.where(present, leaf, absent), tree)
