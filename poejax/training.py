"""The training loop: n steps as one scan, over data that stays on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poejax import _checks, propriety
from poejax._numerics import add
from poejax.product import Product
from poejax.types import Array, Estimator, Event, Params, PyTree
from poejax.units.base import at_least_float32

Preprocess = Callable[[Array, PyTree], Event]
"""`(rng_key, rows) -> events`: how stored rows become events, e.g. `datasets.stochastic`."""


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
      tx: any optax optimizer; gradients are of a loss to minimise.
      data: events, or rows that `preprocess` turns into events.
      params: initial parameters; drawn by `model.init` when None.
      preprocess: applied to `data` once, for the estimator's start.
      average: whether to keep a moving average of the parameters.

    Returns:
      TrainState at step 0.

    Raises:
      ValueError: if the data are empty, or no events of the model's visible units, or if the
        parameters are known to give no normalisable model.
    """
    _checks.rng_key("rng_key", rng_key)
    _checks.leading_axis("data", data)
    run_key, params_key, data_key, estimator_key = jax.random.split(rng_key, 4)
    x = data if preprocess is None else preprocess(data_key, data)
    if (trained := getattr(estimator, "model", model)) != model:
        raise ValueError(f"estimator: expected one of {model}, got one of {trained}")
    _check_data(estimator, model, "data" if preprocess is None else "preprocess(data)", x)
    if params is None:
        params = model.init(params_key)
    else:
        model.check_params(params)
        _refuse_settings(model, params)
        params = jax.tree.map(jnp.asarray, params)
    propriety.require_proper(model, params)
    start = jax.tree.map(at_least_float32, params) if average else None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        estimator_state=estimator.init(estimator_key, params, x),
        average=start,
        rng_key=run_key,
        average_rest=jax.tree.map(jnp.zeros_like, start),
    )


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
      ValueError: if `data` is empty or smaller than a batch.
      FloatingPointError: if a gradient or parameter is not finite; names leaf and step. The state
        passed in is untouched, so the caller still holds the last good one.
    """
    num_rows = _checks.leading_axis("data", data)
    _checks.positive_int("num_steps", num_steps)
    if _checks.positive_int("batch_size", batch_size) > num_rows:
        raise ValueError(f"batch_size: expected at most {num_rows} rows of data, got {batch_size}")
    _checks.fraction("average_decay", average_decay)
    if preprocess is None and hasattr(estimator, "model"):
        # One batch tells raw intensities or NaN from events, at no cost to speak of.
        first = jax.tree.map(lambda leaf: leaf[:batch_size], data)
        _check_data(estimator, estimator.model, "data", first)
    new_state, metrics, finite = _train_steps(
        estimator, tx, state, data, batch_size, num_steps, preprocess, 1 - average_decay
    )
    if _checks.is_concrete(finite):
        _require_finite(state, np.asarray(finite))
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
        if preprocess is not None:
            batch = preprocess(preprocess_key, batch)
        state, metrics, finite = _update(estimator, tx, state, grad_key, batch, average_weight)
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
) -> tuple[TrainState, Metrics, Array]:
    grads, estimator_state, info = estimator.grad(
        rng_key, state.params, state.estimator_state, batch
    )
    # Data in a wider dtype must not change the dtype of the optimizer's state.
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    average, rest = state.average, state.average_rest
    if average is not None:
        # A fixed weight would remember the initial parameters for 1 / weight steps.
        weight = jnp.maximum(average_weight, 9 / (10 + step))
        moved = jax.tree.map(
            lambda a, r, p: add(a, r, (weight * ((p - a) - r)).astype(a.dtype)),
            average,
            rest,
            params,
        )
        average, rest = jax.tree.transpose(jax.tree.structure(average), None, moved)
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, params))])
    state = TrainState(step, params, opt_state, estimator_state, average, state.rng_key, rest)
    return state, Metrics(info, optax.tree.norm(grads)), finite


def _refuse_settings(model: Product, params: Params) -> None:
    """Raise if `params` hold leaves that set a temperature or leave an expert out."""
    trained = jax.eval_shape(model.init, jax.random.key(0))
    if len(jax.tree.leaves(params)) != len(jax.tree.leaves(trained)):
        raise ValueError(
            "params: expected parameters as `model.init` gives them, got some with a leaf 'beta' "
            "or 'present', which the optimizer would change; temper or mask after training"
        )


def _check_data(estimator: Estimator, model: Product, name: str, x: PyTree) -> None:
    # Estimators whose data are more than events check them themselves.
    check = getattr(estimator, "check_data", model.visible.check)
    check(name, x)


def _require_finite(state: TrainState, finite: np.ndarray) -> None:
    if finite.all():
        return
    step, leaf = np.argwhere(~finite)[0]
    paths = jax.tree_util.tree_leaves_with_path({"gradient": state.params})
    paths += jax.tree_util.tree_leaves_with_path({"parameter": state.params})
    kind, *rest = paths[leaf][0]
    name = f"{kind.key} params{_checks.leaf_name(rest)}"
    raise FloatingPointError(
        f"{name} is not finite at step {int(state.step) + int(step) + 1}; the state passed in "
        f"(step {int(state.step)}) is the last good one. Try a smaller learning rate or gradient "
        "clipping."
    )
