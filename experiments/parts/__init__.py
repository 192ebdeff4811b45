"""Parts against prototypes: RBM filters beside k-means centroids, and what each is worth elsewhere.

    python -m experiments.parts                    # 5,000 embedded MNIST digits
    python -m experiments.parts --preset full      # all 60,000

Digits 0-4, without their labels, give K filters of an RBM and K centroids of k-means. Locality is
measured by the participation ratio of squared weights (how many pixels) and their radius (how far
apart). Then logistic regression learns to tell
digits 5-9 apart from few labels, on three representations of the same intensities v / 255:

- `RBM`: E[z | v / 255], the intensities read as probabilities;
- `k-means`: triangle features max(0, mean_k d_k - d_k), d_k the distance to centroid k (Coates, Ng
  & Lee 2011);
- `pixels`: the intensities themselves.

Each is centred, and divided by one number, its root mean square on the digits 0-4. The penalty is
chosen by cross-validation on the labelled digits alone, which are the same for all.
Writes results.json and figures/.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import poejax as pj
from experiments.lab import encoders, figures, logistic, rbm_recipe, runs, tables
from poejax import datasets, plotting, stacks

Floats = npt.NDArray[np.float32]
REPRESENTATIONS = ("RBM", "k-means", "pixels")
_RBM = rbm_recipe.Recipe(num_hidden=400, num_steps=3_000)


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything the study depends on, with its data."""

    rbm: rbm_recipe.Recipe = _RBM
    """Sizes and rates of the RBM; its hidden units are also the number of centroids."""
    labels_per_class: tuple[int, ...] = (5, 10, 20, 50)
    """Numbers of labelled digits of each class 5-9."""
    penalties: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4)
    """Inverse penalties C to choose from, each over the number of features."""
    num_folds: int = 3  # Folds of the cross-validation.
    num_draws: int = 5  # Draws of labelled digits.
    num_seeds: int = 3  # Seeds 0, 1, ... of the features.
    num_shown: int = 64  # Filters and centroids in the figure, those of seed 0.

    bounds: ClassVar = {"num_folds": 2}

    def check(self) -> None:
        """Refuse fewer labels than folds."""
        enough = min(self.labels_per_class) >= self.num_folds
        self.expect(enough, "labels_per_class", f"at least num_folds = {self.num_folds} each")


PRESETS = {
    "default": Config(),
    "full": Config(
        preset="full",
        dataset="mnist",
        rbm=rbm_recipe.Recipe(num_hidden=400, num_steps=8_000),
    ),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        rbm=rbm_recipe.Recipe(num_hidden=32, num_steps=500),
        labels_per_class=(5, 20),
        penalties=(10.0, 1000.0),
        num_draws=2,
        num_seeds=2,
        num_shown=16,
    ),
}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Learn features on every seed, classify with them, and draw; returns what results.json holds.

    Raises:
      ValueError: if there are fewer labelled digits than asked for.
    """
    start = time.perf_counter()
    data = runs.load(config.dataset, 0)
    images = data.train.images[data.train.labels <= 4]
    pool, pool_labels = upper(data.train)
    held_out = [upper(split) for split in (data.validation, data.test)]
    test, test_labels = (np.concatenate(parts) for parts in zip(*held_out, strict=True))
    rows = logistic.labelled_rows(pool_labels, config.labels_per_class, config.num_draws)

    locality: dict[str, dict[str, list[float]]] = {"participation_ratio": {}, "radius": {}}
    ratios, radii = locality.values()
    shape = (config.num_seeds, len(config.labels_per_class), config.num_draws)
    errors = {name: np.empty(shape) for name in REPRESENTATIONS}
    for seed in range(config.num_seeds):
        key = jax.random.key(seed)
        model, params = config.rbm.fit(key, images, datasets.stochastic, f"RBM, seed {seed}")
        w = np.asarray(params["hidden"]["w"])
        clusters = pj.mixtures.kmeans(
            jax.random.fold_in(key, 1), jnp.asarray(images) / 255, config.rbm.num_hidden
        )
        centroids = np.asarray(clusters.centroids).T
        centred = (centroids.T - images.mean(axis=0) / 255).T
        for name, filters in {"RBM": w, "k-means": centroids, "k-means, centred": centred}.items():
            ratio = encoders.participation_ratio(filters).mean()
            ratios.setdefault(name, []).append(float(ratio))
            radius = encoders.radius(filters, data.shape).mean()
            radii.setdefault(name, []).append(float(radius))
        encode_by: dict[str, Callable[[Floats], Any]] = {
            "RBM": functools.partial(stacks.features, [(model, params)]),
            "k-means": functools.partial(encoders.triangle, clusters.centroids),
            "pixels": lambda x: x,
        }
        with runs.progress(len(encode_by), f"classifying, seed {seed}", "features") as bar:
            for name, encode in encode_by.items():
                if name == "pixels" and seed:  # they have no seed
                    errors[name][seed] = errors[name][0]
                else:
                    x_pool, x_test = encoders.standardized(encode, images, pool, test)
                    errors[name][seed] = logistic.few_label_errors(
                        (x_pool, pool_labels),
                        (x_test, test_labels),
                        rows,
                        config.penalties,
                        config.num_folds,
                    )
                bar.update()
        if seed == 0:
            for file, filters in {"filters": w, "centroids": centroids}.items():
                figure = plotting.filters(filters[:, : config.num_shown], data.shape, title=file)
                plotting.save(figure, workdir / "figures" / f"{file}.png")
    results: dict[str, Any] = {
        "binarization": "stochastic for training the RBM; intensities elsewhere",
        "unlabelled_examples": len(images),
        "test_examples": len(test),
        "locality": {
            measure: {name: tables.over_seeds(values) for name, values in by_name.items()}
            for measure, by_name in locality.items()
        },
        "test_error": {name: summary(e, config) for name, e in errors.items()},
        "lead_of_rbm": {
            name: summary(errors[name] - errors["RBM"], config) for name in REPRESENTATIONS[1:]
        },
    }
    plotting.save(errors_figure(results), workdir / "figures" / "few_labels.png")
    return runs.write_results(workdir, config, results, start, table)


def upper(split: datasets.Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Return the digits 5-9 of a split."""
    keep = split.labels >= 5
    return split.images[keep], split.labels[keep]


