"""The ways to classify with an RBM that the study compares, and what they depend on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import poejax as pj
from experiments.lab import logistic, runs, supervised
from experiments.lab.rbm_recipe import make_model
from experiments.lab.supervised import NUM_CLASSES, Examples, decayed
from poejax import datasets, nn, stacks, training
from poejax.types import Array, Event, Params

Arm = Literal["features", "fine-tuned", "random-start", "generative", "discriminative", "hybrid"]
ARMS: tuple[Arm, ...] = (
    "features", "fine-tuned", "random-start", "generative", "discriminative", "hybrid",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything the study depends on, with its data."""

    num_validation: int = 5_000
    """Training digits of mnist held out; the other data sets have splits of their own."""
    arms: tuple[Arm, ...] = ARMS  # Which arms to run.
    num_seeds: int = 3  # Seeds 0, 1, ... of every arm.
    batch_size: int = 100  # Examples per update, everywhere.
    num_hidden: int = 1_000  # Hidden units of the RBM, and of the networks.
    rbm_epochs: int = 60  # Passes over the training images, without labels.
    rbm_rate: float = 0.5  # Learning rate of the RBM.
    penalties: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    """L2 penalties that logistic regression chooses from."""
    regression_steps: int = 60  # Steps of L-BFGS per penalty.
    network_epochs: int = 60  # Passes over the training set of either network.
    network_rate: float = 3e-3  # Learning rate of Adam, lowered to zero along a cosine.
    dropout: float = 0.2  # Probability that a hidden unit is dropped.
    input_dropout: float = 0.1  # Probability that a pixel is dropped.
    joint_hidden: int = 1_000  # Hidden units of the classification RBM.
    joint_epochs: int = 60  # Passes over the training set of the classification RBM.
    generative_rate: float = 0.1
    """Learning rate of the purely generative rule, by centred gradients."""
    discriminative_rate: float = 2e-3  # Learning rate of Adam for the other two.
    generative_weight: float = 0.01
    """Weight of -log p(x, y) beside -log p(y | x) in the hybrid rule."""
    num_chains: int = 100  # Persistent chains of the generative term.
    resume: bool = False  # Go on with the study in workdir; more arms and seeds may be asked for.

    bounds: ClassVar = {"dropout": (0, 1), "input_dropout": (0, 1)}


Report = Callable[[dict[str, str]], None]
"""Called after each epoch with live figures."""


def train_rbm(config: Config, rng_key: Array, images: Array, report: Report) -> nn.Layer:
    """Train an RBM on uint8 images [N, D] by centred CD-1, bits drawn anew for every batch."""
    num_rows, num_visible = images.shape
    model = pj.models.rbm(num_visible, config.num_hidden)
    per_epoch = num_rows // config.batch_size
    num_steps = config.rbm_epochs * per_epoch
    run = training.Run(
        pj.estimators.centered(pj.estimators.cd(model)),
        optax.sgd(decayed(config.rbm_rate, num_steps)),
        config.batch_size,
        preprocess=datasets.stochastic,
        average=True,
    )
    params_key, train_key = jax.random.split(rng_key)
    params = model.init_from(params_key, datasets.stochastic(params_key, images))

    def show(state: training.TrainState, metrics: training.Metrics) -> None:
        report({"|grad|": f"{float(metrics.grad_norm.mean()):.2f}"})

    state = run.init(train_key, images, params)
    state, _ = run.steps(state, images, num_steps, show, per_epoch)
    assert state.average is not None
    return model, state.average


def regress_on_features(
    config: Config, layer: nn.Layer, data: dict[str, Examples], report: Report
) -> dict[str, float]:
    """Multinomial logistic regression on the frozen, standardised features of an RBM.

    The penalty, penalty / 2 · |w|², is the one with the fewest errors on the validation split; each
    starts where the larger one before it ended.
    """
    x = {
        name: np.asarray(stacks.features([layer], supervised.scaled(d.images)))
        for name, d in data.items()
    }
    mean, scale = x["train"].mean(axis=0), np.maximum(x["train"].std(axis=0), 1e-2)
    x = {name: (value - mean) / scale for name, value in x.items()}
    labels = {name: np.asarray(d.labels) for name, d in data.items()}
    best: dict[str, float] = {}
    path = logistic.path(x["train"], labels["train"], config.penalties, config.regression_steps)
    for penalty, model in path:
        found = {"penalty": penalty}
        for name in ("validation", "test"):
            found[f"{name}_error"] = float(np.mean(model.predict(x[name]) != labels[name]))
        if not best or found["validation_error"] < best["validation_error"]:
            best = found
        report({"validation error": f"{found['validation_error']:.2%}"})
    return best


