"""A multimodal VAE whose fusion layer is a product of Gaussians; one half of a digit is missing.

    python -m experiments.multimodal_vae

Each half of a digit has an encoder; what they say meets in q(z | a, b) ∝ N(z; 0, I) q_a(z) q_b(z),
and a half that is missing drops out of the product (Wu & Goodman 2018). Trained by three rules: the
paper's sum of ELBOs over subsets of the halves; the ELBO of both halves alone; and that ELBO with a
mixture of the single posteriors in place of their product (Shi et al. 2019). Prints held-out bounds
on log p(a, b) and scores of the half that was not given; writes results.json and figures/.

On 500 test digits, means over 3 seeds (330 s on two CPU cores that were busy with other work):

                          log p(a, b), IWAE    log p(b | a)    wrong bits of b, %
    mean image                      -204.67         -108.89                 14.18
    100 Bernoulli mixture           -143.68          -79.28                 10.58
    product, sub-sampled            -112.59          -72.66                 11.35
    product, both only              -109.97         -182.82                 14.58
    mixture                         -122.07          -66.03                  8.75

The product models both halves best, but only sub-sampling makes its single experts usable; the
mixture, which trains each half to predict the other, completes best and models both worse.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import multimodal_digits, runs
from experiments.multimodal_digits import Halves, means
from experiments.multimodal_model import (
    BOTH,
    ONLY_A,
    ONLY_B,
    Fusion,
    Mask,
    MultimodalVAE,
    elbo,
    score,
)
from poejax import datasets, plotting
from poejax.types import Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything the study depends on, with its data."""

    preset: Literal["default", "smoke"] = "default"
    """Defaults of all other options."""
    dataset: Literal["mnist5k", "digits"] = "mnist5k"
    """Neither needs a download."""
    halves: Literal["left-right", "top-bottom"] = "left-right"
    """How an image is cut into the views a and b."""
    num_latents: int = 20
    """Dimensions of z."""
    num_hidden: int = 256
    """Hidden units of each encoder and decoder."""
    num_epochs: int = 60
    """Passes over the training set."""
    batch_size: int = 100
    """Examples per update."""
    learning_rate: float = 1e-3
    """Of Adam, lowered to zero along a cosine."""
    num_samples: int = 200
    """Draws of z per test example and bound: the K of the importance-weighted bound."""
    num_components: int = 100
    """Of the baseline, a mixture of Bernoullis."""
    num_seeds: int = 3
    """Seeds 0, 1, ... of every rule; data and test bits stay the same."""
    workdir: Path | None = None
    """Where results.json and figures/ go; runs/multimodal_vae/PRESET unless given."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        runs.counts_at_least_one(self)
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate: expected > 0, got {self.learning_rate}")


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        num_latents=4,
        num_hidden=16,
        num_epochs=4,
        learning_rate=0.01,
        num_samples=10,
        num_components=4,
        num_seeds=1,
    ),
}


class Rule(NamedTuple):
    """How single posteriors are fused, and the subsets of the views whose ELBOs are summed."""

    fusion: Fusion
    subsets: tuple[Mask, ...]


RULES = {
    "product, sub-sampled": Rule("product", (BOTH, ONLY_A, ONLY_B)),
    "product, both only": Rule("product", (BOTH,)),
    "mixture": Rule("mixture", (BOTH,)),
}


@functools.partial(jax.jit, static_argnames=("graph", "rule", "config"))
def train_epoch(
    rng_key: Array,
    graph: nnx.GraphDef[MultimodalVAE],
    params: Any,
    opt_state: Any,
    images: Array,
    rule: Rule,
    config: Config,
) -> tuple[Any, Any, Array]:
    """Take one pass over uint8 images [N, 2, P]; returns params, opt_state and the mean loss."""
    order_key, steps_key = jax.random.split(rng_key)
    num_steps = images.shape[0] // config.batch_size
    rows = jax.random.permutation(order_key, images.shape[0])[: num_steps * config.batch_size]
    tx = optimizer(config, num_steps)

    def loss(params: Any, key: Array, x: Array) -> Array:
        model = nnx.merge(graph, params)

        def negative_elbos(key: Array, x: Array) -> Array:
            keys = jax.random.split(key, len(rule.subsets))
            terms = zip(keys, rule.subsets, strict=True)
            total = sum(elbo(key, model, rule.fusion, x, subset) for key, subset in terms)
            return -jnp.asarray(total)

        return jax.vmap(negative_elbos)(jax.random.split(key, x.shape[0]), x).mean()

    def step(carry: Any, inputs: Any) -> Any:
        params, opt_state = carry
        key, rows = inputs
        bits_key, loss_key = jax.random.split(key)
        x = datasets.stochastic(bits_key, images[rows])
        value, grads = jax.value_and_grad(loss)(params, loss_key, x)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    inputs = jax.random.split(steps_key, num_steps), rows.reshape(num_steps, -1)
    (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), inputs)
    return params, opt_state, losses.mean()


def optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """Return Adam on a cosine schedule over the whole run."""
    num_steps = config.num_epochs * steps_per_epoch
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps))


@functools.partial(jax.jit, static_argnames=("graph", "fusion"))
def validate(
    rng_key: Array, graph: nnx.GraphDef[MultimodalVAE], params: Any, x: Array, fusion: Fusion
) -> Array:
    """Return the mean ELBO of both views over bits [N, 2, P], by one draw of z each."""
    model = nnx.merge(graph, params)
    keys = jax.random.split(rng_key, x.shape[0])
    return jax.vmap(lambda key, x: elbo(key, model, fusion, x, BOTH))(keys, x).mean()


@functools.partial(jax.jit, static_argnames=("graph", "fusion", "num_samples"))
def evaluate(
    rng_key: Array,
    graph: nnx.GraphDef[MultimodalVAE],
    params: Any,
    x: Array,
    fusion: Fusion,
    num_samples: int,
) -> dict[str, Array]:
    """Return the scores of every row of bits [N, 2, P], a few rows at a time."""
    model = nnx.merge(graph, params)
    keys = jax.random.split(rng_key, x.shape[0])
    return jax.lax.map(
        lambda row: score(row[0], model, fusion, row[1], num_samples), (keys, x), batch_size=10
    )


def sample(
    rng_key: Array, graph: nnx.GraphDef[MultimodalVAE], params: Any, config: Config
) -> Array:
    """Return the pixel probabilities [64, 2, P] at draws of z from the prior."""
    z = jax.random.normal(rng_key, (64, config.num_latents))
    return jax.nn.sigmoid(jax.vmap(nnx.merge(graph, params).logits)(z))


def train(
    config: Config, data: Halves, rule: Rule, seed: int, bar: Any
) -> tuple[nnx.GraphDef[MultimodalVAE], Any, list[dict[str, Any]]]:
    """Train one model; returns its graph, its parameters and a record per epoch."""
    num_rows, _, num_pixels = data.train.shape
    init_key, train_key, validation_key = jax.random.split(jax.random.key(seed), 3)
    model = MultimodalVAE(num_pixels, config.num_hidden, config.num_latents, nnx.Rngs(init_key))
    graph, params = nnx.split(model)
    opt_state = optimizer(config, num_rows // config.batch_size).init(params)
    records = []
    for epoch in range(config.num_epochs):
        key = jax.random.fold_in(train_key, epoch)
        params, opt_state, loss = train_epoch(
            key, graph, params, opt_state, data.train, rule, config
        )
        value = float(validate(validation_key, graph, params, data.validation, rule.fusion))
        if not np.isfinite([float(loss), value]).all():
            raise FloatingPointError(f"loss {loss} or validation ELBO {value} after epoch {epoch}")
        records.append({"epoch": epoch + 1, "loss": float(loss), "validation_elbo": value})
        bar.update()
        bar.set_postfix({"validation ELBO": f"{value:.1f}"}, refresh=False)
    return graph, params, records


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train every rule on every seed, score, and draw; returns what results.json holds.

    Args:
      config: the study's config.
      workdir: directory for results.json and figures/, made if missing.

    Raises:
      ValueError: if the config does not fit the data set.
      FloatingPointError: if training diverges.
    """
    start = time.perf_counter()
    data = multimodal_digits.load(config.dataset, config.halves)
    if config.batch_size > data.train.shape[0]:
        raise ValueError(
            f"batch_size: expected at most {data.train.shape[0]}, got {config.batch_size}"
        )
    per_seed: dict[str, list[dict[str, float]]] = {
        "mean image": [means(multimodal_digits.mean_image_scores(data))]
    }
    baseline = f"{config.num_components} Bernoulli mixture"
    curves: dict[int, dict[str, float]] = {}
    seconds = dict.fromkeys(RULES, 0.0)
    total = len(RULES) * config.num_seeds * config.num_epochs
    with runs.progress(total, "training", "epoch") as bar:
        for seed in range(config.num_seeds):
            scores = multimodal_digits.mixture_scores(
                jax.random.key(seed), data, config.num_components
            )
            per_seed.setdefault(baseline, []).append(means(scores))
            for name, rule in RULES.items():
                started = time.perf_counter()
                graph, params, records = train(config, data, rule, seed, bar)
                seconds[name] += time.perf_counter() - started
                key = jax.random.fold_in(jax.random.key(seed), 0xE7A1)
                found = evaluate(key, graph, params, data.test, rule.fusion, config.num_samples)
                per_seed.setdefault(name, []).append(means(found))
                if seed == 0:
                    for record in records:
                        row = curves.setdefault(record["epoch"], {"epoch": record["epoch"]})
                        row[name] = record["validation_elbo"]
                    completions = {view: found[f"{view}_completion"] for view in "ab"}
                    samples = sample(jax.random.key(0xF16), graph, params, config)
                    multimodal_digits.draw(workdir / "figures", name, data, completions, samples)
    figure = plotting.learning_curves(
        list(curves.values()), {"validation ELBO of both halves (nats)": list(RULES)}
    )
    plotting.save(figure, workdir / "figures" / "curves.png")
    results = {
        "scores": per_seed,
        "test_examples": int(data.test.shape[0]),
        "binarization": "stochastic",
        "halves": config.halves,
        "num_samples": config.num_samples,
        "training_seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    return runs.write_results(workdir, config, results, start)


@runs.command
def main() -> int:
    """Run from the command line; returns the exit status."""
    return runs.run_study(
        PRESETS, __doc__ or "", "multimodal_vae", train_and_evaluate, multimodal_digits.table
    )


if __name__ == "__main__":
    sys.exit(main())
