"""What a run does at every step, compiled once for equal runs, and how it ends where it must."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poejax import _checks, _meshes, _optimizers, _random, _rollback, _run_checks
from poejax._numerics import add, sum_of_squares
from poejax._product import split_coordinates
from poejax._rollback import Rollback, RollbackState
from poejax.types import Array, Estimator, Event, Params, PyTree, Weighted

_MAX_LOG_PRECISION = 46.0  # a spread of 1e-10, as no float32 data near one have


class TrainState(NamedTuple):
    """All that the rest of a run depends on, besides its config and data.

    step: number of updates made, [].
    average: moving average of the parameters in float32 or wider, None unless asked for.
    rng_key: the run's key; step keys are folded out of it, so it never changes.
    average_rest: what is below the average's last digit, lest small updates be lost.
    rollback: the last good point and how far updates are scaled down, None unless asked for.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    estimator_state: PyTree
    average: Params | None
    rng_key: Array
    average_rest: Params | None = None
    rollback: RollbackState | None = None


class Metrics(NamedTuple):
    """What each step saw, [num_steps] each: the estimator's diagnostics and the gradient's norm.

    is_rejected: whether the step was taken back, None without rollback.
    """

    info: PyTree
    grad_norm: Array
    is_rejected: Array | None = None


class Served(NamedTuple):
    """The rows of the next steps, read from elsewhere in the order that `row_numbers` gives.

    batches: rows [num_steps, batch_size, ...].
    mean_weight: of all rows of the source, [], None if they have no weights.
    """

    batches: PyTree
    mean_weight: Array | None = None


class Program(Protocol):
    """What is compiled: the part of a run that is no data. Hashable by value."""

    @property
    def estimator(self) -> Estimator: ...

    @property
    def optimizer(self) -> optax.GradientTransformation: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def preprocess(self) -> _run_checks.Preprocess | None: ...

    @property
    def rollback(self) -> Rollback | None: ...


@functools.partial(jax.jit, static_argnames=("program", "num_steps", "watch"))
def scan(
    program: Program,
    state: TrainState,
    data: PyTree,
    num_steps: int,
    average_weight: Array,
    watch: bool = False,
) -> tuple[TrainState, Metrics, Array]:
    """Return state and metrics after a number of steps, and whether all was finite, [].

    That is seen in what is at hand: the gradients' norms and, as what is not finite stays so, the
    last parameters. To look at every leaf at every step takes half as long as a step; with `watch`
    it is done, to name the first, [T, ...].
    """
    estimator, tx, preprocess = program.estimator, program.optimizer, program.preprocess
    batch_size = program.batch_size
    _meshes.require_auto("state", state)
    _optimizers.check_state(tx, split(state.params)[0], state.opt_state)
    order_key, step_key = jax.random.split(state.rng_key)
    if isinstance(data, Served):
        batches, mean_weight = data
    else:
        batches, mean_weight = None, mean(data.weights) if isinstance(data, Weighted) else None

    def body(state: TrainState, batch: PyTree) -> Any:
        if batch is None:
            num_rows = jax.tree.leaves(data)[0].shape[0]
            rows = _rows_of_step(order_key, state.step, batch_size, num_rows)
            batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data)
        preprocess_key, grad_key = _random.split(_random.fold_in(step_key, state.step))
        batch = _run_checks.preprocessed(preprocess, preprocess_key, batch)
        old = state
        state, metrics, grads = update(
            estimator, tx, state, grad_key, batch, average_weight, mean_weight, program.rollback
        )
        if program.rollback is not None:
            state, metrics, finite = _settle(program.rollback, old, state, metrics)
        elif watch:
            finite = _are_finite((grads, split(state.params)[0]))
            if _run_checks.is_unchecked(estimator, preprocess):
                finite = jnp.concatenate([_are_finite(batch).all()[None], finite])
        else:
            finite = jnp.isfinite(metrics.grad_norm)
        return state, (metrics, finite)

    first = jax.tree.map(lambda leaf: leaf[0], batches)
    start = _meshes.settled(lambda c: body(c, first)[0], state)
    state, (metrics, finite) = jax.lax.scan(body, start, batches, length=num_steps)
    return state, metrics, finite if watch else finite.all() & _are_finite(state.params).all()


