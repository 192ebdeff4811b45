"""How factors over unbounded visible units behave far from the origin."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from poejax import _meshes

__all__ = ["Reach", "Tails", "as_float64", "bounded"]


class Reach(NamedTuple):
    """Where events of a block of units may lie far out, and how its base measure falls off there.

    is_real: linear statistics that may be any real number, [M] bool.
    is_count: those that may be 0, 1, 2, ..., over which the base falls off as 1/x!: faster than
      every exponential grows, and slower than every square decays, [M] bool.
    decay: square-root rows of the base's quadratic decay, [R, M].
    """

    is_real: np.ndarray
    is_count: np.ndarray
    decay: np.ndarray


def nowhere(num_linear: int) -> Reach:
    """Return the reach of units of finitely many values; `_replace` what differs."""
    no = np.zeros(num_linear, bool)
    return Reach(no, no, np.zeros((0, num_linear)))


def everywhere(num_linear: int) -> Reach:
    """Return the reach of real units of a flat base measure."""
    return nowhere(num_linear)._replace(is_real=np.ones(num_linear, bool))


class Tails(NamedTuple):
    """A factor's growth and decay along the linear statistic y = t(x), [D], of its visible units.

    log f = -½ |decay y|² + ½ |square y|² + ½ |max(0, half_square y)|² + linear(y)
            - Σ_j exponent_j log(1 + (power_j y)²) + a bounded rest,

    where linear(y) = tilt·y + Σ_s max over g of (spread_sg y), for each s with spread_sg of mean
    zero over g. A family may leave out linear terms where it decays quadratically, and power decay
    on the far side of a half square: neither can change whether a product is proper. NumPy
    float64; vectors are rows.

    decay: [R, D].
    square: [S, D].
    half_square: [H, D].
    tilt: [D].
    spread: [G, D], over all s.
    power: unit vectors, [J, D].
    exponent: [J], ν_j >= 0.
    is_exact: False where `decay` is the slowest of several components, which together decay
      faster: then it can show that a product is proper, not always that it is improper.
    note: what to do if this factor leaves a product improper.
    """

    decay: np.ndarray
    square: np.ndarray
    half_square: np.ndarray
    tilt: np.ndarray
    spread: np.ndarray
    power: np.ndarray
    exponent: np.ndarray
    is_exact: bool = True
    note: str = ""


def bounded(num_linear: int) -> Tails:
    """Return the tails of a factor between two positive constants; `_replace` what differs."""
    none = np.zeros((0, num_linear))
    return Tails(none, none, none, np.zeros(num_linear), none, none, np.zeros(0))


def as_float64(x: Any) -> np.ndarray:
    """Return `x` on the host in double precision."""
    return _meshes.to_host(x, np.float64)


def combine(tails: list[Tails]) -> Tails:
    """Return the tails of a product of at least one factor."""
    return Tails(
        decay=np.concatenate([t.decay for t in tails]),
        square=np.concatenate([t.square for t in tails]),
        half_square=np.concatenate([t.half_square for t in tails]),
        tilt=np.sum([t.tilt for t in tails], axis=0),
        spread=np.concatenate([t.spread for t in tails]),
        power=np.concatenate([t.power for t in tails]),
        exponent=np.concatenate([t.exponent for t in tails]),
        is_exact=all(t.is_exact for t in tails),
        note="; ".join(dict.fromkeys(t.note for t in tails if t.note)),
    )


def raised(tails: Tails, weight: float) -> Tails:
    """Return the tails of a factor to the power `weight` >= 0."""
    root = np.sqrt(weight)
    return tails._replace(
        decay=root * tails.decay,
        square=root * tails.square,
        half_square=root * tails.half_square,
        tilt=weight * tails.tilt,
        spread=weight * tails.spread,
        exponent=weight * tails.exponent,
    )


def block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    """Return the matrix with these blocks along its diagonal."""
    shape = np.sum([block.shape for block in blocks], axis=0)
    rows = np.zeros(shape)
    row, column = 0, 0
    for block in blocks:
        rows[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return rows
