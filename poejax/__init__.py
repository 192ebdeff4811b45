"""Products of experts in JAX: p(x) = (1/Z) Π_k f_k(x | θ_k)."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

import jaxlib

from poejax import (
    chains,
    diagnostics,
    estimators,
    evidence,
    exact,
    experts,
    gaussians,
    inference,
    kernels,
    mixtures,
    models,
    propriety,
    tails,
    tempering,
    types,
    units,
)
from poejax._product import Product, product

if TYPE_CHECKING:
    from poejax import (
        checkpoint,
        convert,
        datasets,
        nn,
        plotting,
        recipes,
        sklearn,
        stacks,
        streams,
        testing,
        training,
    )

__version__ = "0.1.0"

if jaxlib.__version__ == "0.10.2":
    warnings.warn(
        "jaxlib 0.10.2 sums wrongly on CPUs (log densities of batches of some thousands come out "
        "wrong by tenths of a nat); install another version, e.g. pip install 'jax!=0.10.2'",
        RuntimeWarning,
        stacklevel=2,
    )

# These import optax, orbax, flax, matplotlib, scikit-learn or data, so they load at first use.
_LAZY = (
    "checkpoint",
    "convert",
    "datasets",
    "nn",
    "plotting",
    "recipes",
    "sklearn",
    "stacks",
    "streams",
    "testing",
    "training",
)

__all__ = [
    "Product",
    "chains",
    "checkpoint",
    "convert",
    "datasets",
    "diagnostics",
    "estimators",
    "evidence",
    "exact",
    "experts",
    "gaussians",
    "inference",
    "kernels",
    "mixtures",
    "models",
    "nn",
    "plotting",
    "product",
    "propriety",
    "recipes",
    "sklearn",
    "stacks",
    "streams",
    "tails",
    "tempering",
    "testing",
    "training",
    "types",
    "units",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"poejax.{name}")
    raise AttributeError(f"module 'poejax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
