"""The training loop: n steps as one scan, over data that stays on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poejax import _border, _checks, _optimizers, _run_checks, propriety
from poejax._numerics import add, widen
from poejax.product import Product, split_coordinates
from poejax.types import Array, Estimator, Event, Params, PyTree, Weighted

Preprocess = Callable[[Array, PyTree], Event]
"""`(rng_key, rows) -> events`: how stored rows become events, e.g. `datasets.stochastic`.

One that has an attribute `check(name, rows)` has that called with the data, all rows of it, before
anything compiles: to refuse what it would turn into events without a word, as intensities that are
not scaled. Of others the events are checked: all of them once, and then whether they are finite.
"""


_MAX_LOG_PRECISION = 46.0  # a spread of 1e-10, as no float32 data near one have


class TrainState(NamedTuple):
    """All that the rest of a run depends on, besides its config and data.

    step: number of updates made, [].
    average: moving average of the parameters in float32 or wider, None unless asked for.
    rng_key: the run's key; step keys are folded out of it, so it never changes.
    average_rest: what is below the average's last digit, lest small updates be lost.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    estimator_state: PyTree
    average: Params | None
    rng_key: Array
    average_rest: Params | None = None


class Metrics(NamedTuple):
    """What each step saw, [num_steps] each: the estimator's diagnostics and the gradient's norm."""

    info: PyTree
    grad_norm: Array


def init(
    rng_key: Array,
    model: Product,
    estimator: Estimator,
    tx: optax.GradientTransformation,
    data: PyTree,
    *,
    params: Params | None = None,
    preprocess: Preprocess | None = None,
    average: bool = False,
) -> TrainState:
    """Start a run on a batch of rows `data` [N, ...].

    Args:
      rng_key: one typed key; the run is a function of it.
      model: the product to train.
      estimator: where its gradients come from.
      tx: any optax optimizer; gradients are of a loss to minimise. One that needs the loss itself
        (`value`, `grad`, `value_fn`: reduce_on_plateau, polyak_sgd, lbfgs) gets it from estimators
        whose info is a LossInfo.
      data: events, or rows that `preprocess` turns into events; arrays of JAX or NumPy, or whatever
        has numbers to be read, as tables and tensors have.
      params: initial parameters; drawn by `model.init` when None.
      preprocess: applied to `data` once, for the estimator's start.
      average: whether to keep a moving average of the parameters.

    Returns:
      TrainState at step 0.

    Raises:
      ValueError: if the data are empty, no events of the model's visible units, or constant in a
        column of real units, whose precision would grow for ever; or if the parameters are known to
        give no normalisable model.
      TypeError: if an argument is of another kind, or `tx` needs what the estimator does not have.
    """
    _checks.rng_key("rng_key", rng_key)
    _checks.model("model", model)
    _run_checks.check_rule(estimator, tx, preprocess)
    data = _border.tree("data", data)
    _checks.leading_axis("data", data)
    run_key, params_key, data_key, estimator_key = jax.random.split(rng_key, 4)
    if (trained := getattr(estimator, "model", model)) != model:
        raise ValueError(f"estimator: expected one of {model}, got one of {trained}")
    _run_checks.check_rows(preprocess, data)
    x = _run_checks.preprocessed(preprocess, data_key, data)
    _run_checks.check_events(estimator, model, preprocess, data, lambda: x)
    name = "data" if preprocess is None else "preprocess(data)"
    _run_checks.require_spread(name, model.visible, x)
    if params is None:
        params = model.init(params_key)
    else:
        params = _border.tree("params", params)
        model.check_params(params)
        _run_checks.check_settings(model, _split(params)[0])
        params = jax.tree.map(jnp.asarray, params)
    propriety.require_proper(model, params)
    trained = _split(params)[0]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(trained),
        estimator_state=estimator.init(estimator_key, params, x),
        average=_join(widen(trained), params) if average else None,
        rng_key=run_key,
        average_rest=jax.tree.map(jnp.zeros_like, widen(trained)) if average else None,
    )
    _optimizers.check_needs(
        tx,
        trained,
        state.opt_state,
        lambda: _update(estimator, tx, state, run_key, x, jnp.zeros(())),
    )
    return state


