"""Weights of other packages' machines, as products of ours."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks, models
from poejax._product import Product, product
from poejax.experts import Bias, HiddenBank
from poejax.types import Params
from poejax.units import Bernoulli, Categorical

__all__ = [
    "from_bernoulli_rbm",
    "load_rbms",
]


def from_bernoulli_rbm(estimator: Any) -> tuple[Product, Params]:
    """Convert a fitted `sklearn.neural_network.BernoulliRBM`.

    Both have log p(x) = aᵀx + Σ_j softplus(w_jᵀx + b_j) - log Z; scikit-learn stores the rows w_j.

    Args:
      estimator: the fitted estimator.

    Returns:
      `(model, params)`, a `models.rbm`.

    Raises:
      ValueError: if it has not been fitted.
    """
    names = ("components_", "intercept_visible_", "intercept_hidden_")
    missing = [name for name in names if not hasattr(estimator, name)]
    if missing:
        raise ValueError(f"estimator: expected a fitted BernoulliRBM, got one without {missing}")
    w, a, b = (np.asarray(getattr(estimator, name)) for name in names)
    return _rbm(w.T, a, b)


def load_rbms(path: str | pathlib.Path, update: int | None = None) -> tuple[Product, Params]:
    """Load a machine that the `rbms` package saved, an HDF5 file with one group per saved update.

    Args:
      path: the file.
      update: the update to load; the last one saved when None.

    Returns:
      `(model, params)`: a `models.rbm` for its binary machines ("BBRBM"); for its Potts machines
      ("PBRBM") the same with visible units `Categorical(V, q)`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no such file, or holds another kind of machine or not that update.
      ImportError: if h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("load_rbms needs h5py: pip install h5py") from error
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no file {path}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"path: expected an HDF5 file of the rbms package, got {path}") from error
    with file:
        found = sorted(int(m[1]) for key in file if (m := re.fullmatch(r"update_(\d+)", key)))
        if not found:
            raise ValueError(f"path: expected groups update_1, ... in {path}, got {sorted(file)}")
        update = found[-1] if update is None else _checks.positive_int("update", update)
        if update not in found:
            raise ValueError(f"update: expected one of {found}, got {update}")
        kind = file["model_type"][()] if "model_type" in file else b"BBRBM"
        kind = kind.decode() if isinstance(kind, bytes) else str(kind)
        group = file[f"update_{update}"]
        group = group.get("params", group)
        names = ("weight_matrix", "vbias", "hbias")
        missing = [name for name in names if name not in group]
        if missing:
            raise ValueError(f"path: update {update} of {path} has no {missing}")
        w, a, b = (np.asarray(group[name]) for name in names)
    if kind == "BBRBM":
        return _rbm(w, a, b)
    if kind != "PBRBM":
        raise ValueError(f"path: expected a machine BBRBM or PBRBM, got {kind!r}")
    if a.ndim != 2 or w.shape != (*a.shape, *b.shape) or b.ndim != 1:
        raise ValueError(
            "path: expected weight_matrix [V, q, H], vbias [V, q] and hbias [H] of a Potts "
            f"machine, got shapes {w.shape}, {a.shape} and {b.shape}"
        )
    visible = Categorical(*a.shape)
    hidden = HiddenBank(visible, Bernoulli(b.shape[0]))
    model = product(visible, bias=Bias(visible), hidden=hidden)
    return model, _params(model, w.reshape(-1, b.shape[0]), a, b)


def _rbm(w: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[Product, Params]:
    model = models.rbm(*w.shape)
    return model, _params(model, w, a, b)


def _params(model: Product, w: np.ndarray, a: np.ndarray, b: np.ndarray) -> Params:
    params = {"bias": {"field": a}, "hidden": {"w": w, "b": b}}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), params)
    model.check_params(params)
    return params
