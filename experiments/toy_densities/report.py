"""Pictures and tables of toy densities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from scipy.special import softmax
from scipy.stats import norm

from experiments.lab import figures, tables
from experiments.lab.plane import NUM_NODES, Target, nodes
from experiments.toy_densities.theory import Expansion
from poejax.types import Array

LogProbs = Callable[[Array], Array]
"""`rows [N, 2] -> log densities [N]`."""


@dataclasses.dataclass(frozen=True)
class Region:
    """The smallest region that holds 99 % of a target's mass, on the nodes of a square.

    x: nodes, [N, 2]. inside: which of them are in it, [N]. cell: area of one node's cell.
    """

    x: Array
    inside: np.ndarray
    cell: float

    @classmethod
    def of(cls, target: Target, test: Array) -> Region:
        """Find the region above the 1 % quantile of the density at test rows [N, 2]."""
        threshold = np.quantile(np.asarray(jax.vmap(target.log_prob)(test)), 0.01)
        x = nodes(target)
        log_p = np.asarray(jax.vmap(target.log_prob)(x))
        side = 2 * target.extent / NUM_NODES
        return cls(x, log_p >= threshold, side**2)

    def mass_outside(self, log_prob: LogProbs) -> float:
        """Return the mass that a density puts outside, in [0, 1]; the target's own is 0.01."""
        density = np.exp(np.asarray(log_prob(self.x), np.float64))
        return float(1 - density[self.inside].sum() * self.cell)


def draw_densities(
    rows: list[dict[str, Any]],
    panels: Mapping[str, tuple[Target, Array, Mapping[str, LogProbs]]],
    titles: Mapping[str, str],
) -> Figure:
    """Draw one row of densities per data set, one column per family, on one scale per row.

    Args:
      rows: of `toy_densities.study_densities`.
      panels: (target, training rows, log density by family) by data set.
      titles: headings by family.
    """
    families = list(next(iter(panels.values()))[2])
    figure = Figure((2.2 * len(families), 2.45 * len(panels) + 0.5), layout="constrained")
    axes = figure.subplots(len(panels), len(families), squeeze=False)
    means = {
        (row["target"], row["family"]): (np.mean(row["log_likelihood"]), row["num_free"])
        for row in rows
    }
    for i, (name, (target, data, log_probs)) in enumerate(panels.items()):
        x, side = nodes(target), target.extent
        peak = float(np.exp(np.max(np.asarray(log_probs["truth"](x)))))
        for j, family in enumerate(families):
            panel = axes[i, j]
            density = np.exp(np.asarray(log_probs[family](x)))
            brightness = PowerNorm(0.5, 0, peak)
            figures.on_square(panel, density, side, norm=brightness, cmap="magma")
            if family == "truth":
                panel.plot(*np.asarray(data[:300]).T, ".", color="white", ms=1.2, alpha=0.6)
                panel.set_ylabel(name, fontsize=12)
            panel.set(xlim=(-side, side), ylim=(-side, side), xticks=[], yticks=[])
            mean, num_free = means[name, family]
            panel.set_xlabel(f"{mean:.3f} nats", fontsize=9)
            if i == 0:
                count = "true density, 300 rows" if family == "truth" else f"{num_free} parameters"
                panel.set_title(f"{titles[family]}\n{count}", fontsize=9)
    figure.suptitle(
        "Held-out log-likelihood per point under each panel; brightness: square root of the "
        "density, one scale per row",
        fontsize=10,
    )
    return figure


def draw_kl(curve: Mapping[str, Any]) -> Figure:
    """Draw KL(p || q_K) against K; dots are seeds, the line their median."""
    figure = Figure((5.6, 3.8), layout="constrained")
    axes = figure.add_subplot(xlabel="number of Gaussians K", ylabel="KL(p || q$_K$), nats")
    labels = {"mixture": "mixture of K Gaussians", "product": "product of K Gaussians"}
    for (family, label), marker in zip(labels.items(), "os", strict=True):
        values = np.asarray(curve[family])
        (line,) = axes.plot(curve["k"], np.median(values, axis=1), "-", label=label)
        for column in values.T:
            axes.plot(curve["k"], column, marker, ms=4, alpha=0.5, color=line.get_color())
    best = curve["moment_matching"]
    axes.axhline(best, color="0.3", ls="--", lw=1, label=f"best Gaussian: {best:.4f}")
    axes.set_yscale("log")
    axes.set_xticks(curve["k"])
    axes.legend(frameon=False, fontsize=9)
    figures.bare(axes)
    title = "Tilted double well p on the line: more Gaussians, added or multiplied"
    axes.set_title(title, fontsize=10)
    return figure


