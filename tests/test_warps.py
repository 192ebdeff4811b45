"""Warped copies of images: what they keep, what they change, and that a seed alone decides."""

import numpy as np
import pytest
from scipy import ndimage

from experiments.lab import warps
from poejax import datasets

SHAPE = (28, 28)
IMAGES = datasets.load("mnist5k").train.images[:1_200]


@pytest.fixture(scope="module")
def copies():
    return warps.warped(IMAGES, SHAPE, 2, seed=3)


def centres(images):
    pictures = np.asarray(images, float).reshape(-1, *SHAPE)
    return np.array([ndimage.center_of_mass(picture) for picture in pictures])


def test_a_seed_decides_and_more_copies_leave_the_first_as_they_are(copies):
    assert copies.dtype == np.uint8
    assert copies.shape == (2 * len(IMAGES), 784)
    first, second = np.split(copies, 2)
    np.testing.assert_array_equal(first, warps.warped(IMAGES, SHAPE, 1, seed=3))
    assert (first != second).any(axis=1).all()
    assert (first != warps.warped(IMAGES, SHAPE, 1, seed=4)).any(axis=1).all()


def test_copies_are_as_bright_as_sharp_and_as_centred_as_the_images(copies):
    first, p, q = copies[: len(IMAGES)], IMAGES / 255, copies / 255
    assert q.mean() == pytest.approx(p.mean(), rel=0.02)
    assert (q * (1 - q)).mean() == pytest.approx((p * (1 - p)).mean(), rel=0.05)
    moved = centres(first) - centres(IMAGES)
    error = moved.std(axis=0) / np.sqrt(len(moved))
    assert (np.abs(moved.mean(axis=0)) < 4 * error).all()
    assert (moved.std(axis=0) < 1).all()
    # Each is nearer to its own image than to the next one.
    near = np.abs(first.astype(int) - IMAGES.astype(int)).mean(axis=1)
    far = np.abs(first.astype(int) - np.roll(IMAGES, 1, axis=0).astype(int)).mean(axis=1)
    assert (near < far).mean() > 0.99


def test_the_maps_have_the_stated_deviations(monkeypatch):
    maps = warps._maps(np.random.default_rng(0), 100_000)
    error = 4 / np.sqrt(2 * 100_000)
    log_areas = np.log(np.linalg.det(maps))  # turns and shears keep areas
    assert log_areas.std() == pytest.approx(np.sqrt(2) * 0.06, rel=error)
    turns = np.arctan2(maps[:, 1, 0], maps[:, 0, 0])
    assert np.rad2deg(turns).std() == pytest.approx(5, rel=error)
    # Displacements alone, of a picture of its own column numbers: (½² + 0.2²)^½ pixels.
    monkeypatch.setattr(warps, "_maps", lambda rng, n: np.tile(np.eye(2), (n, 1, 1)))
    monkeypatch.setattr(warps, "_CONTRAST", 1.0)
    ramp = np.tile(np.arange(28, dtype=np.uint8) * 9, (28, 1)).reshape(1, -1)
    shown = warps.warped(np.repeat(ramp, 4_000, axis=0), SHAPE, 1, seed=0)
    inner = shown.reshape(-1, *SHAPE)[:, 14, 14] / 9 - 14
    assert inner.std() == pytest.approx(np.hypot(0.5, 0.2), rel=4 / np.sqrt(2 * 4_000) + 0.01)


def test_no_ink_stays_none_and_sizes_need_not_be_square():
    assert not warps.warped(np.zeros((3, 60), np.uint8), (6, 10), 2, seed=0).any()
