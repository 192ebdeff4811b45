"""What no driver can beat: its matrix products alone, its random bits alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from poejax import _random, _rounded, chains


def _multiply(x: jax.Array, w: jax.Array, low: bool, transpose: bool = False) -> jax.Array:
    if not low:
        return x @ (w.T if transpose else w)
    return jax.vmap(lambda row: _rounded.matmul(row, w, transpose))(x)


@functools.partial(jax.jit, static_argnames=("num_steps", "low"))
def sweeps(x: jax.Array, w: jax.Array, num_steps: int, low: bool = False) -> jax.Array:
    """Take the two products of a sweep, and of a step of annealing, and nothing else."""

    def body(x: jax.Array, _: None) -> Any:
        return _multiply(_multiply(x, w, low), w, low, transpose=True), None

    return jax.lax.scan(body, x, length=num_steps)[0]


@functools.partial(jax.jit, static_argnames=("num_steps", "low"))
def updates(
    x: jax.Array, data: jax.Array, w: jax.Array, num_steps: int, low: bool = False
) -> jax.Array:
    """Take the six products of a PCD update: a sweep, both phases' means, both gradients."""

    def body(carry: tuple[jax.Array, jax.Array], _: None) -> Any:
        x, w = carry
        x = _multiply(_multiply(x, w, low), w, low, transpose=True)

        def gradient(rows: jax.Array) -> jax.Array:
            means, pull = jax.vjp(lambda w: _multiply(rows, w, low), w)
            found: jax.Array = pull(means)[0]
            return found

        return (1e-3 * x, w + 1e-9 * (gradient(data) - gradient(x))), None

    return jax.lax.scan(body, (x, w), length=num_steps)[0][1]


@functools.partial(jax.jit, static_argnames="num_steps")
def bits(x: jax.Array, h: jax.Array, num_steps: int) -> jax.Array:
    """Draw the bits of a sweep at fixed odds: hidden units, then visible ones."""

    def body(odds: tuple[jax.Array, jax.Array], step: jax.Array) -> Any:
        keys = chains.chain_keys(_random.fold_in(jax.random.key(0), step), len(x))

        def draw(key: jax.Array, row: jax.Array) -> jax.Array:
            return _random.bernoulli(key, row).astype(row.dtype)

        # Feeding back what was drawn keeps the loop from being taken apart.
        return tuple(jax.vmap(draw)(keys, v) - 0.5 for v in odds), None

    x, h = jax.lax.scan(body, (x, h), jnp.arange(num_steps))[0]
    return x.sum() + h.sum()


@functools.partial(jax.jit, static_argnames=("num_hidden", "num_steps"))
def enumeration(w: jax.Array, num_hidden: int, num_steps: int) -> jax.Array:
    """Multiply all 2^N hidden states by the weights, as a sum over them must."""
    rows = 2**num_hidden
    states = (jnp.arange(rows)[:, None] >> jnp.arange(num_hidden) & 1).astype(w.dtype)
    return jax.lax.scan(
        lambda c, _: (1e-3 * (states @ (w.T + c[0])), None), states @ w.T, length=num_steps
    )[0]


@functools.partial(jax.jit, static_argnames="num_steps")
def triangles(rows: jax.Array, num_steps: int) -> jax.Array:
    """Take one QR decomposition a chain: what a draw of correlated visible units needs."""
    qr = jax.vmap(lambda a: jnp.linalg.qr(a, mode="r"))
    return jax.lax.scan(lambda a, _: (a + 1e-9 * qr(a)[:, :1], None), rows, length=num_steps)[0]
