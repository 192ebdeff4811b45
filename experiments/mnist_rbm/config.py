"""What a run of an RBM depends on, and the presets."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar, Literal

from experiments.lab import own_data, rbm_recipe, runs


@dataclasses.dataclass(frozen=True)
class Config(runs.DigitOptions):
    """Everything a run depends on, with its data."""

    data: Path | None = None
    """A file of rows to learn instead, or a folder with the four IDX files of a set like MNIST."""
    visible: own_data.Units | None = None
    """What the values of that file are; by default found from them, and said."""
    num_validation: int = 500
    """Training digits of mnist held out to watch; the other data sets have splits of their own."""
    binarization: Literal["stochastic", "threshold"] = "stochastic"
    """stochastic: pixel intensity is the probability, redrawn for every batch; fixed for tests."""
    num_hidden: int = 200  # Number of hidden units, that is of experts.
    estimator: Literal["pcd", "ptt", "cd"] = "pcd"
    """Persistent contrastive divergence; parallel trajectory tempering, whose chains jump between
    modes and whose log-likelihood is live; or contrastive divergence."""
    centered: bool = True  # Centre the gradient.
    num_chains: int = 500  # Persistent chains (pcd and ptt).
    num_gibbs_steps: int = 1  # Gibbs sweeps per update, the k of CD-k and PCD-k.
    num_epochs: int = 100
    """Passes over the training set. A run that is resumed with more of them goes on training, at
    the rates that the longer schedule has from there on."""
    batch_size: int = 100  # Examples per update.
    learning_rate: float = 0.1
    """Held for the first 30 % of the updates, then lowered linearly to 2 % of itself. Of SGD; real
    values are learned by Adam at a twentieth of it."""
    warmup_epochs: int = 0
    """Epochs over which the rate rises to it, at most 30 % of all; with high rates and many hidden
    units, spares the first updates a blow that takes long to heal."""
    weight_decay: float = 1e-4  # L2 rate on the weight matrix; biases are spared.
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the factors of matrix products in training, which in bfloat16 takes little more than half
    the time on processors with a unit for it. What the run ends with is evaluated in float32."""
    warped_copies: int = 0
    """Copies of the training images, each image turned, scaled, sheared and bent a little anew,
    that are learned in their place at first."""
    warped_share: float = 0.9
    """Share of the epochs that learn from them alone, in whole reports, of which one at least is
    left to the images. Where a resumed run is given more epochs it counts for all of them."""
    kept_copies: int = 0
    """Of the warped copies, how many of each image go on being learned beside it to the end."""
    average_decay: float = 0.999
    """Decay of the moving average of the parameters, which is what gets evaluated."""
    epochs_per_report: int = 5  # Epochs between two lines of metrics.jsonl and two checkpoints.
    ais_chains: int = 100  # Annealed importance sampling runs.
    ais_steps: int = 10_000
    """Temperatures between base and model; 0 is the 14,500 of Salakhutdinov & Murray (2008)."""
    sample_steps: int = 3_000
    """Gibbs sweeps before samples are shown (from random starts) or annealed back (from data)."""
    seed: int = 0  # Seed of everything random.
    resume: bool = False
    """Go on with the run in workdir, with its config. Epochs may be added, and what the evaluation
    depends on (ais_chains, ais_steps, sample_steps) may change; so may devices and processes."""
    coordinator_address: str | None = None
    """host:port of process 0, where several processes run this command; see
    jax.distributed.initialize. They share a file system."""
    num_processes: int | None = None  # How many of them there are.
    process_id: int | None = None  # Which of them this is, from 0.
    data_devices: int | None = None
    """Devices that share chains and rows of a batch; one, or all those of several processes."""
    model_devices: int = 1  # Devices that share the hidden units.

    bounds: ClassVar = {
        "seed": -math.inf,
        "ais_chains": 2,
        "ais_steps": 0,
        "weight_decay": 0.0,
        "warped_copies": 0,
        "warped_share": (0.0, 1.0),
        "kept_copies": 0,
        "warmup_epochs": 0,
        "average_decay": (0.0, 1.0),
        "process_id": 0,
    }

    @property
    def num_warped(self) -> int:
        """Epochs that learn from warped copies: the first ones."""
        every = self.epochs_per_report
        reports = round(self.warped_share * self.num_epochs / every)
        last = (self.num_epochs - 1) // every
        return min(max(1, reports), last) * every if self.warped_copies else 0

    def check(self) -> None:
        """Refuse schedules without room for their parts."""
        most = int(rbm_recipe.HELD * self.num_epochs)
        words = f"at most {most} of num_epochs = {self.num_epochs}"
        self.expect(self.warmup_epochs <= most, "warmup_epochs", words)
        words = f"at most warped_copies = {self.warped_copies}"
        self.expect(self.kept_copies <= self.warped_copies, "kept_copies", words)
        words = f"at least two reports of epochs_per_report = {self.epochs_per_report}"
        self.expect(self.num_warped > 0 or not self.warped_copies, "num_epochs", words)


# Batches and chains of one size bring the least noise into the gradient for the work; as large as
# these are, they bear a high rate. What binds so many units is what they have seen: without copies
# training digits gain alone.
_ALL_OF_MNIST = Config(
    preset="full",
    dataset="mnist",
    num_hidden=2000,
    num_epochs=420,
    batch_size=500,
    learning_rate=0.6,
    warmup_epochs=10,
    weight_decay=0.0,
    compute_dtype="bfloat16",
    warped_copies=12,
    epochs_per_report=10,
    ais_steps=0,
    sample_steps=5_000,
)
PRESETS = {
    "default": Config(),
    "full": _ALL_OF_MNIST,
    "record": dataclasses.replace(
        _ALL_OF_MNIST,
        preset="record",
        num_epochs=1500,
        warped_copies=24,
        warped_share=0.93,
        kept_copies=1,
    ),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        num_hidden=16,
        num_chains=20,
        num_epochs=4,
        epochs_per_report=2,
        ais_chains=20,
        ais_steps=200,
        sample_steps=50,
    ),
}
