"""The two-dimensional Ising model on a torus, which is an RBM of exactly known log Z."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

import poejax as pj
from poejax.types import Params

CRITICAL = 0.5 * math.log(1 + math.sqrt(2))
"""The coupling between neighbours beyond which one sign prevails."""


def ising(size: int, coupling: float) -> tuple[pj.Product, Params]:
    """Return the model on a torus of size x size squares: the white ones are hidden units."""
    x, y = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    half, is_black = size * size // 2, (x + y) % 2 == 0
    number = np.zeros((size, size), int)
    number[is_black] = number[~is_black] = np.arange(half)
    w = np.zeros((half, half), np.float32)
    for i, j in np.argwhere(is_black):
        for step_i, step_j in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            w[number[i, j], number[(i + step_i) % size, (j + step_j) % size]] += coupling
    spins = pj.units.Spin(half)
    model = pj.product(spins, white=pj.experts.HiddenBank(spins, spins))
    return model, {"white": {"w": jnp.asarray(w), "b": jnp.zeros(half)}}


def even_base(model: pj.Product) -> pj.evidence.Base:
    """Return independent spins, +1 and -1 alike."""
    half = model.visible.num_sites
    return pj.evidence.base_rate(model, np.stack([np.ones(half), -np.ones(half)]))


def log_z(size: int, coupling: float) -> float:
    """Return log Z in nats, from the eigenvalues of the transfer matrix, in float64.

    Source: Kaufman (1949), Crystal statistics II, for an n x n torus, n even.
    """
    q = np.arange(2 * size)
    cosh = np.cosh(2 * coupling) / np.tanh(2 * coupling) - np.cos(np.pi * q / size)
    gamma = np.arccosh(np.maximum(cosh, 1))
    gamma[0] = 2 * coupling + math.log(math.tanh(coupling))  # may be negative
    logs, signs = [], []
    for kind in (1, 0):
        h = np.abs(size * gamma[kind::2] / 2)
        logs.append(np.sum(h + np.log1p(np.exp(-2 * h))))  # of the product of 2 cosh
        signs.append(1.0)
        with np.errstate(divide="ignore"):
            logs.append(np.sum(h + np.log1p(-np.exp(-2 * h))))  # and of 2 sinh
        signs.append(float(np.prod(np.sign(gamma[kind::2]))))
    top = max(logs)
    total = float(top) + math.log(np.sum(np.array(signs) * np.exp(np.array(logs) - top)))
    return total - math.log(2) + size * size / 2 * math.log(2 * math.sinh(2 * coupling))
