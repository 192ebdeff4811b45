"""How sparse and localised filters are, and figures of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from experiments.lab import encoders, figures, tables
from experiments.natural_images.patches import Patches
from poejax import plotting

Floats = npt.NDArray[np.float64]


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
        "spatial": encoders.participation_ratio(filters),
        "spectral": encoders.participation_ratio(waves),
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


def draw_measures(found: Mapping[str, Mapping[str, Floats]], data: Patches) -> Figure:
    """Draw where and in which band each filter lives, a panel for every set of filters."""
    place = "pixels" if data.shape[0] > 1 else "samples"
    columns = min(4, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure((3.1 * columns, 2.9 * rows + 0.4), dpi=150, layout="tight")
    most = {k: max(np.max(f[k]) for f in found.values()) * 1.05 for k in ("spatial", "spectral")}
    for k, (name, values) in enumerate(found.items()):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.plot(values["spatial"], values["spectral"], "o", markersize=3, alpha=0.6)
        axes.set(xlim=(0, most["spatial"]), ylim=(0, most["spectral"]))
        axes.set(xlabel=f"share of {place}", ylabel="share of frequencies")
        axes.set_title(name, fontsize="medium")
        axes.grid(color="0.9")
        figures.bare(axes)
    figure.suptitle(f"Participation ratios of filters of {data.source}")
    return figure


def draw(
    folder: Path,
    filters: Mapping[str, Floats],
    found: Mapping[str, Mapping[str, Floats]],
    data: Patches,
) -> None:
    """Write a figure for every set of filters, sparsest first, and one of all measures."""
    for name, columns in filters.items():
        figure = draw_filters(columns[:, np.argsort(-found[name]["kurtosis"])], data.shape, name)
        file = "".join(c if c.isalnum() else "_" for c in name.lower())
        plotting.save(figure, folder / f"filters_{file}.png")
    plotting.save(draw_measures(found, data), folder / "measures.png")


def table(results: Mapping[str, Any]) -> list[tables.Table]:
    """Return the figures as tables.

    Log-likelihoods are held out, in nats per patch: with scales and exponents fitted to the
    directions, less those of FastICA on the same patches (± standard error over seeds, which choose
    the patches), and with those held while the directions were trained.
    """
    models, rows = results["models"], []

    def mean(found: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
        values = [row[key] for row in found if key in row]
        return f"{np.mean(values):.{digits}f}" if values else "-"

    for name, found in models.items():
        # Seeds choose other tiles, which moves all models alike: only differences are telling.
        pairs = zip(found, models["FastICA"], strict=False)
        gap = [a["fitted"] - b["fitted"] for a, b in pairs if "fitted" in a]
        minus = tables.plus_minus(gap, error=tables.std_err) if gap else "-"
        trained = mean(found, "as_trained", 2)
        if "ess" in found[0]:
            low, high = found[0]["interval"]
            trained += f" [{low:.2f}, {high:.2f}], ESS {found[0]['ess']:.0f}"
        keys = {"kurtosis": 1, "spatial": 3, "spectral": 3, "seconds": 0}
        cells = [mean(found, key, digits) for key, digits in keys.items()]
        rows.append((name, mean(found, "fitted", 2), minus, trained, *cells, len(found)))
    speeds = results["gibbs_chain_steps_per_second"].items()
    caption = (
        f"{results['source']}, nats per patch, AIS of {results['ais_chains']} chains; block Gibbs: "
        + ", ".join(f"{v} chain-steps/s with {k} experts" for k, v in speeds)
    )
    heads = ("", "fitted", "minus FastICA", "as trained", "kurtosis", "pixels", "waves")
    return [tables.table(caption, (*heads, "seconds", "seeds"), rows)]
