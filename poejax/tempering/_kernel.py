"""Replica exchange as a transition kernel of the model on its last rung."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks
from poejax._bases import Base
from poejax._meshes import to_host
from poejax._paths import path_of
from poejax._product import Product, split_coordinates
from poejax.chains import ModelKernel
from poejax.kernels._binding import bound_to
from poejax.tempering import _ladder as rungs
from poejax.types import Array, Event, Kernel, Params, PyTree


class ExchangeState(NamedTuple):
    """The event on the model's rung, and all replicas, that one among them."""

    x: Event
    replicas: rungs.Replicas


@dataclasses.dataclass(frozen=True, eq=False)
class ReplicaExchange:
    """A whole ladder as one chain; build with `replica_exchange`. Equal by value, base included."""

    model: Product
    betas: tuple[float, ...]
    base: Base | None
    kernel: Any
    has_replicas: ClassVar[bool] = True

    def init(self, rng_key: Array, params: Params, x: Event, clamp: PyTree = None) -> ExchangeState:
        """Put the event `x` on every rung."""
        members, kernel = self._members(params)
        x = jax.tree.map(jnp.asarray, x)
        y = jax.tree.map(lambda v: jnp.broadcast_to(v, (len(self.betas), *v.shape)), x)
        return self._state(rungs.start(rng_key, members, kernel, y, clamp))

    def step(
        self, rng_key: Array, params: Params, state: ExchangeState
    ) -> tuple[ExchangeState, rungs.ExchangeInfo]:
        """Exchange every second pair of neighbours, then move every replica."""
        members, kernel = self._members(params)
        replicas, info, _ = rungs.step(rng_key, members, kernel, state.replicas)
        return self._state(replicas), info

    def _members(self, params: Params) -> tuple[rungs.Members, Kernel]:
        betas = jnp.asarray(self.betas)
        if self.base is None:
            members = rungs.at_temperatures(self.model, params, betas)
            return members, bound_to(self.model, self.kernel)
        rest, coordinates = split_coordinates(params)
        path = path_of(self.model, self.base)
        members = rungs.at_temperatures(self.model, rest, betas, self.base.within(coordinates))
        if coordinates:
            members = members._replace(
                params=members.params | {"coordinates": coordinates},
                axes=members.axes | {"coordinates": jax.tree.map(lambda _: None, coordinates)},
            )
        return members, bound_to(path, self.kernel)

    def _state(self, replicas: rungs.Replicas) -> ExchangeState:
        last = len(self.betas) - 1
        return ExchangeState(rungs.on_rung(replicas, last, replicas.states.x), replicas)

    @functools.cached_property
    def _value(self) -> tuple[Hashable, ...]:
        own = (self.model, self.betas, self.kernel)
        if self.base is None:
            return own
        leaves = [to_host(leaf) for leaf in jax.tree.leaves(self.base)]
        values = tuple((leaf.dtype, leaf.shape, leaf.tobytes()) for leaf in leaves)
        return (*own, jax.tree.structure(self.base), values)

    def __eq__(self, other: object) -> bool:
        """Whether the two do the same."""
        return isinstance(other, ReplicaExchange) and self._value == other._value

    def __hash__(self) -> int:
        """Hash what it does."""
        return hash(self._value)


def replica_exchange(
    model: Product,
    betas: Sequence[float] | Array,
    base: Base | None = None,
    kernel: ModelKernel | None = None,
) -> ReplicaExchange:
    """Replica exchange: chains at ever lower β beside each chain of the model, which it meets.

    f_k(x) = base(x)^(1-β_k) temper(model, β_k)(x), k = 1..K; without a base temper(model, β_k)(x)

    For chains that go on under one model, or a slowly changing one: `chains.run`, `estimators.pcd`.
    What anneals, or puts events in the place of others, refuses it. A step costs K of `kernel`'s.
    The joint law of all replicas is left invariant, so that chains are the model's after burn-in.
    Its info is that of the exchanges, from which ladders are judged.

    Args:
      model: the product.
      betas: inverse temperatures, not decreasing, the last one 1, [K]; from `tempering.sample`,
        whose report has tuned ones.
      base: a proper base, which `betas` of 0 then means; the model tempered alone when None, for
        discrete units, or above a β at which the model is proper still.
      kernel: a kernel of `model`, for all rungs; `block_gibbs(model)` when None.

    Returns:
      A kernel.

    Raises:
      ValueError: if `betas` do not rise to 1, or model, base and kernel do not fit.

    Source: Swendsen & Wang (1986); Geyer (1991); for learning, Desjardins et al. (2010), Tempered
    Markov chain Monte Carlo for training of restricted Boltzmann machines.
    """
    _checks.model("model", model)
    _checks.kernel_of("kernel", kernel, model, alone=True)
    if base is not None and not isinstance(base, Base):
        raise TypeError(
            "base: expected None or a base such as evidence.base_rate(model, data), got "
            f"{_checks.describe(base)}"
        )
    if base is not None and base.model.visible != model.visible:
        raise ValueError(f"base: expected units {model.visible}, got {base.model.visible}")
    try:
        values = np.asarray(betas, float)
    except (TypeError, ValueError):
        raise TypeError(f"betas: expected numbers, got {_checks.describe(betas)}") from None
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"betas: expected shape (K,), K >= 2, got {values.shape}")
    is_proper = base is not None or model.visible.has_proper_base
    low = values[0] >= 0 if is_proper else values[0] > 0
    rises = bool(np.all(np.diff(values) >= 0))
    if not low or values[-1] != 1 or not rises:
        raise ValueError(
            f"betas: expected to rise from {'0' if is_proper else 'above 0'} to 1, got "
            f"{values[0]} ... {values[-1]}{'' if rises else ', not monotone'}"
        )
    bound_to(model, kernel)  # of an opaque model block Gibbs is refused at once
    return ReplicaExchange(model, tuple(values.tolist()), base, kernel)
