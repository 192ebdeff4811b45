"""Digits cut in halves: the data, simple models of them, and what is drawn and printed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab import tables
from experiments.lab.scoring import bernoulli_log_prob
from experiments.multimodal_vae.model import bit_error
from poejax import datasets, mixtures, plotting
from poejax.types import Array

_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Halves:
    """The data cut into views: uint8 [N, 2, P] for training, bits drawn once for the rest."""

    shape: tuple[int, int]
    how: str
    train: Array
    validation: Array
    test: Array


def load(dataset: str, how: str) -> Halves:
    """Load a data set, cut each image in two, and draw the bits that scores are computed on."""
    data = datasets.load(dataset)
    train, validation, test = (
        cut(split.images, data.shape, how) for split in (data.train, data.validation, data.test)
    )
    keys = jax.random.split(jax.random.key(0xDA7A))
    return Halves(
        data.shape,
        how,
        jnp.asarray(train),
        datasets.stochastic(keys[0], validation),
        datasets.stochastic(keys[1], test),
    )


def cut(images: Any, shape: tuple[int, int], how: str) -> Any:
    """Cut images [N, D] into two views, [N, 2, D / 2]."""
    height, width = shape
    if how == "left-right":
        images = images.reshape(-1, height, 2, width // 2).swapaxes(1, 2)
    return images.reshape(-1, 2, height * width // 2)


def join(views: Any, shape: tuple[int, int], how: str) -> Any:
    """Undo `cut`."""
    height, width = shape
    if how == "left-right":
        views = views.reshape(-1, 2, height, width // 2).swapaxes(1, 2)
    return views.reshape(-1, height * width)


def mean_image_scores(data: Halves) -> dict[str, Array]:
    """Score independent pixels, each on at its rate in the training set."""
    count = data.train.shape[0]
    p = (data.train.astype(jnp.float32).sum(axis=0) / 255 + 0.5) / (count + 1)
    log_p = jax.vmap(bernoulli_log_prob, (None, 0))(jax.scipy.special.logit(p), data.test)
    errors = jax.vmap(jax.vmap(bit_error), (None, 0))(p, data.test)
    return {
        "ab_exact": log_p.sum(axis=1),
        "a_prediction": log_p[:, 1],
        "b_prediction": log_p[:, 0],
        "a_bit_error": errors[:, 1],
        "b_bit_error": errors[:, 0],
    }


def mixture_scores(rng_key: Array, data: Halves, num_components: int) -> dict[str, Array]:
    """Score a mixture of Bernoullis fitted by EM: its log p(a, b) and log p(b | a) are exact."""
    bits_key, start_key = jax.random.split(rng_key)
    bits = datasets.stochastic(bits_key, data.train).reshape(data.train.shape[0], -1)
    params, _ = mixtures.fit_em_bernoulli(start_key, bits, num_components)
    logits = params.logits.reshape(num_components, 2, -1)
    joint = jax.vmap(lambda x: mixtures.log_prob(params, x.ravel()))(data.test)
    scores = {"ab_exact": joint}
    for given, name in enumerate("ab"):
        # A mixture's marginal over one view is the mixture of what its components say of it.
        marginal = mixtures.BernoulliMixtureParams(params.log_weights, logits[:, given])
        x, missing = data.test[:, given], data.test[:, 1 - given]
        r = jax.vmap(lambda x, m=marginal: mixtures.responsibilities(m, x))(x)
        p = r @ jax.nn.sigmoid(logits[:, 1 - given])
        log_marginal = jax.vmap(lambda x, m=marginal: mixtures.log_prob(m, x))(x)
        scores[f"{name}_prediction"] = joint - log_marginal
        scores[f"{name}_bit_error"] = jax.vmap(bit_error)(p, missing)
    return scores


def means(scores: dict[str, Array]) -> dict[str, float]:
    """Average what is one number per test event."""
    return {name: float(value.mean()) for name, value in scores.items() if value.ndim == 1}


def draw(
    directory: Path, name: str, data: Halves, completions: dict[str, Array], samples: Array
) -> None:
    """Draw test digits with one half missing and completed, and samples, as PNG files.

    Args:
      directory: where the files go.
      name: of the model; heads the figures and ends the names of the files.
      data: the halves.
      completions: {"a": [N, P], "b": [N, P]}, probabilities of the half that is missing when that
        one is given, for the test rows.
      samples: pixel probabilities [M, 2, P] at draws from the prior.
    """

    def whole(views: Any) -> Any:
        return join(np.asarray(views), data.shape, data.how)

    x = np.asarray(data.test[: 2 * _SHOWN])
    given, completed = np.full_like(x, 0.5), x.copy()
    # The upper block is given view a, the lower one view b.
    for v, (key, rows) in enumerate({"a": slice(_SHOWN), "b": slice(_SHOWN, 2 * _SHOWN)}.items()):
        given[rows, v] = x[rows, v]
        completed[rows, 1 - v] = completions[key][rows]
    suffix = name.replace(", ", "_").replace(" ", "_").replace("-", "_") + ".png"
    figure = plotting.reconstructions(
        whole(x),
        whole(completed),
        data.shape,
        _SHOWN,
        title=f"{name}: mean of the missing half given the other",
        labels=("original", "given", "completed"),
        damaged=whole(given),
    )
    plotting.save(figure, directory / f"completions_{suffix}")
    figure = plotting.samples_beside(
        whole(data.test[: len(samples)]),
        whole(samples),
        data.shape,
        title=name,
        labels=("test digits, binarised", "pixel probabilities at z ~ N(0, I)"),
    )
    plotting.save(figure, directory / f"samples_{suffix}")


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table: mean over seeds ± their standard deviation."""
    columns = {
        "ab_iwae": "IWAE, q(z|a,b)",
        "ab_elbo": "ELBO, q(z|a,b)",
        "a_iwae": "IWAE, q(z|a)",
        "a_elbo": "ELBO, q(z|a)",
        "a_prediction": "log p(b|a)",
        "b_prediction": "log p(a|b)",
        "a_bit_error": "wrong b|a, %",
        "b_bit_error": "wrong a|b, %",
    }
    rows = []
    for name, scores in results["scores"].items():
        cells = [name]
        for key in columns:
            keys = ("ab_iwae", "ab_exact") if key == "ab_iwae" else (key,)
            values = [row[k] for row in scores for k in keys if k in row]
            scale = 100 if key.endswith("bit_error") else 1
            cells.append(tables.plus_minus(values, 2, scale) if values else "-")
        rows.append(cells)
    caption = (
        f"nats per test example ({results['test_examples']} digits, stochastic bits drawn once), "
        f"{results['halves']} halves a and b, K = {results['num_samples']} draws of z; exact "
        "values, not bounds, for the mean image and the Bernoulli mixture"
    )
    return [tables.table(caption, ("", *columns.values()), rows)]