def take(
    program: Program,
    state: TrainState,
    data: PyTree,
    num_steps: int,
    average_weight: Any,
    good: TrainState | None = None,
) -> tuple[TrainState, Metrics]:
    """Return state and metrics after a number of steps; raise unless all that came is finite.

    `good` is the last state that the caller has in hand, `state` when None.
    """
    run = functools.partial(scan, program, state, data, num_steps, average_weight)
    new_state, metrics, finite = run()
    if _checks.is_concrete(finite):
        good = state if good is None else good
        if not finite and program.rollback is not None:
            raise FloatingPointError(
                f"more than {program.rollback.limit} updates were taken back by step "
                f"{int(new_state.step)}, faster than good ones make up for; the state passed in "
                f"(step {int(good.step)}) is the last good one. Try a smaller learning rate or "
                "gradient clipping."
            )
        if not finite:  # once more, to see what was the first
            require_finite(state, run(watch=True)[2], good)
        require_bounded(good, new_state)
    return new_state, metrics


def _rows_of_step(order_key: Array, step: Array, batch_size: int, num_rows: int) -> Array:
    steps_per_epoch = num_rows // batch_size
    epoch_key = _random.fold_in(order_key, step // steps_per_epoch)
    first = step % steps_per_epoch * batch_size
    return _random.permuted(epoch_key, first + jnp.arange(batch_size), num_rows)


@functools.partial(jax.jit, static_argnames=("num_steps", "batch_size", "num_rows"))
def row_numbers(
    rng_key: Array, first: Array | int, num_steps: int, batch_size: int, num_rows: int
) -> Array:
    """Return which rows `scan` takes from step `first` on, [num_steps, batch_size]."""
    order_key, _ = jax.random.split(rng_key)
    # Not by vmap, under which some generators fold other bits into a key.
    steps = first + jnp.arange(num_steps, dtype=jnp.int32)
    return jax.lax.map(lambda i: _rows_of_step(order_key, i, batch_size, num_rows), steps)


@jax.jit
def mean(weights: Array) -> Array:
    """Return the mean of the weights of all rows, []."""
    return jnp.mean(weights)


def update(
    estimator: Estimator,
    tx: optax.GradientTransformation,
    state: TrainState,
    rng_key: Array,
    batch: Event,
    average_weight: Array,
    mean_weight: Array | None = None,
    rollback: Rollback | None = None,
) -> tuple[TrainState, Metrics, Params]:
    """Return state and metrics after one step, and its gradient."""
    # For rules that differentiate without more ado: each device's gradient is its own.
    whole = _meshes.alike(state.params, rng_key, state.estimator_state, batch)[0]
    grads, estimator_state, info = estimator.grad(rng_key, whole, state.estimator_state, batch)
    grads, params = split(grads)[0], split(state.params)[0]
    if hasattr(info, "loss"):  # an optimizer may differentiate it too
        params = split(whole)[0]
    share = None
    if mean_weight is not None and not getattr(estimator, "takes_weights_as_given", False):
        # Estimators divide by the weights of their batch, which are more or less than its share.
        share = jnp.mean(batch.weights) / mean_weight
        grads = jax.tree.map(lambda g: share * g, grads)
    # Data in a wider dtype must not change the dtype of the optimizer's state.
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)

    def loss(params: Params) -> Array:
        whole = join(params, state.params)
        return estimator.grad(rng_key, whole, state.estimator_state, batch)[2].loss

    updates, opt_state = _optimizers.update(tx, grads, state.opt_state, params, info, loss, share)
    params = optax.apply_updates(params, _rollback.scaled(updates, state.rollback, rollback))
    step = state.step + 1
    average, rest = state.average, state.average_rest
    if average is not None:
        # A fixed weight would remember the initial parameters for 1 / weight steps.
        weight = jnp.maximum(average_weight, 9 / (10 + step))

        def move(a: Array, rest: Array, p: Array) -> tuple[Array, Array]:
            return add(a, rest, (weight * ((p - a) - rest)).astype(a.dtype))

        moved = jax.tree.map(move, split(average)[0], rest, params)
        average, rest = jax.tree.transpose(jax.tree.structure(rest), None, moved)
        average = join(average, state.params)
    params = join(params, state.params)
    state = TrainState(
        step, params, opt_state, estimator_state, average, state.rng_key, rest, state.rollback
    )
    return state, Metrics(info, _norm(grads)), grads


