"""The ways to classify with an RBM that `classification` compares, each a function of one seed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import poejax as pj
from experiments import supervised
from experiments.supervised import Examples
from poejax import datasets, nn, stacks, training
from poejax.types import Array, Event, Params

NUM_CLASSES = 10
Report = Callable[[dict[str, str]], None]
"""Called after each epoch with live figures."""


def examples(split: datasets.Split) -> Examples:
    """Put a split on the device."""
    return Examples(jnp.asarray(split.images), jnp.asarray(split.labels))


def decayed(learning_rate: float, num_steps: int) -> optax.Schedule:
    """Half the steps at the full rate, then linearly to a hundredth of it."""
    held = num_steps // 2
    decay = optax.linear_schedule(learning_rate, 0.01 * learning_rate, num_steps - held)
    return optax.join_schedules([optax.constant_schedule(learning_rate), decay], [held])


def train_rbm(
    rng_key: Array,
    images: Array,
    num_hidden: int,
    num_epochs: int,
    batch_size: int,
    learning_rate: float,
    report: Report,
) -> nn.Layer:
    """Train an RBM on uint8 images [N, D] by centred CD-1, bits drawn anew for every batch."""
    num_rows, num_visible = images.shape
    model = pj.models.rbm(num_visible, num_hidden)
    estimator = pj.estimators.centered(pj.estimators.cd(model), model)
    params_key, train_key = jax.random.split(rng_key)
    params = model.init_from(params_key, datasets.stochastic(params_key, images))
    num_steps = num_rows // batch_size
    tx = optax.sgd(decayed(learning_rate, num_epochs * num_steps))
    state = training.init(
        train_key,
        model,
        estimator,
        tx,
        images,
        params=params,
        preprocess=datasets.stochastic,
        average=True,
    )
    for _ in range(num_epochs):
        state, metrics = training.train_steps(
            estimator, tx, state, images, batch_size, num_steps, preprocess=datasets.stochastic
        )
        report({"|grad|": f"{float(metrics.grad_norm.mean()):.2f}"})
    assert state.average is not None
    return model, state.average


def regress_on_features(
    layer: nn.Layer,
    data: dict[str, Examples],
    penalties: tuple[float, ...],
    num_steps: int,
    report: Report,
) -> dict[str, float]:
    """Multinomial logistic regression on the frozen features of an RBM, by L-BFGS.

    Features are standardised. The penalty, penalty / 2 · |w|², is the one with the fewest errors on
    the validation split; each starts where the larger one before it ended.
    """
    x = {name: stacks.features([layer], supervised.scaled(d.images)) for name, d in data.items()}
    mean, scale = x["train"].mean(axis=0), jnp.maximum(x["train"].std(axis=0), 1e-2)
    x = {name: (value - mean) / scale for name, value in x.items()}
    params = {"w": jnp.zeros((mean.size, NUM_CLASSES)), "b": jnp.zeros(NUM_CLASSES)}
    best: dict[str, float] = {}
    for penalty in sorted(penalties, reverse=True):
        params = _logistic_regression(params, x["train"], data["train"].labels, penalty, num_steps)
        found = {"penalty": penalty}
        for name in ("validation", "test"):
            wrong = jnp.argmax(x[name] @ params["w"] + params["b"], axis=1) != data[name].labels
            found[f"{name}_error"] = float(wrong.mean())
        if not best or found["validation_error"] < best["validation_error"]:
            best = found
        report({"validation error": f"{found['validation_error']:.2%}"})
    return best


@functools.partial(jax.jit, static_argnames="num_steps")
def _logistic_regression(
    params: Params, x: Array, labels: Array, penalty: float, num_steps: int
) -> Params:
    tx = optax.lbfgs()

    def loss(params: Params) -> Array:
        entropy = supervised.mean_cross_entropy(x @ params["w"] + params["b"], labels)
        return entropy + 0.5 * penalty * jnp.sum(params["w"] ** 2)

    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], None]:
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=num_steps)
    return params


def fine_tune(
    rng_key: Array,
    network: nn.Classifier,
    data: dict[str, Examples],
    options: supervised.Options,
    learning_rate: float,
    report: Report,
) -> dict[str, float]:
    """Train all of a network, and keep the epoch with the fewest errors on the validation split."""
    graph, params = nnx.split(network)
    fit = supervised.start(params)
    rows = jnp.arange(len(data["train"].labels))
    for epoch in range(options.num_epochs):
        fit, loss = _fit_epoch(
            rng_key,
            graph,
            options,
            fit,
            epoch,
            learning_rate,
            data["train"],
            rows,
            data["validation"],
        )
        if not np.isfinite(float(loss)):
            raise FloatingPointError(f"training loss {loss} in epoch {epoch + 1}")
        best = int(fit.score) / len(data["validation"].labels)
        report({"loss": f"{float(loss):.4f}", "validation error": f"{best:.2%}"})
    return {
        "validation_error": float(supervised.error_rate(graph, fit.best, data["validation"])),
        "test_error": float(supervised.error_rate(graph, fit.best, data["test"])),
        "epoch": int(fit.best_epoch) + 1,
    }


_fit_epoch = jax.jit(supervised.fit_epoch, static_argnames=("graph", "options"))


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


def classification_rbm(num_pixels: int, num_hidden: int) -> pj.Product:
    """Build p(image, label) ∝ exp(aᵀx + dᵀy) Π_j [1 + exp(w_jᵀx + u_jᵀy + b_j)]."""
    visible = pj.units.Joint(
        image=pj.units.Bernoulli(num_pixels), label=pj.units.Categorical(1, NUM_CLASSES)
    )
    hidden = pj.experts.HiddenBank(visible, pj.units.Bernoulli(num_hidden))
    return pj.product(visible, bias=pj.experts.Bias(visible), hidden=hidden)


def label_rule(
    model: pj.Product, discriminative: float, generative: float, num_chains: int
) -> pj.types.Estimator:
    """Weigh -log p(y | x) against -log p(x, y), the latter by PCD; returns an estimator."""
    terms: dict[str, tuple[pj.types.Estimator, float]] = {
        "discriminative": (pj.estimators.discriminative(model), discriminative),
        "generative": (pj.estimators.pcd(model, num_chains), generative),
    }
    used = {name: term for name, term in terms.items() if term[1]}
    return pj.estimators.blend(model, **used)


def train_classification_rbm(
    rng_key: Array,
    model: pj.Product,
    estimator: pj.types.Estimator,
    make_tx: Callable[[optax.Schedule], optax.GradientTransformation],
    learning_rate: float,
    data: dict[str, Examples],
    num_epochs: int,
    batch_size: int,
    report: Report,
) -> dict[str, float]:
    """Train a joint model of images and labels; keep the epoch that validates best.

    Trained on bits, drawn anew for every batch. Images are classified by p(y | x) at their
    intensities, as Larochelle & Bengio (2008) did.
    """
    rows = as_events(data["train"])
    num_steps = len(data["train"].labels) // batch_size
    params_key, train_key = jax.random.split(rng_key)
    params = model.init_from(params_key, draw_image(params_key, rows))
    tx = make_tx(decayed(learning_rate, num_epochs * num_steps))
    state = training.init(
        train_key, model, estimator, tx, rows, params=params, preprocess=draw_image, average=True
    )
    best: dict[str, float] = {}
    for epoch in range(num_epochs):
        state, _ = training.train_steps(
            estimator, tx, state, rows, batch_size, num_steps, preprocess=draw_image
        )
        error = float(joint_error_rate(model, state.average, data["validation"]))
        if not best or error < best["validation_error"]:
            test = float(joint_error_rate(model, state.average, data["test"]))
            best = {"validation_error": error, "test_error": test, "epoch": epoch + 1}
        report({"validation error": f"{error:.2%}"})
    return best


def as_events(data: Examples) -> dict[str, Array]:
    """Return intensities and one-hot labels as the rows of a joint model."""
    return {"image": data.images, "label": jax.nn.one_hot(data.labels, NUM_CLASSES)[:, None]}


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
