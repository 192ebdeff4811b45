"""How a run starts: what it is given is looked at before anything compiles."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from poejax import _border, _checks, _optimizers, _run_checks, _run_steps, propriety
from poejax._numerics import widen
from poejax._run_steps import TrainState, join, split
from poejax._run_streams import Rule as _Rule
from poejax.types import Array, Params, PyTree


class Rule(_Rule, Protocol):
    """A run, with whether it keeps an average."""

    @property
    def average(self) -> bool: ...


def start(run: Rule, rng_key: Array, data: PyTree, params: Params | None) -> TrainState:
    """Return the state at step 0, once all that can be told of rule, data and params is checked."""
    _checks.rng_key("rng_key", rng_key)
    data = _checks.with_relative_weights(_border.tree("data", data))
    _checks.leading_axis("data", data)
    run_key, params_key, data_key, estimator_key = jax.random.split(rng_key, 4)
    model, preprocess = run.model, run.preprocess
    _run_checks.check_rows(preprocess, data)
    x = _run_checks.preprocessed(preprocess, data_key, data)
    _run_checks.check_events(run.estimator, model, preprocess, data, lambda: x)
    name = "data" if preprocess is None else "preprocess(data)"
    if model is not None:
        seen = _run_checks.learned(name, model.visible, x)
        model.visible.check_spread(*seen)
    is_given = params is not None
    if is_given:
        params = _border.tree("params", params)
    elif model is None:
        raise ValueError("params: expected some to start from, as the estimator has no model")
    else:
        _run_checks.warn_of_far(seen[0], model.visible, seen[1])
        params = model.init(params_key)
    if model is not None:
        propriety.require_proper(model, params)
        if is_given:
            _run_checks.check_settings(model, split(params)[0])
    params = jax.tree.map(jnp.asarray, params)
    trained = split(params)[0]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=run.optimizer.init(trained),
        estimator_state=run.estimator.init(estimator_key, params, x),
        average=join(widen(trained), params) if run.average else None,
        rng_key=run_key,
        average_rest=jax.tree.map(jnp.zeros_like, widen(trained)) if run.average else None,
    )
    _optimizers.check_needs(
        run.optimizer,
        trained,
        state.opt_state,
        lambda: _run_steps.update(run.estimator, run.optimizer, state, run_key, x, jnp.zeros(())),
    )
    return state
