"""Pictures of the columns of tables: data beside what a model draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_DPI = 150
_FEW_VALUES, _MOST_PAIRS = 12, 20_000  # with a bar each; beyond which some are left out


def marginals(
    data: npt.ArrayLike,
    samples: npt.ArrayLike,
    names: Sequence[str] | None = None,
    num_shown: int = 16,
    num_columns: int = 4,
    title: str | None = None,
    labels: tuple[str, str] = ("data", "samples"),
) -> Figure:
    """Draw histograms of the columns of data `[N, D]` and samples `[M, D]`, one panel a column.

    Few different values have a bar each. Else the bins span what the data span, and their first and
    last hold all that lies beyond; heights are shares of N and of M.

    Args:
      data, samples: rows of numbers.
      names: of the D columns; by default they are numbered from 1.
      num_shown: the first so many columns are drawn.
      num_columns, title: see the top of `plotting`.
      labels: of data and samples, in the legend.
    """
    x, y = _rows(data, samples)
    shown = min(num_shown, x.shape[1])
    names = names if names is not None else [f"column {i + 1}" for i in range(x.shape[1])]
    num_columns = min(num_columns, shown)
    num_rows = math.ceil(shown / num_columns)
    size = (2.4 * num_columns + 0.6, 1.9 * num_rows + 0.8)
    figure = Figure(size, dpi=_DPI, layout="constrained")
    for i in range(shown):
        axes = figure.add_subplot(num_rows, num_columns, i + 1)
        axes.set_title(str(names[i])[:24], fontsize="small")
        levels, others = np.unique(x[:, i]), np.unique(y[:, i])
        if max(len(levels), len(others)) <= _FEW_VALUES:
            levels = np.union1d(levels, others)
            position = np.arange(len(levels))
            for k, values in enumerate((x[:, i], y[:, i])):
                heights = [float((values == level).mean()) for level in levels]
                axes.bar(position + 0.4 * k - 0.2, heights, 0.4, label=labels[k])
            ticks = position[:: math.ceil(len(levels) / 8)]
            axes.set_xticks(ticks, [f"{levels[t]:g}" for t in ticks])
        else:
            bins = np.histogram_bin_edges(x[:, i], bins=min(30, max(10, len(x) // 20)))
            for values, label in zip((x[:, i], y[:, i]), labels, strict=True):
                counts, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins)
                axes.stairs(counts / len(values), bins, label=label, linewidth=1.5)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.tick_params(labelsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    handles, found = axes.get_legend_handles_labels()
    figure.legend(handles, found, loc="outside upper center", ncols=2, frameon=False)
    figure.suptitle(title or ("" if shown == x.shape[1] else f"{shown} of {x.shape[1]} columns"))
    return figure


def moments(
    data: npt.ArrayLike,
    samples: npt.ArrayLike,
    title: str | None = None,
    labels: tuple[str, str] = ("data", "samples"),
) -> Figure:
    """Draw means, variances and correlations of samples `[M, D]` over those of data `[N, D]`.

    A point for every column, or pair of columns (at most 20,000 of these, evenly spaced); what the
    model has right lies on the diagonal. Columns that do not vary have no correlations; means or
    variances that are the same in all columns, as of standardised data, are left out.
    """
    x, y = _rows(data, samples)
    panels = {"mean": (x.mean(axis=0), y.mean(axis=0)), "variance": (x.var(axis=0), y.var(axis=0))}
    if x.shape[1] > 1:
        width = {"mean": x.std(axis=0).max(), "variance": x.var(axis=0).max()}
        panels = {k: p for k, p in panels.items() if np.ptp(p[0]) > 1e-3 * width[k]}
        pairs = np.triu_indices(x.shape[1], 1)
        step = math.ceil(len(pairs[0]) / _MOST_PAIRS)
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = (np.atleast_2d(np.corrcoef(v.T))[pairs][::step] for v in (x, y))
        panels["correlation"] = a, b
    figure = Figure((3.4 * len(panels), 3.6), dpi=_DPI, layout="constrained")
    for k, (name, (a, b)) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), k + 1, title=name, xlabel=labels[0])
        both = np.concatenate([a, b])[np.isfinite(np.concatenate([a, b]))]
        ends = (both.min(), both.max()) if both.size else (0, 1)
        axes.plot(ends, ends, color="0.6", linewidth=1)
        axes.plot(a, b, ".", markersize=6 if len(a) < 200 else 2, alpha=0.6)
        axes.set_ylabel(labels[1] if k == 0 else "")
        axes.set_aspect("equal", adjustable="datalim")
        axes.locator_params(nbins=4)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title or "")
    return figure


def _rows(*arrays: npt.ArrayLike) -> list[npt.NDArray[np.float64]]:
    rows = [np.asarray(array, np.float64) for array in arrays]
    shapes = [array.shape for array in rows]
    if any(r.ndim != 2 or not r.size for r in rows) or len({s[-1] for s in shapes}) > 1:
        raise ValueError(f"data, samples: expected [N, D] and [M, D], got {shapes}")
    return rows
