"""How an expert is absent: around what families define, and nowhere else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from poejax.types import Array, Params, PyTree

Method = Callable[..., Any]
Absent = Callable[[Any, Any, Mapping[str, Any]], Any]
"""What a method returns of an absent expert: (expert, result as if present, arguments)."""

EVENTS = ("x", "values")


def set_present(params: Params, present: Array | bool) -> Params:
    """Return `params` with the leaf `present`, 0 where the expert is absent."""
    dtype = jnp.result_type(float, *jax.tree.leaves(params))
    return params | {"present": jnp.asarray(present, bool).astype(dtype)}


def split_present(params: Params) -> tuple[Params, Array | None]:
    """Split off the leaf `present`; an absent expert gets ones for parameters.

    They go in before any arithmetic: whatever an absent expert holds, NaN included, reaches
    neither values nor gradients. Parameters are unconstrained, so ones are valid.
    """
    # A nested product may hold an expert of that name.
    if not isinstance(params, dict) or isinstance(params.get("present", {}), dict):
        return params, None
    present = params["present"] > 0.5
    kept = {name: value for name, value in params.items() if name != "present"}
    ones = jax.tree.map(lambda leaf: jnp.where(present, leaf, jnp.ones_like(leaf)), kept)
    return ones, present


def zero_unless(condition: Array, tree: PyTree) -> PyTree:
    """Return `tree` where `condition` [] holds, zeros elsewhere."""
    return jax.tree.map(lambda leaf: jnp.where(condition, leaf, jnp.zeros_like(leaf)), tree)


def zeros(expert: Any, found: Any, arguments: Mapping[str, Any]) -> Any:
    """What most methods return of an absent expert."""
    del expert, arguments
    return jax.tree.map(jnp.zeros_like, found)


def unchanged(expert: Any, found: Any, arguments: Mapping[str, Any]) -> Any:
    """What latents do while their expert is absent: as at x = 0."""
    del expert, arguments
    return found


def respects_presence(method: Method, signature: inspect.Signature, absent: Absent) -> Method:
    """Return `method` so that it takes parameters with a leaf `present` too."""
    names = [name for name in signature.parameters if name != "self"]

    @functools.wraps(method)
    def respectful(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        params, present = split_present(given["params"])
        if present is None:
            return method(self, *args, **kwargs)
        # The event is taken away too, or its gradient could be 0 · NaN.
        seen = {name: zero_unless(present, given[name]) for name in EVENTS if name in given}
        given = given | {"params": params} | seen
        found = method(self, *(given[name] for name in names))
        otherwise = absent(self, found, given)
        return jax.tree.map(lambda a, b: jnp.where(present, a, b), found, otherwise)

    return respectful


def respects_two(method: Method, by_factors: Method) -> Method:
    """Return a method of old and new params that holds where the expert is absent from either."""

    @functools.wraps(method)
    def respectful(self: Any, old: Params, new: Params, x: Any) -> Any:
        is_masked = any(split_present(params)[1] is not None for params in (old, new))
        return (by_factors if is_masked else method)(self, old, new, x)

    return respectful
