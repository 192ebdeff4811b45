"""Small sets of binary patterns, enumerated, whose best likelihood is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from poejax import _checks

Bytes = npt.NDArray[np.uint8]


def bars_and_stripes(side: int) -> Bytes:
    """Enumerate bars and stripes: the square images with constant rows or constant columns.

    The blank and the full image are both and appear twice, as in the literature, so with
    n = 2 * 2**side rows the mean log-likelihood is at most -[(n - 4) log n + 4 log(n / 2)] / n:
    -2.5993 nats per sample (sum -41.589) for side 3, -3.3791 (sum -108.131) for side 4.

    Args:
      side: height and width in pixels.

    Returns:
      {0, 1} uint8 `[2 * 2**side, side * side]`: constant rows, then constant columns.

    Source: MacKay (2003), Information Theory, Inference, and Learning Algorithms, chapter 43.
    """
    lines = _all_bits(_checks.positive_int("side", side))
    return np.concatenate([np.repeat(lines, side, axis=1), np.tile(lines, (1, side))])


def labelled_shifter(num_pixels: int) -> Bytes:
    """Enumerate the labelled shifter ensemble: a pattern, its cyclic shift, and which shift it was.

    The 3 * 2**N rows are distinct, so the mean log-likelihood is at most -log(3 * 2**N):
    -3.8712 nats per sample (sum -185.82) for N = 4, -6.6438 (sum -5102.43) for N = 8.

    Args:
      num_pixels: N, the length of the pattern.

    Returns:
      {0, 1} uint8 `[3 * 2**N, 2 * N + 3]`: N bits, the same bits shifted by -1, 0 or +1 places, and
      the shift one-hot in that order.

    Source: MacKay (2003), chapter 43, after Hinton and Sejnowski (1986).
    """
    first = _all_bits(_checks.positive_int("num_pixels", num_pixels))
    second = np.concatenate([np.roll(first, shift, axis=1) for shift in (-1, 0, 1)])
    label = np.repeat(np.eye(3, dtype=np.uint8), len(first), axis=0)
    return np.hstack([np.tile(first, (3, 1)), second, label])


def shifting_bar(n: int, width: int) -> Bytes:
    """Enumerate the n positions of a bar of ones on a ring of n pixels.

    The mean log-likelihood is at most -log n: -2.1972 nats per sample (sum -19.775) for n = 9.

    Args:
      n: number of pixels, and of patterns.
      width: number of ones, 1 to n - 1: a full ring would be the same pattern n times.

    Returns:
      {0, 1} uint8 `[n, n]`; row k starts its bar at pixel k.
    """
    if _checks.positive_int("width", width) >= _checks.positive_int("n", n):
        raise ValueError(f"width: expected 1 to {n - 1} for n = {n}, got {width}")
    bar = (np.arange(n) < width).astype(np.uint8)
    return np.stack([np.roll(bar, k) for k in range(n)])


def _all_bits(n: int) -> Bytes:
    return ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.uint8)
