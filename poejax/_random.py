"""Random words for the sites of an event, and keys for chains, as few operations that XLA fuses.

Half of a Gibbs sweep's time beside its two matrix products used to be random bits: JAX draws them
by Threefry-2x32-20, on a CPU as a rolled loop over arrays. Here a site's word is 14 operations on
its number, which XLA fuses with the comparison that follows:

    w_i = mix(i·γ ⊕ k₀, k₁),  γ = 2³²/φ,

with (k₀, k₁) a child of the event's key by Threefry, so that any two keys, neighbours included,
give unrelated words. `mix` is a bijection of 32-bit words: three multiplications and four shifts,
k₁ added after the first. The period within a key is 2³² sites; there are 2⁶⁴ keys.

Read across sites, across chains, across steps, and as single bit planes, its words pass dieharder,
and a generator that is weak on purpose fails (`python -m experiments.generator`, figures in
experiments/README.md). tests/test_random.py has tests of chi-square, serial and cross correlation.

Sources: counter and finaliser as in SplitMix (Steele, Lea & Flood 2014, Fast splittable
pseudorandom number generators); constants and shifts of `mix` from Wellons (2018), Prospecting for
hash functions (triple32).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from poejax.types import Array

# Apart from what callers derive from the same key, which count from 0.
_CHILD = 0x706F6562
_GAMMA = 0x9E3779B9


def fold_in(rng_key: Array, data: Array | int) -> Array:
    """Return `jax.random.fold_in(rng_key, data)`, the same bits, without a loop."""
    if str(jax.random.key_impl(rng_key)) != "threefry2x32":
        return jax.random.fold_in(rng_key, data)
    k0, k1 = jnp.moveaxis(jax.random.key_data(rng_key), -1, 0)
    pair = threefry(k0, k1, jnp.zeros((), jnp.uint32), jnp.asarray(data).astype(jnp.uint32))
    return jax.random.wrap_key_data(jnp.stack(pair, axis=-1), impl="threefry2x32")


def split(rng_key: Array) -> tuple[Array, Array]:
    """Return two keys, `fold_in(rng_key, 0)` and `fold_in(rng_key, 1)`."""
    return fold_in(rng_key, 0), fold_in(rng_key, 1)


@jax.jit  # traced once: it is a hundred operations
def threefry(k0: Array, k1: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """Return Threefry-2x32-20 of two words under a key of two, elementwise (Salmon et al. 2011)."""
    schedule = (k0, k1, k0 ^ k1 ^ _u32(0x1BD11BDA))
    x0, x1 = x0 + k0, x1 + k1
    for turn in range(5):
        for r in ((13, 15, 26, 6), (17, 29, 16, 24))[turn % 2]:
            x0 = x0 + x1
            x1 = (x1 << r | x1 >> 32 - r) ^ x0
        x0 = x0 + schedule[(turn + 1) % 3]
        x1 = x1 + schedule[(turn + 2) % 3] + _u32(turn + 1)
    return x0, x1


def words(rng_key: Array, shape: Sequence[int]) -> Array:
    """Return a uniform 32-bit word for every site of an event of this shape, uint32."""
    if math.prod(shape) > 2**32:
        raise ValueError(f"shape: expected at most 2**32 sites, got {tuple(shape)}")
    return mix(jax.lax.iota(jnp.uint32, math.prod(shape)), *child(rng_key)).reshape(shape)


def child(rng_key: Array) -> tuple[Array, Array]:
    """Return the two words by which `mix` draws from this key."""
    data = jax.random.key_data(fold_in(rng_key, _CHILD))
    return data[0], data[1]


def mix(site: Array, k0: Array, k1: Array) -> Array:
    """Return the word of a site, whose number is uint32, under the two words of a key."""
    x = site * _u32(_GAMMA) ^ k0
    x = (x ^ x >> 17) * _u32(0xED5AD4BB)
    x = ((x ^ x >> 11) + k1) * _u32(0xAC4C1B51)
    x = (x ^ x >> 15) * _u32(0x31848BAB)
    return x ^ x >> 14


def _u32(v: int) -> Array:
    return jnp.uint32(v)


def uniform(w: Array, dtype: jnp.dtype) -> Array:
    """Return (w + ½) 2⁻³², in (0, 1]: small values are resolved to 2⁻³³ in any dtype."""
    return w.astype(dtype) * 2.0**-32 + 2.0**-33


def bernoulli(rng_key: Array, log_odds: Array) -> Array:
    """Draw bits of the given log-odds [...], in float32 or wider, as bool [...].

    True where u < sigm(log_odds). The rarer value's probability is right to 2⁻³³, in both tails
    (JAX's own draws resolve 2⁻²³), and a draw is monotone in the log-odds at a fixed key.
    """
    likely = log_odds > 0
    w = words(rng_key, log_odds.shape)
    u = uniform(jnp.where(likely, ~w, w), log_odds.dtype)
    # u < 1 / (1 + exp |a|), without the division.
    return likely ^ (u * (1 + jnp.exp(jnp.abs(log_odds))) < 1)


def normal(rng_key: Array, shape: Sequence[int], dtype: Any) -> Array:
    """Draw from N(0, 1), symmetrically about 0, by inversion: √2 erf⁻¹(u), u uniform in (-1, 1).

    |x| is at most 5.4 in float32 and 8.3 in float64.
    """
    w = words(rng_key, shape)
    if jnp.finfo(dtype).bits <= 32:
        u = (w >> 8).astype(jnp.float32) * 2.0**-23 - (1 - 2.0**-24)
        return (math.sqrt(2) * jax.lax.erf_inv(u)).astype(dtype)
    rest = words(fold_in(rng_key, 1), shape)
    u = (w >> 5).astype(dtype) * 2.0**-26 + (rest >> 6).astype(dtype) * 2.0**-52 - (1 - 2.0**-53)
    return math.sqrt(2) * jax.lax.erf_inv(u)


def categorical(rng_key: Array, logits: Array) -> Array:
    """Draw indices with p ∝ exp(logits) over the last axis: the largest of logits + Gumbel."""
    # -log1p(-u), an exponential, is resolved best near zero, where the largest Gumbels are.
    wait = -jnp.log1p(-uniform(words(rng_key, logits.shape), logits.dtype))
    return jnp.argmax(logits - jnp.log(wait), axis=-1)


def permuted(rng_key: Array, index: Array, size: int) -> Array:
    """Return where a random permutation of 0 ... size - 1 sends each of `index`, of any shape.

    For a batch of an epoch's rows without the order of all of them: a Feistel network on as many
    bits as `size` has, walked until it comes back into range.

    Source: Luby & Rackoff (1988); cycle walking, Black & Rogaway (2002).
    """
    k0, k1 = child(rng_key)
    num_bits = max(2, (size - 1).bit_length())
    low_bits = num_bits // 2
    low_mask, high_mask = _u32(2**low_bits - 1), _u32(2 ** (num_bits - low_bits) - 1)

    def once(x: Array) -> Array:
        high, low = x >> low_bits, x & low_mask
        for turn in range(16):
            # The number of the round stands above the bits of the halves, 16 at most.
            high = high ^ mix(low + _u32(2 * turn << 16), k0, k1) & high_mask
            low = low ^ mix(high + _u32(2 * turn + 1 << 16), k0, k1) & low_mask
        return high << low_bits | low

    def walk(x: Array) -> Array:
        return jnp.where(x < size, x, once(x))

    start = once(index.astype(jnp.uint32))
    return jax.lax.while_loop(lambda x: jnp.any(x >= size), walk, start).astype(index.dtype)
