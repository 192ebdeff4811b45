"""The strength of a matroid of vectors: where the weights are least for the dimension."""

from __future__ import annotations

import math

import numpy as np

PARALLEL = 1e-6
"""Sine of the angle below which a direction counts as lying in a subspace (float32 parameters)."""
MARGIN = 1e-6
"""A sum of weights must exceed the dimension by this fraction."""
_MAX_ITERATIONS = 3000


class Undecided(ArithmeticError):
    """Rounding, or the limit on iterations, left the question open."""


def weak_subspace(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """Return a subspace L ≠ 0 with Σ{weights_j : vector_j not orthogonal to L} <= dim L, or None.

    Equivalently a set S of vectors that does not span the space, with
    f(S) = rank(S) + Σ_{j not in S} weights_j <= D; L is its orthogonal complement. f is submodular,
    and by Edmonds' min-max theorem some base y of the matroid's polytope has y < weights if and
    only if there is none. Wolfe's algorithm finds the base of least Σ y_j²/weights_j, whose level
    sets are the minimisers of f (Fujishige); it stops as soon as y or one of the sets it meets
    decides.

    Args:
      vectors: [J, D].
      weights: [J], not negative.

    Returns:
      An orthonormal basis of L as rows, [dim L, D], or None.

    Raises:
      Undecided: if the margin is within rounding.

    Source: Edmonds (1970), Submodular functions, matroids, and certain polyhedra; Cunningham
    (1985), Optimal attack and reinforcement of a network; Wolfe (1976), Finding the nearest point
    in a polytope; Fujishige (1980), Lexicographically optimal base of a polymatroid with respect
    to a weight vector.
    """
    full, weights = np.asarray(vectors), np.asarray(weights) / (1 + MARGIN)
    space, vectors, weights = _contract(full, weights)
    if space.shape[0] == 0:
        return None
    found = _weakest_prefix(vectors, weights)
    if found is None:
        return None
    return null_space(found) @ space


def null_space(rows: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis, as rows, of what is orthogonal to all `rows` [R, D]."""
    basis, _ = _greedy_basis(_unit(rows), np.arange(rows.shape[0]))
    # The complement of few orthonormal rows, exactly orthonormal itself.
    q, _ = np.linalg.qr(basis.T, mode="complete")
    return q.T[basis.shape[0] :]


def _contract(
    vectors: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the space orthogonal to all vectors of weight above one, and what they leave there.

    To add such a vector to a set changes f by at most 1 - weight < 0, so a minimiser holds all of
    them. Parallel vectors are as good as one of their total weight.
    """
    space = np.eye(vectors.shape[1])
    while True:
        # The rows were unit vectors before projection: a short one lies in what was contracted.
        present = (np.linalg.norm(vectors, axis=1) > PARALLEL) & (weights > 0)
        vectors, weights = _unit(vectors[present]), weights[present]
        if not (weights > 1).any():
            vectors, weights = _merge_parallel(vectors, weights)
        heavy = weights > 1
        if not heavy.any():
            return space, vectors, weights
        rest = null_space(vectors[heavy])
        space = rest @ space
        vectors, weights = vectors[~heavy] @ rest.T, weights[~heavy]


def _merge_parallel(vectors: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept, totals = [], []
    left = np.arange(len(weights))
    while left.size:
        first = vectors[left[0]]
        # The residual, not the cosine, which is flat at 1.
        residual = vectors[left] - np.outer(vectors[left] @ first, first)
        same = np.linalg.norm(residual, axis=1) < PARALLEL
        same[0] = True
        kept.append(first)
        totals.append(weights[left[same]].sum())
        left = left[~same]
    return np.array(kept).reshape(len(kept), vectors.shape[1]), np.array(totals)


def _weakest_prefix(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """Return the vectors of a set with f <= D, [S, D], possibly none; None if there is no such."""
    if weights.sum() <= vectors.shape[1]:
        return vectors[:0]
    order = np.argsort(-weights, kind="stable")
    points = np.zeros((0, len(weights)))  # bases, as indicators
    share = np.zeros(0)
    for _ in range(_MAX_ITERATIONS):
        is_in_basis, prefix = _oracle(vectors, weights, order)
        if prefix is not None:
            return vectors[prefix]
        base = share @ points
        load = base / weights
        if share.size and not load @ (base - is_in_basis) > 1e-9:
            break
        points = np.concatenate([points, is_in_basis[None].astype(float)])
        share = np.append(share, 0.0 if share.size else 1.0)
        points, share = _nearest(points, share, weights)
        load = share @ points / weights
        if load.max() < 1:
            return None
        order = np.argsort(load, kind="stable")
    raise Undecided(f"the margin is within rounding, or {_MAX_ITERATIONS} steps did not decide")


def _oracle(
    vectors: np.ndarray, weights: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the greedy basis in this order, and the prefix of least f if that is at most D."""
    dim = vectors.shape[1]
    _, is_in_basis = _greedy_basis(vectors, order)
    rank = np.concatenate([[0], np.cumsum(is_in_basis[order])])
    outside = weights.sum() - np.concatenate([[0.0], np.cumsum(weights[order])])
    excess = np.where(rank < dim, rank + outside - dim, math.inf)
    best = int(np.argmin(excess))
    return is_in_basis, order[:best] if excess[best] <= 1e-9 else None


def _nearest(
    points: np.ndarray, share: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Wolfe's minor cycles: move to the nearest point of the corral's affine hull, or its edge."""
    while True:
        gram = (points / weights) @ points.T
        affine = np.linalg.lstsq(gram, np.ones(len(share)), rcond=None)[0]
        affine /= affine.sum()
        if (affine > 1e-12).all():
            return points, affine
        falls = affine <= 1e-12
        step = np.min(share[falls] / np.maximum(share[falls] - affine[falls], 1e-300))
        share = np.maximum((1 - step) * share + step * affine, 0.0)
        share[falls & (share <= share[falls].min())] = 0.0
        points, share = points[share > 0], share[share > 0]
        share /= share.sum()


def _greedy_basis(vectors: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an orthonormal basis [r, D] of the span, and who joined it, taken in `order`, [J]."""
    dim = vectors.shape[1]
    basis = np.zeros((0, dim))
    joined = np.zeros(len(vectors), bool)
    position, block = 0, dim
    while position < len(order) and basis.shape[0] < dim:
        names = order[position : position + min(block, dim - basis.shape[0])]
        residual = vectors[names]
        for _ in range(2):  # twice is enough (Kahan & Parlett)
            residual = residual - (residual @ basis.T) @ basis
        q, r = np.linalg.qr(residual.T)
        dependent = np.abs(np.diag(r)) < PARALLEL
        good = int(np.argmax(dependent)) if dependent.any() else len(names)
        basis = np.concatenate([basis, q.T[:good]])
        joined[names[:good]] = True
        position += good + (good < len(names))
        block = 2 * block if good == len(names) else max(1, good)
    return basis, joined


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1.0)
