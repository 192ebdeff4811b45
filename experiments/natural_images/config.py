"""What the study of patches depends on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from experiments.lab import runs


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the study depends on, with its data."""

    images: Path | None = None
    """Folder of images; the two photographs of scikit-learn unless given."""
    wav: Path | None = None  # Sound to take instead of images.
    shrink: int = 2
    """Pixels (samples) averaged along each axis first, which removes most artefacts of JPEG."""
    side: int = 12  # Side of a patch in pixels after shrinking.
    window: int = 100  # Samples of a window after shrinking (wav only).
    num_components: int = 64  # Principal components kept by the whitening, the D of the models.
    num_train: int = 40_000  # Patches to learn from.
    num_test: int = 10_000  # Patches to judge by, from tiles of their own.
    overcompleteness: int = 2
    """Experts per component in the overcomplete models; 1 leaves these out."""
    exponent: float = 1.5
    """Exponents of the experts, held by CD; where the exact gradient starts from."""
    wide_exponent: float = 1.0
    """Exponents of the experts of overcomplete models, held: more experts need less each."""
    scale: float = 0.1  # Scales of the experts, held by CD; where the exact gradient starts from.
    num_steps: int = 2_000  # Updates.
    batch_size: int = 200  # Patches per update.
    learning_rate: float = 0.01  # Of Adam, lowered to zero along a cosine.
    hmc_leapfrog: int = 10  # Leapfrog steps per HMC step.
    hmc_acceptance: float = 0.8
    """Acceptance that the HMC step size is tuned to, at each of `num_stages` times."""
    num_stages: int = 4  # Stages of training.
    marginal_steps: int = 500  # Updates that fit scales and exponents to directions that are held.
    marginal_rate: float = 0.05  # Learning rate of those.
    num_seeds: int = 3
    """Seeds 0, 1, ... of tiles, patches and learning; overcomplete models use seed 0 only."""
    ais_chains: int = 100  # Annealed importance sampling runs.
    ais_steps: int = 1_000  # Temperatures between base and model.

    bounds: ClassVar = {"side": 2, "window": 2, "ais_chains": 2, "ais_steps": 2}
    bounds |= {"hmc_acceptance": (0, 1)}

    def check(self) -> None:
        """Refuse two kinds of data, improper products, and stages of unequal length."""
        if self.images is not None and self.wav is not None:
            raise ValueError("images, wav: expected one of them at most, got both")
        runs.require_batch(self.batch_size, self.num_train)
        proper = "more than 0.5, or a complete product (as AIS starts from) is improper"
        for name in ("exponent", "wide_exponent"):
            self.expect(getattr(self, name) > 0.5, name, proper)
        self.expect_multiple("num_steps", of="num_stages")


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        side=5,
        window=20,
        num_components=6,
        num_train=1_000,
        num_test=300,
        num_steps=40,
        batch_size=50,
        hmc_leapfrog=3,
        num_stages=1,
        marginal_steps=40,
        num_seeds=1,
        ais_chains=20,
        ais_steps=20,
    ),
}
