"""What the study of pre-training depends on."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from experiments.lab import runs

Arm = Literal["pre-trained", "random", "modern"]


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything the study depends on, with its data."""

    num_validation: int = 10_000
    """Training digits of mnist held out; the other data sets have splits of their own."""
    labels: tuple[int, ...] = (100, 300, 1_000, 0)
    """Numbers of labelled examples; 0 stands for the whole training set."""
    depths: tuple[int, ...] = (1, 2, 3, 4)  # Numbers of hidden layers.
    arms: tuple[Arm, ...] = ("pre-trained", "random", "modern")
    """How networks start; the last is ReLU, the others sigmoid."""
    layer_size: int = 500  # Units of every hidden layer.
    num_seeds: int = 10  # Seeds 0, 1, ... up to few_labels labels.
    num_seeds_above: int = 3  # Seeds with more labels.
    few_labels: int = 1_000  # Up to so many labels, num_seeds seeds and all learning rates are run.
    pretraining_epochs: int = 60  # Passes over the unlabelled images per layer.
    pretraining_rate: float = 0.3
    """Learning rate of centred CD-1, lowered linearly to a hundredth over the second half."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """Of Adam, lowered to zero along a cosine; above few_labels only the (lower) middle one."""
    min_updates: int = 800
    """Least number of updates of a network; decides the number of epochs when labels are few."""
    min_epochs: int = 15  # Least number of epochs; decides it when there are many.
    batch_size: int = 100  # Examples per update; a quarter of the labelled set if that is less.
    together: int = 4
    """Networks trained at once by vmap, up to few_labels labels; one by one above."""
    resume: bool = False  # Go on with the study in workdir.

    bounds: ClassVar = {"labels": 0}

    def check(self) -> None:
        """Refuse fewer labels than classes."""
        enough = min(n or 10 for n in self.labels) >= 10
        self.expect(enough, "labels", "at least 10, or 0 for all")


PRESETS = {
    "default": Config(),
    "full": Config(
        preset="full",
        dataset="mnist",
        labels=(100, 300, 1_000, 10_000, 0),
        pretraining_epochs=10,
    ),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        labels=(40,),
        depths=(1, 2),
        layer_size=20,
        num_seeds=3,
        pretraining_epochs=60,
        learning_rates=(1e-2, 3e-2),
        min_updates=150,
        min_epochs=5,
    ),
}
