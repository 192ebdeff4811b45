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
    # Strokes that grew longer are made smaller again, with the pen.
    assert q.mean() == pytest.approx(p.mean(), rel=0.05)
    assert (q * (1 - q)).mean() == pytest.approx((p * (1 - p)).mean(), rel=0.05)
    moved = centres(first) - centres(IMAGES)
    error = moved.std(axis=0) / np.sqrt(len(moved))
    assert (np.abs(moved.mean(axis=0)) < 4 * error).all()
    assert (moved.std(axis=0) < 0.15).all()
    # Each is nearer to its own image than to the next one.
    near = np.abs(first.astype(int) - IMAGES.astype(int)).mean(axis=1)
    far = np.abs(first.astype(int) - np.roll(IMAGES, 1, axis=0).astype(int)).mean(axis=1)
    assert (near < far).mean() > 0.99


def longer_sides(images):
    ink = np.asarray(images).reshape(-1, *SHAPE) > 80
    last = [28 - ink.any(axis)[:, ::-1].argmax(1) for axis in (1, 2)]
    return np.max(
        [end - ink.any(axis).argmax(1) for axis, end in zip((1, 2), last, strict=True)], axis=0
    )


def test_the_longer_side_stays_what_it_was(copies, monkeypatch):
    images = np.tile(IMAGES, (2, 1))
    kept = longer_sides(copies) - longer_sides(images)
    assert abs(kept.mean()) < 0.2
    assert kept.std() < 0.6
    monkeypatch.setattr(warps, "_normalised", lambda points, *_: points)
    free = warps.warped(IMAGES, SHAPE, 2, seed=3)
    assert (longer_sides(free) - longer_sides(images)).std() > 1.2
    assert free.mean() == pytest.approx(IMAGES.mean(), rel=0.02)


def test_images_that_fill_the_frame_are_not_made_smaller(monkeypatch):
    dark = 255 - IMAGES
    found = warps.warped(dark, SHAPE, 1, seed=3)
    monkeypatch.setattr(warps, "_normalised", lambda points, *_: points)
    np.testing.assert_array_equal(found, warps.warped(dark, SHAPE, 1, seed=3))


def test_images_without_ink_stay_empty():
    assert not warps.warped(np.zeros((3, 60), np.uint8), (6, 10), 2, seed=0).any()


def test_the_maps_have_the_stated_deviations():
    maps = warps._maps(np.random.default_rng(0), 100_000)
    error = 4 / np.sqrt(2 * 100_000)
    scales = np.log(np.linalg.norm(maps[:, :, 0], axis=1))
    assert scales.std() == pytest.approx(0.06, rel=error)
    assert np.log(np.linalg.det(maps)).std() == pytest.approx(np.sqrt(2) * 0.06, rel=error)
    turns = np.arctan2(maps[:, 1, 0], maps[:, 0, 0])
    assert np.rad2deg(turns).std() == pytest.approx(5, rel=error)
    # Of A = R [[1, h], [0, 1]] diag(s) the columns' product is s₁ s₂ h.
    shears = (maps[:, :, 0] * maps[:, :, 1]).sum(axis=1) / np.linalg.det(maps)
    assert shears.std() == pytest.approx(0.08, rel=error)


@pytest.mark.parametrize("shape", [(28, 28), (14, 28)])
def test_displacements_have_the_stated_deviations_along_both_axes(shape, monkeypatch):
    monkeypatch.setattr(warps, "_maps", lambda rng, n: np.tile(np.eye(2), (n, 1, 1)))
    monkeypatch.setattr(warps, "_CONTRAST", 1.0)
    monkeypatch.setattr(warps, "_normalised", lambda points, *_: points)
    # Pictures of their own row and column numbers.
    for ramp in np.indices(shape):
        row = (9 * ramp).astype(np.uint8).reshape(1, -1)
        shown = warps.warped(np.repeat(row, 4_000, axis=0), shape, 1, seed=0)
        middle = tuple(size // 2 for size in shape)
        inner = shown.reshape(-1, *shape)[:, *middle] / 9 - ramp[middle]
        unit = min(shape) / 28
        # The displacements meet themselves at the edges, the nearest four of their lengths away.
        assert inner.std() == pytest.approx(0.5 * unit, rel=4 / np.sqrt(8_000))
        assert abs(inner.mean()) < 4 * inner.std() / np.sqrt(4_000)


def test_nothing_moves_where_nothing_is_drawn(monkeypatch):
    monkeypatch.setattr(warps, "_maps", lambda rng, n: np.tile(np.eye(2), (n, 1, 1)))
    for name, value in {"_CONTRAST": 1.0, "_BEND": 0.0}.items():
        monkeypatch.setattr(warps, name, value)
    images = np.random.default_rng(0).integers(0, 256, (3, 60)).astype(np.uint8)
    np.testing.assert_array_equal(warps.warped(images, (6, 10), 1, seed=0), images)
