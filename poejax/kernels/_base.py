"""What all kernels of a model share."""

from __future__ import annotations

import dataclasses

import jax

from poejax._numerics import as_float
from poejax._product import Product
from poejax.types import Array, ChainState, Event, Params, PyTree


@dataclasses.dataclass(frozen=True)
class EventKernel:
    """A kernel whose state is the visible event, and the mask of sites it must not move."""

    model: Product

    def init(self, rng_key: Array, params: Params, x: Event, clamp: PyTree = None) -> ChainState:
        """Return the state of a chain at `x`.

        Args:
          rng_key: unused, for the interface.
          params: unused, for the interface.
          x: one visible event.
          clamp: boolean mask, one entry per site ([D], a dict for joint blocks): True keeps that
            site of `x` for ever, and the others follow their conditional given it. It lives in
            the state: a new mask compiles nothing.
        """
        del rng_key, params
        if clamp is not None:
            self.model.visible.check_mask("clamp", clamp)
        return ChainState(jax.tree.map(as_float, x), clamp)
