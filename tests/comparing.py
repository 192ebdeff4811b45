"""Trees compared."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def bitwise(a, b) -> bool:
    """Whether two trees hold the same leaves, to the last bit; typed keys too."""

    def raw(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(raw(x), raw(y)) for x, y in pairs)