def train_steps(
    estimator: Estimator,
    tx: optax.GradientTransformation,
    state: TrainState,
    data: PyTree,
    batch_size: int,
    num_steps: int,
    *,
    preprocess: Preprocess | None = None,
    average_decay: float = 0.999,
) -> tuple[TrainState, Metrics]:
    """Take `num_steps` updates on batches of rows of `data` [N, ...], as one scan on the device.

    Epochs are of N // batch_size steps; the order of the rows is a function of the run's key and
    the epoch's number, what a step draws one of the key and the step's number. So 3 steps and 3
    more are the 6 steps, bitwise.

    Args:
      estimator: as given to `init`.
      tx: as given to `init`. Optimizers compare by identity: build yours once, outside the loop,
        or each call compiles anew.
      state: the run so far; it is not consumed.
      data: rows as given to `init`; e.g. uint8 intensities, with `preprocess`.
      batch_size: rows per update, at most N.
      num_steps: number of updates.
      preprocess: `(rng_key, rows) -> events`, e.g. `datasets.stochastic`, drawn anew every time.
      average_decay: d of average ← d·average + (1-d)·params, in [0, 1); early on (1+t)/(10+t) where
        that is smaller. Used if `init` was told to keep an average.

    Returns:
      `(state, metrics)`.

    Raises:
      ValueError: if `data` is empty or smaller than a batch, or any row is no event of the
        visible units; what is an array of JAX is looked at once, others in every call.
      TypeError: if an argument is of another kind.
      FloatingPointError: if a gradient or parameter is not finite, or a precision runs away; names
        leaf and step. The state passed in is untouched, so the caller still holds the last good
        one.
    """
    _run_checks.check_rule(estimator, tx, preprocess)
    if not isinstance(state, TrainState):
        raise TypeError(
            f"state: expected a TrainState of training.init, got {_checks.describe(state)}"
        )
    data = _border.tree("data", data)
    num_rows = _checks.leading_axis("data", data)
    _checks.positive_int("num_steps", num_steps)
    if _checks.positive_int("batch_size", batch_size) > num_rows:
        raise ValueError(f"batch_size: expected at most {num_rows} rows of data, got {batch_size}")
    _checks.fraction("average_decay", average_decay)
    _run_checks.check_rows(preprocess, data)
    if hasattr(estimator, "model") and (
        # To preprocess all rows in every call would cost too much, and on a device it is once.
        preprocess is None
        or (_run_checks.is_unchecked(estimator, preprocess) and _border.is_on_device(data))
    ):
        _run_checks.check_events(
            estimator,
            estimator.model,
            preprocess,
            data,
            lambda: _run_checks.preprocessed(preprocess, state.rng_key, data),
        )
    new_state, metrics, finite = _train_steps(
        estimator, tx, state, data, batch_size, num_steps, preprocess, 1 - average_decay
    )
    if _checks.is_concrete(finite):
        _require_finite(state, np.asarray(finite))
        _require_bounded(state, new_state)
    return new_state, metrics


