"""What all losses that need no samples of the model share."""

from __future__ import annotations

import abc
import dataclasses

import jax

from poejax import _checks, chains
from poejax.estimators.common import mean_of_rows
from poejax.product import Product
from poejax.types import Array, Event, LossInfo, Params


@dataclasses.dataclass(frozen=True)
class LossEstimator(abc.ABC):
    """Gradient of the mean over a batch of a loss of single events.

    The loss may use ratios or derivatives of `model.log_density` only, in which log Z cancels.
    """

    model: Product

    @abc.abstractmethod
    def loss(self, rng_key: Array, params: Params, x: Event) -> Array:
        """Return the loss of one event, []."""

    def init(self, rng_key: Array, params: Params, data: Event) -> tuple[()]:
        """Return the empty state."""
        del rng_key, params, data
        return ()

    def grad(
        self, rng_key: Array, params: Params, state: tuple[()], batch: Event
    ) -> tuple[Params, tuple[()], LossInfo]:
        """Compute the gradient for a batch [B, ...]; what a loss draws, it draws per event."""
        keys = chains.chain_keys(rng_key, _checks.leading_axis("batch", batch))

        def mean_loss(params: Params) -> Array:
            return mean_of_rows(lambda x, key: self.loss(key, params, x), batch, keys)

        loss, grads = jax.value_and_grad(mean_loss)(params)
        return grads, state, LossInfo(loss)
