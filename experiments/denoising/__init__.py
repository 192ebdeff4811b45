"""Removing bit flips and filling holes: the posterior mean against a mean-field pass and a filter.

    python -m experiments.denoising                  # 5,000 embedded MNIST digits
    python -m experiments.denoising --preset full    # all 60,000

An RBM learns clean thresholded digits. Test digits then have bits flipped at a known rate, or a
square erased whose place is known, and are estimated by

- `input`: the damaged image itself;
- `median filter`: the median of 3x3 pixels, background beyond the edge;
- `mean field`: one pass up and down with means, the lecture's reconstruction, which knows neither
  rate nor place;
- `posterior mean`: E[x | y] by Gibbs chains on the product of the RBM and the noise as one more
  expert, or with the pixels outside the square clamped.

An estimate is a probability per pixel. Bit error rate: the share of pixels whose estimate, cut at
½, is not the clean bit. PSNR: -10 log10 of the mean squared difference between the uncut estimate
and the clean bits. Both over all pixels of all test digits, for the erased square over its pixels.
Writes results.json and figures/.
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
from scipy import ndimage

import poejax as pj
from experiments.lab import encoders, figures, rbm_recipe, runs, tables
from experiments.lab.damage import block_masks, require_block
from poejax import datasets, plotting
from poejax.types import Array, Params

Floats = npt.NDArray[np.float32]
METHODS = ("input", "median filter", "mean field", "posterior mean")
_RBM = rbm_recipe.Recipe(num_hidden=200, num_steps=4_000)


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything the study depends on, with its data."""

    rbm: rbm_recipe.Recipe = _RBM  # Sizes and rates of the RBM.
    noise_rates: tuple[float, ...] = (0.05, 0.1, 0.2)  # Probabilities of a flip, each in (0, ½).
    block: int = 10  # Side of the erased square, centred somewhere in the inner half of the image.
    num_images: int = 200  # Test digits to damage, the same for all seeds.
    num_chains: int = 4  # Gibbs chains per damaged digit.
    num_sweeps: int = 200  # Sweeps of each chain.
    burn_in: int = 50  # Sweeps before averaging starts.
    num_seeds: int = 3  # Seeds 0, 1, ... of training, damage and chains.
    num_shown: int = 12  # Digits in the figures, those of seed 0.

    bounds: ClassVar = {"num_chains": 2, "num_images": 2, "burn_in": 0}

    def check(self) -> None:
        """Refuse rates that are no noise or stand twice, and sweeps without an average."""
        rates = self.noise_rates
        self.expect(all(0 < rate < 0.5 for rate in rates), "noise_rates", "some in (0, 0.5)")
        self.expect(len(set(rates)) == len(rates), "noise_rates", "different ones")
        self.expect(self.burn_in < self.num_sweeps, "burn_in", f"0 to {self.num_sweeps - 1}")


