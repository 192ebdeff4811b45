"""The parameters of experts of nested products, in the dtype that exact methods take."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from poejax.types import Array, Params


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