def draw_expansion(expansion: Expansion) -> Figure:
    """Draw the product of two univariate mixtures, its factors along the axes, its components."""
    summary = expansion.summary()
    figure = Figure((6.2, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(4, 1.1), height_ratios=(1.1, 4))
    main = figure.add_subplot(grid[1, 0])
    x = expansion.x
    side = float(x.max())
    brightness = PowerNorm(0.5, 0)
    figures.on_square(
        main, expansion.product_density, side, norm=brightness, cmap="Greys", aspect="auto"
    )
    expanded = expansion.expanded
    means, widths = np.asarray(expanded.means), 4 / np.sqrt(np.asarray(expanded.precisions))
    for mean, (width, height) in zip(means, widths, strict=True):
        main.add_patch(Ellipse(tuple(mean), width, height, fill=False, ec="tab:red"))
        main.plot(*mean, "+", color="tab:red", ms=5)
    main.set(xlabel="x$_1$", ylabel="x$_2$", xlim=(-side, side), ylim=(-side, side))
    axis = x[0, :, 0]
    above = figure.add_subplot(grid[0, 0], sharex=main)
    beside = figure.add_subplot(grid[1, 1], sharey=main)
    for i, panel in enumerate((above, beside)):
        parts = _univariate_parts(expansion, i, axis)
        lines = [(parts.sum(axis=0), "0.8", 4.0), *((part, "tab:red", 1.2) for part in parts)]
        for values, colour, width in lines:
            panel.plot(*((axis, values) if i == 0 else (values, axis)), color=colour, lw=width)
        panel.set_title(f"mixture over x$_{i + 1}$", fontsize=9)
        panel.axis("off")
    figure.suptitle(
        f"{summary['univariate_components']} univariate components "
        f"({summary['product_free_parameters']} free parameters) multiply into\n"
        f"{summary['expanded_components']} on the plane "
        f"({summary['mixture_free_parameters']} free parameters as a mixture); "
        f"ellipses: two standard deviations\n"
        f"largest difference of the two densities {summary['max_abs_difference']:.1e}",
        fontsize=10,
    )
    return figure


def table(results: Mapping[str, Any]) -> list[tables.Table]:
    """Return all results as tables."""
    rows, truth = [], 0.0
    for row in results["densities"]:
        mean = np.mean(row["log_likelihood"])
        truth = mean if row["family"] == "truth" else truth
        cells = [tables.plus_minus(row["log_likelihood"], 4), f"{truth - mean:.4f}"]
        cells += [f"{100 * np.mean(row['mass_outside']):.1f}", row["rule"]]
        rows.append((row["target"], row["family"], row["num_free"] or "", *cells))
    densities = tables.table(
        "held-out log-likelihood, nats per point, exact; mean ± standard deviation over seeds",
        ("data", "model", "parameters", "mean", "below truth", "mass outside, %", "learned by"),
        rows,
    )
    curve, expansion = results["kl_against_k"], results["expansion"]
    rows = []
    for k, *families in zip(curve["k"], curve["mixture"], curve["product"], strict=True):
        cells = [
            f"{np.median(v):.{d}} ({min(v):.{d}}, {max(v):.{d}})"
            for v, d in zip(families, ("2e", "6f"), strict=True)
        ]
        rows.append((k, *cells))
    kl = tables.table(
        "KL(p || q_K) in nats, median (smallest, largest) over seeds; the best of any Gaussian, by "
        f"moment matching: {curve['moment_matching']:.6f}",
        ("K", "mixture", "product"),
        rows,
    )
    names = ("components", "free parameters", "largest difference of the densities")
    sizes = (expansion["univariate_components"], expansion["expanded_components"])
    free = (expansion["product_free_parameters"], expansion["mixture_free_parameters"])
    differ = (f"{expansion['max_abs_difference']:.2e}", f"of {expansion['max_density']:.3f}")
    expanded = zip(names, *zip(sizes, free, differ, strict=True), strict=True)
    heads = ("", "product of univariate mixtures", "mixture on the plane")
    return [densities, kl, tables.table("the same density, twice", heads, expanded)]


def _univariate_parts(expansion: Expansion, coordinate: int, x: np.ndarray) -> np.ndarray:
    """Return π_k N(x; μ_k, 1/λ_k) of one coordinate's mixture at x [N], [K, N]."""
    leaves = (expansion.params[name][coordinate] for name in ("logits", "mean", "log_precision"))
    logits, mean, log_precision = (np.asarray(leaf).reshape(-1, 1) for leaf in leaves)
    return np.asarray(softmax(logits) * norm.pdf(x, mean, np.exp(-0.5 * log_precision)))
