"""An RBM as the prior inside a larger model: an autoencoder with a binary code, by one loss.

    python -m experiments.rbm_prior

Encoder q(z | x) = Π_i Bernoulli(z_i), code z in {0, 1}^L, decoder p(x | z) and prior p(z), all
trained by one optimizer on one loss, whose gradient is that of -ELBO,

    ELBO = E_q[log p(x | z) + log p(z) - log q(z | x)] <= log p(x)

The decoder's part is plain backpropagation; the encoder's is REINFORCE, where each of K codes of an
image takes the mean of the other K - 1 as its baseline (Kool et al. 2019), which is unbiased; the
prior's is the contrastive surrogate between codes and persistent chains. Only the chains are
approximate. Compares an RBM prior with independent Bernoullis, all else equal, by held-out bounds
that contain the exact log Z, from the 2^J states of the RBM's hidden units.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import poejax as pj
from experiments.lab import runs, tables
from experiments.rbm_prior.autoencoder import BinaryAutoencoder, Graph, Rule, bounds
from poejax import datasets, plotting, training
from poejax.types import Array


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the study depends on, with its data."""

    dataset: Literal["mnist5k", "digits"] = "mnist5k"  # Neither needs a download.
    code_size: int = 50  # Number L of bits of the code.
    num_experts: int = 16  # Hidden units J of the RBM prior; log Z takes 2^J terms.
    num_hidden: int = 200  # Hidden units of encoder and decoder.
    num_codes: int = 4  # Codes K drawn per image and update, at least 2.
    num_chains: int = 200  # Persistent chains of the prior.
    gibbs_steps: int = 5  # Sweeps of the chains per update.
    num_epochs: int = 50
    """Passes over the training set; the epoch with the best validation ELBO is kept."""
    batch_size: int = 100  # Images per update.
    learning_rate: float = 2e-3  # Of Adam, lowered to zero along a cosine.
    num_samples: int = 500
    """Codes per test image: of the mean ELBO, and the K of the importance-weighted bound."""
    num_seeds: int = 3  # Seeds 0, 1, ... of either prior; data and test bits stay the same.

    bounds: ClassVar = {"num_codes": 2, "num_experts": (1, 21)}


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        code_size=8,
        num_experts=4,
        num_hidden=32,
        num_chains=20,
        num_epochs=4,
        learning_rate=0.01,
        num_samples=10,
        num_seeds=1,
    ),
}


def priors(config: Config) -> dict[str, pj.Product]:
    """Return the priors to compare: independent bits, and an RBM."""
    code = pj.units.Bernoulli(config.code_size)
    return {
        "Bernoulli": pj.product(code, bias=pj.experts.Bias(code)),
        "RBM": pj.models.rbm(config.code_size, config.num_experts),
    }


def train(
    config: Config, data: dict[str, Array], prior: pj.Product, seed: int, bar: Any
) -> tuple[Graph, Any, list[dict[str, float]]]:
    """Train one model; returns its graph, its best parameters and a record per epoch."""
    init_key, train_key, bound_key = jax.random.split(jax.random.key(seed), 3)
    num_pixels, rngs = data["train"].shape[1], nnx.Rngs(params=init_key)
    graph, params = nnx.split(BinaryAutoencoder(num_pixels, config.num_hidden, prior, rngs))
    per_epoch = len(data["train"]) // config.batch_size
    num_steps = config.num_epochs * per_epoch
    run = training.Run(
        Rule(graph, config.num_codes, config.num_chains, config.gibbs_steps),
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, num_steps)),
        config.batch_size,
        preprocess=datasets.stochastic,
    )
    records: list[dict[str, float]] = []
    best: dict[str, Any] = {"elbo": -np.inf}

    def look(state: training.TrainState, metrics: training.Metrics) -> None:
        log_z = pj.exact.log_z(prior, nnx.merge(graph, state.params).prior.params)
        found = bounds(bound_key, graph, state.params, data["validation"], log_z, 10)
        value = float(found["elbo"])
        if value > best["elbo"]:
            best.update(elbo=value, params=state.params)
        records.append({"epoch": len(records) + 1, "elbo": value, "kl": float(found["kl"])})
        bar.update()
        bar.set_postfix({"validation ELBO": f"{value:.2f}"}, refresh=False)

    run.steps(run.init(train_key, data["train"], params), data["train"], num_steps, look, per_epoch)
    return graph, best["params"], records


