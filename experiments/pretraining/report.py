"""What the pre-training study found: margins in pairs, a table, box plots."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.lab import tables
from experiments.lab.figures import bare

_COLOURS = {"pre-trained": "C0", "random": "C1", "modern": "C2"}


def errors_by_kind(results: dict[str, Any]) -> dict[tuple[int, int], dict[str, dict[int, float]]]:
    """Return test errors by (labels, depth), arm and seed; labels 0 stands for all."""
    found: dict[tuple[int, int], dict[str, dict[int, float]]] = {}
    for name, result in results.items():
        match = re.fullmatch(r"labels(\w+)/depth(\d+)/(.+)/seed(\d+)", name)
        assert match is not None
        labels = 0 if match[1] == "all" else int(match[1])
        arms = found.setdefault((labels, int(match[2])), {})
        arms.setdefault(match[3], {})[int(match[4])] = result["test_error"]
    return dict(sorted(found.items(), key=lambda item: (item[0][0] or np.inf, item[0][1])))


def margin(better: dict[int, float], worse: dict[int, float]) -> tuple[float, float]:
    """Return mean and standard error of worse - better, in pairs of one seed each."""
    seeds = sorted(better.keys() & worse.keys())
    differences = np.array([worse[seed] - better[seed] for seed in seeds])
    return float(differences.mean()), tables.std_err(differences)


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table: mean and spread of each arm, and what pre-training gains."""
    rows = []
    for (labels, depth), arms in errors_by_kind(results).items():
        counts = sorted({len(errors) for errors in arms.values()})
        row = [labels or "all", depth, "-".join(map(str, counts[:: max(1, len(counts) - 1)]))]
        row += [
            tables.plus_minus([*arms[arm].values()], 2, 100) if arm in arms else ""
            for arm in _COLOURS
        ]
        for arm in ("random", "modern"):
            gain = ""
            if arm in arms and "pre-trained" in arms:
                mean, std_err = margin(arms["pre-trained"], arms[arm])
                gain = f"{100 * mean:.2f} ± {100 * std_err:.2f}"
            row.append(gain)
        rows.append(row)
    caption = (
        "test error, %, mean ± standard deviation over seeds, and by how many points the first arm "
        "beats the other two, ± standard error over pairs of one seed"
    )
    heads = ("labels", "depth", "seeds", *_COLOURS, "over random", "over modern")
    return [tables.table(caption, heads, rows)]


def draw(results: dict[str, Any], num_rows: int) -> Figure:
    """Draw box plots of test errors: a panel per number of labels, boxes per depth and arm."""
    kinds = errors_by_kind(results)
    panels = list(dict.fromkeys(labels for labels, _ in kinds))
    figure = Figure((1 + 3 * max(len(panels), 2), 3.8), layout="constrained")
    for k, labels in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), k + 1, xlabel="hidden layers")
        axes.set_title(f"{labels or num_rows:,} labels", fontsize="medium")
        depths = [depth for n, depth in kinds if n == labels]
        for i, (arm, colour) in enumerate(_COLOURS.items()):
            places = [x for x, depth in enumerate(depths) if arm in kinds[labels, depth]]
            values = [100 * np.array(list(kinds[labels, depths[x]][arm].values())) for x in places]
            if not values:
                continue
            positions = [x + 0.25 * (i - 1) for x in places]
            if max(map(len, values)) < 3:  # too few for quartiles
                for x, dots in zip(positions, values, strict=True):
                    axes.plot([x] * len(dots), dots, "o", color=colour, alpha=0.6)
                continue
            boxes = axes.boxplot(
                values,
                positions=positions,
                widths=0.2,
                patch_artist=True,
                medianprops={"color": "black"},
                flierprops={"marker": ".", "markersize": 4},
            )
            for box in boxes["boxes"]:
                box.set(facecolor=colour, alpha=0.6)
        axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
        axes.set_yscale("log")  # arms differ by a point where others differ by fifty
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)))
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.grid(color="0.9", axis="y")
        bare(axes)
        if k == 0:
            axes.set_ylabel("test error (%), logarithmic")
    run = set().union(*kinds.values())
    patches = [Patch(facecolor=c, alpha=0.6, label=a) for a, c in _COLOURS.items() if a in run]
    figure.legend(handles=patches, ncols=3, frameon=False, loc="outside upper center")
    return figure