def weights_only(params: Params) -> Params:
    """Mask that is True for weight matrices ("w") and False for biases and fields.

    For `optax.add_decayed_weights(rate, mask=weights_only)` or `optax.adamw(..., mask=...)`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "w", params
    )


@functools.partial(
    jax.jit, static_argnames=("estimator", "tx", "batch_size", "num_steps", "preprocess")
)
def _train_steps(
    estimator: Estimator,
    tx: optax.GradientTransformation,
    state: TrainState,
    data: PyTree,
    batch_size: int,
    num_steps: int,
    preprocess: Preprocess | None,
    average_weight: Array,
) -> tuple[TrainState, Metrics, Array]:
    _optimizers.check_state(tx, _split(state.params)[0], state.opt_state)
    mean_weight = jnp.mean(data.weights) if isinstance(data, Weighted) else None
    num_rows = jax.tree.leaves(data)[0].shape[0]
    steps_per_epoch = num_rows // batch_size
    order_key, step_key = jax.random.split(state.rng_key)

    def epoch_order(step: Array) -> Array:
        epoch_key = jax.random.fold_in(order_key, step // steps_per_epoch)
        return jax.random.permutation(epoch_key, num_rows)

    def body(carry: tuple[TrainState, Array], _: None) -> Any:
        state, order = carry
        position = state.step % steps_per_epoch
        order = jax.lax.cond(position == 0, epoch_order, lambda _: order, state.step)
        rows = jax.lax.dynamic_slice_in_dim(order, position * batch_size, batch_size)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data)
        preprocess_key, grad_key = jax.random.split(jax.random.fold_in(step_key, state.step))
        batch = _run_checks.preprocessed(preprocess, preprocess_key, batch)
        state, metrics, finite = _update(
            estimator, tx, state, grad_key, batch, average_weight, mean_weight
        )
        if _run_checks.is_unchecked(estimator, preprocess):
            finite = jnp.concatenate([_are_finite(batch).all()[None], finite])
        return (state, order), (metrics, finite)

    start = (state, epoch_order(state.step))
    (state, _), (metrics, finite) = jax.lax.scan(body, start, length=num_steps)
    return state, metrics, finite


def _update(
    estimator: Estimator,
    tx: optax.GradientTransformation,
    state: TrainState,
    rng_key: Array,
    batch: Event,
    average_weight: Array,
    mean_weight: Array | None = None,
) -> tuple[TrainState, Metrics, Array]:
    grads, estimator_state, info = estimator.grad(
        rng_key, state.params, state.estimator_state, batch
    )
    grads, params = _split(grads)[0], _split(state.params)[0]
    if mean_weight is not None:
        # Estimators divide by the weights of their batch, which are more or less than its share.
        share = jnp.mean(batch.weights) / mean_weight
        grads = jax.tree.map(lambda g: share * g, grads)
    # Data in a wider dtype must not change the dtype of the optimizer's state.
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)

    def loss(params: Params) -> Array:
        whole = _join(params, state.params)
        return estimator.grad(rng_key, whole, state.estimator_state, batch)[2].loss

    updates, opt_state = _optimizers.update(tx, grads, state.opt_state, params, info, loss)
    params = optax.apply_updates(params, updates)
    step = state.step + 1
    average, rest = state.average, state.average_rest
    if average is not None:
        # A fixed weight would remember the initial parameters for 1 / weight steps.
        weight = jnp.maximum(average_weight, 9 / (10 + step))

        def move(a: Array, rest: Array, p: Array) -> tuple[Array, Array]:
            return add(a, rest, (weight * ((p - a) - rest)).astype(a.dtype))

        moved = jax.tree.map(move, _split(average)[0], rest, params)
        average, rest = jax.tree.transpose(jax.tree.structure(rest), None, moved)
        average = _join(average, state.params)
    finite = _are_finite((grads, params))
    params = _join(params, state.params)
    state = TrainState(step, params, opt_state, estimator_state, average, state.rng_key, rest)
    return state, Metrics(info, optax.tree.norm(grads)), finite


def _split(params: Params) -> tuple[Params, PyTree]:
    """Split off the coordinates of real units, which belong to the data and are not learned."""
    return split_coordinates(params) if isinstance(params, dict) else (params, {})


def _join(params: Params, whole: Params) -> Params:
    coordinates = _split(whole)[1]
    return params | {"coordinates": coordinates} if coordinates else params


def _are_finite(tree: PyTree) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])


def _require_bounded(old: TrainState, new: TrainState) -> None:
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


def _require_finite(state: TrainState, finite: np.ndarray) -> None:
    if finite.all():
        return
    step, leaf = np.argwhere(~finite)[0].tolist()
    paths = jax.tree_util.tree_leaves_with_path({"gradient": _split(state.params)[0]})
    paths += jax.tree_util.tree_leaves_with_path({"parameter": _split(state.params)[0]})
    number = int(state.step) + step + 1
    # Events come first, where they are watched: the rest follows from them.
    num_watched = finite.shape[1] - len(paths)
    if leaf < num_watched:
        raise ValueError(f"preprocess(data): expected finite events, got others at step {number}")
    kind, *rest = paths[leaf - num_watched][0]
    name = f"{kind.key} params{_checks.leaf_name(rest)}"
    raise FloatingPointError(
        f"{name} is not finite at step {number}; the state passed in "
        f"(step {int(state.step)}) is the last good one. Try a smaller learning rate or gradient "
        "clipping."
    )
