"""How RBMs of digits are trained: centred PCD, averaged parameters, linear decay."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

import poejax as pj
from experiments.lab import runs
from poejax import training
from poejax.types import Array, Estimator, Params

HELD = 0.3  # share of the updates before a rate is lowered


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes and rates of one training run."""

    num_hidden: int = 200  # Number of hidden units, that is of experts.
    num_chains: int = 100  # Persistent chains, one Gibbs sweep each per update.
    num_steps: int = 4_000  # Updates.
    batch_size: int = 100  # Examples per update.
    learning_rate: float = 0.1
    """Held for the first 30 % of the updates, then lowered linearly to 2 % of itself."""
    weight_decay: float = 1e-4  # L2 rate on the weight matrix; biases are spared.
    average_decay: float = 0.999
    """Decay of the moving average of the parameters, which is what gets evaluated."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        runs.check_numbers(self, {"weight_decay": 0.0, "average_decay": (0.0, 1.0)})

    def fit(
        self,
        rng_key: Array,
        images: Any,
        preprocess: training.Preprocess,
        description: str | None = "training",
    ) -> tuple[pj.Product, Params]:
        """Train on rows `images` [N, D] by centred PCD-1; returns model and averaged parameters.

        Args:
          rng_key: one typed key; the run is a function of it.
          images: uint8 intensities, or whatever `preprocess` takes.
          preprocess: how they become bits, e.g. `datasets.threshold`; drawn anew for every batch.
          description: what the progress bar is called; no bar when None.

        Raises:
          ValueError: if a batch is larger than the data.
        """
        images = jnp.asarray(images)
        model = pj.models.rbm(images.shape[1], self.num_hidden)
        run = training.Run(
            make_estimator(model, "pcd", self.num_chains, 1, centered=True),
            optimizer(self.learning_rate, self.weight_decay, self.num_steps),
            self.batch_size,
            preprocess=preprocess,
            average=True,
            average_decay=self.average_decay,
        )
        state = initial_state(rng_key, run, images)
        state = runs.train(run, state, images, self.num_steps, description)
        assert state.average is not None
        return model, state.average


def as_bits(rng_key: Array, images: Array) -> Array:
    """Pass rows that are bits already, a `preprocess` for `training`."""
    del rng_key
    return images.astype(jnp.result_type(float))


def make_model(
    visible: pj.units.Unit, num_hidden: int, compute_dtype: str | None = None
) -> pj.Product:
    """Build the RBM of any visible units with binary hidden ones."""
    hidden = pj.experts.HiddenBank(
        visible, pj.units.Bernoulli(num_hidden), compute_dtype=compute_dtype
    )
    return pj.product(visible, bias=pj.experts.Bias(visible), hidden=hidden)


def make_estimator(
    model: pj.Product, rule: str, num_chains: int, num_gibbs_steps: int, centered: bool
) -> Estimator:
    """Build the learning rule "pcd", "ptt" or "cd", centred or not; "cd" has no chains to count."""
    estimator: Any
    if rule == "pcd":
        estimator = pj.estimators.pcd(model, num_chains, num_steps=num_gibbs_steps)
    elif rule == "ptt":
        estimator = pj.estimators.ptt(model, num_chains, num_steps=num_gibbs_steps)
    else:
        estimator = pj.estimators.cd(model, num_steps=num_gibbs_steps)
    return pj.estimators.centered(estimator) if centered else estimator


def optimizer(
    learning_rate: float, weight_decay: float, num_steps: int, num_warmup: int = 0
) -> optax.GradientTransformation:
    """Build plain SGD whose rate is held for 30 % of the updates, then lowered linearly to 2 %."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=training.weights_only),
        optax.sgd(held_then_lowered(learning_rate, num_steps, num_warmup=num_warmup)),
    )


def optimizer_of_reals(
    learning_rate: float, weight_decay: float, num_steps: int, num_warmup: int = 0
) -> optax.GradientTransformation:
    """Build Adam on clipped gradients, at a twentieth of the rate that SGD takes on bits.

    Gradients of precisions and of weights to real units have no bound; plain SGD diverges.
    """
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(weight_decay, mask=training.weights_only),
        optax.adam(held_then_lowered(0.05 * learning_rate, num_steps, num_warmup=num_warmup)),
    )


def held_then_lowered(
    learning_rate: float,
    num_steps: int,
    held: float = HELD,
    last: float = 0.02,
    num_warmup: int = 0,
) -> optax.Schedule:
    """Hold a rate for a share `held` of the updates, then lower it linearly to a share `last`.

    It is reached linearly over the first `num_warmup` updates, no more than those of the share.
    """
    start = int(held * num_steps)
    lowered = optax.linear_schedule(learning_rate, last * learning_rate, num_steps - start)
    then = optax.join_schedules([optax.constant_schedule(learning_rate), lowered], [start])
    if not num_warmup:
        return then
    return lambda step: then(step) * jnp.minimum(1.0, (step + 1) / num_warmup)


def initial_state(rng_key: Array, run: training.Run, images: Array) -> training.TrainState:
    """Return the state at step 0, visible biases at the base rates (Hinton 2010, section 8)."""
    params_key, binary_key, train_key = jax.random.split(rng_key, 3)
    assert run.model is not None
    x = images if run.preprocess is None else run.preprocess(binary_key, images)
    return run.init(train_key, images, run.model.init_from(params_key, x))
