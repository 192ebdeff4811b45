"""Learning from incomplete events: missing sites are latent variables like any other."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from poejax import _border, _checks, chains
from poejax._product import Product
from poejax.estimators._common import Rule, advance, own_kernel, own_model
from poejax.inference._posterior import check_observed, check_shapes
from poejax.types import Array, Estimator, Event, Kernel, Params, PyTree, Weighted


class Incomplete(NamedTuple):
    """Events with missing sites.

    x: batch of events [N, ...]; what a missing site holds, NaN or not, is ignored.
    observed: boolean masks, True where a site was seen: [N, D], a dict of masks for joint units.
    """

    x: Event
    observed: PyTree


@dataclasses.dataclass(frozen=True)
class Imputed(Rule):
    """Completes each batch by clamped chains, for another estimator. Build with `imputed`."""

    estimator: Estimator
    kernel: Kernel
    num_steps: int

    def check_data(self, name: str, data: Any) -> None:
        """Raise unless `data` are events of the model's units with masks, weighted or not."""
        if isinstance(data, Weighted):
            data, _ = _checks.split_weights(name, data)
            name = f"{name}.x"
        if not isinstance(data, Incomplete):
            raise TypeError(
                f"{name}: expected Incomplete(x, observed), got {_checks.describe(data)}"
            )
        data = _border.tree(name, data)
        visible = self.model.visible
        num_rows = _checks.leading_axis(f"{name}.x", data.x)
        check_shapes(self.model, f"{name}.x", data.x)
        _checks.one_row_per_chain(f"{name}.observed", data.observed, num_rows)
        first = jax.tree.map(lambda mask: mask[0], data.observed)
        visible.check_mask(f"{name}.observed", first)
        check_observed(self.model, f"{name}.x", data.x, data.observed)

    def init(self, rng_key: Array, params: Params, data: Incomplete) -> Any:
        """Start the inner estimator on completed data."""
        complete_key, init_key = jax.random.split(rng_key)
        return self.estimator.init(init_key, params, self._complete(complete_key, params, data))

    def grad(
        self, rng_key: Array, params: Params, state: Any, batch: Incomplete
    ) -> tuple[Params, Any, Any]:
        """Estimate the gradient from a batch with missing sites."""
        complete_key, grad_key = jax.random.split(rng_key)
        x = self._complete(complete_key, params, batch)
        return self.estimator.grad(grad_key, params, state, x)

    def _complete(self, rng_key: Array, params: Params, data: Any) -> Any:
        if isinstance(data, Weighted):
            return data._replace(x=self._complete(rng_key, params, data.x))
        start_key, run_key = jax.random.split(rng_key)
        visible = self.model.visible

        def start(key: Array, x: Event, observed: PyTree) -> Any:
            x = visible.select(observed, x, self.model.init_visible(key, params))
            return self.kernel.init(key, params, x, observed)

        keys = chains.chain_keys(start_key, _checks.leading_axis("data", data))
        states = jax.vmap(start)(keys, data.x, data.observed)
        return advance(run_key, self.kernel, params, states, self.num_steps).x


def imputed(
    estimator: Estimator,
    model: Product | None = None,
    kernel: Kernel | None = None,
    num_steps: int = 10,
) -> Imputed:
    """Learn from events with missing sites, each row with a mask of its own.

    ∂ log p(x_obs) = E[∂ log f(x) | x_obs] - E[∂ log f(x)]: the positive phase averages over the
    missing sites, drawn by chains that hold the observed ones. Unbiased as num_steps → ∞ where
    the inner estimator is an unbiased one of the likelihood's gradient. Other losses see completed
    events: their gradient averages to zero at the truth, but is not that of a loss of the observed
    sites, so that `discriminative` does not learn p(y | x_obs).

    Args:
      estimator: where the gradient for complete events comes from, e.g. `pcd(model, 100)`.
      model: its product, which need not be named again.
      kernel: transition kernel of the clamped chains; block Gibbs when None.
      num_steps: their steps per batch, from a random start at the missing sites.

    Returns:
      An estimator whose data and batches are `Incomplete(x, observed)`; the outermost one: wrap it
      around `centered` and `blend`, not the other way round.

    Raises:
      ValueError: if `estimator` or `kernel` is of another model, or `num_steps` is not positive.
      TypeError: if `estimator` or `kernel` is none.

    Source: Ghahramani & Jordan (1994), Supervised learning from incomplete data via an EM
    approach; Younes (1989) for the stochastic gradient.
    """
    num_steps = _checks.positive_int("num_steps", num_steps)
    model = own_model("estimator", estimator, model)
    return Imputed(model, estimator, own_kernel(model, kernel), num_steps)