def sample_images(
    rng_key: Array, graph: Graph, params: Any, num_images: int, num_steps: int
) -> Array:
    """Return pixel probabilities [N, D] of codes from long chains of the prior."""
    model = nnx.merge(graph, params)
    kernel = pj.kernels.block_gibbs(model.prior.model)
    init_key, run_key = jax.random.split(rng_key)
    states = pj.chains.init(init_key, kernel, model.prior.params, num_images)
    states, _ = pj.chains.run(run_key, kernel, model.prior.params, states, num_steps)
    return jax.nn.sigmoid(model.decoder(states.x))


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train both priors on every seed, bound, and draw; returns what results.json holds.

    Raises:
      ValueError: if the config does not fit the data set.
    """
    started = time.perf_counter()
    loaded = datasets.load(config.dataset)
    runs.require_batch(config.batch_size, len(loaded.train.images))
    validation_key, test_key = jax.random.split(jax.random.key(0xB175))
    data = {
        "train": jnp.asarray(loaded.train.images),
        "validation": datasets.stochastic(validation_key, loaded.validation.images),
        "test": datasets.stochastic(test_key, loaded.test.images),
    }
    scores: dict[str, list[dict[str, float]]] = {}
    curves: list[dict[str, float]] = []
    samples = {}
    total = 2 * config.num_seeds * config.num_epochs
    with runs.progress(total, "training", "epoch") as bar:
        for name, prior in priors(config).items():
            for seed in range(config.num_seeds):
                graph, params, records = train(config, data, prior, seed, bar)
                log_z = pj.exact.log_z(prior, nnx.merge(graph, params).prior.params)
                key = jax.random.fold_in(jax.random.key(seed), 0xB0)
                found = bounds(key, graph, params, data["test"], log_z, config.num_samples)
                scores.setdefault(name, []).append({k: float(v) for k, v in found.items()})
                if seed == 0:
                    words = {"epoch": "epoch", "elbo": f"{name} prior", "kl": f"{name}: KL"}
                    curves += [{words[k]: v for k, v in record.items()} for record in records]
                    samples[name] = sample_images(jax.random.key(1), graph, params, 49, 1000)
    figures = workdir / "figures"
    panels = {
        "validation ELBO (nats)": [f"{name} prior" for name in scores],
        "KL(q(z | x), p(z)) (nats)": [f"{name}: KL" for name in scores],
    }
    figure = plotting.learning_curves(curves, panels)
    plotting.save(figure, figures / "curves.png")
    labels = ("independent Bernoulli prior", f"RBM prior, {config.num_experts} experts")
    figure = plotting.samples_beside(
        np.asarray(samples["Bernoulli"]), np.asarray(samples["RBM"]), loaded.shape, labels=labels
    )
    plotting.save(figure, figures / "samples.png")
    num_test = len(data["test"])
    results = {"scores": scores, "test_examples": num_test, "binarization": "stochastic"}
    return runs.write_results(workdir, config, results, started, table)


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    words = {"elbo": "ELBO", "iwae": "IWAE", "kl": "KL(q, prior)"}
    rows = {
        f"{name} prior": [tables.plus_minus([row[key] for row in scores]) for key in words]
        for name, scores in results["scores"].items()
    }
    pairs = zip(results["scores"]["RBM"], results["scores"]["Bernoulli"], strict=True)
    gains = ", ".join(f"{a['elbo'] - b['elbo']:.2f}" for a, b in pairs)
    caption = (
        f"nats per image of {results['test_examples']} test images, binarisation "
        f"{results['binarization']}, mean ± standard deviation over seeds; gain of the RBM prior "
        f"in ELBO, seed by seed: {gains}"
    )
    return [tables.table(caption, ("", *words.values()), rows)]


main = runs.main_of(PRESETS, __doc__, "rbm_prior", train_and_evaluate, table)
