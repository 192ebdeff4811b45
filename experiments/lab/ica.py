"""Independent components: whitening, FastICA, models, distances; Adam that holds some leaves."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
import optax
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning

import poejax as pj

Floats = npt.NDArray[np.float64]


class Whitening(NamedTuple):
    """Affine map to mean 0 and covariance I: z = (x - mean) @ forward, x ≈ mean + z @ backward.

    mean [M]; forward [M, D]; backward [D, M]; kept: share of the variance that D directions keep.
    """

    mean: Floats
    forward: Floats
    backward: Floats
    kept: float

    def __call__(self, x: npt.ArrayLike) -> Floats:
        """Whiten rows `x` [N, M]; returns [N, D]."""
        return (np.asarray(x, np.float64) - self.mean) @ self.forward


def whitening(x: npt.ArrayLike, num_components: int | None = None) -> Whitening:
    """Whiten by the leading principal components of rows `x` [N, M], all M when None.

    Raises:
      ValueError: if the data have fewer than `num_components` directions with any variance.
    """
    x = np.asarray(x, np.float64)
    found = PCA().fit(x)
    rank = int(np.sum(found.explained_variance_ > 1e-9 * found.explained_variance_[0]))
    count = x.shape[1] if num_components is None else num_components
    if not 1 <= count <= rank:
        raise ValueError(
            f"num_components: expected 1 to {rank}, the directions in which the data vary, "
            f"got {count}"
        )
    scale = found.singular_values_[:count] / len(x) ** 0.5
    axes, kept = found.components_[:count], found.explained_variance_ratio_[:count].sum()
    return Whitening(found.mean_, axes.T / scale, axes * scale[:, None], float(kept))


def fastica(x: npt.ArrayLike, seed: int, max_iter: int = 1000) -> Floats:
    """Return FastICA's orthonormal directions of whitened rows `x` [N, D], as columns [D, D].

    Symmetric, contrast log cosh, by scikit-learn. Source: Hyvärinen (1999).
    """
    solver = FastICA(whiten=False, fun="logcosh", max_iter=max_iter, random_state=seed)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        # It stops at max_iter; the figures say how well that did.
        solver.fit(np.asarray(x, np.float64))
    return np.asarray(solver.components_.T)


def amari_distance(unmixing: npt.ArrayLike, mixing: npt.ArrayLike) -> float:
    """Distance of unmixing @ mixing from a scaled permutation, in [0, 1].

    With P = |unmixing @ mixing|,
    d = [Σ_i (Σ_j P_ij / max_j P_ij - 1) + Σ_j (Σ_i P_ij / max_i P_ij - 1)] / (2 D (D - 1)).
    0 if and only if every source is recovered up to order, sign and scale; 1 if all P are equal.

    Args:
      unmixing: [D, D], D >= 2; its rows give the estimated sources.
      mixing: [D, D]; its columns are what each source adds to the data.

    Source: Amari, Cichocki & Yang (1996), normalised.
    """
    unmixing, mixing = np.asarray(unmixing), np.asarray(mixing)
    size = len(mixing)
    if unmixing.shape != mixing.shape or mixing.shape != (size, size) or size < 2:
        raise ValueError(
            "unmixing, mixing: expected two D x D matrices, D >= 2, got shapes "
            f"{unmixing.shape} and {mixing.shape}"
        )
    product = np.abs(unmixing @ mixing)
    rows = (product / product.max(axis=1, keepdims=True)).sum() - size
    columns = (product / product.max(axis=0)).sum() - size
    return float((rows + columns) / (2 * size * (size - 1)))


def student_t_product(size: int, num_experts: int, exponent: float, scale: float) -> pj.Product:
    """Return the product of Student-t experts called "student" over `size` real units.

    p(x) ∝ Π_j (α_j + (w_jᵀx)²)^(-ν_j), |w_j| = 1. Square, it is the likelihood of independent
    components with Student-t marginals: a free α_j is the scale of source j, so that nothing is
    lost by unit vectors, and nothing is left undetermined but order and sign.
    """
    visible = pj.units.Gaussian(size)
    expert = pj.experts.StudentT(visible, num_experts, init_scale=scale, init_exponent=exponent)
    return pj.product(visible, student=expert)


def directions(params: pj.types.Params) -> Floats:
    """Return the unit vectors w_j of a `student_t_product` as columns, [D, J]."""
    w = np.asarray(params["student"]["w"], np.float64)
    return np.asarray(w / np.linalg.norm(w, axis=0))


def optimizer(
    learning_rate: float, num_steps: int, frozen: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """Return Adam with a rate lowered to zero along a cosine; what is called `frozen` is held."""
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def label(path: Any, leaf: Any) -> str:
        return "frozen" if any(key.key in frozen for key in path) else "trained"

    def labels(params: pj.types.Params) -> Any:
        return jax.tree_util.tree_map_with_path(label, params)

    return optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, labels)
