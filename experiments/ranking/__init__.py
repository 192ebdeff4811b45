"""Which threes are typical, and does log-density tell threes from what is not a three?

    python -m experiments.ranking                    # 5,000 embedded MNIST digits
    python -m experiments.ranking --preset full      # all 60,000

An RBM learns the "3"s with 100 to 125 foreground pixels, so that rank is not amount of ink. Draws
the most and least likely of them, and scores held-out threes of that kind against other digits and
against damaged copies of themselves: AUROC of the RBM's log-density, of a mixture of Bernoullis
(size and smoothing chosen on rows left out of its fit), and of how far the number of foreground
pixels is from that of the median training digit. All images are thresholded. Writes results.json
and figures/.

The number of pixels is no fair opponent where damage adds or takes ink, as the inliers were chosen
by it; but a density does worse: missing ink costs a density little, as background is likely.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import poejax as pj
from experiments.lab import damage, figures, rbm_recipe, runs, scoring, tables
from poejax import datasets, plotting

Bits = npt.NDArray[np.float32]
SCORES = ("RBM", "Bernoulli mixture", "foreground pixels")
LEAD = "RBM less mixture"
_RBM = rbm_recipe.Recipe(num_hidden=100, num_steps=3_000, batch_size=50, weight_decay=1e-3)


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything the study depends on, with its data."""

    digit: int = 3  # The class to learn.
    min_pixels: int = 100  # Fewest foreground pixels of an example.
    max_pixels: int = 125  # Most foreground pixels of an example.
    rbm: rbm_recipe.Recipe = _RBM  # Sizes and rates of the RBM.
    mixture_sizes: tuple[int, ...] = (2, 5, 10, 20)  # Numbers of components to choose from.
    fraction: float = 0.02  # Share of the training digits shown at either end of the ranking.
    block: int = 8
    """Side of the square of background that occludes a digit, somewhere in its inner half."""
    num_seeds: int = 3  # Seeds 0, 1, ... of training and of the damage.

    bounds: ClassVar = {"digit": (0, 10), "min_pixels": 0}

    def check(self) -> None:
        """Refuse ends of the ranking that overlap."""
        self.expect(0 < self.fraction <= 0.5, "fraction", "a number in (0, 0.5]")


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
    """
    start = time.perf_counter()
    data = runs.load(config.dataset, 0)
    damage.require_block(config.block, data.shape)
    train, _ = select(data.train, config)
    held_out = [select(split, config) for split in (data.validation, data.test)]
    inliers, others = (np.concatenate(parts) for parts in zip(*held_out, strict=True))
    if len(train) < config.rbm.batch_size or len(inliers) < 2 or len(others) < 2:
        raise ValueError(
            f"min_pixels, max_pixels: expected a batch of {config.rbm.batch_size} digits to learn "
            f"and 2 held out, got {len(train)} and {len(inliers)}"
        )
    median = np.median(train.sum(axis=1))
    areas: dict[str, dict[str, list[scoring.AUROC]]] = {}
    sizes = []
    for seed in range(config.num_seeds):
        key = jax.random.key(seed)
        model, params = config.rbm.fit(key, train, rbm_recipe.as_bits, f"RBM, seed {seed}")
        mixture_key = jax.random.fold_in(key, 1)
        mixture = scoring.fit_mixture(mixture_key, train, train, config.mixture_sizes)
        sizes.append([mixture.num_components, mixture.smoothing])

        def score(x: Bits, rbm: Any = (model, params), mixture: Any = mixture) -> dict[str, Any]:
            rank = pj.inference.rank(rbm[0], rbm[1], jnp.asarray(x))
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
            ranking = pj.inference.rank(model, params, jnp.asarray(train))
            draw_ranking(workdir / "figures", train, ranking, data.shape, config)
            shown = {"held-out digit": inliers} | {n: x for n, (x, _) in outliers.items()}
    figure = figures.strips({name: x[:10] for name, x in shown.items()}, data.shape)
    plotting.save(figure, workdir / "figures" / "sets.png")
    results: dict[str, Any] = {
        "binarization": "threshold",
        "train_examples": len(train),
        "inliers": len(inliers),
        "outliers": {name: len(x) for name, (x, _) in outliers.items()},
        "mixture_components_and_smoothing": sizes,
        "auroc": {name: summary(by_scorer) for name, by_scorer in areas.items()},
    }
    plotting.save(auroc_figure(results), workdir / "figures" / "auroc.png")
    return runs.write_results(workdir, config, results, start, table)


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

    occluded = np.where(damage.block_masks(rng, len(inliers), shape, config.block), 0, inliers)
    return {
        "other digits": (others, False),
        "other digits, as much ink": (others[band], False),
        "5 % of bits flipped": (flipped(0.05), True),
        "10 % of bits flipped": (flipped(0.1), True),
        f"{config.block}x{config.block} block erased": (occluded.astype(np.float32), True),
    }


def summary(by_scorer: dict[str, list[scoring.AUROC]]) -> dict[str, Any]:
    """Return mean over seeds, its standard error over test examples, and the seeds' spread."""
    means = {scorer: scoring.AUROC.mean(areas) for scorer, areas in by_scorer.items()}
    found = {
        scorer: tables.over_seeds([area.value for area in by_scorer[scorer]])
        | {"mean": mean.value, "std_err": mean.std_err}
        for scorer, mean in means.items()
    }
    lead = means[SCORES[0]].minus(means[SCORES[1]])
    return found | {LEAD: {"mean": lead.value, "std_err": lead.std_err}}


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


def auroc_figure(results: dict[str, Any]) -> Figure:
    """Draw the areas with bars of two standard errors, and the seeds as dots."""
    figure = Figure((7.5, 3.6), dpi=150, layout="tight")
    axes = figure.add_subplot(xlabel="AUROC; bars: ± 2 standard errors, dots: seeds")
    areas = {f"{n} ({results['outliers'][n]})": of for n, of in results["auroc"].items()}
    found = {n: {s: of[s]["per_seed"] for s in SCORES} for n, of in areas.items()}
    errors = {n: {s: 2 * of[s]["std_err"] for s in SCORES} for n, of in areas.items()}
    figures.by_group(axes, found, errors)
    axes.axvline(0.5, color="0.6", lw=1, ls=":")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.15), ncols=3, frameon=False)
    return figure


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    columns = (*SCORES, LEAD)
    rows = {
        name: [f"{of[c]['mean']:.3f} ± {of[c]['std_err']:.3f}" for c in columns]
        for name, of in results["auroc"].items()
    }
    caption = (
        f"AUROC (± standard error), means over seeds; {results['inliers']} held-out digits, "
        f"{results['train_examples']} to learn from, thresholded; mixtures (components, smoothing) "
        f"{results['mixture_components_and_smoothing']}"
    )
    return [tables.table(caption, ("", *columns), rows)]


main = runs.main_of(PRESETS, __doc__, "ranking", train_and_evaluate, table)
