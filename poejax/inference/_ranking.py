"""Ranking examples by their likelihood."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from poejax import _border, _checks
from poejax._product import Product, log_densities
from poejax.types import Array, Event, Params


class Ranking(NamedTuple):
    """A batch in order of density.

    order: row numbers from the most to the least likely; ties in the order of the batch, [N].
    log_density: each row's, as the batch is ordered, unnormalised, in nats, [N].
    """

    order: Array
    log_density: Array

    def most(self, fraction: float) -> Array:
        """Return the `fraction` in (0, 1] of row numbers most likely, the likeliest first."""
        return self.order[: self._count(fraction)]

    def least(self, fraction: float) -> Array:
        """Return the `fraction` in (0, 1] of row numbers least likely, the unlikeliest first."""
        return self.order[::-1][: self._count(fraction)]

    def _count(self, fraction: float) -> int:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction: expected a number in (0, 1], got {fraction}")
        return max(1, round(fraction * len(self.order)))


def rank(model: Product, params: Params, x: Event) -> Ranking:
    """Rank a batch `x` [N, ...] by likelihood.

    log p(x_n) = log_density(x_n) - log Z: the order does not depend on log Z.

    Args:
      model: the product.
      params: its parameters.
      x: batch of events.

    Returns:
      Ranking. Its log densities also serve as scores for out-of-distribution detection; to compare
      two models subtract each one's log Z.

    Raises:
      ValueError: if `x` is empty or holds no events of the visible units.
    """
    _checks.model("model", model)
    x = _border.events("x", model.visible, x)
    model.check_params(params)
    log_density = log_densities(model, params, x)
    return Ranking(jnp.argsort(-log_density, stable=True), log_density)
