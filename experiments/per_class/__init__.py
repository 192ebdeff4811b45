"""One product of experts per class: digits told apart by ten log-densities (Hinton 2002).

    python -m experiments.per_class                    # 5,000 embedded MNIST digits
    python -m experiments.per_class --preset full      # all 60,000

Each class has an RBM of its own, trained on its digits alone, so nothing is learned about the
differences between classes. Their unnormalised log-densities are the ten inputs of multinomial
logistic regression, which also learns what log Z each class needs; it is fitted to the validation
digits, which no RBM has seen, because an RBM overrates its own training digits. With two layers,
each class has a second RBM on the hidden probabilities of the first, and there are twenty inputs.

Ten mixtures of Bernoullis (size and smoothing chosen on rows left out of their fits) take the same
route, and also classify by Bayes' rule, as their densities are normalised. All images are
thresholded. Writes results.json and figures/.

Source: Hinton (2002), Training products of experts by minimizing contrastive divergence, there on
USPS digits.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from experiments.lab import figures, logistic, rbm_recipe, runs, scoring, tables
from poejax import datasets, plotting, stacks
from poejax._product import log_densities

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
NUM_CLASSES = 10
_RBM = rbm_recipe.Recipe(num_hidden=100, num_steps=1_000, batch_size=50)
_SECOND = rbm_recipe.Recipe(num_hidden=50, num_steps=1_000, batch_size=50)


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything the study depends on, with its data."""

    num_validation: int = 10_000
    """Digits of mnist kept for the logistic regression; other sets have splits of their own."""
    rbm: rbm_recipe.Recipe = _RBM  # Sizes and rates of each class's RBM.
    second: rbm_recipe.Recipe = _SECOND  # The same of its second layer.
    mixture_sizes: tuple[int, ...] = (5, 10, 20, 40)
    """Numbers of components to choose from, for each class."""
    penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    """Inverse penalties C of the logistic regression to choose from by cross-validation."""
    num_seeds: int = 3  # Seeds 0, 1, ... of everything random.


PRESETS = {
    "default": Config(),
    "full": Config(
        preset="full",
        dataset="mnist",
        rbm=rbm_recipe.Recipe(num_hidden=200, num_steps=2_000),
        second=rbm_recipe.Recipe(num_hidden=100, num_steps=2_000),
        mixture_sizes=(100, 200, 400),
    ),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        rbm=rbm_recipe.Recipe(num_hidden=16, num_chains=20, num_steps=200, batch_size=20),
        second=rbm_recipe.Recipe(num_hidden=8, num_chains=20, num_steps=100, batch_size=20),
        mixture_sizes=(4,),
        penalties=(0.1, 1.0),
        num_seeds=1,
    ),
}


