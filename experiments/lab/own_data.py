"""Data of any kind for one training run: which units they are, their splits, their standard units.

Values of a file are bits, intensities (0 to 255 or in [0, 1]: probabilities of bits), categories
(few small whole numbers) or real numbers. Which of these is found from all the values, or told.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import poejax as pj
from experiments.lab import rbm_recipe, runs, table_files
from poejax import datasets, stacks
from poejax.training import Preprocess
from poejax.types import Array

Units = Literal["bernoulli", "gaussian", "categorical"]
_LARGEST_CATEGORY = 31  # a larger whole number, up to 255, is the intensity of a pixel
_MOST_CATEGORIES = 64  # where categories are told
_SMALLEST_SIDE = 8  # of a square of columns that is taken for an image


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Three disjoint splits of rows [N, ...] and what they are.

    visible: the units whose events the rows become.
    preprocess: how they do.
    name: of the data set, or its file.
    shape: (height, width) of one image; None: the columns are no picture.
    names: of the columns, numbers if None.
    coordinates: of real values, else None.
    levels: of categories, else None.
    description: for results.json; empty for built-in sets.
    """

    train: npt.NDArray[Any]
    validation: npt.NDArray[Any]
    test: npt.NDArray[Any]
    visible: pj.units.Unit
    preprocess: Preprocess
    name: str
    shape: tuple[int, int] | None = None
    names: tuple[str, ...] | None = None
    coordinates: Coordinates | None = None
    levels: npt.NDArray[Any] | None = None
    description: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_values(self, x: Array) -> npt.NDArray[Any]:
        """Return events [N, ...] in the units of the file, [N, D]."""
        if self.levels is not None:
            return self.levels[np.asarray(x).argmax(-1)]
        return self.coordinates.values(x) if self.coordinates else np.asarray(x)

    @property
    def log_volume(self) -> float:
        """What a log density of events exceeds that of values by, in nats."""
        return self.coordinates.log_volume if self.coordinates else 0.0


