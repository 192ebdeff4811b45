"""The interfaces that the rooms of poejax share."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

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


class GibbsState(NamedTuple):
    """What the next sweep needs: the visible event, and the mask of sites it must not move."""

    x: Event
    clamp: PyTree = None


class GibbsInfo(NamedTuple):
    """What a sweep leaves behind: the latents that generated the new visible event."""

    z: Latent


class EstimatorInfo(NamedTuple):
    """Diagnostics of one gradient estimate; the two densities are unnormalised, in nats."""

    data_log_density: Array
    model_log_density: Array


class LossInfo(NamedTuple):
    """The mean over the batch of the loss that a gradient is of, []; it is no likelihood."""

    loss: Array


class Kernel(Protocol):
    """A Markov chain on one visible event that leaves exp(log_density(params, x)) invariant.

    Its states hold that event as `state.x`.
    """

    def init(self, rng_key: Array, params: Params, x: Event, clamp: PyTree = None) -> Any: ...

    def step(self, rng_key: Array, params: Params, state: Any) -> tuple[Any, Any]: ...


class Estimator(Protocol):
    """A rule for the gradient of a loss to minimise: the negative log-likelihood, or a stand-in."""

    def init(self, rng_key: Array, params: Params, data: Event) -> PyTree: ...

    def grad(
        self, rng_key: Array, params: Params, state: PyTree, batch: Event
    ) -> tuple[Params, PyTree, EstimatorInfo | LossInfo]: ...
