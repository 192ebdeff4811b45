"""Features of images, reconstructions from them, and how local the filters behind them are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx

import poejax as pj
from poejax.types import Array, Params

Floats = npt.NDArray[np.float32]


def participation_ratio(w: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return over how large a share of its inputs each filter of `w` [D, K] is spread, [K].

    PR_k = (Σ_i |w_ik|²)² / (D Σ_i |w_ik|⁴), in [1/D, 1]: m/D for m equal weights among zeros.
    """
    square = np.abs(np.asarray(w)).astype(np.float64) ** 2
    return np.asarray(square.sum(axis=0) ** 2 / (len(square) * (square**2).sum(axis=0)))


def radius(w: npt.ArrayLike, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return how far the squared weights of `w` [D, K] lie from their centre, in pixels, [K].

    R_k = √(Σ_i p_ik ‖r_i - Σ_j p_jk r_j‖²), p_ik = w_ik² / Σ_j w_jk², r_i the place of pixel i.
    """
    square = np.asarray(w, np.float64) ** 2
    p = square / square.sum(axis=0)
    places = np.indices(shape).reshape(2, -1)
    variance = (places**2).sum(axis=0) @ p - ((places @ p) ** 2).sum(axis=0)
    return np.asarray(np.sqrt(np.maximum(variance, 0)))


def triangle(centroids: Array, x: npt.ArrayLike) -> Array:
    """Return max(0, mean_k d_nk - d_nk) [N, K], d_nk = ‖x_n - c_k‖, of a batch [N, D].

    Source: Coates, Ng & Lee (2011), An analysis of single-layer networks in unsupervised feature
    learning.
    """
    x = jnp.asarray(x)
    products = jnp.matmul(x, centroids.T, precision="highest")
    squares = jnp.sum(x**2, axis=1)[:, None] - 2 * products + jnp.sum(centroids**2, axis=1)
    distances = jnp.sqrt(jnp.maximum(squares, 0))
    return jnp.maximum(0, distances.mean(axis=1, keepdims=True) - distances)


@functools.partial(jax.jit, static_argnames="model")
def reconstruct(model: pj.Product, params: Params, x: Array) -> Array:
    """Return one pass up and down with means, for each row of a batch [N, ...]."""
    return jax.vmap(functools.partial(pj.inference.reconstruct, model, params))(x)


def two_layers(num_in: int, num_hidden: int, num_out: int, rngs: nnx.Rngs) -> nnx.Sequential:
    """Build a network with one hidden layer of ReLU."""
    first = nnx.Linear(num_in, num_hidden, rngs=rngs)
    return nnx.Sequential(first, nnx.relu, nnx.Linear(num_hidden, num_out, rngs=rngs))


def standardized(
    encode: Callable[[Floats], Any], unlabelled: Any, pool: Any, test: Any
) -> tuple[Floats, Floats]:
    """Return features of pool and test, less the mean and over the RMS of the unlabelled ones."""
    known, *others = (
        np.asarray(encode(images / np.float32(255)), np.float32)
        for images in (unlabelled, pool, test)
    )
    mean = known.mean(axis=0)
    scale = np.sqrt(np.mean((known - mean) ** 2))
    first, second = ((features - mean) / scale for features in others)
    return first, second