def summary(errors: npt.NDArray[np.float64], config: Config) -> dict[str, Any]:
    """Return mean, spread over draws and spread over seeds by number of labels."""
    return {
        str(count): {
            "mean": float(errors[:, i].mean()),
            # Of seed means over draws and of draw means over seeds: two sources of variation.
            "std_over_draws": tables.spread(errors[:, i].mean(axis=0)),
            "std_over_seeds": tables.spread(errors[:, i].mean(axis=1)),
            "all": errors[:, i].tolist(),
        }
        for i, count in enumerate(config.labels_per_class)
    }


def errors_figure(results: dict[str, Any]) -> Figure:
    """Draw test error against the number of labels, bars of one standard deviation over draws."""
    figure = Figure((6, 4), dpi=150, layout="tight")
    axes = figure.add_subplot(
        xlabel="labelled digits per class (5-9)",
        ylabel="test error, %",
        xscale="log",
        title="features from digits 0-4; bars: spread over draws of labels",
    )
    for k, (name, by_count) in enumerate(results["test_error"].items()):
        counts = np.array([int(count) for count in by_count]) * 1.03 ** (k - 1)
        values = [100 * v["mean"] for v in by_count.values()]
        bars = [100 * v["std_over_draws"] for v in by_count.values()]
        axes.errorbar(counts, values, yerr=bars, fmt="o-", ms=4, capsize=3, label=name)
    axes.minorticks_off()
    axes.set_xticks([int(c) for c in by_count], list(by_count))
    figures.bare(axes)
    axes.legend(frameon=False)
    return figure


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing tables."""
    locality = results["locality"]
    rows = {
        name: [tables.plus_minus(locality[measure][name]["per_seed"], 4) for measure in locality]
        for name in locality["radius"]
    }
    num_filters = results["config"]["rbm"]["num_hidden"]
    caption = f"squared weights of K = {num_filters} filters, ± spread over seeds"
    heads = ("", "participation ratio", "radius, pixels")
    leads = {f"{name} less RBM": lead for name, lead in results["lead_of_rbm"].items()}
    errors = {
        name: [f"{100 * v['mean']:.2f} ± {100 * v['std_over_draws']:.2f}" for v in found.values()]
        for name, found in (results["test_error"] | leads).items()
    }
    of = (
        f"error on {results['test_examples']} test digits 5-9, %, by labels per class, ± spread "
        f"over draws; {results['unlabelled_examples']} unlabelled digits"
    )
    counts = results["test_error"]["RBM"]
    return [tables.table(caption, heads, rows), tables.table(of, ("", *counts), errors)]


main = runs.main_of(PRESETS, __doc__, "parts", train_and_evaluate, table)
