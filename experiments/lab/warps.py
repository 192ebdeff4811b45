"""Digits a little turned, scaled, sheared, shifted and bent, as if the writer wrote them again."""

from __future__ import annotations

import concurrent.futures
import os

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from experiments.lab import runs

_CHUNK = 1_000  # images that share a generator, so that threads do not change what is drawn
_TURN, _SCALE, _SHEAR, _SHIFT = np.deg2rad(5.0), 0.06, 0.08, 0.2  # standard deviations; px
_BEND, _SMOOTH = 0.5, 4.0  # standard deviation and length of the displacements, px
# Interpolation blurs: with this contrast the mean of x (1 - x) is that of MNIST again.
_CONTRAST = 1.2


def warped(
    images: npt.NDArray[np.uint8], shape: tuple[int, int], num_copies: int, seed: int
) -> npt.NDArray[np.uint8]:
    """Return copies of the images [N, D], each warped in its own way, [num_copies N, D].

    The pixel at p, from the centre, comes from A p + d(p): A turns by 5°, scales either axis by 6 %
    and shears by 8 %, d is a smooth field of half a pixel and a shift of a fifth (all standard
    deviations). Values in between are cubic splines'.

    Source: Simard, Steinkraus & Platt (2003), Best practices for convolutional neural networks
    applied to visual document analysis.
    """
    starts = range(0, len(images), _CHUNK)
    jobs = [images[start : start + _CHUNK] for _ in range(num_copies) for start in starts]
    seeds = np.random.SeedSequence(seed).spawn(len(jobs))
    found = []
    bar = runs.progress(num_copies * len(images), "warping", "image")
    with bar, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in pool.map(lambda images, seed: _warp(images, shape, seed), jobs, seeds):
            found.append(part)
            bar.update(len(part))
    return np.concatenate(found)


def _warp(
    images: npt.NDArray[np.uint8], shape: tuple[int, int], seed: np.random.SeedSequence
) -> npt.NDArray[np.uint8]:
    rng, n = np.random.default_rng(seed), len(images)
    centre = (np.asarray(shape) - 1) / 2
    points = np.indices(shape).reshape(2, -1) - centre[:, None]
    bends = ndimage.gaussian_filter(
        rng.standard_normal((n, 2, *shape)), (0, 0, _SMOOTH, _SMOOTH), mode="wrap"
    )
    # White noise smoothed by a Gaussian of length s has the standard deviation 1 / (2 s √π).
    bends *= _BEND * 2 * _SMOOTH * np.sqrt(np.pi)
    shifts = _SHIFT * rng.standard_normal((n, 2, 1)) + centre[:, None]
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
