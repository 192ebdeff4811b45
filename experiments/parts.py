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

2,000 unlabelled digits, K = 400, 3 seeds (51 s of CPU time on two cores busy with other work,
2026-11-24). Participation ratio and radius in pixels: RBM 0.152 and 7.45, centroids 0.150 and 6.83,
centroids less the mean image 0.209 and 7.16; seeds differ by 0.001 and 0.02. Error on 500 test
digits 5-9, % by labels per class, ± spread over 5 draws of labels:

                          5               10               20              50
    RBM        21.36 ± 5.13     16.01 ± 1.87     10.73 ± 1.40     8.19 ± 0.68
    k-means    29.09 ± 3.90     23.29 ± 5.04     13.49 ± 1.81     8.88 ± 0.78
    pixels     22.04 ± 4.92     15.56 ± 1.90     10.40 ± 2.12     8.20 ± 1.16

The same with --preset full, 30,596 unlabelled and 4,861 test digits (150 s of CPU time, 270 s on
the busy machine): RBM 0.117 and 7.02, centroids 0.158 and 6.72, less the mean 0.208 and 7.04.

    RBM        23.60 ± 1.96     17.21 ± 1.87     13.52 ± 1.17     9.52 ± 0.87
    k-means    31.68 ± 1.44     21.96 ± 2.16     16.71 ± 1.31    11.48 ± 0.46
    pixels     25.79 ± 2.57     18.47 ± 1.64     14.82 ± 1.49    10.74 ± 0.39

With enough digits to learn from the filters use fewer pixels than centroids do, though pixels no
closer together, and carry over to other digits better than prototypes and than pixels. With 2,000
digits they are neither more local than centroids nor better than pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import poejax as pj
from experiments import encoders, logistic, rbm_recipe, runs
from experiments.scoring import spread
from poejax import datasets, plotting

