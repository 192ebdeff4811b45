"""Damage to images: squares that are erased."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def require_block(side: int, shape: tuple[int, int]) -> None:
    """Raise ValueError if a square's side is more than half the height or width of an image."""
    if not 1 <= side <= min(shape) // 2:
        raise ValueError(f"block: expected a side of 1 to {min(shape) // 2}, got {side}")


def block_masks(
    rng: np.random.Generator, num_images: int, shape: tuple[int, int], side: int
) -> npt.NDArray[np.bool_]:
    """Draw squares [N, D] of True, centred uniformly over the inner half of height and width."""
    rows, columns = (
        np.rint(rng.uniform(size / 4, 3 * size / 4, num_images) - side / 2).astype(int)
        for size in shape
    )
    i, j = np.indices(shape)
    inside = [
        (axis >= low[:, None, None]) & (axis < low[:, None, None] + side)
        for axis, low in ((i, rows), (j, columns))
    ]
    return (inside[0] & inside[1]).reshape(num_images, -1)
