"""How the RBMs of all experiments are trained: centred PCD, averaged parameters, linear decay."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import poejax as pj
from experiments import runs
from poejax import training
from poejax.types import Array, Estimator, Params

_PIECES = 10


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes and rates of one training run."""

    num_hidden: int = 200
    """Number of hidden units, that is of experts."""
    num_chains: int = 100
    """Persistent chains, one Gibbs sweep each per update."""
    num_steps: int = 4_000
    """Updates."""
    batch_size: int = 100
    """Examples per update."""
    learning_rate: float = 0.1
    """Held for the first 30 % of the updates, then lowered linearly to 2 % of itself."""
    weight_decay: float = 1e-4
    """L2 rate on the weight matrix; biases are spared."""
    average_decay: float = 0.999
    """Decay of the moving average of the parameters, which is what gets evaluated."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        runs.at_least(self, 1, "num_hidden", "num_chains", "num_steps", "batch_size")
        if self.learning_rate <= 0 or self.weight_decay < 0 or not 0 <= self.average_decay < 1:
            raise ValueError(
                "learning_rate, weight_decay, average_decay: expected > 0, >= 0 and in [0, 1), got "
                f"{self.learning_rate}, {self.weight_decay} and {self.average_decay}"
            )


class Trainer(NamedTuple):
    """A recipe made concrete. Build one for all seeds: optimizers compare by identity."""

    recipe: Recipe
    model: pj.Product
    estimator: Estimator
    tx: optax.GradientTransformation


def trainer(recipe: Recipe, num_visible: int) -> Trainer:
    """Build model, learning rule and optimizer of a binary RBM by centred PCD-1."""
    model = pj.models.rbm(num_visible, recipe.num_hidden)
    estimator = make_estimator(model, "pcd", recipe.num_chains, 1, centered=True)
    tx = optimizer(recipe.learning_rate, recipe.weight_decay, recipe.num_steps)
    return Trainer(recipe, model, estimator, tx)


def fit(
    rng_key: Array,
    trainer: Trainer,
    images: Any,
    preprocess: training.Preprocess,
    description: str | None = "training",
) -> Params:
    """Train on rows `images` [N, D] and return the averaged parameters.

    Args:
      rng_key: one typed key; the run is a function of it.
      trainer: as built by `trainer`.
      images: uint8 intensities, or whatever `preprocess` takes.
      preprocess: how they become bits, e.g. `datasets.threshold`; drawn anew for every batch.
      description: what the progress bar is called; no bar when None.

    Raises:
      ValueError: if a batch is larger than the data.
      FloatingPointError: if training diverges.
    """
    recipe = trainer.recipe
    images = jnp.asarray(images)
    state = initial_state(rng_key, trainer.model, trainer.estimator, trainer.tx, images, preprocess)
    # One piece compiles once; a remainder would be a second program.
    pieces = _PIECES if recipe.num_steps % _PIECES == 0 else 1
    size = recipe.num_steps // pieces
    bar = runs.progress(recipe.num_steps, description, "step") if description else None
    with bar or contextlib.nullcontext():
        for _ in range(pieces):
            state, _ = training.train_steps(
                trainer.estimator,
                trainer.tx,
                state,
                images,
                recipe.batch_size,
                size,
                preprocess=preprocess,
                average_decay=recipe.average_decay,
            )
            if bar is not None:
                bar.update(size)
    assert state.average is not None
    return state.average


def as_bits(rng_key: Array, images: Array) -> Array:
    """Pass rows that are bits already, a `preprocess` for `training`."""
    del rng_key
    return images.astype(jnp.result_type(float))


def make_model(visible: pj.units.Unit, num_hidden: int) -> pj.Product:
    """Build the RBM of any visible units with binary hidden ones."""
    if isinstance(visible, pj.units.Bernoulli):
        return pj.models.rbm(visible.size, num_hidden)
    hidden = pj.experts.HiddenBank(visible, pj.units.Bernoulli(num_hidden))
    return pj.product(visible, bias=pj.experts.Bias(visible), hidden=hidden)


def make_estimator(
    model: pj.Product, rule: str, num_chains: int, num_gibbs_steps: int, centered: bool
) -> Estimator:
    """Build the learning rule "pcd" or "cd", centred or not; "cd" has no chains to count."""
    estimator: Any
    if rule == "pcd":
        estimator = pj.estimators.pcd(model, num_chains, num_steps=num_gibbs_steps)
    else:
        estimator = pj.estimators.cd(model, num_steps=num_gibbs_steps)
    return pj.estimators.centered(estimator, model) if centered else estimator


def optimizer(
    learning_rate: float, weight_decay: float, num_steps: int
) -> optax.GradientTransformation:
    """Build plain SGD whose rate is held for 30 % of the updates, then lowered linearly to 2 %."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=training.weights_only),
        optax.sgd(_held_then_lowered(learning_rate, num_steps)),
    )


def optimizer_of_reals(
    learning_rate: float, weight_decay: float, num_steps: int
) -> optax.GradientTransformation:
    """Build Adam on clipped gradients, at a twentieth of the rate that SGD takes on bits.

    Gradients of precisions and of weights to real units have no bound; plain SGD diverges.
    """
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(weight_decay, mask=training.weights_only),
        optax.adam(_held_then_lowered(0.05 * learning_rate, num_steps)),
    )


def _held_then_lowered(learning_rate: float, num_steps: int) -> optax.Schedule:
    held = int(0.3 * num_steps)
    return optax.join_schedules(
        [
            optax.constant_schedule(learning_rate),
            optax.linear_schedule(learning_rate, 0.02 * learning_rate, num_steps - held),
        ],
        [held],
    )


def initial_state(
    rng_key: Array,
    model: pj.Product,
    estimator: Estimator,
    tx: optax.GradientTransformation,
    images: Array,
    preprocess: training.Preprocess,
) -> training.TrainState:
    """Return the state at step 0, visible biases at the base rates (Hinton 2010, section 8)."""
    params_key, binary_key, train_key = jax.random.split(rng_key, 3)
    x = preprocess(binary_key, images)
    params = model.init_from(params_key, x)
    return training.init(
        train_key, model, estimator, tx, images, params=params, preprocess=preprocess, average=True
    )
