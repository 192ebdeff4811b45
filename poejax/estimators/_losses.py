"""What all losses that need no samples of the model share."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from poejax import _checks, _meshes, chains
from poejax.estimators._common import Rule, mean_of_rows
from poejax.types import Array, Event, LossInfo, Params


@dataclasses.dataclass(frozen=True)
class LossEstimator(Rule, abc.ABC):
    """Gradient of the mean over a batch of a loss of single events.

    The loss may use ratios or derivatives of `model.log_density` only, in which log Z cancels.
    """

    @abc.abstractmethod
    def loss(self, rng_key: Array, params: Params, x: Event) -> Array:
        """Return the loss of one event, []."""

    def grad(
        self, rng_key: Array, params: Params, state: tuple[()], batch: Event
    ) -> tuple[Params, tuple[()], LossInfo]:
        """Compute the gradient for a batch [B, ...]; what a loss draws, it draws per event."""
        keys = chains.chain_keys(rng_key, _checks.leading_axis("batch", batch))

        def mean_loss(params: Params) -> Array:
            return mean_of_rows(lambda x, key: self.loss(key, params, x), batch, keys)

        params, batch, keys = _meshes.alike(params, batch, keys)
        loss, grads = jax.value_and_grad(mean_loss)(params)
        return grads, state, LossInfo(loss)


LossFn = Callable[[Array, Params, Any], Array]
"""`(rng_key, params, batch) -> loss`, []."""


@dataclasses.dataclass(frozen=True)
class FromLoss:
    """Build with `from_loss`."""

    loss_fn: LossFn
    model: Any = None
    takes_weights_as_given: ClassVar[bool] = True
    check_data: Callable[[str, Any], None] | None = None

    def init(self, rng_key: Array, params: Params, data: Any) -> tuple[()]:
        """Return the empty state."""
        del rng_key, params, data
        return ()

    def grad(
        self, rng_key: Array, params: Params, state: tuple[()], batch: Any
    ) -> tuple[Params, tuple[()], LossInfo]:
        """Compute loss and gradient for a batch [B, ...]."""
        rng_key, params, batch = _meshes.alike(rng_key, params, batch)
        loss, grads = jax.value_and_grad(self.loss_fn, argnums=1)(rng_key, params, batch)
        return grads, state, LossInfo(loss)


def from_loss(loss_fn: LossFn) -> FromLoss:
    """Gradient of any loss of any parameters: a network, a variational autoencoder.

    Args:
      loss_fn: `(rng_key, params, batch) -> []`. Rows of the batch are any pytree with one leading
        axis; `Run.init` is to be given the parameters. What becomes of the weights of `Weighted`
        rows is the loss's own affair: mean(weights * losses) is right for batches of any size.

    Returns:
      An estimator; its info holds the loss.
    """
    return FromLoss(loss_fn)