PRESETS = {
    "default": Config(),
    "full": Config(
        preset="full",
        dataset="mnist",
        rbm=rbm_recipe.Recipe(num_hidden=300, num_steps=10_000),
        num_images=500,
    ),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        rbm=rbm_recipe.Recipe(num_hidden=32, num_steps=1_000),
        block=3,
        num_images=250,
        num_sweeps=60,
        burn_in=20,
        num_seeds=2,
        num_shown=6,
    ),
}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train, damage and repair on every seed, and draw; returns what results.json holds.

    Raises:
      ValueError: if the data set has fewer test digits than asked for, or is smaller than a batch.
    """
    start = time.perf_counter()
    data = runs.load(config.dataset, 0)
    num_test = len(data.test.images)
    config.expect(config.num_images <= num_test, "num_images", f"at most {num_test}")
    require_block(config.block, data.shape)
    # Evenly over the split: the second half of MNIST's test digits is harder than the first.
    chosen = np.linspace(0, num_test - 1, config.num_images).astype(int)
    clean = np.asarray(datasets.threshold(jax.random.key(0), data.test.images[chosen]))
    damages: dict[str, float | None]
    damages = {f"{100 * rate:g} % flips": rate for rate in config.noise_rates}
    damages[f"{config.block}x{config.block} erased"] = None
    # Errors by damage and method, [seeds, digits]; and the Monte Carlo error of the means.
    wrong: dict[str, dict[str, list[Floats]]] = {d: {m: [] for m in METHODS} for d in damages}
    squares: dict[str, dict[str, list[Floats]]] = {d: {m: [] for m in METHODS} for d in damages}
    std_errs: dict[str, list[float]] = {d: [] for d in damages}
    for seed in range(config.num_seeds):
        key = jax.random.key(seed)
        description = f"RBM, seed {seed}"
        model, params = config.rbm.fit(key, data.train.images, datasets.threshold, description)
        with runs.progress(len(damages), f"repairing, seed {seed}", "damage") as bar:
            for number, (name, rate) in enumerate(damages.items()):
                damage_key = jax.random.fold_in(key, 1 + number)
                estimates, pixels, std_err = repair(
                    damage_key, seed, model, params, clean, rate, data.shape, config
                )
                std_errs[name].append(float(np.sqrt(np.mean(std_err[pixels] ** 2))))
                for method, x in estimates.items():
                    wrong[name][method].append(per_image((x > 0.5) != (clean > 0.5), pixels))
                    squares[name][method].append(per_image((x - clean) ** 2, pixels))
                if seed == 0:
                    shown = {"clean": clean} | estimates
                    rows = {n: x[: config.num_shown] for n, x in shown.items()}
                    figure = figures.strips(rows, data.shape)
                    file = name.replace(" % ", "-percent-").replace(" ", "-")
                    plotting.save(figure, workdir / "figures" / f"{file}.png")
                bar.update()
    results: dict[str, Any] = {
        "binarization": "threshold",
        "test_examples": len(clean),
        "scores": {d: summary(wrong[d], squares[d], std_errs[d]) for d in damages},
    }
    plotting.save(scores_figure(results["scores"]), workdir / "figures" / "scores.png")
    return runs.write_results(workdir, config, results, start, table)


def repair(
    rng_key: Array,
    seed: int,
    model: pj.Product,
    params: Params,
    clean: Floats,
    rate: float | None,
    shape: tuple[int, int],
    config: Config,
) -> tuple[dict[str, Floats], npt.NDArray[np.bool_], Floats]:
    """Damage the digits, by flips at `rate` or by erasing a square, and estimate them.

    Returns:
      `(estimates, pixels, std_err)`: estimates [N, D] by method, the mask [N, D] of the pixels to
      be judged, and the Monte Carlo standard error of the posterior mean [N, D].
    """
    noise_key, chain_key = jax.random.split(rng_key)
    chains: dict[str, Any] = {
        "num_chains": config.num_chains,
        "num_steps": config.num_sweeps,
        "burn_in": config.burn_in,
    }
    if rate is None:
        pixels = block_masks(np.random.default_rng(seed), len(clean), shape, config.block)
        damaged = np.where(pixels, np.float32(0), clean)
        posterior = pj.inference.inpaint(chain_key, model, params, damaged, ~pixels, **chains)
    else:
        pixels = np.ones(clean.shape, bool)
        noise = pj.inference.BitFlips(rate)
        keys = jax.random.split(noise_key, len(clean))
        corrupt = jax.vmap(lambda k, x: noise.corrupt(k, model.visible, x))
        damaged = np.asarray(corrupt(keys, jnp.asarray(clean)))
        posterior = pj.inference.denoise(chain_key, model, params, damaged, noise, **chains)
    estimates = (
        damaged,
        median_filter(damaged, shape),
        np.asarray(encoders.reconstruct(model, params, jnp.asarray(damaged))),
        np.asarray(posterior.mean),
    )
    return dict(zip(METHODS, estimates, strict=True)), pixels, np.asarray(posterior.std_err)


def median_filter(images: Floats, shape: tuple[int, int]) -> Floats:
    """Return the median of 3x3 bits about each pixel of images [N, D], with 0 beyond the edge."""
    window = (1, 3, 3)
    found = ndimage.median_filter(images.reshape(-1, *shape), window, mode="constant")
    return np.asarray(found.reshape(images.shape))


def per_image(errors: npt.NDArray[Any], pixels: npt.NDArray[np.bool_]) -> Floats:
    """Return the mean error of each image over its own pixels to be judged, [N]."""
    return np.asarray((errors * pixels).sum(axis=1) / pixels.sum(axis=1), np.float32)


def summary(
    wrong: dict[str, list[Floats]], squares: dict[str, list[Floats]], std_errs: list[float]
) -> dict[str, Any]:
    """Return the scores of one damage, and by how much the posterior mean beats the mean field."""
    scores: dict[str, Any] = {}
    for method in METHODS:
        rates = [float(v.mean()) for v in wrong[method]]
        psnr = [float(-10 * np.log10(v.mean())) for v in squares[method]]
        scores[method] = {
            "bit_error_rate": float(np.mean(rates)),
            "bit_error_rate_per_seed": rates,
            "psnr": float(np.mean(psnr)),
            "psnr_per_seed": psnr,
        }
    # Seeds damage the same digits: each digit's mean over seeds is one draw.
    for name, errors in (("bit_error_rate", wrong), ("squared_error", squares)):
        lead = np.mean(errors["mean field"], axis=0) - np.mean(errors["posterior mean"], axis=0)
        found = {"mean": float(lead.mean()), "std_err": tables.std_err(lead)}
        scores[f"lead_over_mean_field_{name}"] = found
    return scores | {"monte_carlo_std_err": float(np.mean(std_errs))}


def scores_figure(scores: dict[str, Any]) -> Figure:
    """Draw bit error rate and PSNR of every method, a dot per seed."""
    figure = Figure((9, 3.4), dpi=150, layout="tight")
    panels = {"bit error rate, %": ("bit_error_rate", 100), "PSNR, dB": ("psnr", 1)}
    for number, (label, (key, scale)) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 2, number + 1, xlabel=label)
        found = {
            damage: {m: [scale * v for v in of[m][f"{key}_per_seed"]] for m in METHODS}
            for damage, of in scores.items()
        }
        figures.by_group(axes, found)
    axes.legend(loc="upper center", bbox_to_anchor=(-0.2, 1.15), ncols=4, frameon=False)
    return figure


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing tables."""
    found = []
    for key, label in (("bit_error_rate", "bit error rate, %"), ("psnr", "PSNR, dB")):
        scale = 100 if key == "bit_error_rate" else 1
        rows = {
            damage: [tables.plus_minus(scores[m][f"{key}_per_seed"], 2, scale) for m in METHODS]
            for damage, scores in results["scores"].items()
        }
        if scale == 100:
            for damage, scores in results["scores"].items():
                lead = scores["lead_over_mean_field_bit_error_rate"]
                rows[damage].append(f"{100 * lead['mean']:.2f} ± {100 * lead['std_err']:.2f}")
        of = f"{results['test_examples']} test digits, thresholded; ± spread of seeds"
        of += ", of the last column standard error" if scale == 100 else ""
        heads = ("", *METHODS, *(["mean field less posterior mean"] if scale == 100 else []))
        found.append(tables.table(f"{label}, {of}", heads, rows))
    return found


main = runs.main_of(PRESETS, __doc__, "denoising", train_and_evaluate, table)