def fine_tune(
    config: Config,
    rng_key: Array,
    layer: nn.Layer | None,
    data: dict[str, Examples],
    report: Report,
) -> dict[str, float]:
    """Train all of a network, which starts from an RBM or, if that is None, at random.

    The epoch with the fewest errors on the validation split is kept.
    """
    init_key, train_key = jax.random.split(rng_key)
    options: dict[str, Any] = {"rngs": nnx.Rngs(init_key), "dropout": config.dropout}
    if layer is not None:
        network = nn.Classifier.from_stack([layer], NUM_CLASSES, **options)
    else:
        sizes = (data["train"].images.shape[1], config.num_hidden)
        network = nn.Classifier(sizes, NUM_CLASSES, **options)
    graph, params = nnx.split(network)
    trainer = supervised.Trainer(
        graph,
        config.network_epochs,
        config.batch_size,
        average_decay=0.999,
        augment=NoisyBits(config.input_dropout),
    )
    fit = trainer.start(train_key, params, config.network_rate, data["train"])
    for _ in range(trainer.num_epochs):
        fit, loss = trainer.epoch(fit, data["train"], data["validation"])
        best = int(fit.score) / len(data["validation"].labels)
        report({"loss": f"{float(loss):.4f}", "validation error": f"{best:.2%}"})
    return {
        "validation_error": float(supervised.error_rate(graph, fit.best, data["validation"])),
        "test_error": float(supervised.error_rate(graph, fit.best, data["test"])),
        "epoch": int(fit.best_epoch) + 1,
    }


@dataclasses.dataclass(frozen=True)
class NoisyBits:
    """Inputs of a training batch: bits drawn from the intensities, some set to 0."""

    dropped: float
    """Probability that a pixel is set to 0; the others are scaled to keep the mean."""

    def __call__(self, rng_key: Array, images: Array) -> Array:
        """Draw inputs [B, D] for uint8 images [B, D]."""
        bits_key, keep_key = jax.random.split(rng_key)
        bits = datasets.stochastic(bits_key, images)
        if not self.dropped:
            return bits
        keep = jax.random.bernoulli(keep_key, 1 - self.dropped, images.shape)
        return jnp.where(keep, bits / (1 - self.dropped), 0)


def train_classification_rbm(
    config: Config, rng_key: Array, arm: Arm, data: dict[str, Examples], report: Report
) -> dict[str, float]:
    """Train a joint model of images and labels; keep the epoch that validates best.

    Trained on bits, drawn anew for every batch. Images are classified by p(y | x) at their
    intensities, as Larochelle & Bengio (2008) did.
    """
    num_rows, num_pixels = data["train"].images.shape
    image, label = pj.units.Bernoulli(num_pixels), pj.units.Categorical(1, NUM_CLASSES)
    # p(image, label) ∝ exp(aᵀx + dᵀy) Π_j [1 + exp(w_jᵀx + u_jᵀy + b_j)]
    model = make_model(pj.units.Joint(image=image, label=label), config.joint_hidden)
    # -log p(y | x) and -log p(x, y), and their weights.
    terms: dict[str, tuple[pj.types.Estimator, float]] = {}
    if arm != "generative":
        terms["discriminative"] = pj.estimators.discriminative(model), 1.0
    if arm != "discriminative":
        weight = config.generative_weight if arm == "hybrid" else 1.0
        terms["generative"] = pj.estimators.pcd(model, config.num_chains), weight
    rule: pj.types.Estimator = pj.estimators.blend(model, **terms)
    make_tx, rate = optax.adam, config.discriminative_rate
    if arm == "generative":
        rule = pj.estimators.centered(rule)
        make_tx, rate = optax.sgd, config.generative_rate
    per_epoch = num_rows // config.batch_size
    num_steps = config.joint_epochs * per_epoch
    labels = jax.nn.one_hot(data["train"].labels, NUM_CLASSES)[:, None]
    rows = {"image": data["train"].images, "label": labels}
    params_key, train_key = jax.random.split(rng_key)
    params = model.init_from(params_key, draw_image(params_key, rows))
    tx = make_tx(decayed(rate, num_steps))
    run = training.Run(rule, tx, config.batch_size, preprocess=draw_image, average=True)
    best: dict[str, float] = {}

    def judge(state: training.TrainState, metrics: training.Metrics) -> None:
        error = float(joint_error_rate(model, state.average, data["validation"]))
        if not best or error < best["validation_error"]:
            test = float(joint_error_rate(model, state.average, data["test"]))
            epoch = int(state.step) // per_epoch
            best.update(validation_error=error, test_error=test, epoch=epoch)
        report({"validation error": f"{error:.2%}"})

    run.steps(run.init(train_key, rows, params), rows, num_steps, judge, per_epoch)
    return best


def draw_image(rng_key: Array, rows: dict[str, Array]) -> Event:
    """Draw the bits of the images; a `preprocess` for `training`."""
    return rows | {"image": datasets.stochastic(rng_key, rows["image"])}


@functools.partial(jax.jit, static_argnames="model")
def joint_error_rate(model: pj.Product, params: Params, data: Examples) -> Array:
    """Return the share of images whose likeliest label given the image is wrong, in [0, 1]."""

    def wrong(example: Examples) -> Array:
        x = {"image": supervised.scaled(example.images)}
        scores = pj.inference.class_log_probs(model, params, x)
        return jnp.argmax(scores) != example.labels

    return jax.lax.map(wrong, data, batch_size=min(500, len(data.labels))).mean()
