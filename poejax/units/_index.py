"""Numbers of states, which may be more than an index can hold."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from poejax import _checks
from poejax.types import Array


def as_index(index: Any, num_states: int, owner: object) -> Array:
    """Return `index` as an array; raise unless it numbers a state, where its value is known."""
    if not _checks.is_concrete(index):
        return jnp.asarray(index)
    value = int(index)  # before JAX, which without 64-bit mode cuts integers short
    if not 0 <= value < num_states:
        raise ValueError(f"index: expected a state of {owner}, 0 to {num_states - 1}, got {value}")
    if value > jnp.iinfo(jnp.result_type(int)).max:
        raise ValueError(f"index: expected at most 31 bits without 64-bit mode, got {value}")
    return jnp.asarray(index)


def divide_index(index: Array, count: int) -> tuple[Array, Array]:
    """Return the quotient and remainder of `index` by a count, which may exceed its dtype."""
    if count > jnp.iinfo(index.dtype).max:
        return jnp.zeros_like(index), index
    return index // count, index % count


def digits(index: Array, base: int, size: int) -> Array:
    """Return the `size` lowest digits of `index` to a base, lowest first, [size]."""
    divisors, largest = [1], jnp.iinfo(index.dtype).max
    while len(divisors) < size and divisors[-1] <= largest // base:
        divisors.append(divisors[-1] * base)
    found = (index // jnp.array(divisors, index.dtype)) % base
    # Digits beyond the range of an index are zero for every index that fits.
    return jnp.pad(found, (0, size - len(divisors)))
