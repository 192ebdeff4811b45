"""Greedy stacks of RBMs, each learned on the features of the one below: deep belief networks."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poejax import _border, _checks, _optimizers, inference, models, training
from poejax._numerics import as_float, at_least_float32
from poejax._product import Product
from poejax.types import Array, Estimator, Params

__all__ = [
    "Layer",
    "draw_bits",
    "features",
    "fit_greedy",
]

Layer = tuple[Product, Params]
"""An RBM of a stack and its parameters."""


def fit_greedy(
    rng_key: Array,
    probabilities: Array,
    num_hidden: Sequence[int],
    make_estimator: Callable[[Product], Estimator],
    tx: optax.GradientTransformation,
    batch_size: int,
    num_steps: int,
    on_layer: Callable[[int, training.TrainState], None] | None = None,
    below: Sequence[Layer] = (),
) -> list[Layer]:
    """Learn a stack of binary RBMs, layer by layer.

    Layer l + 1 learns from the probabilities E[z_l | x] of layer l, drawn anew for every batch.

    Args:
      rng_key: one typed key.
      probabilities: batch [N, D] in [0, 1], e.g. pixel intensities / 255; binary data are as good.
      num_hidden: hidden units of each layer, bottom first, those of `below` included.
      make_estimator: builds each layer's estimator, e.g. `lambda model: pcd(model, 100)`.
      tx: optimizer of each layer.
      batch_size: rows per update, at most N.
      num_steps: updates per layer.
      on_layer: called with the layer's number and final state, for progress and checkpoints.
      below: lowest layers that were learned before; with the same key and options, going on above
        them gives bitwise the stack of one call.

    Returns:
      `[(model, params), ...]`, bottom first; `nn.Classifier.from_stack` and `features` take it.

    Raises:
      ValueError: if the data are empty, no probabilities or no [N, D], no layer is asked for, or
        `below` has other sizes.
      FloatingPointError: if training diverges.

    Source: Hinton, Osindero & Teh (2006), A fast learning algorithm for deep belief nets.
    """
    _checks.rng_key("rng_key", rng_key)
    if np.ndim(num_hidden) != 1 or not len(num_hidden):
        raise ValueError(f"num_hidden: expected a size for every layer, got {num_hidden!r}")
    num_hidden = [_checks.positive_int("num_hidden", n) for n in np.asarray(num_hidden).tolist()]
    probabilities = _border.array("probabilities", probabilities)
    _checks.leading_axis("probabilities", probabilities)
    if probabilities.ndim != 2:
        raise ValueError(f"probabilities: expected shape (N, D), got {probabilities.shape}")
    _check_probabilities("probabilities", probabilities)
    if not callable(make_estimator):
        raise TypeError(
            "make_estimator: expected a function from a product to its estimator, got "
            f"{_checks.describe(make_estimator)}"
        )
    _optimizers.check(tx)
    x = jnp.asarray(probabilities, jnp.result_type(float))
    stack = list(below)
    sizes, wanted = (
        [_sizes(layer) for layer in stack],
        itertools.pairwise([x.shape[1], *num_hidden]),
    )
    if sizes != list(wanted)[: len(stack)] or len(stack) > len(num_hidden):
        raise ValueError(
            f"below: expected the first layers of sizes {x.shape[1]}, {list(num_hidden)}, "
            f"got {sizes}"
        )
    x = features(stack, x)
    for number, size in enumerate(num_hidden):
        if number < len(stack):
            continue
        model = models.rbm(x.shape[1], size)
        run = training.Run(make_estimator(model), tx, batch_size, preprocess=draw_bits)
        start_key = jax.random.fold_in(rng_key, 2 * number)
        params = model.init_from(start_key, draw_bits(jax.random.fold_in(start_key, 2), x))
        key = jax.random.fold_in(rng_key, 2 * number + 1)
        state, _ = run.steps(run.init(key, x, params), x, num_steps)
        if on_layer is not None:
            on_layer(number, state)
        stack.append((model, state.params))
        x = features([stack[-1]], x)
    return stack


def features(stack: Sequence[Layer], x: Array) -> Array:
    """Return the features [N, H] of a batch [N, D] after all layers, means fed upwards.

    φ_l = E[z_l | φ_{l-1}], φ_0 = x
    """
    x = _border.array("x", x)
    if stack and x.shape[1:] != (event := stack[0][0].visible.event_shape):
        raise ValueError(f"x: expected shape (N, {', '.join(map(str, event))}), got {x.shape}")
    for model, params in stack:
        x = _layer_features(model, params, x)
    return x


def _is_probability(v: Array) -> Array:
    return (v >= 0) & (v <= 1)


def _check_probabilities(name: str, rows: Array) -> None:
    if _border.is_abstract(rows):
        return
    if (place := _border.first_failure(rows, _is_probability)) is not None:
        raise ValueError(
            f"{name}: expected values in [0, 1], e.g. pixels / 255, got "
            f"{_border.entry(rows, place)}{_border.where(place)}"
        )


@_border.with_check(_check_probabilities)
def draw_bits(rng_key: Array, probabilities: Array) -> Array:
    """Draw {0, 1} with the given probabilities; a `preprocess` for `training`."""
    p = at_least_float32(as_float(probabilities))
    return jax.random.bernoulli(rng_key, p).astype(probabilities.dtype)


def _sizes(layer: Layer) -> tuple[int, int]:
    (num_visible, num_hidden) = jnp.shape(layer[1]["hidden"]["w"])
    return num_visible, num_hidden


@functools.partial(jax.jit, static_argnames="model")
def _layer_features(model: Product, params: Params, x: Array) -> Array:
    return jax.vmap(lambda event: inference.features(model, params, event))(x)
