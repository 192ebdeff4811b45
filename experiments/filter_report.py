"""How sparse and localised filters are, and figures of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from poejax import plotting

Floats = npt.NDArray[np.float64]


def participation(weights: npt.ArrayLike) -> Floats:
    """Return (Σ_i |f_i|²)² / (M Σ_i |f_i|⁴) of each column f [M, J], in (0, 1].

    The share of the entries that carry the energy: 1 if all are equal, 1 / M if one has it all.
    """
    energy = np.abs(np.asarray(weights)) ** 2
    return np.asarray(energy.sum(axis=0) ** 2 / (len(energy) * (energy**2).sum(axis=0)))


def measures(filters: Floats, shape: tuple[int, int], responses: Floats) -> dict[str, Floats]:
    """Measure each filter, [J] each.

    kurtosis: excess kurtosis of its responses; 0 for a Gaussian, large if they are sparse.
    spatial: participation ratio of its pixels, small if it is localised.
    spectral: participation ratio of its Fourier coefficients, small if it is a band-pass.

    Args:
      filters: in pixel space, [height * width, J].
      shape: (height, width).
      responses: of the filters to held-out patches, [N, J].
    """
    y = responses - responses.mean(axis=0)
    waves = np.fft.fft2(filters.T.reshape(-1, *shape)).reshape(filters.shape[1], -1).T
    return {
        "kurtosis": (y**4).mean(axis=0) / (y**2).mean(axis=0) ** 2 - 3,
        "spatial": participation(filters),
        "spectral": participation(waves),
    }


def draw_filters(filters: Floats, shape: tuple[int, int], title: str) -> Figure:
    """Show filters [height * width, J], each scaled to its own largest weight; sounds as curves."""
    filters = filters / np.abs(filters).max(axis=0)
    count = filters.shape[1]
    columns = math.ceil(math.sqrt(count))
    if shape[0] > 1:
        return plotting.filters(
            filters, shape, count, columns, f"{title}: {count} filters", clip_quantile=1.0
        )
    rows = math.ceil(count / columns)
    figure = Figure((1.1 * columns, 0.7 * rows + 0.5), dpi=150, layout="tight")
    for k in range(count):
        axes = figure.add_subplot(rows, columns, k + 1, ylim=(-1.1, 1.1))
        axes.plot(filters[:, k], linewidth=0.8)
        axes.axhline(0, color="0.8", linewidth=0.5, zorder=0)
        axes.set_axis_off()
    figure.suptitle(f"{title}: {count} filters of {shape[1]} samples")
    return figure


def draw_measures(
    found: Mapping[str, Mapping[str, npt.ArrayLike]], title: str, place: str = "pixels"
) -> Figure:
    """Draw where and in which band each filter lives, a panel for every set of filters."""
    columns = min(4, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure((3.1 * columns, 2.9 * rows + 0.4), dpi=150, layout="tight")
    most = {k: max(np.max(f[k]) for f in found.values()) * 1.05 for k in ("spatial", "spectral")}
    for k, (name, values) in enumerate(found.items()):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.plot(values["spatial"], values["spectral"], "o", markersize=3, alpha=0.6)
        axes.set_xlim(0, most["spatial"])
        axes.set_ylim(0, most["spectral"])
        axes.set_xlabel(f"share of {place}")
        axes.set_ylabel("share of frequencies")
        axes.set_title(name, fontsize="medium")
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return figure


def draw(
    folder: Path,
    filters: Mapping[str, Floats],
    found: Mapping[str, Mapping[str, Floats]],
    shape: tuple[int, int],
    source: str,
) -> None:
    """Write a figure for every set of filters, sparsest first, and one of all measures."""
    for name, columns in filters.items():
        order = np.argsort(-found[name]["kurtosis"])
        file = "".join(c if c.isalnum() else "_" for c in name.lower())
        plotting.save(draw_filters(columns[:, order], shape, name), folder / f"filters_{file}.png")
    title = f"Participation ratios of filters of {source}"
    place = "pixels" if shape[0] > 1 else "samples"
    plotting.save(draw_measures(found, title, place), folder / "measures.png")


def table(models: Mapping[str, Sequence[Mapping[str, Any]]], reference: str = "FastICA") -> str:
    """Return the figures as text.

    Log-likelihoods are held out, in nats per patch: with scales and exponents fitted to the
    directions, less those of the reference on the same patches (± standard error over seeds, which
    choose the patches), and with those held while the directions were trained.
    """
    columns = {"kurtosis": ("kurtosis", 1), "spatial": ("pixels", 3), "spectral": ("waves", 3)}
    lines = [
        f"{'':<24}{'fitted':>9}{'minus ' + reference:>19}{'as trained':>12}"
        + "".join(f"{head:>10}" for head, _ in columns.values())
        + f"{'seconds':>9}{'seeds':>7}"
    ]

    def cell(rows: Sequence[Mapping[str, Any]], key: str, width: int, digits: int) -> str:
        found = [row[key] for row in rows if key in row]
        return f"{np.mean(found):>{width}.{digits}f}" if found else f"{'-':>{width}}"

    for name, rows in models.items():
        # Seeds choose other tiles, which moves all models alike: only differences are telling.
        pairs = zip(rows, models[reference], strict=False)
        gap = np.array([a["fitted"] - b["fitted"] for a, b in pairs if "fitted" in a])
        mean = f"{gap.mean():.2f}" if len(gap) else "-"
        error = f"± {gap.std(ddof=1) / len(gap) ** 0.5:.2f}" if len(gap) > 1 else ""
        line = f"{name:<24}{cell(rows, 'fitted', 9, 2)}{mean:>10} {error:<8}"
        line += cell(rows, "as_trained", 12, 2)
        line += "".join(cell(rows, key, 10, digits) for key, (_, digits) in columns.items())
        seconds = [row["seconds"] for row in rows if "seconds" in row]
        line += f"{np.median(seconds):>9.0f}" if seconds else f"{'-':>9}"
        lines.append(line + f"{len(rows):>7}")
    return "\n".join(lines)
