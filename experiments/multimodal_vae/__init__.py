"""A multimodal VAE whose fusion layer is a product of Gaussians; one half of a digit is missing.

    python -m experiments.multimodal_vae

Each half of a digit has an encoder; what they say meets in q(z | a, b) ∝ N(z; 0, I) q_a(z) q_b(z),
and a half that is missing drops out of the product (Wu & Goodman 2018). Trained by three rules: the
paper's sum of ELBOs over subsets of the halves; the ELBO of both halves alone; and that ELBO with a
mixture of the single posteriors in place of their product (Shi et al. 2019). Prints held-out bounds
on log p(a, b) and scores of the half that was not given; writes results.json and figures/.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.lab import runs
from experiments.multimodal_vae import halves
from experiments.multimodal_vae import model as vae
from poejax import datasets, plotting, training
from poejax.estimators import from_loss
from poejax.types import Array


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the study depends on, with its data."""

    dataset: Literal["mnist5k", "digits"] = "mnist5k"  # Neither needs a download.
    halves: Literal["left-right", "top-bottom"] = "left-right"
    """How an image is cut into the views a and b."""
    num_latents: int = 20  # Dimensions of z.
    num_hidden: int = 256  # Hidden units of each encoder and decoder.
    num_epochs: int = 60  # Passes over the training set.
    batch_size: int = 100  # Examples per update.
    learning_rate: float = 1e-3  # Of Adam, lowered to zero along a cosine.
    num_samples: int = 200
    """Draws of z per test example and bound: the K of the importance-weighted bound."""
    num_components: int = 100  # Of the baseline, a mixture of Bernoullis.
    num_seeds: int = 3  # Seeds 0, 1, ... of every rule; data and test bits stay the same.


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

    fusion: vae.Fusion
    subsets: tuple[vae.Mask, ...]


RULES = {
    "product, sub-sampled": Rule("product", (vae.BOTH, vae.ONLY_A, vae.ONLY_B)),
    "product, both only": Rule("product", (vae.BOTH,)),
    "mixture": Rule("mixture", (vae.BOTH,)),
}


@dataclasses.dataclass(frozen=True)
class NegativeELBO:
    """The loss of a rule: minus the sum of the ELBOs of its subsets, the mean over a batch."""

    graph: vae.Graph
    rule: Rule

    def __call__(self, rng_key: Array, params: Any, batch: Array) -> Array:
        """Return the loss of bits [B, 2, P], by one draw of z for each row and subset, []."""
        model = nnx.merge(self.graph, params)

        def one(key: Array, x: Array) -> Array:
            keys = jax.random.split(key, len(self.rule.subsets))
            terms = zip(keys, self.rule.subsets, strict=True)
            elbos = [vae.elbo(key, model, self.rule.fusion, x, subset) for key, subset in terms]
            return -jnp.sum(jnp.stack(elbos))

        return jax.vmap(one)(jax.random.split(rng_key, len(batch)), batch).mean()


@functools.partial(jax.jit, static_argnames=("graph", "fusion"))
def validate(rng_key: Array, graph: vae.Graph, params: Any, x: Array, fusion: vae.Fusion) -> Array:
    """Return the mean ELBO of both views over bits [N, 2, P], by one draw of z each."""
    model = nnx.merge(graph, params)
    keys = jax.random.split(rng_key, x.shape[0])
    return jax.vmap(lambda key, x: vae.elbo(key, model, fusion, x, vae.BOTH))(keys, x).mean()


@functools.partial(jax.jit, static_argnames=("graph", "fusion", "num_samples"))
def evaluate(
    rng_key: Array, graph: vae.Graph, params: Any, x: Array, fusion: vae.Fusion, num_samples: int
) -> dict[str, Array]:
    """Return the scores of every row of bits [N, 2, P], a few rows at a time."""
    model = nnx.merge(graph, params)

    def one(row: tuple[Array, Array]) -> dict[str, Array]:
        key, x = row
        return vae.score(key, model, fusion, x, num_samples)

    return jax.lax.map(one, (jax.random.split(rng_key, x.shape[0]), x), batch_size=10)