Floats = npt.NDArray[np.float32]
REPRESENTATIONS = ("RBM", "k-means", "pixels")
_RBM = rbm_recipe.Recipe(num_hidden=400, num_steps=3_000)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything the study depends on, with its data."""

    preset: Literal["default", "full", "smoke"] = "default"
    """Defaults of all other options."""
    dataset: Literal["mnist5k", "mnist", "digits"] = "mnist5k"
    """mnist5k and digits need no download."""
    rbm: rbm_recipe.Recipe = _RBM
    """Sizes and rates of the RBM; its hidden units are also the number of centroids."""
    labels_per_class: tuple[int, ...] = (5, 10, 20, 50)
    """Numbers of labelled digits of each class 5-9."""
    penalties: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4)
    """Inverse penalties C to choose from, each over the number of features."""
    num_folds: int = 3
    """Folds of the cross-validation."""
    num_draws: int = 5
    """Draws of labelled digits."""
    num_seeds: int = 3
    """Seeds 0, 1, ... of the features."""
    num_shown: int = 64
    """Filters and centroids in the figure, those of seed 0."""
    workdir: Path | None = None
    """Where results.json and figures/ go; runs/parts/PRESET unless given."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        runs.at_least(self, 1, "num_draws", "num_seeds", "num_shown")
        runs.at_least(self, 2, "num_folds")
        if not self.labels_per_class or min(self.labels_per_class) < self.num_folds:
            raise ValueError(
                f"labels_per_class: expected at least num_folds = {self.num_folds} each, got "
                f"{self.labels_per_class}"
            )
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"penalties: expected positive numbers, got {self.penalties}")


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
      FloatingPointError: if training diverges.
    """
    start = time.perf_counter()
    data = runs.load(config.dataset, 0)
    images = data.train.images[data.train.labels <= 4]
    pool, pool_labels = upper(data.train)
    held_out = [upper(split) for split in (data.validation, data.test)]
    test, test_labels = (np.concatenate(parts) for parts in zip(*held_out, strict=True))
    trainer = rbm_recipe.trainer(config.rbm, images.shape[1])
    rows = logistic.labelled_rows(pool_labels, config.labels_per_class, config.num_draws)

    locality: dict[str, dict[str, list[float]]] = {"participation_ratio": {}, "radius": {}}
    shape = (config.num_seeds, len(config.labels_per_class), config.num_draws)
    errors = {name: np.empty(shape) for name in REPRESENTATIONS}
    for seed in range(config.num_seeds):
        key = jax.random.key(seed)
        description = f"RBM, seed {seed}"
        params = rbm_recipe.fit(key, trainer, images, datasets.stochastic, description)
        w = np.asarray(params["hidden"]["w"])
        clusters = pj.mixtures.kmeans(
            jax.random.fold_in(key, 1), jnp.asarray(images) / 255, config.rbm.num_hidden
        )
        centroids = np.asarray(clusters.centroids)
        mean_image = images.mean(axis=0) / 255
        for name, filters in (
            ("RBM", w),
            ("k-means", centroids.T),
            ("k-means, centred", (centroids - mean_image).T),
        ):
            ratio, size = (
                encoders.participation_ratio(filters),
                encoders.radius(filters, data.shape),
            )
            locality["participation_ratio"].setdefault(name, []).append(float(ratio.mean()))
            locality["radius"].setdefault(name, []).append(float(size.mean()))
        encode_by: dict[str, Callable[[Floats], Any]] = {
            "RBM": functools.partial(encoders.hidden_means, trainer.model, params),
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
            figure = filters_figure(w, centroids, data.shape, config.num_shown)
            plotting.save(figure, workdir / "figures" / "filters.png")
    results: dict[str, Any] = {
        "binarization": "stochastic for training the RBM; intensities elsewhere",
        "unlabelled_examples": len(images),
        "test_examples": len(test),
        "locality": {
            measure: {
                name: {"mean": float(np.mean(v)), "std_over_seeds": spread(v), "per_seed": v}
                for name, v in by_name.items()
            }
            for measure, by_name in locality.items()
        },
        "test_error": {name: summary(e, config) for name, e in errors.items()},
        "lead_of_rbm": {
            name: summary(errors[name] - errors["RBM"], config) for name in REPRESENTATIONS[1:]
        },
    }
    plotting.save(errors_figure(results), workdir / "figures" / "few_labels.png")
    return runs.write_results(workdir, config, results, start)


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
            "std_over_draws": spread(errors[:, i].mean(axis=0)),
            "std_over_seeds": spread(errors[:, i].mean(axis=1)),
            "all": errors[:, i].tolist(),
        }
        for i, count in enumerate(config.labels_per_class)
    }


def filters_figure(w: Floats, centroids: Floats, shape: tuple[int, int], num_shown: int) -> Figure:
    """Show filters and centroids side by side, each on its own scale about 0."""
    side = int(np.ceil(np.sqrt(num_shown)))
    figure = Figure((10, 5.6), dpi=150, layout="tight")
    titles = ("RBM weights", "k-means centroids")
    for k, (title, filters) in enumerate(zip(titles, (w.T, centroids), strict=True)):
        shown = filters[:num_shown].reshape(-1, *shape)
        canvas = np.full((side * (shape[0] + 1) + 1, side * (shape[1] + 1) + 1), np.nan)
        for n, image in enumerate(shown):
            i, j = divmod(n, side)
            top, left = i * (shape[0] + 1) + 1, j * (shape[1] + 1) + 1
            canvas[top : top + shape[0], left : left + shape[1]] = image
        limit = np.quantile(np.abs(shown), 0.998)
        axes = figure.add_subplot(1, 2, k + 1, title=title)
        picture = axes.imshow(canvas, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_axis_off()
        figure.colorbar(picture, ax=axes, shrink=0.8, extend="both")
    return figure


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
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def table(results: dict[str, Any]) -> str:
    """Return the closing table."""
    lines = [f"\n{'squared weights, ± spread over seeds':<40}{'PR':>18}{'radius, pixels':>20}"]
    for name in results["locality"]["radius"]:
        figures = [results["locality"][m][name] for m in ("participation_ratio", "radius")]
        cells = [f"{v['mean']:.4f} ± {v['std_over_seeds']:.4f}" for v in figures]
        lines.append(f"    {name:<36}{cells[0]:>18}{cells[1]:>20}")
    lines.append("test error on digits 5-9, %, by labels per class, ± spread over draws")
    counts = list(results["test_error"]["RBM"])
    lines.append(" " * 24 + "".join(f"{count:>15}" for count in counts))
    for name, by_count in results["test_error"].items():
        cells = [
            f"{100 * v['mean']:.2f} ± {100 * v['std_over_draws']:.2f}" for v in by_count.values()
        ]
        lines.append(f"    {name:<20}" + "".join(f"{cell:>15}" for cell in cells))
    lines.append("by how much the error exceeds the RBM's on the same draws, ± spread over draws")
    for name, by_count in results["lead_of_rbm"].items():
        cells = [
            f"{100 * v['mean']:.2f} ± {100 * v['std_over_draws']:.2f}" for v in by_count.values()
        ]
        lines.append(f"    {name:<20}" + "".join(f"{cell:>15}" for cell in cells))
    config = results["config"]
    lines.append(
        f"{config['num_seeds']} seeds, {config['num_draws']} draws, K = "
        f"{config['rbm']['num_hidden']}, {results['unlabelled_examples']} unlabelled digits, "
        f"{results['test_examples']} test digits"
    )
    return "\n".join(lines)


@runs.command
def main() -> int:
    """Run from the command line; returns the exit status."""
    return runs.run_study(PRESETS, __doc__ or "", "parts", train_and_evaluate, table)


if __name__ == "__main__":
    sys.exit(main())