def _settle(
    rollback: Rollback, old: TrainState, new: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics, Array]:
    """Take the step back unless it is good; and whether there is a way on, []."""
    is_rejected = getattr(metrics.info, "is_rejected", jnp.zeros((), bool))
    has_end = _are_finite(split(new.params)[0]).all()
    state, is_back = _rollback.settle(
        rollback, old, new, is_rejected, jnp.isfinite(metrics.grad_norm), has_end
    )
    return (
        state,
        metrics._replace(is_rejected=is_back),
        state.rollback.level <= rollback.limit,
    )


def split(params: Params) -> tuple[Params, PyTree]:
    """Split off the coordinates of real units, which belong to the data and are not learned."""
    return split_coordinates(params) if isinstance(params, dict) else (params, {})


def join(params: Params, whole: Params) -> Params:
    """Put the coordinates of `whole` back beside what is learned."""
    coordinates = split(whole)[1]
    return params | {"coordinates": coordinates} if coordinates else params


def _norm(tree: PyTree) -> Array:
    return jnp.sqrt(jnp.sum(jnp.stack([sum_of_squares(v) for v in jax.tree.leaves(tree)])))


def _are_finite(tree: PyTree) -> Array:
    # Nothing finite is left of 0 · v where v is not; a sum takes a fifth of the time of `all`.
    zeros = [jnp.sum(0 * jnp.atleast_2d(leaf), axis=0) for leaf in jax.tree.leaves(tree)]
    return jnp.stack([jnp.isfinite(jnp.sum(zero)) for zero in zeros])


def require_bounded(old: TrainState, new: TrainState) -> None:
    """Raise where a precision has grown beyond what the spread of data can mean."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(new.params):
        if getattr(path[-1], "key", None) in ("log_precision", "log_diagonal"):
            largest = float(jnp.max(leaf))
            if largest > _MAX_LOG_PRECISION:
                raise FloatingPointError(
                    f"parameter params{_checks.leaf_name(path)} has run away by step "
                    f"{int(new.step)}, to {largest:.3g}: some direction of the data has hardly any "
                    f"spread; the state passed in (step {int(old.step)}) is the last good one. "
                    "Start from model.init_from, drop what depends on other columns, or try a "
                    "smaller learning rate."
                )


def require_finite(state: TrainState, seen: Array, good: TrainState) -> None:
    """Raise for the first leaf that was not finite, of those that `scan` watched from `state`."""
    finite = _meshes.to_host(seen)
    if finite.all():
        return
    step, leaf = np.argwhere(~finite)[0].tolist()
    paths = jax.tree_util.tree_leaves_with_path({"gradient": split(state.params)[0]})
    paths += jax.tree_util.tree_leaves_with_path({"parameter": split(state.params)[0]})
    number = int(state.step) + step + 1
    # Events come first, where they are watched: the rest follows from them.
    num_watched = finite.shape[1] - len(paths)
    if leaf < num_watched:
        raise ValueError(f"preprocess(data): expected finite events, got others at step {number}")
    kind, *rest = paths[leaf - num_watched][0]
    name = f"{kind.key} params{_checks.leaf_name(rest)}"
    raise FloatingPointError(
        f"{name} is not finite at step {number}; the state passed in "
        f"(step {int(good.step)}) is the last good one. Try a smaller learning rate or gradient "
        "clipping."
    )
