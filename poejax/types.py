"""The interfaces that the rooms of poejax share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

__all__ = [
    "Array",
    "ChainState",
    "Estimator",
    "EstimatorInfo",
    "Event",
    "Field",
    "GibbsInfo",
    "HMCInfo",
    "Kernel",
    "Latent",
    "LossInfo",
    "MetropolisInfo",
    "Params",
    "PersistentInfo",
    "PyTree",
    "Weighted",
]

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Params: TypeAlias = Any
"""Parameters: a dict of arrays keyed by expert name."""
Event: TypeAlias = Any
"""One value of a block of units: an array, or a dict of arrays for a joint block."""
Field: TypeAlias = Any
"""Natural parameters of a block of units: an array or a dict of arrays."""
Latent: TypeAlias = Any
"""One value of an expert's latent variables; `()` for an expert that has none."""


class Weighted(NamedTuple):
    """Rows with a weight each, in place of rows wherever data are learned from.

    Equal to repeating each row as often as its weight says; only ratios of weights matter.

    x: batch of rows [N, ...].
    weights: non-negative, not all zero, [N].
    """

    x: Any
    weights: Array


class ChainState(NamedTuple):
    """What the next step needs: the visible event, and the mask of sites it must not move.

    No log density or gradient: the parameters may change between two steps.
    """

    x: Event
    clamp: PyTree = None


class GibbsInfo(NamedTuple):
    """What a sweep leaves behind: the latents that generated the new visible event."""

    z: Latent


class MetropolisInfo(NamedTuple):
    """The acceptance probability and decision of a proposal, one of each per proposal."""

    acceptance_rate: Array
    is_accepted: Array


class HMCInfo(NamedTuple):
    """As MetropolisInfo; divergent if the trajectory's energy error is beyond 1000 nats or NaN."""

    acceptance_rate: Array
    is_accepted: Array
    is_divergent: Array


class EstimatorInfo(NamedTuple):
    """Diagnostics of one gradient estimate; the two densities are unnormalised, in nats."""

    data_log_density: Array
    model_log_density: Array


class PersistentInfo(NamedTuple):
    """EstimatorInfo of a rule with persistent chains, and how far the update moved these, [] each.

    model_log_density: of the chains; that it lies far from that of the data is the first sign that
      they do not follow the model.
    flip_rate: share of sites, over all chains, whose value is another after the update than before;
      1 for real sites that are drawn anew.
    autocorrelation: of the chains over one update, all sites together, about the mean of the chains
      (`diagnostics.autocorrelation`). Near 1 where chains hardly move, or only within the mode
      they are in; 1 too where they do not differ.
    """

    data_log_density: Array
    model_log_density: Array
    flip_rate: Array
    autocorrelation: Array


class LossInfo(NamedTuple):
    """The mean over the batch of the loss that a gradient is of, []; it is no likelihood."""

    loss: Array


class Kernel(Protocol):
    """A Markov chain on one visible event that leaves exp(log_density(params, x)) invariant.

    Its states hold that event as `state.x`. A kernel that knows more than the event it drew may
    have a method `conditional_mean(params, state, info)`, an event of the same expectation and less
    variance, which averages then take in place of `state.x`.
    """

    def init(self, rng_key: Array, params: Params, x: Event, clamp: PyTree = None) -> Any: ...

    def step(self, rng_key: Array, params: Params, state: Any) -> tuple[Any, Any]: ...


class Estimator(Protocol):
    """A rule for the gradient of a loss to minimise: the negative log-likelihood, or a stand-in.

    The last of what `grad` returns is its diagnostics: EstimatorInfo, PersistentInfo,
    LossInfo, or a rule's own.
    Where these have a `loss`, optimizers that need the loss itself get it. Of `Weighted` rows the
    gradient is to be the mean by the weights of its batch, Σ w ∂ / Σ w: `Run` then multiplies it by
    the batch's share of all weights.

    model: the product that is learned, whose visible units all data are checked against; None for a
      rule of other parameters, such as a network's, of which one must be given to start from.
    check_data: None if rows are events of the visible units. Rows may be more: any pytree of arrays
      with one leading axis, such as a NamedTuple of events and what belongs to each. Then it is a
      method `(name, data)`, called with all rows, that raises errors that begin with `name`.

    A pair of `init` and `grad` alone is taken for a rule where both are None.
    """

    @property
    def model(self) -> Any: ...

    @property
    def check_data(self) -> Callable[[str, Any], None] | None: ...

    def init(self, rng_key: Array, params: Params, data: Event) -> PyTree: ...

    def grad(
        self, rng_key: Array, params: Params, state: PyTree, batch: Event
    ) -> tuple[Params, PyTree, PyTree]: ...