def sample(rng_key: Array, graph: vae.Graph, params: Any, config: Config) -> Array:
    """Return the pixel probabilities [64, 2, P] at draws of z from the prior."""
    z = jax.random.normal(rng_key, (64, config.num_latents))
    return jax.nn.sigmoid(jax.vmap(nnx.merge(graph, params).logits)(z))


def train(
    config: Config, data: halves.Halves, rule: Rule, seed: int, bar: Any
) -> tuple[vae.Graph, Any, list[dict[str, Any]]]:
    """Train one model; returns its graph, its parameters and a record per epoch."""
    num_rows, _, num_pixels = data.train.shape
    init_key, train_key, validation_key = jax.random.split(jax.random.key(seed), 3)
    model = vae.MultimodalVAE(num_pixels, config.num_hidden, config.num_latents, nnx.Rngs(init_key))
    graph, params = nnx.split(model)
    per_epoch = num_rows // config.batch_size
    num_steps = config.num_epochs * per_epoch
    run = training.Run(
        from_loss(NegativeELBO(graph, rule)),
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps)),
        config.batch_size,
        preprocess=datasets.stochastic,
    )
    records: list[dict[str, Any]] = []

    def look(state: training.TrainState, metrics: training.Metrics) -> None:
        value = float(validate(validation_key, graph, state.params, data.validation, rule.fusion))
        records.append({"epoch": len(records) + 1, "validation_elbo": value})
        bar.update()
        bar.set_postfix({"validation ELBO": f"{value:.1f}"}, refresh=False)

    state = run.init(train_key, data.train, params)
    state, _ = run.steps(state, data.train, num_steps, look, per_epoch)
    return graph, state.params, records


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train every rule on every seed, score, and draw; returns what results.json holds.

    Raises:
      ValueError: if the config does not fit the data set.
    """
    start = time.perf_counter()
    data = halves.load(config.dataset, config.halves)
    runs.require_batch(config.batch_size, len(data.train))
    per_seed = {"mean image": [halves.means(halves.mean_image_scores(data))]}
    baseline = f"{config.num_components} Bernoulli mixture"
    curves: list[dict[str, Any]] = []
    seconds = dict.fromkeys(RULES, 0.0)
    total = len(RULES) * config.num_seeds * config.num_epochs
    with runs.progress(total, "training", "epoch") as bar:
        for seed in range(config.num_seeds):
            scores = halves.mixture_scores(jax.random.key(seed), data, config.num_components)
            per_seed.setdefault(baseline, []).append(halves.means(scores))
            for name, rule in RULES.items():
                started = time.perf_counter()
                graph, params, records = train(config, data, rule, seed, bar)
                seconds[name] += time.perf_counter() - started
                key = jax.random.fold_in(jax.random.key(seed), 0xE7A1)
                found = evaluate(key, graph, params, data.test, rule.fusion, config.num_samples)
                per_seed.setdefault(name, []).append(halves.means(found))
                if seed == 0:
                    curves += [{"epoch": r["epoch"], name: r["validation_elbo"]} for r in records]
                    completions = {view: found[f"{view}_completion"] for view in "ab"}
                    samples = sample(jax.random.key(0xF16), graph, params, config)
                    halves.draw(workdir / "figures", name, data, completions, samples)
    panels = {"validation ELBO of both halves (nats)": list(RULES)}
    figure = plotting.learning_curves(curves, panels)
    plotting.save(figure, workdir / "figures" / "curves.png")
    results = {
        "scores": per_seed,
        "test_examples": int(data.test.shape[0]),
        "binarization": "stochastic",
        "halves": config.halves,
        "num_samples": config.num_samples,
        "training_seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    return runs.write_results(workdir, config, results, start, halves.table)


main = runs.main_of(PRESETS, __doc__, "multimodal_vae", train_and_evaluate, halves.table)
