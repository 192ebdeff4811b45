"""What figures of several studies share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def bare(axes: Any) -> None:
    """Take away the frame at the top and at the right."""
    axes.spines[["top", "right"]].set_visible(False)


def on_square(axes: Any, values: Any, side: float, **options: Any) -> Any:
    """Show values at the nodes of a square about the origin, [N²] or [N, N], rows from below."""
    size = math.isqrt(np.size(values))
    extent = (-side, side, -side, side)
    return axes.imshow(values.reshape(size, size), origin="lower", extent=extent, **options)


def strips(rows: Mapping[str, Any], shape: tuple[int, int]) -> Figure:
    """Show images [N, D] side by side, one named row for each set of them."""
    most = max(map(len, rows.values()))
    width = 0.55 * most + 1.9
    figure = Figure((width, 0.62 * len(rows)), dpi=150)
    left = 1.9 / width
    for k, (name, images) in enumerate(rows.items()):
        box = (left, 1 - (k + 1) / len(rows), 1 - left, 0.94 / len(rows))
        axes = figure.add_axes(box, anchor="W")
        axes.imshow(np.hstack(list(images.reshape(-1, *shape))), cmap="gray", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([shape[0] / 2], [name])
        axes.tick_params(length=0)
    return figure


def by_group(
    axes: Any,
    found: Mapping[str, Mapping[str, Sequence[float]]],
    errors: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Draw every series of numbers in every group: its mean, a bar of errors, and dots."""
    names = list(next(iter(found.values())))
    for k, name in enumerate(names):
        places = np.arange(len(found)) + 0.7 / len(names) * (k - (len(names) - 1) / 2)
        means = [np.mean(series[name]) for series in found.values()]
        bars = None if errors is None else [own[name] for own in errors.values()]
        (line, *_) = axes.errorbar(means, places, xerr=bars, fmt="s", ms=4, capsize=3, label=name)
        for place, series in zip(places, found.values(), strict=True):
            at = [place] * len(series[name])
            axes.plot(series[name], at, "o", ms=3, alpha=0.5, color=line.get_color())
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.grid(color="0.9", axis="x")
    bare(axes)
