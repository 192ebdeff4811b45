"""How factors over real visible units behave far from the origin."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from poejax import units
from poejax.types import Params
from poejax.units import Unit


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
    return np.asarray(x, np.float64)


def decay_of_field(unit: Unit, params: Params) -> np.ndarray | None:
    """Return square-root rows of the precision of a field's free parameters, [R, D].

    Discrete and hidden units have none in their fields. None for units not known here.
    """
    if isinstance(unit, units.Joint):
        blocks = [decay_of_field(block, params[name]) for name, block in unit.items]
        known = [rows for rows in blocks if rows is not None]
        return block_diagonal(known) if len(known) == len(blocks) else None
    if isinstance(unit, units.GaussianDiag):
        return np.diag(np.exp(0.5 * as_float64(params["log_precision"])))
    if isinstance(unit, units.Gaussian):
        return upper_triangle(params)
    if unit.has_proper_base:
        return np.zeros((0, unit.num_linear))
    return None


def upper_triangle(params: Params) -> np.ndarray:
    """Return `triangular_rows` in double precision."""
    rows = np.diag(np.exp(as_float64(params["log_diagonal"])))
    rows[np.triu_indices(rows.shape[0], 1)] = as_float64(params["off_diagonal"])
    return rows


def of_hidden_units(unit: Unit, weights: np.ndarray) -> Tails | None:
    """Return the tails of A_hidden(Wᵀy + b) from the tempered `weights` [D, N]; None if unknown."""
    tails = bounded(weights.shape[0])
    if isinstance(unit, units.Joint):
        cuts = np.cumsum([block.num_linear for _, block in unit.items])[:-1]
        parts = np.split(weights, cuts, axis=1)
        blocks = [of_hidden_units(b, w) for (_, b), w in zip(unit.items, parts, strict=True)]
        known = [block for block in blocks if block is not None]
        return combine(known) if len(known) == len(blocks) else None
    if isinstance(unit, units.Bernoulli):
        # softplus grows like the larger of 0 and w·y: its mean, and ± half their difference.
        return tails._replace(tilt=0.5 * weights.sum(axis=1), spread=0.5 * weights.T)
    if isinstance(unit, units.Spin):
        return tails._replace(spread=weights.T)
    if isinstance(unit, units.Categorical):
        classes = weights.reshape(weights.shape[0], unit.size, unit.num_classes)
        mean = classes.mean(axis=2, keepdims=True)
        spread = (classes - mean).reshape(weights.shape[0], -1).T
        return tails._replace(tilt=mean.sum(axis=(1, 2)), spread=spread)
    if isinstance(unit, units.StandardGaussian):
        return tails._replace(square=weights.T)
    if isinstance(unit, units.ReLU):
        return tails._replace(half_square=weights.T)
    return None


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
