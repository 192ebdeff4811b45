"""Supervised training of a network: epochs of Adam, the best one kept by a validation set.

One rule for every network that the studies compare. The learning rate falls to zero along a
cosine, and of all epochs the one with the fewest errors on the validation set is kept, ties broken
by its cross-entropy. `fit_epoch` trains one network; `vmap` or `lax.map` it over states for many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from poejax import nn
from poejax.types import Array

Graph = nnx.GraphDef[nn.Classifier]
Augment = Callable[[Array, Array], Array]


class Examples(NamedTuple):
    """Intensities [N, D], uint8, and classes [N]."""

    images: Array
    labels: Array


class Fit(NamedTuple):
    """A network in training.

    params: the network's variables; average: their moving average, which is what gets evaluated.
    best: the average after the epoch with the least `score` so far.
    score: number of validation errors, plus the cross-entropy squeezed into [0, 1).
    """

    params: Any
    opt_state: optax.OptState
    average: Any
    best: Any
    score: Array
    best_epoch: Array


@dataclasses.dataclass(frozen=True)
class Options:
    """How a network is trained."""

    num_epochs: int
    """Passes over the rows; the cosine ends with the last."""
    batch_size: int
    """Rows per update, at most their number."""
    average_decay: float = 0.0
    """Of the moving average; early on (1 + t) / (10 + t) where that is smaller."""
    augment: Augment | None = None
    """`(rng_key, intensities) -> inputs` of a training batch; divided by 255 when None."""


_ADAM = optax.scale_by_adam()


def scaled(images: Array) -> Array:
    """Return intensities as float32 in [0, 1]."""
    return jnp.asarray(images, jnp.float32) / 255


def start(params: Any) -> Fit:
    """Return the state before the first epoch."""
    score = jnp.asarray(jnp.inf, jnp.float32)
    return Fit(params, _ADAM.init(params), params, params, score, jnp.zeros((), jnp.int32))


def fit_epoch(
    rng_key: Array,
    graph: Graph,
    options: Options,
    fit: Fit,
    epoch: Array | int,
    learning_rate: Array | float,
    train: Examples,
    rows: Array,
    validation: Examples,
) -> tuple[Fit, Array]:
    """Take one epoch and validate.

    Args:
      rng_key: one typed key, of the run; the epoch's is folded out of it.
      graph: the network's graph.
      options: how it is trained.
      fit: the state.
      epoch: number of the epoch, from 0.
      learning_rate: of the first step.
      train: examples that many networks share.
      rows: those that this network learns from, [n].
      validation: examples to choose the epoch by.

    Returns:
      `(fit, loss)`, with the mean training loss of the epoch in nats.
    """
    order_key, step_key = jax.random.split(jax.random.fold_in(rng_key, epoch))
    num_rows = rows.shape[0]
    num_steps = num_rows // options.batch_size
    order = jax.random.permutation(order_key, rows)[: num_steps * options.batch_size]

    def step(carry: tuple[Any, Any, Any], inputs: tuple[Array, Array]) -> Any:
        params, opt_state, average = carry
        index, chosen = inputs
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(step_key, index))
        images = train.images[chosen]
        x = options.augment(augment_key, images) if options.augment else scaled(images)

        def loss(params: Any) -> Array:
            logits = nnx.merge(graph, params)(x, dropout_key)
            return mean_cross_entropy(logits, train.labels[chosen])

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = _ADAM.update(grads, opt_state)
        taken = epoch * num_steps + index
        fraction = taken / (options.num_epochs * num_steps)
        rate = learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * fraction))
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        if averaged:
            decay = jnp.minimum(options.average_decay, (1 + taken) / (10 + taken))
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return (params, opt_state, average), value

    averaged = options.average_decay > 0
    carry = (fit.params, fit.opt_state, fit.average if averaged else None)
    batches = jnp.arange(num_steps), order.reshape(num_steps, options.batch_size)
    (params, opt_state, average), losses = jax.lax.scan(step, carry, batches)
    average = average if averaged else params
    logits = nnx.merge(graph, average)(scaled(validation.images))
    entropy = mean_cross_entropy(logits, validation.labels)
    score = jnp.sum(jnp.argmax(logits, axis=-1) != validation.labels) + entropy / (1 + entropy)
    better = score < fit.score
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), average, fit.best)
    score, best_epoch = jnp.minimum(score, fit.score), jnp.where(better, epoch, fit.best_epoch)
    fit = Fit(params, opt_state, average, best, score, best_epoch.astype(jnp.int32))
    return fit, losses.mean()


def mean_cross_entropy(logits: Array, labels: Array) -> Array:
    """Return the mean of -log p(label) in nats, []."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def error_rate(graph: Graph, params: Any, examples: Examples) -> Array:
    """Return the share of wrong classes in [0, 1], []."""
    logits = nnx.merge(graph, params)(scaled(examples.images))
    return jnp.mean(jnp.argmax(logits, axis=-1) != examples.labels)
