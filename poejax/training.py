"""The training loop: n steps as one scan, over data that stays on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poejax import _border, _checks, _optimizers, propriety
from poejax._training_checks import (
    are_finite,
    check_events,
    check_rows,
    check_rule,
    check_spread,
    is_on_device,
    is_unchecked,
    refuse_settings,
    require_finite,
)
from poejax.product import Product, split_coordinates
from poejax.types import Array, Estimator, Event, Params, PyTree, Weighted

Preprocess = Callable[[Array, PyTree], Event]
"""`(rng_key, rows) -> events`: how stored rows become events, e.g. `datasets.stochastic`.

One that has an attribute `check(name, rows)` has that called with the data, all rows of it, before
anything compiles: to refuse what it would turn into events without a word, as intensities that are
not scaled. Of others the events are checked: all of them once, and then whether they are finite.
"""


class TrainState(NamedTuple):
    """All that the rest of a run depends on, besides its config and data.

    step: number of updates made, [].
    average: moving average of the parameters, None unless asked for.
    rng_key: the run's key; step keys are folded out of it, so it never changes.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    estimator_state: PyTree
    average: Params | None
    rng_key: Array


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
        has numbers to be read, as tables and tensors have; with a weight each, Weighted(rows, w).
      params: initial parameters, e.g. of `model.init_from`, whose coordinates are not trained;
        drawn by `model.init` when None.
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
    check_rule(estimator, tx, preprocess)
    data = _border.tree("data", data)
    _checks.leading_axis("data", data)
    rows, weights = _checks.split_weights("data", data)
    run_key, params_key, data_key, estimator_key = jax.random.split(rng_key, 4)
    if (trained := getattr(estimator, "model", model)) != model:
        raise ValueError(f"estimator: expected one of {model}, got one of {trained}")
    check_rows(preprocess, rows)
    x = rows if preprocess is None else preprocess(data_key, rows)
    name = "data" if preprocess is None else "preprocess(data)"
    check_events(estimator, model, preprocess, rows, lambda: x)
    check_spread(name, model.visible, x)
    events = x if weights is None else Weighted(x, weights)
    if params is None:
        params = model.init(params_key)
    else:
        params = _border.tree("params", params)
        _checks.floating_params("params", params)
        model.check_params(params)
        refuse_settings(model, params)
        params = jax.tree.map(jnp.asarray, params)
    propriety.require_proper(model, params)
    trained, _ = split_coordinates(params)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(trained),
        estimator_state=estimator.init(estimator_key, params, events),
        average=params if average else None,
        rng_key=run_key,
    )
    _optimizers.check_needs(
        tx,
        trained,
        state.opt_state,
        lambda: _update(estimator, tx, state, run_key, events, jnp.ones(()), jnp.zeros(())),
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
      FloatingPointError: if a gradient or parameter is not finite; names leaf and step. The state
        passed in is untouched, so the caller still holds the last good one.
    """
    check_rule(estimator, tx, preprocess)
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
    rows, _ = _checks.split_weights("data", data)
    check_rows(preprocess, rows)
    if hasattr(estimator, "model"):
        model, key = estimator.model, state.rng_key
        if preprocess is None:
            check_events(estimator, model, None, rows, lambda: rows)
        elif is_unchecked(estimator, preprocess) and is_on_device(rows):
            check_events(estimator, model, preprocess, rows, lambda: preprocess(key, rows))
    new_state, metrics, finite = _train_steps(
        estimator, tx, state, data, batch_size, num_steps, preprocess, average_decay
    )
    if _checks.is_concrete(finite):
        require_finite(state, np.asarray(finite))
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
    average_decay: Array,
) -> tuple[TrainState, Metrics, Array]:
    _optimizers.check_state(tx, split_coordinates(state.params)[0], state.opt_state)
    mean_weight = jnp.mean(data.weights) if isinstance(data, Weighted) else jnp.ones(())
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
        if preprocess is not None and isinstance(batch, Weighted):
            batch = batch._replace(x=preprocess(preprocess_key, batch.x))
        elif preprocess is not None:
            batch = preprocess(preprocess_key, batch)
        state, metrics, finite = _update(
            estimator, tx, state, grad_key, batch, mean_weight, average_decay
        )
        if is_unchecked(estimator, preprocess):
            finite = jnp.concatenate([are_finite(batch).all()[None], finite])
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
    mean_weight: Array,
    average_decay: Array,
) -> tuple[TrainState, Metrics, Array]:
    old, coordinates = split_coordinates(state.params)
    settings = {"coordinates": coordinates} if coordinates else {}
    grads, estimator_state, info = estimator.grad(
        rng_key, state.params, state.estimator_state, batch
    )
    grads, _ = split_coordinates(grads)
    if isinstance(batch, Weighted):
        # Estimators divide by the weights of their batch, of which the mean varies.
        share = jnp.mean(batch.weights) / mean_weight
        grads = jax.tree.map(lambda g: share * g, grads)
    # Data in a wider dtype must not change the dtype of the optimizer's state.
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, old)

    def loss(params: Params) -> Array:
        params = params | settings
        return estimator.grad(rng_key, params, state.estimator_state, batch)[2].loss

    updates, opt_state = _optimizers.update(tx, grads, state.opt_state, old, info, loss)
    params = optax.apply_updates(old, updates)
    step = state.step + 1
    average = state.average
    if average is not None:
        # A fixed decay would remember the initial parameters for 1 / (1 - decay) steps.
        decay = jnp.minimum(average_decay, (1 + step) / (10 + step))
        average = settings | jax.tree.map(
            lambda a, p: (decay * a + (1 - decay) * p).astype(a.dtype),
            split_coordinates(average)[0],
            params,
        )
    finite = are_finite((grads, params))
    params = params | settings
    state = TrainState(step, params, opt_state, estimator_state, average, state.rng_key)
    return state, Metrics(info, optax.tree.norm(grads)), finite
