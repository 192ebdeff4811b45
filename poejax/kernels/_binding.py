"""A kernel of one product, for another over the same units."""

from __future__ import annotations

import dataclasses
from typing import Any

from poejax._product import Product
from poejax.kernels._gibbs import block_gibbs
from poejax.types import Kernel


def bound_to(model: Product, kernel: Any = None) -> Kernel:
    """Return `kernel` with its settings, of `model`; block Gibbs when None.

    Kernels are frozen dataclasses with a field `model`, equal if their fields are.
    """
    if kernel is None:
        return block_gibbs(model)
    bound: Kernel = dataclasses.replace(kernel, model=model)
    return bound
