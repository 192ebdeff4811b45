"""Patches of photographs and windows of sound, cut so that no sample is in both splits.

A picture is a 2-D array; a sound is a picture of height 1. Each is divided into tiles of four
patches' side, whole tiles are held out, and patches are drawn within tiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_TILE = 4  # side of a tile, in patches
_HELD_OUT = 0.2  # share of the tiles that only test patches come from


@dataclasses.dataclass(frozen=True)
class Patches:
    """Rows of D = height * width numbers, mean 0 in each row, and the (height, width) of one."""

    train: Floats
    test: Floats
    shape: tuple[int, int]
    source: str


def sample_photographs() -> list[Floats]:
    """Return the two photographs that ship with scikit-learn, in grey, 427 x 640, 0 to 255."""
    from sklearn.datasets import load_sample_images

    return [_grey(image) for image in load_sample_images().images]


def read_folder(folder: Path) -> list[Floats]:
    """Read all images in a folder, in grey, in the order of their names.

    Raises:
      FileNotFoundError: if there is no such folder, or no image in it.
      ValueError: if a file that is called an image is none; names it.
    """
    from PIL import Image, UnidentifiedImageError

    if not folder.is_dir():
        raise FileNotFoundError(f"images: expected a folder, got {folder}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(
            f"images: expected files ending in {', '.join(_SUFFIXES)} in {folder}, found none"
        )
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(_grey(np.asarray(image.convert("RGB"))))
        except UnidentifiedImageError as error:
            raise ValueError(f"images: {path} is no image that Pillow can read") from error
    return images


def read_wav(path: Path) -> list[Floats]:
    """Read a WAV file as one picture of height 1, the mean of its channels.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no WAV file, or holds no sound.
    """
    from scipy.io import wavfile

    if not path.is_file():
        raise FileNotFoundError(f"wav: expected a file, got {path}")
    try:
        _, samples = wavfile.read(path)
    except ValueError as error:
        raise ValueError(f"wav: {path} is no WAV file that SciPy can read: {error}") from error
    samples = np.asarray(samples, np.float64)
    sound = samples.reshape(len(samples), -1).mean(axis=1)
    if not len(sound) or not np.isfinite(sound).all() or sound.std() == 0:
        raise ValueError(f"wav: expected finite samples that are not all equal in {path}")
    return [sound[None, :]]


def shrink(picture: Floats, factor: int) -> Floats:
    """Average blocks of `factor` x `factor` numbers (1 x `factor` for a sound)."""
    if factor < 1:
        raise ValueError(f"shrink: expected at least 1, got {factor}")
    across = min(factor, picture.shape[0])
    height, width = picture.shape[0] // across, picture.shape[1] // factor
    cut = picture[: height * across, : width * factor]
    return cut.reshape(height, across, width, factor).mean(axis=(1, 3))


def cut(
    pictures: Sequence[Floats],
    shape: tuple[int, int],
    num_train: int,
    num_test: int,
    seed: int,
    source: str,
) -> Patches:
    """Draw patches uniformly from the tiles of each split, and subtract each one's mean.

    Args:
      pictures: 2-D arrays of any sizes.
      shape: (height, width) of a patch.
      num_train, num_test: number of patches; they may overlap within a split.
      seed: of the choice of tiles and patches.
      source: what the pictures are, for titles.

    Raises:
      ValueError: if the pictures have fewer than two tiles.
    """
    rng = np.random.default_rng(seed)
    # A sound has tiles of height 1, as it has no patches that are shifted vertically.
    tall, wide = (size * _TILE if size > 1 else 1 for size in shape)
    tiles = [
        picture[i : i + tall, j : j + wide]
        for picture in pictures
        for i in range(0, picture.shape[0] - tall + 1, tall)
        for j in range(0, picture.shape[1] - wide + 1, wide)
    ]
    if len(tiles) < 2:
        raise ValueError(
            f"pictures: expected at least two tiles of {tall} x {wide} in all, for patches of "
            f"{shape[0]} x {shape[1]}, got {len(tiles)}"
        )
    order = rng.permutation(len(tiles))
    count = min(max(1, round(_HELD_OUT * len(tiles))), len(tiles) - 1)

    def draw(chosen: npt.NDArray[np.int64], number: int) -> Floats:
        which = rng.choice(chosen, number)
        top = rng.integers(0, tall - shape[0] + 1, number)
        left = rng.integers(0, wide - shape[1] + 1, number)
        windows = [
            tiles[k][i : i + shape[0], j : j + shape[1]].ravel()
            for k, i, j in zip(which, top, left, strict=True)
        ]
        return np.stack(windows) - np.mean(windows, axis=1, keepdims=True)

    test, train = draw(order[:count], num_test), draw(order[count:], num_train)
    return Patches(train, test, shape, source)


def _grey(image: npt.ArrayLike) -> Floats:
    return np.asarray(image, np.float64) @ np.asarray(_GREY)
