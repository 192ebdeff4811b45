"""Digits a little turned, scaled, sheared, shifted and bent, as if the writer wrote them again."""

from __future__ import annotations

import concurrent.futures
import os

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from experiments.lab import runs

_Reals = npt.NDArray[np.float64]
# Pixels that share a generator, a thousand digits, so that threads do not change what is drawn.
_CHUNK = 784_000
_TURN, _SCALE, _SHEAR = np.deg2rad(5.0), 0.06, 0.08  # standard deviations
# Standard deviation of displacements, and the length over which they vary, in 28ths of a side:
# pixels of MNIST.
_BEND, _SMOOTH = 0.5, 4.0
# Interpolation blurs: with this contrast the mean of x (1 - x) is that of MNIST again.
_CONTRAST = 1.15


def warped(
    images: npt.NDArray[np.uint8], shape: tuple[int, int], num_copies: int, seed: int
) -> npt.NDArray[np.uint8]:
    """Return copies of the images [N, D], each warped in its own way, [num_copies N, D].

    The pixel at p comes from A q + d(p), q = k (p - c) + c': A turns by 5°, scales either axis by
    6 % and shears by 8 %, d is a smooth field of 1/56 of a side (all standard deviations). Values
    in between are cubic splines'. k, c and c' leave the centre of mass and the longer side of the
    ink nearly what they were, by which MNIST is normalised: copies that vary there teach what no
    digit has. Where it fills the frame from side to side q is p, as nobody normalised by it.

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
    centre = (np.asarray(shape)[:, None] - 1) / 2
    points, levels = np.indices(shape).reshape(2, -1) - centre, images / 255
    noise, smooth = rng.standard_normal((n, 2, *shape)), _SMOOTH * unit
    # White noise smoothed by a Gaussian of length s has the standard deviation 1 / (2 s √π).
    scale = _BEND * unit * 2 * smooth * np.sqrt(np.pi)
    bends = scale * ndimage.gaussian_filter(noise, (0, 0, smooth, smooth), mode="wrap")
    maps = _maps(rng, n)
    sources = maps @ _normalised(points, levels, maps, bends) + bends.reshape(n, 2, -1) + centre
    seen = np.stack(
        [
            ndimage.map_coordinates(image.reshape(shape), source, order=3)
            for image, source in zip(levels, sources, strict=True)
        ]
    )
    return np.rint(255 * np.clip(_CONTRAST * (seen - 0.5) + 0.5, 0, 1)).astype(np.uint8)


def _normalised(points: _Reals, levels: _Reals, maps: _Reals, bends: _Reals) -> _Reals:
    """Return q of `warped` at the points [2, D], [n, 2, D]."""
    back, image = np.linalg.inv(maps), np.arange(len(levels))[:, None]
    rows, columns = (
        np.clip(np.rint(at + (size - 1) / 2), 0, size - 1).astype(int)
        for at, size in zip((back @ points).swapaxes(0, 1), bends.shape[2:], strict=True)
    )
    # Where the ink of every pixel goes, and how much of it there is, both to first order.
    moved = back @ (points - bends[image, :, rows, columns].swapaxes(1, 2))
    spread = np.gradient(bends[:, 0], axis=1) + np.gradient(bends[:, 1], axis=2)
    mass = levels * np.maximum(1 - spread[image, rows, columns], 0)
    is_ink = levels > 0.5
    centre, sides = _extent(points[None], levels, is_ink)
    new_centre, new_sides = _extent(moved, mass, is_ink)
    growth = new_sides.max(axis=1) / sides.max(axis=1)
    kept = growth[:, None, None] * (points - centre) + new_centre
    fills = (sides == bends.shape[2:]).any(axis=1)
    return np.where(fills[:, None, None], points, kept)


def _extent(at: _Reals, mass: _Reals, is_ink: npt.NDArray[np.bool_]) -> tuple[_Reals, _Reals]:
    """Return the centre of mass [n, 2, 1] and the sides of the ink [n, 2], in pixels."""
    total = np.maximum(mass.sum(axis=-1), np.finfo(float).tiny)[:, None, None]
    centre = (at * mass[:, None]).sum(axis=-1, keepdims=True) / total
    return centre, 1 + np.ptp(np.where(is_ink[:, None], at, centre), axis=-1)


def _maps(rng: np.random.Generator, n: int) -> _Reals:
    """Return linear maps of the plane [n, 2, 2]."""
    turn, shear = _TURN * rng.standard_normal(n), _SHEAR * rng.standard_normal(n)
    cos, sin, one, zero = np.cos(turn), np.sin(turn), np.ones(n), np.zeros(n)
    turned = np.stack([cos, -sin, sin, cos], axis=-1).reshape(n, 2, 2)
    sheared = np.stack([one, shear, zero, one], axis=-1).reshape(n, 2, 2)
    scales = np.exp(-_SCALE * rng.standard_normal((n, 1, 2)))
    return turned @ sheared * scales
