"""The training loop: n steps as one scan, over data on the device or chunks of a stream."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, overload

import jax
import jax.numpy as jnp
import optax

from poejax import _border, _by_value, _checks, _rollback, _run_checks, _run_start, _run_steps
from poejax import _run_streams as _streams
from poejax._product import Product
from poejax._rollback import Rollback as Rollback
from poejax._run_steps import Metrics as Metrics
from poejax._run_steps import TrainState as TrainState
from poejax.types import Array, Estimator, Event, Params, PyTree

__all__ = [
    "Callback",
    "Metrics",
    "Preprocess",
    "Rollback",
    "Run",
    "TrainState",
    "init",
    "train_steps",
    "weights_only",
]

Preprocess = Callable[[Array, PyTree], Event]
"""`(rng_key, rows) -> events`: how stored rows become events, e.g. `datasets.stochastic`.

One that has an attribute `check(name, rows)` has that called with the data, all rows of it, before
anything compiles: to refuse what it would turn into events without a word, as intensities that are
not scaled. Of others the events are checked: all of them once, and then whether they are finite.
"""

Callback = Callable[[TrainState, Metrics], object]
"""`(state, metrics)` after each chunk of steps: for bars, logs and checkpoints."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """All that a training run is but its key and its data.

        run = Run(pcd(model, 100), optax.adam(1e-3), batch_size=100)
        state = run.init(rng_key, data)
        state, metrics = run.steps(state, data, 1000)

    Equal by value and hashable: optimizers, schedules and functions count as what they were built
    of (`optax.adam(1e-3)` is any other), so that a run built anew compiles nothing.

    estimator: where gradients come from.
    optimizer: of optax; gradients are of a loss to minimise. One that needs the loss itself
      (`value`, `grad`, `value_fn`: reduce_on_plateau, polyak_sgd, lbfgs) gets it from estimators
      whose info is a LossInfo.
    batch_size: rows per update.
    preprocess: `(rng_key, rows) -> events`, e.g. `datasets.stochastic`, drawn anew every time.
    average: whether to keep a moving average of the parameters.
    average_decay: d of average ← d·average + (1-d)·params, in [0, 1); early on (1+t)/(10+t) where
      that is smaller.
    model: the product that is learned, the estimator's when None; an estimator without one learns
      whatever parameters `init` is given, e.g. those of a network.
    rollback: to go on from the last good point, by smaller steps for a while, where something is
      not finite or the estimator's info has a true `is_rejected`, as that of `estimators.ptt` may;
      None to raise and to reject nothing.
    """

    estimator: Estimator
    optimizer: optax.GradientTransformation
    batch_size: int
    _: dataclasses.KW_ONLY
    preprocess: Preprocess | None = None
    average: bool = False
    average_decay: float = 0.999
    model: Product | None = None
    rollback: Rollback | None = None

    def __post_init__(self) -> None:
        """Refuse what is none of these, and fill in the model."""
        _run_checks.check_rule(self.estimator, self.optimizer, self.preprocess)
        _checks.positive_int("batch_size", self.batch_size)
        _checks.fraction("average_decay", self.average_decay)
        if not isinstance(self.rollback, Rollback | None):
            raise TypeError(
                f"rollback: expected a Rollback or None, got {_checks.describe(self.rollback)}"
            )
        model, learned = self.model, _checks.learned_model(self.estimator)
        if model is None:
            object.__setattr__(self, "model", learned)
            return
        _checks.model("model", model)
        if learned not in (None, model):
            raise ValueError(f"estimator: expected one of {model}, got one of {learned}")

    @functools.cached_property
    def _value(self) -> tuple[Hashable, ...]:
        return tuple(_by_value.of(getattr(self, f.name)) for f in dataclasses.fields(self))

    @functools.cached_property
    def _program(self) -> Run:
        # Weight and number of averages are no part of what is compiled.
        return dataclasses.replace(self, average=False, average_decay=0.0)

    def __eq__(self, other: object) -> bool:
        """Whether the two do the same."""
        return isinstance(other, Run) and self._value == other._value

    def __hash__(self) -> int:
        """Hash what the run does."""
        return hash(self._value)

    def init(self, rng_key: Array, data: PyTree, params: Params | None = None) -> TrainState:
        """Start on a batch of rows `data` [N, ...].

        Args:
          rng_key: one typed key; the run is a function of it.
          data: events, or rows that `preprocess` turns into events, once, for the estimator's
            start; arrays of JAX or NumPy, or whatever has numbers to be read, as tables and tensors
            have; or `streams.Rows`, of which a random sample is looked at: 8,192 rows, fewer if
            they take more than 64 MiB, or all rows if there are no more.
          params: initial parameters; drawn by `model.init` when None.

        Returns:
          TrainState at step 0.

        Raises:
          ValueError: if the data are empty, no events of the model's visible units, or constant in
            a column of real units, whose precision would grow for ever; if the parameters are known
            to give no normalisable model; or if there are none, and no model to draw them.
          TypeError: if an argument is of another kind, or the optimizer needs what the estimator
            does not have.

        Warns:
          UserWarning: if there are no `params`, and real columns lie far from the standard normal
            that `model.init` starts at: take `model.init_from`.
        """
        state = _streams.on_sample(
            rng_key, data, lambda data: _run_start.start(self, rng_key, data, params)
        )
        return self._with_rollback(state)

    def _with_rollback(self, state: TrainState) -> TrainState:
        """Return the state as this run needs it: a run may be resumed with or without rollback."""
        if (self.rollback is None) == (state.rollback is None):
            return state
        began = None if self.rollback is None else _rollback.start(state)
        return state._replace(rollback=began)

    def steps(
        self,
        state: TrainState,
        data: PyTree,
        num_steps: int,
        callback: Callback | None = None,
        every: int | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Take `num_steps` updates on batches of rows of `data` [N, ...], by scans on the device.

        Epochs are of N // batch_size steps; the order of the rows is a function of the run's key
        and the epoch's number, what a step draws one of the key and the step's number. So 3 steps
        and 3 more are the 6 steps, bitwise. Inside `jax.shard_map` each device learns by its own
        rows; to learn one model by all of them let the optimizer take `jax.lax.pmean` of gradients.

        Args:
          state: the run so far; it is not consumed.
          data: rows as given to `init`; e.g. uint8 intensities, with `preprocess`. `streams.Rows`
            are read and looked at a chunk ahead of the steps.
          num_steps: number of updates.
          callback: called after every chunk with its state and metrics.
          every: updates of a chunk, all of them when None. A last one that is shorter is a second
            program to compile.

        Returns:
          `(state, metrics)`.

        Raises:
          ValueError: if `data` is empty or smaller than a batch, or any row is no event of the
            visible units; what is an array of JAX is looked at once, others in every chunk.
          TypeError: if an argument is of another kind.
          FloatingPointError: if a gradient or parameter is not finite, or a precision runs away;
            names leaf and step. The last good state is the one passed in, or to `callback`. With
            rollback, if more updates than its limit were taken back.
        """
        _checks.positive_int("num_steps", num_steps)
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: expected a function, got {_checks.describe(callback)}")
        if self.average and getattr(state, "average", ()) is None:
            raise ValueError("state: expected one with an average, of a run with average=True")
        size = num_steps if every is None else _checks.positive_int("every", every)
        seen = []
        with _streams.Reader(self, data, num_steps, size) as data:
            for taken in range(0, num_steps, size):
                state, metrics = self._chunk(state, data, min(size, num_steps - taken))
                seen.append(metrics)
                if callback is not None:
                    callback(state, metrics)
        if len(seen) == 1:
            return state, seen[0]
        return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), *seen)

    def _chunk(self, state: TrainState, data: PyTree, num_steps: int) -> tuple[TrainState, Metrics]:
        if not isinstance(state, TrainState):
            raise TypeError(
                f"state: expected a TrainState of training.init, got {_checks.describe(state)}"
            )
        average_weight = 1 - self.average_decay
        state = self._with_rollback(state)
        if isinstance(data, _streams.Reader):
            return data.take(self._program, state, num_steps, average_weight)
        data = _checks.with_relative_weights(_border.tree("data", data))
        num_rows = _checks.leading_axis("data", data)
        if self.batch_size > num_rows:
            raise ValueError(
                f"batch_size: expected at most {num_rows} rows of data, got {self.batch_size}"
            )
        preprocess = self.preprocess
        _run_checks.check_rows(preprocess, data)
        # To preprocess all rows in every call would cost too much, and on a device it is once.
        if preprocess is None or (
            _run_checks.is_unchecked(self.estimator, preprocess) and _border.is_on_device(data)
        ):
            _run_checks.check_events(
                self.estimator,
                self.model,
                preprocess,
                data,
                lambda: _run_checks.preprocessed(preprocess, state.rng_key, data),
            )
        return _run_steps.take(self._program, state, data, num_steps, average_weight)


