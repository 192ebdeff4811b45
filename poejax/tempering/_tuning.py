"""Where the rungs of a ladder stand: equal rejection between neighbours."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _random
from poejax.tempering import _measure as measure
from poejax.tempering._ladder import Ladder, Replicas
from poejax.types import Array, Event, Kernel

_FIRST = 8
_MOST = 512
_TOO_FAR = 0.9  # beyond such a rejection rate the barrier is larger than it looks
_UNEVEN = 0.15


def tune(
    rng_key: Array,
    at: Callable[[np.ndarray], Ladder],
    x: Event,
    num_steps: int,
    kernel: Kernel,
) -> tuple[Ladder, Replicas]:
    """Return a ladder from 0 to 1 with equal rejection, and replicas on it, in `num_steps` sweeps.

    With rejection rates r_k between neighbours the barrier up to β_k is Λ(β_k) = Σ_(i<=k) r_i. The
    next round has 2 Λ + 2 rungs or more, at equal steps of Λ.

    Source: Syed, Bouchard-Côté, Deligiannidis & Doucet (2022), Non-reversible parallel tempering,
    section 5.
    """
    num_chains = jax.tree.leaves(x)[0].shape[0]
    betas = np.linspace(0, 1, _FIRST)
    replicas = measure.begin(rng_key, at(betas), measure.on_all(x, _FIRST), kernel)
    length = max(8, min(num_steps // 8, math.ceil(512 / num_chains)))
    done, round_number = 0, 0
    while done < num_steps:
        if num_steps - done < 2 * length:  # too few to learn from would be left
            length = num_steps - done
        key = _random.fold_in(rng_key, round_number)
        replicas, means = measure.run(
            key,
            at(betas),
            replicas,
            length,
            jnp.zeros(len(betas) - 1),
            kernel,
        )
        done, round_number = done + length, round_number + 1
        rejection = 1 - np.asarray(means.acceptance, float)[:, 1].mean(axis=0)
        size = wanted_size(rejection)
        is_even = np.ptp(rejection) < _UNEVEN
        placed = equal_barrier(betas, rejection, size)
        if size == len(betas) and is_even and 2 * done >= num_steps:
            break
        if size != len(betas):
            nearest = np.argmin(np.abs(placed[:, None] - betas), axis=1)
            x = jax.tree.map(operator.itemgetter((slice(None), nearest)), measure.by_rung(replicas))
            replicas = measure.begin(key, at(placed), x, kernel)
        betas = placed
        length *= 2
    return at(betas), replicas


def wanted_size(rejection: np.ndarray) -> int:
    """Return how many rungs to take next, given rejection rates [K - 1].

    Not the number itself while it changes by little, as every number is a program to compile.
    """
    size = len(rejection) + 1
    if rejection.max() > _TOO_FAR:
        return min(2 * size, _MOST)
    wanted = math.ceil(2 * rejection.sum()) + 2
    return size if wanted <= size <= 1.5 * wanted + 2 else min(wanted, _MOST)


def equal_barrier(betas: np.ndarray, rejection: np.ndarray, size: int) -> np.ndarray:
    """Return `size` inverse temperatures at equal steps of the barrier, by monotone splines."""
    from scipy.interpolate import PchipInterpolator  # takes long to import

    barrier = np.concatenate([[0.0], np.cumsum(np.maximum(rejection, 1e-3))])
    placed = PchipInterpolator(barrier, betas)(np.linspace(0, barrier[-1], size))
    placed = np.clip(np.asarray(placed, float), 0, 1)
    placed[0], placed[-1] = betas[0], betas[-1]
    return np.maximum.accumulate(placed)
