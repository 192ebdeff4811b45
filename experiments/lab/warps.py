"""Digits a little turned, scaled, sheared, shifted and bent, as if the writer wrote them again."""

from __future__ import annotations

import concurrent.futures
import os

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from experiments.lab import runs

# Pixels that share a generator, a thousand digits, so that threads do not change what is drawn.
_CHUNK = 784_000
_TURN, _SCALE, _SHEAR = np.deg2rad(5.0), 0.06, 0.08  # standard deviations
# Standard deviations of shifts and displacements, and the length of these, in 28ths of a side:
# pixels of MNIST.
_SHIFT, _BEND, _SMOOTH = 0.2, 0.5, 4.0
# Interpolation blurs: with this contrast the mean of x (1 - x) is that of MNIST again.
_CONTRAST = 1.2


def warped(
    images: npt.NDArray[np.uint8], shape: tuple[int, int], num_copies: int, seed: int
) -> npt.NDArray[np.uint8]:
    """Return copies of the images [N, D], each warped in its own way, [num_copies N, D].

    The pixel at p, from the centre, comes from A p + d(p): A turns by 5°, scales either axis by 6 %
    and shears by 8 %, d is a smooth field of 1/56 of a side and a shift of 1/140 (all standard
    deviations). Values in between are cubic splines'.

    Args:
      images: intensities, 0 to 255.
      shape: (height, width).
      num_copies: of every image.
      seed: what is drawn is a function of it; more copies leave the first as they are.

    Source: Simard, Steinkraus & Platt (2003), Best practices for convolutional neural networks
    applied to visual document analysis.
    """
    size = max(1, _CHUNK // images.shape[1])
    rows = [slice(i, i + size) for i in range(0, len(images), size)] * num_copies
    seeds = np.random.SeedSequence(seed).spawn(len(rows))
    found, taken = np.empty((num_copies * len(images), images.shape[1]), np.uint8), 0
    bar = runs.progress(len(found), "warping", "image")
    with bar, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in pool.map(lambda rows, seed: _warp(images[rows], shape, seed), rows, seeds):
            found[taken : taken + len(part)] = part
            taken += len(part)
            bar.update(len(part))
    return found


def _warp(
    images: npt.NDArray[np.uint8], shape: tuple[int, int], seed: np.random.SeedSequence
) -> npt.NDArray[np.uint8]:
    rng, n, unit = np.random.default_rng(seed), len(images), min(shape) / 28
    centre = (np.asarray(shape) - 1) / 2
    points = np.indices(shape).reshape(2, -1) - centre[:, None]
    noise, smooth = rng.standard_normal((n, 2, *shape)), _SMOOTH * unit
    # White noise smoothed by a Gaussian of length s has the standard deviation 1 / (2 s √π).
    scale = _BEND * unit * 2 * smooth * np.sqrt(np.pi)
    bends = scale * ndimage.gaussian_filter(noise, (0, 0, smooth, smooth), mode="wrap")
    shifts = _SHIFT * unit * rng.standard_normal((n, 2, 1)) + centre[:, None]
    sources = _maps(rng, n) @ points + bends.reshape(n, 2, -1) + shifts
    levels = np.stack(
        [
            ndimage.map_coordinates(image.reshape(shape) / 255, source, order=3)
            for image, source in zip(images, sources, strict=True)
        ]
    )
    sharp = np.clip(_CONTRAST * (levels - 0.5) + 0.5, 0, 1)
    return np.rint(255 * sharp).astype(np.uint8)


def _maps(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    """Return linear maps of the plane [n, 2, 2]."""
    turn, shear = _TURN * rng.standard_normal(n), _SHEAR * rng.standard_normal(n)
    cos, sin, one, zero = np.cos(turn), np.sin(turn), np.ones(n), np.zeros(n)
    turned = np.stack([cos, -sin, sin, cos], axis=-1).reshape(n, 2, 2)
    sheared = np.stack([one, shear, zero, one], axis=-1).reshape(n, 2, 2)
    scales = np.exp(-_SCALE * rng.standard_normal((n, 1, 2)))
    return turned @ sheared * scales