class Coordinates(NamedTuple):
    """Real events x of values v: v = mean + std · x, by column, float64 [D]."""

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]

    def events(self, v: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return values as events; subtracted before anything is rounded."""
        return ((v.astype(np.float64) - self.mean) / self.std).astype(np.float32)

    def values(self, x: Array) -> npt.NDArray[np.float64]:
        """Return events as values."""
        return self.mean + self.std * np.asarray(x, np.float64)

    @property
    def log_volume(self) -> float:
        """Return Σ log std: log p(v) = log p(x) - log_volume."""
        return float(np.log(self.std).sum())


def built_in(data: datasets.Dataset, binarization: str) -> Data:
    """Take a data set of intensities as it is split."""
    train, validation, test = data.train.images, data.validation.images, data.test.images
    visible, preprocess = pj.units.Bernoulli(train.shape[1]), getattr(datasets, binarization)
    return Data(train, validation, test, visible, preprocess, data.name, data.shape)


def load(path: Path, units: Units | None, binarization: str, num_validation: int) -> Data:
    """Read a file, or a folder of four IDX files of MNIST's form, and split it.

    A tenth of the rows each, at least one, drawn by a fixed seed, is held out to watch and to test.

    Args:
      path: as for `table_files.read`, or the folder.
      units: which units the values are; found from them when None.
      binarization: "stochastic" or "threshold", how intensities become bits.
      num_validation: images held out to watch, if it is a folder.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if it cannot be read, or its values are none of these units; says where.
    """
    if path.is_dir():
        if units not in (None, "bernoulli"):
            raise ValueError(f"visible: expected bernoulli for a folder of images, got {units}")
        data = built_in(datasets.mnist(num_validation, path), binarization)
        images = np.concatenate([data.train, data.validation, data.test])
        return _described(data, path, images, "intensities", "a folder of IDX files", ())
    table = table_files.read(path)
    values, shape = _as_rows(table.values)
    names = table.names if table.values.ndim == 2 else None
    if (num_rows := len(values)) < 10:
        raise ValueError(f"data: expected at least 10 rows to split, got {num_rows} in {path}")
    kind, reason = _kind(values, units, shape is not None, path)
    # RandomState, as its streams are frozen for all versions of NumPy.
    order, held_out = np.random.RandomState(0).permutation(num_rows), num_rows // 10
    parts = np.split(order, [num_rows - 2 * held_out, num_rows - held_out])
    size = values.shape[1]
    visible: pj.units.Unit = pj.units.Bernoulli(size)
    coordinates = levels = None
    preprocess: Preprocess = rbm_recipe.as_bits
    if kind == "bits":
        rows: npt.NDArray[Any] = (values > 0).astype(np.uint8)
    elif kind == "intensities":
        rows, preprocess = _intensities(values, binarization)
    elif kind == "categories":
        levels = np.unique(values)
        rows = np.eye(len(levels), dtype=np.uint8)[np.searchsorted(levels, values)]
        visible, shape = pj.units.Categorical(size, len(levels)), None
    else:
        coordinates = _standardise(values[parts[0]], names, path)
        rows, visible = coordinates.events(values), pj.units.GaussianDiag(size)
    square = math.isqrt(size)
    is_square = table.values.ndim == 2 and square**2 == size and square >= _SMALLEST_SIDE
    if kind in ("bits", "intensities") and is_square:
        shape = (square, square)
    train, validation, test = (rows[part] for part in parts)
    data = Data(
        train, validation, test, visible, preprocess, path.name, shape, names, coordinates, levels
    )
    return _described(data, path, values, kind, reason, table.remarks)


def threshold(rng_key: Array, rows: Array) -> Array:
    """Set the bits where v > 1/2, a `preprocess` for `training`."""
    del rng_key
    return (rows > 0.5).astype(jnp.float32)


def said(data: Data) -> str:
    """Return one line: what was read, its shape, which units it has and why, and its splits."""
    d = data.description
    remarks = "".join(f", {remark}" for remark in d["remarks"])
    other = "" if "--visible" in d["reason"] else " (--visible says otherwise)"
    image = f", images of {data.shape[0]} x {data.shape[1]}" if data.shape else ""
    return (
        f"{d['file']}: {d['rows']} rows of {d['columns']} columns{image}{remarks}; {d['reason']}: "
        f"{d['units']}{other}; {len(data.train)} rows to train, {len(data.validation)} to watch, "
        f"{len(data.test)} to test"
    )


def require_same(path: Path, description: dict[str, Any]) -> None:
    """Write down which data a run learns from; raise ValueError if it has begun with others."""
    if path.exists():
        found = runs.read_json(path)
        changed = [k for k in ("crc32", "values") if found.get(k) != description[k]]
        if changed:
            raise ValueError(
                f"data: {description['file']} is not what the run began with: "
                + ", ".join(f"{k} {description[k]} (was {found.get(k)})" for k in changed)
            )
    runs.write_json(path, description)


def _as_rows(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], tuple[int, int] | None]:
    """Return rows [N, D], and the shape of images [N, H, W] or with axes of length one."""
    inner = tuple(size for size in values.shape[1:] if size > 1)
    shape = (inner[0], inner[1]) if len(inner) == 2 and values.ndim > 2 else None
    return values.reshape(len(values), -1), shape


def _kind(
    values: npt.NDArray[Any], units: Units | None, are_images: bool, path: Path
) -> tuple[str, str]:
    """Return "bits", "intensities", "categories" or "reals", and the reason in words."""
    low, high = values.min(), values.max()
    whole = values.dtype.kind in "biu" or bool((values == np.floor(values)).all())
    of = f"{'whole' if whole else 'real'} numbers from {low:g} to {high:g}"
    is_bits = whole and (
        (low >= 0 and high <= 1) or (low == -1 and high == 1 and not (values == 0).any())
    )
    in_range = (whole and low >= 0 and high <= 255) or (low >= 0 and high <= 1)
    if units == "gaussian":
        return "reals", f"{of}, told --visible gaussian"
    if units == "categorical":
        if not whole or not 2 <= len(np.unique(values)) <= _MOST_CATEGORIES:
            raise ValueError(
                f"visible: expected 2 to {_MOST_CATEGORIES} different whole numbers for "
                f"categorical, got {of} in {path}"
            )
        return "categories", f"{of}, told --visible categorical"
    if units == "bernoulli":
        if not is_bits and not in_range:
            raise ValueError(
                "visible: expected bits, or intensities 0 to 255 or in [0, 1], for bernoulli, got "
                f"{of} in {path}"
            )
        return "bits" if is_bits else "intensities", f"{of}, told --visible bernoulli"
    if is_bits:
        return "bits", "two values only" if low < high else of
    if whole and low >= 0 and high <= _LARGEST_CATEGORY and low < high and not are_images:
        return "categories", f"{of}, few enough for categories"
    if in_range:
        return "intensities", f"{of}, as intensities are"
    return "reals", of


def _full(high: float) -> float:
    """Return the intensity that is always on, by the largest that there is."""
    return 255 if high > _LARGEST_CATEGORY else max(high, 1)


def _intensities(
    values: npt.NDArray[Any], binarization: str
) -> tuple[npt.NDArray[Any], Preprocess]:
    """Return intensities as they are drawn from: uint8, or float32 in [0, 1]."""
    if (high := values.max()) > _LARGEST_CATEGORY:
        return values.astype(np.uint8), getattr(datasets, binarization)
    unit = (values.astype(np.float64) / _full(high)).astype(np.float32)
    return unit, {"stochastic": stacks.draw_bits, "threshold": threshold}[binarization]


def _standardise(
    values: npt.NDArray[Any], names: tuple[str, ...] | None, path: Path
) -> Coordinates:
    """Return the coordinates in which the columns of `values` have mean 0 and variance 1."""
    v = values.astype(np.float64)
    low = v.min(axis=0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        spread = v.max(axis=0) - low
        unit = (v - low) / spread  # in [0, 1], where squares neither overflow nor vanish
        coordinates = Coordinates(low + spread * unit.mean(axis=0), spread * unit.std(axis=0))
    bad = np.flatnonzero(~(np.isfinite(coordinates.std) & (coordinates.std > 0)))
    if len(bad):
        listed = ", ".join(table_files.column(int(i), names) for i in bad[:10])
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise ValueError(
            "data: expected a finite variance above 0 in every column of real values, got none in "
            f"{listed}{more} (counted from 1) over the training rows of {path}; leave them out"
        )
    return coordinates


_UNITS = {
    "bits": "bits, so Bernoulli units",
    "intensities": "intensities, of {of:g}, so Bernoulli units that are on with that probability",
    "categories": "categories, so Categorical units",
    "reals": "real values, so Gaussian units of standardised columns",
}


def _described(
    data: Data,
    path: Path,
    values: npt.NDArray[Any],
    kind: str,
    reason: str,
    remarks: tuple[str, ...],
) -> Data:
    description = {
        "file": str(path),
        "rows": len(values),
        "columns": values.shape[1],
        "crc32": f"{zlib.crc32(np.ascontiguousarray(values).data):08x}",
        "values": kind,
        "reason": reason,
        "units": _UNITS[kind].format(of=_full(float(values.max()))),
        "remarks": list(remarks),
    }
    if data.levels is not None:
        description |= {"levels": data.levels.tolist()}
    if data.coordinates:
        description |= {k: v.tolist() for k, v in data.coordinates._asdict().items()}
    return dataclasses.replace(data, description=description)
