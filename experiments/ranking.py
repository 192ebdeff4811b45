"""Which threes are typical, and does log-density tell threes from what is not a three?

    python -m experiments.ranking                    # 5,000 embedded MNIST digits
    python -m experiments.ranking --preset full      # all 60,000

An RBM learns the "3"s with 100 to 125 foreground pixels, so that rank is not amount of ink. Draws
the most and least likely of them, and scores held-out threes of that kind against other digits and
against damaged copies of themselves: AUROC of the RBM's log-density, of a mixture of Bernoullis
(size and smoothing chosen on rows left out of its fit), and of how far the number of foreground
pixels is from that of the median training digit. All images are thresholded. Writes results.json
and figures/.

AUROC on 30 held-out threes, 156 to learn from, means of 3 seeds ± standard error over test digits
(26 s of CPU time on two cores busy with other work, 2026-11-24):

                                          RBM          mixture            pixels
    other digits                0.955 ± 0.027    0.948 ± 0.029     0.888 ± 0.016
    other digits, as much ink   0.956 ± 0.026    0.953 ± 0.028     0.549 ± 0.058
    5 % of bits flipped         0.993 ± 0.007    0.976 ± 0.024     0.985 ± 0.009
    10 % of bits flipped        1.000 ± 0.000    1.000 ± 0.000     1.000 ± 0.000
    8x8 block erased            0.711 ± 0.039    0.640 ± 0.034     0.954 ± 0.016

With --preset full, 302 held-out threes, 2,012 to learn from (72 s of CPU time, 111 s on the busy
machine):

    other digits                0.975 ± 0.005    0.968 ± 0.005     0.856 ± 0.005
    other digits, as much ink   0.971 ± 0.005    0.972 ± 0.005     0.468 ± 0.017
    5 % of bits flipped         1.000 ± 0.000    0.998 ± 0.001     0.992 ± 0.002
    10 % of bits flipped        1.000 ± 0.000    1.000 ± 0.000     1.000 ± 0.000
    8x8 block erased            0.755 ± 0.011    0.695 ± 0.011     0.876 ± 0.011

The number of pixels is no fair opponent where damage adds or takes ink, as the inliers were chosen
by it; but a density does worse: missing ink costs a density little, as background is likely.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import poejax as pj
from experiments import rbm_recipe, runs, scoring
from poejax import datasets, plotting

Bits = npt.NDArray[np.float32]
SCORES = ("RBM", "Bernoulli mixture", "foreground pixels")
LEAD = "RBM less mixture"
_RBM = rbm_recipe.Recipe(num_hidden=100, num_steps=3_000, batch_size=50, weight_decay=1e-3)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything the study depends on, with its data."""

    preset: Literal["default", "full", "smoke"] = "default"
    """Defaults of all other options."""
    dataset: Literal["mnist5k", "mnist", "digits"] = "mnist5k"
    """mnist5k and digits need no download; training and held-out digits as they are split there."""
    digit: int = 3
    """The class to learn."""
    min_pixels: int = 100
    """Fewest foreground pixels of an example."""
    max_pixels: int = 125
    """Most foreground pixels of an example."""
    rbm: rbm_recipe.Recipe = _RBM
    """Sizes and rates of the RBM."""
    mixture_sizes: tuple[int, ...] = (2, 5, 10, 20)
    """Numbers of components to choose from."""
    fraction: float = 0.02
    """Share of the training digits shown at either end of the ranking."""
    block: int = 8
    """Side of the square of background that occludes a digit, somewhere in its inner half."""
    num_seeds: int = 3
    """Seeds 0, 1, ... of training and of the damage."""
    workdir: Path | None = None
    """Where results.json and figures/ go; runs/ranking/PRESET unless given."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        runs.at_least(self, 1, "num_seeds", "block")
        if not 0 <= self.digit <= 9:
            raise ValueError(f"digit: expected 0 to 9, got {self.digit}")
        if not 0 < self.fraction <= 0.5:
            raise ValueError(f"fraction: expected a number in (0, 0.5], got {self.fraction}")
        if not self.mixture_sizes or min(self.mixture_sizes) < 1:
            raise ValueError(f"mixture_sizes: expected positive, got {self.mixture_sizes}")


PRESETS = {
    "default": Config(),
    "full": Config(
        preset="full",
        dataset="mnist",
        rbm=rbm_recipe.Recipe(num_hidden=200, num_steps=10_000, weight_decay=1e-3),
        mixture_sizes=(25, 50, 100, 200, 400),
    ),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        min_pixels=15,
        max_pixels=30,
        rbm=rbm_recipe.Recipe(num_hidden=16, num_chains=20, num_steps=200, batch_size=20),
        mixture_sizes=(2, 4),
        fraction=0.05,
        block=3,
        num_seeds=2,
    ),
}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train on every seed, score and draw; returns what results.json holds.

    Raises:
      ValueError: if too few digits have that many foreground pixels.
      FloatingPointError: if training diverges.
    """
    start = time.perf_counter()
    data = runs.load(config.dataset, 0)
    require_block(config.block, data.shape)
    train, _ = select(data.train, config)
    held_out = [select(split, config) for split in (data.validation, data.test)]
    inliers, others = (np.concatenate(parts) for parts in zip(*held_out, strict=True))
    if len(train) < config.rbm.batch_size or len(inliers) < 2 or len(others) < 2:
        raise ValueError(
            f"min_pixels, max_pixels: expected a batch of {config.rbm.batch_size} digits to learn "
            f"and 2 held out, got {len(train)} and {len(inliers)}"
        )
    trainer = rbm_recipe.trainer(config.rbm, train.shape[1])
    median = np.median(train.sum(axis=1))
    areas: dict[str, dict[str, list[scoring.AUROC]]] = {}
    sizes = []
    for seed in range(config.num_seeds):
        key = jax.random.key(seed)
        description = f"RBM, seed {seed}"
        params = rbm_recipe.fit(key, trainer, train, rbm_recipe.as_bits, description)
        mixture_key = jax.random.fold_in(key, 1)
        mixture = scoring.fit_mixture(mixture_key, train, train, config.mixture_sizes)
        sizes.append([mixture.num_components, mixture.smoothing])

        def score(x: Bits, params: Any = params, mixture: Any = mixture) -> dict[str, Any]:
            rank = pj.inference.rank(trainer.model, params, jnp.asarray(x))
            log_probs = scoring.mixture_log_probs(mixture.params, jnp.asarray(x))
            pixels = -np.abs(x.sum(axis=1) - median)
            return dict(zip(SCORES, (rank.log_density, log_probs, pixels), strict=True))

        of_inliers = score(inliers)
        outliers = outlier_sets(seed, inliers, others, data.shape, config)
        for name, (x, paired) in outliers.items():
            for scorer, values in score(x).items():
                area = scoring.auroc(of_inliers[scorer], values, paired)
                areas.setdefault(name, {}).setdefault(scorer, []).append(area)
        if seed == 0:
            ranking = pj.inference.rank(trainer.model, params, jnp.asarray(train))
            draw_ranking(workdir / "figures", train, ranking, data.shape, config)
            shown = {"held-out digit": inliers} | {n: x for n, (x, _) in outliers.items()}
    plotting.save(sets_figure(shown, data.shape), workdir / "figures" / "sets.png")
    results: dict[str, Any] = {
        "binarization": "threshold",
        "train_examples": len(train),
        "inliers": len(inliers),
        "outliers": {name: len(x) for name, (x, _) in outliers.items()},
        "mixture_components_and_smoothing": sizes,
        "auroc": {name: summary(by_scorer) for name, by_scorer in areas.items()},
    }
    plotting.save(auroc_figure(results), workdir / "figures" / "auroc.png")
    return runs.write_results(workdir, config, results, start)


