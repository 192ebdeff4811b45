"""Pictures of images, filters, samples, columns and learning curves, without any global state.

Each function returns a `Figure` that pyplot does not know: there is nothing to close and nothing
to draw on by accident. Write it with `save`, or let a notebook display it.

Throughout, images are `[N, D]` with D = height * width, `shape` is the (height, width) of one,
`num_columns` is how many stand in a row (by default, so many that a mosaic is about square), and
`title` is the heading. One figure has one scale: grey from black at 0 to white at 1, or over the
range of the data if that leaves [0, 1]. uint8 intensities are divided by 255. Values that are not
finite are magenta. What does not have these shapes raises ValueError.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from poejax import _checks
from poejax._plot_columns import marginals, moments

__all__ = [
    "Pixels",
    "Shape",
    "filters",
    "grid",
    "learning_curves",
    "marginals",
    "moments",
    "reconstructions",
    "samples_beside",
    "save",
]

Pixels = npt.NDArray[np.float32]
Shape = tuple[int, int]

_DPI, _TILE, _WIDEST = 150, 0.5, 12.0  # inches: one image, and the most that a mosaic may take
_GAP, _WIDE_GAP = 3, 18  # dots between images, and between blocks of images
_GAP_COLOUR = (0.62, 0.68, 0.75)  # neither grey nor on the diverging map: never read as data


def grid(
    images: npt.ArrayLike,
    shape: Shape,
    num_columns: int | None = None,
    title: str | None = None,
    symmetric: bool = False,
    clip_quantile: float = 1.0,
) -> Figure:
    """Tile images `[N, D]` as one mosaic.

    Args:
      images, shape, num_columns, title: see the top of this module.
      symmetric: blue below 0, white at 0 and red above, with a colour bar, instead of grey.
      clip_quantile: a symmetric scale saturates at this quantile of the magnitudes; the ends of its
        colour bar are pointed if that is not the largest.
    """
    tiles = _tiles("images", images, shape)
    colours = _colours(tiles, clip_quantile=clip_quantile if symmetric else None)
    picture = _mosaic(tiles, colours, num_columns)
    return _figure(picture, title, bar=colours if symmetric else None)


def filters(
    w: npt.ArrayLike,
    shape: Shape,
    num_filters: int = 100,
    num_columns: int | None = None,
    title: str | None = None,
    clip_quantile: float = 0.998,
) -> Figure:
    """Show the first `num_filters` columns of weights w `[D, H]`, all on one colour scale about 0.

    The other arguments are those of `grid`; the scale is clipped a little by default, so that a few
    large weights do not bleach the rest.
    """
    shown = np.asarray(w).T[:num_filters]
    title = title or f"weights of {len(shown)} of {np.shape(w)[-1]} filters"
    return grid(shown, shape, num_columns, title, symmetric=True, clip_quantile=clip_quantile)


def samples_beside(
    real: npt.ArrayLike,
    samples: npt.ArrayLike,
    shape: Shape,
    num_columns: int | None = None,
    title: str | None = None,
    labels: tuple[str, str] = ("data", "samples"),
) -> Figure:
    """Show data `[N, D]` and samples `[M, D]` side by side, the first min(N, M) of each.

    The other arguments are described at the top of this module; `labels` head the two mosaics.
    """
    pair = [_tiles("real", real, shape), _tiles("samples", samples, shape)]
    pair = [tiles[: min(map(len, pair))] for tiles in pair]
    left, right = (_mosaic(t, _colours(*pair), num_columns) for t in pair)
    space = np.ones((len(left), 2 * _WIDE_GAP, 3), np.float32)
    ticks = {left.shape[1] * 0.5: labels[0], left.shape[1] * 1.5 + 2 * _WIDE_GAP: labels[1]}
    return _figure(np.hstack([left, space, right]), title, top=ticks)


def reconstructions(
    originals: npt.ArrayLike,
    reconstructions: npt.ArrayLike,
    shape: Shape,
    num_columns: int = 10,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    damaged: npt.ArrayLike | None = None,
) -> Figure:
    """Show reconstructions `[N, D]` below originals `[N, D]`, in as many blocks as it takes.

    What the model was given, if that was `damaged` `[N, D]` (noisy, with holes), stands between the
    two. `labels` are those of the rows of a block; for the rest see the top of this module.
    """
    given = {"originals": originals, "damaged": damaged, "reconstructions": reconstructions}
    rows = [_tiles(name, images, shape) for name, images in given.items() if images is not None]
    labels = labels or ["original", "given", "reconstruction"][:: 1 if len(rows) == 3 else 2]
    if len(set(sizes := [len(row) for row in rows])) > 1 or len(labels) != len(rows):
        raise ValueError(f"expected one label and equal N for each row, got {labels}, N = {sizes}")
    num_columns, colours = min(num_columns, len(rows[0])), _colours(*rows)
    strips, ticks = list[Pixels](), dict[float, str]()
    for start in range(0, len(rows[0]), num_columns):
        for label, row in zip(labels, rows, strict=True):
            strip = _mosaic(row[start : start + num_columns], colours, num_columns)
            ticks[sum(map(len, strips)) + len(strip) / 2] = label
            strips.append(strip)
        strips.append(np.ones((_WIDE_GAP, strip.shape[1], 3), np.float32))
    return _figure(np.concatenate(strips[:-1]), title, left=ticks)


def learning_curves(
    records: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]] | None = None,
    x: str | None = None,
    num_columns: int = 2,
    title: str | None = None,
) -> Figure:
    """Draw what a run logged, one small panel per group of quantities, `num_columns` in a row.

    A quantity is drawn through the records that have it; values that are not finite leave a gap.
    The legend counts those, and says so if no record has the quantity.

    Args:
      records: the lines of a metrics file, each with "step" or "epoch" and some numbers.
      panels: keys drawn together, by the label (with unit) of their axis; by default each alone.
      x: key of the horizontal axis; by default "step" if any record has it, else "epoch".
    """
    x = x or ("step" if any("step" in record for record in records) else "epoch")
    records = sorted((record for record in records if x in record), key=lambda record: record[x])
    if panels is None:
        keys = dict.fromkeys(key for r in records for key in r if _checks.is_real(r[key]))
        panels = {key: [key] for key in keys if key not in ("step", "epoch", x)}
    if not records or not panels:
        raise ValueError(f"records: expected some with {x!r} and a quantity to draw, got none")
    num_columns = min(num_columns, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = Figure((4.8 * num_columns, 3 * num_rows), dpi=_DPI, layout="tight")
    for k, (label, group) in enumerate(panels.items()):
        axes = figure.add_subplot(num_rows, num_columns, k + 1, xlabel=x, ylabel=label)
        for key in group:
            points = [(r[x], r[key]) for r in records if _checks.is_real(r.get(key))]
            values = np.asarray(points, np.float64).reshape(-1, 2).T
            gaps = ~np.isfinite(values[1])
            note = f" ({gaps.sum()} not finite)" if gaps.any() else "" if points else " (missing)"
            values[1, gaps] = np.nan
            axes.plot(*values, ".-" if len(points) <= 30 else "-", label=key + note)
        if list(group) != [label] or note:
            axes.legend(frameon=False, fontsize="small")
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title or "")
    return figure


def save(figure: Figure, path: str | pathlib.Path) -> pathlib.Path:
    """Write a figure to a path that ends in `.png`, 150 dots per inch, cropped; make its folder."""
    if (path := pathlib.Path(path).expanduser()).suffix != ".png":
        raise ValueError(f"path: expected a name that ends in .png, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib in it, the same picture is the same file.
    figure.savefig(path, dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
    return path


def _tiles(name: str, images: npt.ArrayLike, shape: Shape) -> Pixels:
    array = np.asarray(images)
    if array.ndim != 2 or array.shape[1] != math.prod(shape) or not len(array):
        raise ValueError(f"{name}: expected [N, {shape[0]} * {shape[1]}], got {array.shape}")
    scale = 255 if array.dtype == np.uint8 and array.max() > 1 else 1
    return array.reshape(-1, *shape).astype(np.float32) / np.float32(scale)


def _colours(*groups: Pixels, clip_quantile: float | None = None) -> ScalarMappable:
    """Return the one scale of all groups: grey, or symmetric and clipped at a quantile."""
    values = np.concatenate([tiles[np.isfinite(tiles)] for tiles in groups])
    low, high, name, extend = values.min(initial=0), values.max(initial=1), "gray", "neither"
    if clip_quantile is not None and values.size:
        largest = np.abs(values).max()
        high = np.quantile(np.abs(values), clip_quantile) or largest or 1.0
        low, name, extend = -high, "RdBu_r", "both" if largest > high else "neither"
    elif low < 0 or high > 1:
        low, high = values.min(), values.max()
    cmap = matplotlib.colormaps[name].with_extremes(bad="magenta")
    cmap.colorbar_extend = extend  # type: ignore[assignment]
    return ScalarMappable(Normalize(float(low), float(high)), cmap)


def _mosaic(tiles: Pixels, colours: ScalarMappable, num_columns: int | None) -> Pixels:
    """Return RGB in dots: a whole number of them per pixel, so that all pixels look alike."""
    count, height, width = tiles.shape
    num_columns = num_columns or min(count, math.ceil(math.sqrt(count * height / width)))
    zoom = min(_TILE / max(height, width), _WIDEST / (num_columns * width))
    zoom = max(1, round(_DPI * zoom))
    # Not `to_rgba`: it would take images that are three or four pixels wide for colours.
    rgb = np.asarray(colours.cmap(colours.norm(np.ma.masked_invalid(tiles))))[..., :3]
    rgb = rgb.repeat(zoom, axis=1).repeat(zoom, axis=2)
    h, w = height * zoom + _GAP, width * zoom + _GAP
    size = math.ceil(count / num_columns) * h + _GAP, num_columns * w + _GAP
    picture = np.full((*size, 3), _GAP_COLOUR, np.float32)
    for k, tile in enumerate(rgb):
        y, x = k // num_columns * h, k % num_columns * w
        picture[y + _GAP : y + h, x + _GAP : x + w] = tile
    if count % num_columns:
        picture[y + _GAP :, x + w + _GAP :] = 1.0
    return picture


def _figure(
    picture: Pixels,
    title: str | None,
    bar: ScalarMappable | None = None,
    top: Mapping[float, str] | None = None,
    left: Mapping[float, str] | None = None,
) -> Figure:
    """Place a picture on a figure dot by dot, with labels at its top and left edges (in dots)."""
    (height, width, _), top, left = picture.shape, top or {}, left or {}
    margin = 100  # `save` keeps what is used of it
    west = margin + 14 * max(map(len, left.values()), default=0)
    w, h = west + width + 2 * margin, height + 2 * margin
    figure = Figure((w / _DPI, h / _DPI), dpi=_DPI)
    axes = figure.add_axes((west / w, margin / h, width / w, height / h))
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.xaxis.tick_top()
    axes.set_xticks(list(top), list(top.values()))
    axes.set_yticks(list(left), list(left.values()))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title or "")
    if bar:
        locator = MaxNLocator(max(2, min(8, height // 75)), symmetric=True)
        figure.colorbar(bar, axes.inset_axes((1 + 24 / width, 0, 24 / width, 1)), ticks=locator)
    return figure