@overload
def init(
    rng_key: Array,
    estimator: Estimator,
    tx: optax.GradientTransformation,
    data: PyTree,
    /,
    *,
    params: Params | None = None,
    preprocess: Preprocess | None = None,
    average: bool = False,
) -> TrainState: ...


@overload
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
) -> TrainState: ...


def init(
    rng_key: Array,
    *args: Any,
    params: Params | None = None,
    preprocess: Preprocess | None = None,
    average: bool = False,
    **named: Any,
) -> TrainState:
    """Start a run: `Run(estimator, tx, ...).init(rng_key, data, params)`, which see.

    `init(rng_key, estimator, tx, data)` learns the estimator's model;
    `init(rng_key, model, estimator, tx, data)` names it again.
    """
    _checks.rng_key("rng_key", rng_key)
    names = ("model", "estimator", "tx", "data")[len(args) + len(named) < 4 :]
    given = dict(zip(names, args, strict=False)) | named
    if set(given) != set(names) or len(args) + len(named) != len(names):
        raise TypeError(
            "init: expected (rng_key, estimator, tx, data) or (rng_key, model, estimator, tx, "
            f"data), got {len(args)} arguments beside the key, and by name {sorted(named)}"
        )
    if "model" in given:
        _checks.model("model", given["model"])
    run = Run(
        given["estimator"],
        given["tx"],
        1,
        preprocess=preprocess,
        average=average,
        model=given.get("model"),
    )
    return run.init(rng_key, given["data"], params)


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
    """Take updates: `Run(estimator, tx, batch_size, ...).steps(state, data, num_steps)`, which see.

    `average_decay` is used if `init` was told to keep an average.
    """
    run = Run(estimator, tx, batch_size, preprocess=preprocess, average_decay=average_decay)
    return run.steps(state, data, num_steps)


def weights_only(params: Params) -> Params:
    """Mask that is True for weight matrices ("w") and False for biases and fields.

    For `optax.add_decayed_weights(rate, mask=weights_only)` or `optax.adamw(..., mask=...)`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "w", params
    )