def select(split: datasets.Split, config: Config) -> tuple[Bits, Bits]:
    """Return thresholded bits: digits of the class and amount of ink to learn, and other digits."""
    bits = np.asarray(datasets.threshold(jax.random.key(0), split.images))
    pixels, own = bits.sum(axis=1), split.labels == config.digit
    band = (pixels >= config.min_pixels) & (pixels <= config.max_pixels)
    return bits[own & band], bits[~own]


def outlier_sets(
    seed: int, inliers: Bits, others: Bits, shape: tuple[int, int], config: Config
) -> dict[str, tuple[Bits, bool]]:
    """Return what is no clean digit of the class, by name, and whether row i is from inlier i."""
    rng = np.random.default_rng(seed)
    pixels = others.sum(axis=1)
    band = (pixels >= config.min_pixels) & (pixels <= config.max_pixels)

    def flipped(rate: float) -> Bits:
        return np.abs(inliers - (rng.random(inliers.shape) < rate)).astype(np.float32)

    occluded = np.where(block_masks(rng, len(inliers), shape, config.block), 0, inliers)
    return {
        "other digits": (others, False),
        "other digits, as much ink": (others[band], False),
        "5 % of bits flipped": (flipped(0.05), True),
        "10 % of bits flipped": (flipped(0.1), True),
        f"{config.block}x{config.block} block erased": (occluded.astype(np.float32), True),
    }


def require_block(side: int, shape: tuple[int, int]) -> None:
    """Raise ValueError if a square's side is more than half the height or width of an image."""
    if not 1 <= side <= min(shape) // 2:
        raise ValueError(f"block: expected a side of 1 to {min(shape) // 2}, got {side}")