class Digits:
    """Thresholded digits: training rows by class, all of one length, and the other splits."""

    def __init__(self, data: datasets.Dataset) -> None:
        """Threshold; repeat rows of the smaller classes, so that all classes compile alike."""
        self.shape = data.shape
        images, labels = bits(data.train.images), data.train.labels
        by_class = [images[labels == c] for c in range(NUM_CLASSES)]
        self.own = by_class
        self.fewest, most = min(map(len, by_class)), max(map(len, by_class))
        self.padded = [np.resize(rows, (most, rows.shape[1])) for rows in by_class]
        self.validation, self.test = bits(data.validation.images), bits(data.test.images)
        self.validation_labels, self.test_labels = data.validation.labels, data.test.labels
        self.prior = np.log([len(rows) / len(images) for rows in by_class])


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train all classes on every seed, classify and draw; returns what results.json holds.

    Raises:
      ValueError: if a batch is larger than a class.
    """
    start = time.perf_counter()
    digits = Digits(runs.load(config.dataset, config.num_validation))
    errors: dict[str, list[float]] = {}
    seconds = {"RBMs": 0.0, "mixtures": 0.0}
    sizes = []
    for seed in range(config.num_seeds):
        clock = time.perf_counter()
        scores = rbm_scores(seed, digits, config)
        seconds["RBMs"] += time.perf_counter() - clock
        clock = time.perf_counter()
        log_probs, chosen = mixture_scores(seed, digits, config)
        seconds["mixtures"] += time.perf_counter() - clock
        sizes.append(chosen)
        guesses = {
            "RBMs, one layer": classify(scores, NUM_CLASSES, digits, config),
            "RBMs, two layers": classify(scores, 2 * NUM_CLASSES, digits, config),
            "mixtures": classify(log_probs, NUM_CLASSES, digits, config),
            "mixtures, Bayes' rule": np.argmax(log_probs[1] + digits.prior, axis=1),
        }
        for name, guess in guesses.items():
            errors.setdefault(name, []).append(float((guess != digits.test_labels).mean()))
        if seed == 0:
            figure = mistakes_figure(digits, guesses["RBMs, two layers"])
            plotting.save(figure, workdir / "figures" / "mistakes.png")
    results: dict[str, Any] = {
        "binarization": "threshold",
        "train_examples": int(sum(map(len, digits.own))),
        "validation_examples": len(digits.validation),
        "test_examples": len(digits.test),
        "test_error": {
            name: tables.over_seeds(v)
            | {"std_err": float(np.sqrt(np.mean(v) * (1 - np.mean(v)) / len(digits.test)))}
            for name, v in errors.items()
        },
        "mixture_components_and_smoothing": sizes,
        "seconds_by_model": {name: round(s, 1) for name, s in seconds.items()},
    }
    plotting.save(errors_figure(results), workdir / "figures" / "errors.png")
    return runs.write_results(workdir, config, results, start, table)


def bits(images: Any) -> npt.NDArray[np.uint8]:
    """Return thresholded bits as uint8."""
    return np.asarray(datasets.threshold(jax.random.key(0), images)).astype(np.uint8)


def rbm_scores(seed: int, digits: Digits, config: Config) -> tuple[Floats, Floats]:
    """Train two RBMs per class; returns log-densities [N, 20] of validation and test digits.

    The second layer's are of the first's hidden probabilities put in for its visible bits, as in
    the paper: a score, not a density.
    """
    splits = [jnp.asarray(split, jnp.float32) for split in (digits.validation, digits.test)]
    by_class = []
    with runs.progress(NUM_CLASSES, f"seed {seed}, RBMs", "class") as bar:
        # One compiled program serves all classes; on a CPU vmap over them saves only a quarter.
        for c in range(NUM_CLASSES):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), c))
            rows = jnp.asarray(digits.padded[c], jnp.float32)
            layer = config.rbm.fit(keys[0], rows, rbm_recipe.as_bits, None)
            hidden = stacks.features([layer], rows)
            above = config.second.fit(keys[1], hidden, stacks.draw_bits, None)
            by_class.append(
                [
                    (log_densities(*layer, x), log_densities(*above, stacks.features([layer], x)))
                    for x in splits
                ]
            )
            bar.update()
    validation, test = (
        np.stack([found[split][layer] for layer in (0, 1) for found in by_class], axis=1)
        for split in (0, 1)
    )
    return validation, test


def mixture_scores(
    seed: int, digits: Digits, config: Config
) -> tuple[tuple[Floats, Floats], list[tuple[int, float]]]:
    """Fit a mixture per class; returns log p(x | class) [N, 10] of both splits, and the choices."""
    splits = [jnp.asarray(split) for split in (digits.validation, digits.test)]
    by_class, chosen = [], []
    with runs.progress(NUM_CLASSES, f"seed {seed}, mixtures", "class") as bar:
        for c in range(NUM_CLASSES):
            key = jax.random.fold_in(jax.random.key(seed), NUM_CLASSES + c)
            # Not the padded rows: copies of what is held out would be among those fitted.
            own = digits.own[c][: digits.fewest]
            fitted = scoring.fit_mixture(key, own, digits.padded[c], config.mixture_sizes)
            chosen.append((fitted.num_components, fitted.smoothing))
            by_class.append([scoring.mixture_log_probs(fitted.params, x) for x in splits])
            bar.update()
    validation, test = (np.stack(columns, axis=1) for columns in zip(*by_class, strict=True))
    return (validation, test), chosen


def classify(
    scores: tuple[Floats, Floats], num_columns: int, digits: Digits, config: Config
) -> Labels:
    """Fit logistic regression to scores of the validation digits; returns the test digits' classes.

    The first `num_columns` scores are used, each standardised; the penalty is chosen by 5-fold
    cross-validation.
    """
    validation, test = (s[:, :num_columns] for s in scores)
    mean, std = validation.mean(axis=0), validation.std(axis=0)
    fitted = logistic.fit((validation - mean) / std, digits.validation_labels, config.penalties, 5)
    guesses: Labels = fitted.predict((test - mean) / std)
    return guesses


def mistakes_figure(digits: Digits, guesses: Labels) -> Figure:
    """Show the first test digits that are misclassified, with class and guess."""
    rows = np.flatnonzero(guesses != digits.test_labels)[:40]
    figure = Figure((8, 0.95 * -(-max(1, len(rows)) // 10) + 0.4), dpi=150, layout="tight")
    for k, row in enumerate(rows):
        axes = figure.add_subplot(-(-len(rows) // 10), 10, k + 1)
        axes.imshow(digits.test[row].reshape(digits.shape), cmap="gray")
        axes.set_title(f"{digits.test_labels[row]} as {guesses[row]}", fontsize=8)
        axes.set_axis_off()
    return figure


def errors_figure(results: dict[str, Any]) -> Figure:
    """Draw test errors, a dot per seed."""
    figure = Figure((6, 2.6), dpi=150, layout="tight")
    axes = figure.add_subplot(xlabel=f"test error, % of {results['test_examples']}; dots: seeds")
    found = results["test_error"].items()
    figures.by_group(axes, {n: {"": [100 * v for v in of["per_seed"]]} for n, of in found})
    return figure


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    rows = {
        name: [tables.plus_minus(of["per_seed"], 2, 100), f"{100 * of['std_err']:.2f}"]
        for name, of in results["test_error"].items()
    }
    caption = (
        f"test error, %, mean ± spread of seeds; {results['train_examples']} training, "
        f"{results['validation_examples']} validation and {results['test_examples']} test digits, "
        f"thresholded; seconds {results['seconds_by_model']}"
    )
    return [tables.table(caption, ("", "error", "standard error of the digits"), rows)]


main = runs.main_of(PRESETS, __doc__, "per_class", train_and_evaluate, table)
