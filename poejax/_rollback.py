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
    was taken; keys and batches go on, so that the same is not tried again. Each one taken back
    multiplies updates by `factor`; for every `patience` good ones since the last, one such factor
    is lifted.

    factor: in (0, 1).
    patience: number of good updates.
    limit: how many factors may add up before the run raises, as there is no way on.
    """

    factor: float = 0.5
    patience: int = 100
    limit: int = 20

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not _checks.is_real(self.factor) or not 0 < self.factor < 1:
            raise ValueError(f"factor: expected a number in (0, 1), got {self.factor!r}")
        object.__setattr__(self, "factor", float(self.factor))
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

    level: how many factors updates are multiplied by, [].
    wait: good updates until it falls, [].
    is_back: whether the last update was taken back, so that this one starts at the good point, [].
    num_rejected: updates taken back so far, [].
    """

    good: Good
    level: Array
    wait: Array
    is_back: Array
    num_rejected: Array


def start(state: Any) -> RollbackState:
    """Return what a run that is at `state`, a TrainState, begins with."""
    zero = jnp.zeros((), jnp.int32)
    return RollbackState(_point(state), zero, zero, jnp.zeros((), bool), zero)


def scaled(updates: T, state: RollbackState | None, rollback: Rollback | None) -> T:
    """Return the updates at the present level."""
    if state is None or rollback is None:
        return updates
    scale = jnp.asarray(rollback.factor, jnp.float32) ** state.level
    return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)


def settle(
    rollback: Rollback, old: Any, new: Any, is_rejected: Array, has_gradient: Array, has_end: Array
) -> tuple[Any, Array]:
    """Return the TrainState after a step from `old` to `new`, and whether that was taken back, [].

    is_rejected: what the estimator says of the point where the step started, [].
    has_gradient: whether that is finite there, [].
    has_end: whether the parameters are after it; else the step alone is to blame, [].
    """
    was = old.rollback
    was_good = has_gradient & ~is_rejected
    good = _choose(was_good, _point(old), was.good)
    is_good = was_good & has_end
    # An estimator that rejects the good point itself, where no update has led, must get on there.
    is_stay = was.is_back & has_gradient & is_rejected
    is_lowered = ~is_good & ~is_stay
    is_over = is_good & (was.wait <= 1)
    level = jnp.where(is_over, jnp.maximum(was.level - 1, 0), was.level + is_lowered)
    wait = jnp.where(is_over | is_lowered, rollback.patience, was.wait - is_good)
    after = RollbackState(
        good=good,
        level=level.astype(was.level.dtype),
        wait=wait.astype(was.wait.dtype),
        is_back=~is_good,
        num_rejected=was.num_rejected + ~is_good,
    )
    state = new._replace(
        **_choose(is_good, _point(new), good)._asdict(),
        estimator_state=_choose(is_good | is_stay, new.estimator_state, old.estimator_state),
        rollback=after,
    )
    return state, ~is_good


def _point(state: Any) -> Good:
    return Good(state.params, state.opt_state, state.average, state.average_rest)


def _choose(condition: Array, a: T, b: T) -> T:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
