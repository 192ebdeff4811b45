"""What is learned: sets whose best log-likelihood is known, and digits in few clusters."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logit
from scipy.stats import entropy

from poejax import datasets

Bits = npt.NDArray[np.float32]


class Ones(NamedTuple):
    """Tells ones from zeros by independent pixels: x · weights + offset > 0.

    share: of ones among the rows it was made from.
    error: share of those that it gets wrong.
    """

    weights: npt.NDArray[np.float64]
    offset: float
    share: float
    error: float

    def of(self, x: Any) -> npt.NDArray[np.float64]:
        """Return 1 for each row [N, D] that looks like a one, 0 for others."""
        return (np.asarray(x, float) @ self.weights + self.offset > 0).astype(float)


class Task(NamedTuple):
    """Rows to learn [N, D], rows held out or None, the best mean log-likelihood if it is known."""

    x: Bits
    held_out: Bits | None
    ceiling: float | None
    ones: Ones | None


TITLES = {
    "bars": "bars and stripes 4x4",
    "shifter": "labelled shifter, N = 4",
    "ones": "MNIST 0 and 1",
    "digits": "MNIST, all digits",
}


def load(name: str, pooling: int) -> Task:
    """Return a task by name; images of digits are first averaged over squares of side `pooling`."""
    if name == "bars":
        return _enumerated(datasets.bars_and_stripes(4))
    if name == "shifter":
        return _enumerated(datasets.labelled_shifter(4))
    data = datasets.mnist5k()
    train, *others = (
        _of_classes(split, pooling, 2 if name == "ones" else 10)
        for split in (data.train, data.validation, data.test)
    )
    held_out = np.concatenate([x for x, _ in others])
    ones = _telling(*train) if name == "ones" else None
    return Task(train[0], held_out, None, ones)


def independent(x: Bits) -> float:
    """Return the mean log-likelihood of the rows under the independent model of their own rates."""
    rate = np.mean(x, axis=0, dtype=float)
    return -float(entropy(np.stack([rate, 1 - rate])).sum())


def _enumerated(rows: npt.NDArray[np.uint8]) -> Task:
    _, counts = np.unique(rows, axis=0, return_counts=True)
    return Task(rows.astype(np.float32), None, -float(entropy(counts)), None)


def _of_classes(
    split: datasets.Split, pooling: int, num_classes: int
) -> tuple[Bits, npt.NDArray[Any]]:
    images, labels = np.asarray(split.images), np.asarray(split.labels)
    images, labels = images[labels < num_classes], labels[labels < num_classes]
    side = 28 // pooling
    means = images.reshape(-1, side, pooling, side, pooling).mean(axis=(2, 4))
    return (means > 127).astype(np.float32).reshape(len(images), -1), labels


def _telling(x: Bits, labels: npt.NDArray[Any]) -> Ones:
    # Smoothed as by a row of each kind, since most pixels at the edge are never on.
    rates = [(x[labels == k].sum(axis=0) + 1) / (np.sum(labels == k) + 2) for k in (0, 1)]
    zero, one = (np.asarray(rate, float) for rate in rates)
    offset = float(np.sum(np.log1p(-one) - np.log1p(-zero)))
    make = functools.partial(Ones, logit(one) - logit(zero), offset)
    found = make(0.0, 0.0).of(x)
    return make(float(np.mean(labels == 1)), float(np.mean(found != labels)))