def block_masks(
    rng: np.random.Generator, num_images: int, shape: tuple[int, int], side: int
) -> npt.NDArray[np.bool_]:
    """Draw squares [N, D] of True, centred uniformly over the inner half of height and width."""
    rows, columns = (
        np.rint(rng.uniform(size / 4, 3 * size / 4, num_images) - side / 2).astype(int)
        for size in shape
    )
    i, j = np.indices(shape)
    inside = [
        (axis >= low[:, None, None]) & (axis < low[:, None, None] + side)
        for axis, low in ((i, rows), (j, columns))
    ]
    return (inside[0] & inside[1]).reshape(num_images, -1)


def summary(by_scorer: dict[str, list[scoring.AUROC]]) -> dict[str, Any]:
    """Return mean over seeds, its standard error over test examples, and the seeds' spread."""
    means = {scorer: scoring.AUROC.mean(areas) for scorer, areas in by_scorer.items()}
    figures: dict[str, Any] = {
        scorer: {
            "mean": mean.value,
            "std_err": mean.std_err,
            "std_over_seeds": scoring.spread([area.value for area in by_scorer[scorer]]),
            "per_seed": [area.value for area in by_scorer[scorer]],
        }
        for scorer, mean in means.items()
    }
    lead = means[SCORES[0]].minus(means[SCORES[1]])
    return figures | {LEAD: {"mean": lead.value, "std_err": lead.std_err}}


def draw_ranking(
    directory: Path, train: Bits, ranking: Any, shape: tuple[int, int], config: Config
) -> None:
    """Draw both ends of the ranking, the extremes at the left."""
    most, least = (np.asarray(end(config.fraction)) for end in (ranking.most, ranking.least))
    blocks = -(-len(most) // 24)
    figure = plotting.reconstructions(
        train[most],
        train[least],
        shape,
        num_columns=-(-len(most) // blocks),
        labels=["most likely", "least likely"],
    )
    plotting.save(figure, directory / "ranking.png")


def sets_figure(sets: dict[str, Bits], shape: tuple[int, int]) -> Figure:
    """Show ten of every held-out set, one row each."""
    rows = {name: x[:10] for name, x in sets.items()}
    figure = Figure((6.5, 0.62 * len(rows)), dpi=150)
    for k, (name, images) in enumerate(rows.items()):
        axes = figure.add_axes((0.32, 1 - (k + 1) / len(rows), 0.68, 0.94 / len(rows)))
        axes.imshow(np.hstack(list(images.reshape(-1, *shape))), cmap="gray", aspect="equal")
        axes.set_xticks([])
        axes.set_yticks([shape[0] / 2], [name])
        axes.tick_params(length=0)
    return figure


def auroc_figure(results: dict[str, Any]) -> Figure:
    """Draw the areas with bars of two standard errors, and the seeds as dots."""
    figure = Figure((7.5, 3.6), dpi=150, layout="tight")
    axes = figure.add_subplot(xlabel="AUROC; bars: ± 2 standard errors, dots: seeds")
    names = list(results["auroc"])
    for k, scorer in enumerate(SCORES):
        y = np.arange(len(names)) + 0.22 * (k - 1)
        figures = [results["auroc"][name][scorer] for name in names]
        errors = [2 * f["std_err"] for f in figures]
        line = axes.errorbar(
            [f["mean"] for f in figures], y, xerr=errors, fmt="s", ms=4, capsize=3, label=scorer
        )
        for position, f in zip(y, figures, strict=True):
            dots = f["per_seed"]
            axes.plot(dots, [position + 0.08] * len(dots), ".", ms=3, color=line[0].get_color())
    axes.axvline(0.5, color="0.6", lw=1, ls=":")
    axes.set_yticks(range(len(names)), [f"{n} ({results['outliers'][n]})" for n in names])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.15), ncols=3, frameon=False)
    return figure


def table(results: dict[str, Any]) -> str:
    """Return the closing table."""
    columns = (*SCORES, LEAD)
    lines = [f"\n{'AUROC (± standard error)':<28}" + "".join(f"{name:>20}" for name in columns)]
    for name, figures in results["auroc"].items():
        cells = [f"{figures[c]['mean']:.3f} ± {figures[c]['std_err']:.3f}" for c in columns]
        lines.append(f"{name:<28}" + "".join(f"{cell:>20}" for cell in cells))
    seeds = results["config"]["num_seeds"]
    lines.append(
        f"means of {seeds} seeds; {results['inliers']} held-out digits, "
        f"{results['train_examples']} to learn from, thresholded; mixtures (components, smoothing) "
        f"{results['mixture_components_and_smoothing']}"
    )
    return "\n".join(lines)


@runs.command
def main() -> int:
    """Run from the command line; returns the exit status."""
    return runs.run_study(PRESETS, __doc__ or "", "ranking", train_and_evaluate, table)


if __name__ == "__main__":
    sys.exit(main())
