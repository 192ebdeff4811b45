"""Supervised training of a network: epochs of Adam, the best one kept by a validation set.

One rule for every network that the studies compare. The learning rate falls to zero along a
cosine, and of all epochs the one with the fewest errors on the validation set is kept, ties broken
by its cross-entropy. `Trainer.epoch` trains one network; `vmap` it over states for many.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.lab.rbm_recipe import held_then_lowered
from poejax import datasets, nn, training
from poejax.estimators import from_loss
from poejax.types import Array

NUM_CLASSES = 10
Graph = nnx.GraphDef[nn.Classifier]
Augment = Callable[[Array, Array], Array]


class Examples(NamedTuple):
    """Intensities [N, D], uint8, and classes [N]."""

    images: Array
    labels: Array


class Fit(NamedTuple):
    """A network in training.

    state: its variables, Adam's moments, their moving average.
    best: what gets evaluated (the average, if there is one) after the epoch of least `score`.
    score: number of validation errors, plus the cross-entropy squeezed into [0, 1).
    """

    state: training.TrainState
    best: Any
    score: Array
    best_epoch: Array


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The loss of a network over a batch of examples, in nats."""

    graph: Graph
    augment: Augment | None

    def __call__(self, rng_key: Array, params: Any, batch: Examples) -> Array:
        """Return the mean of -log p(label | image), []; dropout and `augment` draw by the key."""
        augment_key, dropout_key = jax.random.split(rng_key)
        images = batch.images
        x = self.augment(augment_key, images) if self.augment else scaled(images)
        logits = nnx.merge(self.graph, params)(x, dropout_key)
        return mean_cross_entropy(logits, batch.labels)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """How a network is trained."""

    graph: Graph
    """The network's graph."""
    num_epochs: int
    """Passes over the rows; the cosine ends with the last."""
    batch_size: int
    """Rows per update, at most their number."""
    average_decay: float = 0.0
    """Of the moving average; early on (1 + t) / (10 + t) where that is smaller."""
    augment: Augment | None = None
    """`(rng_key, intensities) -> inputs` of a training batch; divided by 255 when None."""

    def run(self, num_rows: int) -> training.Run:
        """Return the run; its learning rate is a leaf of its state, which vmap may vary."""
        num_steps = self.num_epochs * (num_rows // self.batch_size)
        tx = optax.chain(
            optax.scale_by_adam(),
            optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, num_steps)),
            optax.inject_hyperparams(optax.scale)(step_size=-1.0),
        )
        return training.Run(
            from_loss(CrossEntropy(self.graph, self.augment)),
            tx,
            self.batch_size,
            average=self.average_decay > 0,
            average_decay=self.average_decay,
        )

    def start(self, rng_key: Array, params: Any, rate: Array | float, train: Examples) -> Fit:
        """Return the state before the first epoch, at a learning rate."""
        state = self.run(len(train.labels)).init(rng_key, train, params)
        *others, last = state.opt_state
        last = last._replace(hyperparams={"step_size": -jnp.asarray(rate, jnp.float32)})
        state = state._replace(opt_state=(*others, last))
        score = jnp.asarray(jnp.inf, jnp.float32)
        return Fit(state, state.params, score, jnp.zeros((), jnp.int32))

    def epoch(self, fit: Fit, train: Examples, validation: Examples) -> tuple[Fit, Array]:
        """Take one epoch and validate; returns `(fit, loss)`, the epoch's mean loss in nats."""
        num_steps = len(train.labels) // self.batch_size
        state, metrics = self.run(len(train.labels)).steps(fit.state, train, num_steps)
        params = state.params if state.average is None else state.average
        score = _score(self.graph, params, validation)
        better = score < fit.score
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, fit.best)
        best_epoch = jnp.where(better, state.step // num_steps - 1, fit.best_epoch)
        fit = Fit(state, best, jnp.minimum(score, fit.score), best_epoch)
        return fit, metrics.info.loss.mean()


@functools.partial(jax.jit, static_argnames="graph")
def _score(graph: Graph, params: Any, examples: Examples) -> Array:
    logits = nnx.merge(graph, params)(scaled(examples.images))
    entropy = mean_cross_entropy(logits, examples.labels)
    return jnp.sum(jnp.argmax(logits, axis=-1) != examples.labels) + entropy / (1 + entropy)


def splits(data: datasets.Dataset) -> dict[str, Examples]:
    """Put training, validation and test set on the device."""
    named = {"train": data.train, "validation": data.validation, "test": data.test}
    return {n: Examples(jnp.asarray(s.images), jnp.asarray(s.labels)) for n, s in named.items()}


def scaled(images: Array) -> Array:
    """Return intensities as float32 in [0, 1]."""
    return jnp.asarray(images, jnp.float32) / 255


def decayed(learning_rate: float, num_steps: int) -> optax.Schedule:
    """Half the steps at the full rate, then linearly to a hundredth of it."""
    return held_then_lowered(learning_rate, num_steps, held=0.5, last=0.01)


def mean_cross_entropy(logits: Array, labels: Array) -> Array:
    """Return the mean of -log p(label) in nats, []."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def error_rate(graph: Graph, params: Any, data: Examples) -> Array:
    """Return the share of wrong classes in [0, 1], []."""
    logits = nnx.merge(graph, params)(scaled(data.images))
    return jnp.mean(jnp.argmax(logits, axis=-1) != data.labels)
