"""Random words for the sites of an event: one word a site, from the event's key and its number.

Half of a Gibbs sweep's time beside its two matrix products used to be random bits: JAX draws them
by Threefry-2x32-20, on a CPU as a rolled loop over arrays. Here a site's word is twelve operations
on its number, which XLA fuses with the comparison that follows:

    w_i = mix(i·γ ⊕ k₀, k₁),  γ = 2³²/φ,

with (k₀, k₁) a child of the event's key by Threefry, so that any two keys, neighbours included,
give unrelated words. `mix` is a bijection of 32-bit words (two multiplications and three shifts
more, k₁ added after the first). The period within a key is 2³² sites; there are 2⁶⁴ keys.

Tests (`python -m experiments.generator`): dieharder, chi-square, serial and cross correlation, over
sites, chains, steps and single bit planes, and a weak generator that fails them.

Sources: counter and finaliser as in SplitMix (Steele, Lea & Flood 2014, Fast splittable
pseudorandom number generators); constants and shifts of `mix` from Wellons (2018), Prospecting for
hash functions (triple32).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from poejax.types import Array

# Apart from what callers derive from the same key, which count from 0.
_CHILD = 0x706F6562
_GAMMA = 0x9E3779B9


def words(rng_key: Array, shape: Sequence[int]) -> Array:
    """Return a uniform 32-bit word for every site of an event of this shape, uint32."""
    child = jax.random.key_data(jax.random.fold_in(rng_key, _CHILD))
    return mix(jax.lax.iota(jnp.uint32, math.prod(shape)), child[0], child[1]).reshape(shape)


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


def categorical(rng_key: Array, logits: Array) -> Array:
    """Draw indices with p ∝ exp(logits) over the last axis: the largest of logits + Gumbel."""
    # -log1p(-u), an exponential, is resolved best near zero, where the largest Gumbels are.
    wait = -jnp.log1p(-uniform(words(rng_key, logits.shape), logits.dtype))
    return jnp.argmax(logits - jnp.log(wait), axis=-1)
