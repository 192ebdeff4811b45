"""What a run does where an update went wrong: back to the last good point, and smaller steps."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from poejax import _checks
from poejax.types import Array, Params, PyTree

T = TypeVar("T", bound=PyTree)


@dataclasses.dataclass(frozen=True)
class Rollback:
    """Take back updates after which something is not finite, or that the estimator rejects.

    Parameters, optimizer, average and the estimator's state go back to where the last good gradient
    was taken; keys and batches go on, so that the same is not tried again. Every one taken back
    multiplies updates by `factor`; after `patience` good ones in a row one such factor is
    lifted.

    factor: in (0, 1).
    patience: number of good updates.
    limit: how many may be taken back in a row before the run raises, as there is no way on.
    """

    factor: float = 0.5
    patience: int = 100
    limit: int = 20

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not _checks.is_real(self.factor) or not 0 < self.factor < 1:
            raise ValueError(f"factor: expected a number in (0, 1), got {self.factor!r}")
        _checks.positive_int("patience", self.patience)
        _checks.positive_int("limit", self.limit)


class Good(NamedTuple):
    """The last point known to be good: where the update before the present one started.

    The estimator's state that belongs to it is the one that the present step starts from.
    """

    params: Params
    opt_state: optax.OptState
    average: Params | None
    average_rest: Params | None


class RollbackState(NamedTuple):
    """What a run with rollback carries along.

    scale: factor on updates, in (0, 1], [].
    wait: good updates until it rises, [].
    in_row: updates taken back since the last good one, [].
    num_rejected: updates taken back so far, [].
    """

    good: Good
    scale: Array
    wait: Array
    in_row: Array
    num_rejected: Array


def start(state: Any) -> RollbackState:
    """Return what a run that is at `state`, a TrainState, begins with."""
    zero = jnp.zeros((), jnp.int32)
    return RollbackState(_point(state), jnp.ones((), jnp.float32), zero, zero, zero)


def scaled(updates: T, state: RollbackState | None) -> T:
    """Return the updates at the present scale."""
    if state is None:
        return updates
    scale = state.scale
    return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)


def settle(rollback: Rollback, old: Any, new: Any, is_good: Array) -> tuple[Any, Array]:
    """Return the TrainState after a step from `old` to `new`, which may stand if it `is_good` [].

    And how many were taken back in a row, [].
    """
    was = old.rollback
    wait = was.wait - 1
    is_over = wait <= 0
    raised = jnp.where(is_over, jnp.minimum(1, was.scale / rollback.factor), was.scale)
    lowered = was.scale * rollback.factor
    patience = jnp.asarray(rollback.patience, wait.dtype)
    after = RollbackState(
        good=_choose(is_good, _point(old), was.good),
        scale=jnp.where(is_good, raised, lowered).astype(was.scale.dtype),
        wait=jnp.where(is_good & ~is_over, wait, patience),
        in_row=jnp.where(is_good, 0, was.in_row + 1),
        num_rejected=was.num_rejected + ~is_good,
    )
    state = new._replace(
        **_choose(is_good, _point(new), was.good)._asdict(),
        estimator_state=_choose(is_good, new.estimator_state, old.estimator_state),
        rollback=after,
    )
    return state, after.in_row


def _point(state: Any) -> Good:
    return Good(state.params, state.opt_state, state.average, state.average_rest)


def _choose(condition: Array, a: T, b: T) -> T:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
