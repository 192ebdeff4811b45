"""Class probabilities of a product over a joint block of inputs and a label."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax._product import Product
from poejax.experts import Expert
from poejax.types import Array, Event, Params
from poejax.units.joint import label_unit


def class_log_probs(model: Product, params: Params, x: Event, label: str = "label") -> Array:
    """Exact log probabilities of the classes given the other blocks of one event.

    log p(y | x) = log_density(x, y) - logsumexp_y' log_density(x, y')

    Log Z cancels. Banks multiply x by their weights once for all classes.

    Args:
      model: a product over a Joint unit with a block `Categorical(1, C)` of that name.
      params: its parameters.
      x: one event, a dict of the other blocks; the label's own entry is ignored if it is there.
      label: name of the block.

    Returns:
      [C], in nats.

    Raises:
      ValueError: if there is no such block of one categorical unit.

    Source: Larochelle & Bengio (2008), Classification using discriminative restricted Boltzmann
    machines.
    """
    _checks.model("model", model)
    unit = label_unit(model.visible, label)
    if not isinstance(x, dict):
        raise ValueError(f"x: expected a dict of blocks, got {type(x).__name__}")
    classes = jax.nn.one_hot(jnp.arange(unit.num_classes), unit.num_classes)[:, None]
    params, blank = model.standardize(params, x | {label: jnp.zeros((1, unit.num_classes))})
    zero = jax.tree.map(jnp.zeros_like, blank)

    def score(expert: Expert, params: Params) -> Array:
        def votes(y: Array) -> Array:
            return expert.log_product(params, blank | {label: y})

        bank = expert.bank
        if bank is None:
            return jax.vmap(votes)(classes)
        of_x, of_nothing = (bank.latent_field(params, event) for event in (blank, zero))

        def log_partition(y: Array) -> Array:
            of_y = bank.latent_field(params, zero | {label: y})
            field = jax.tree.map(lambda a, b, c: a + (b - c), of_x, of_y, of_nothing)
            return bank.hidden.log_partition(field)

        return jax.vmap(log_partition)(classes)

    scores = [score(expert, params[name]) for name, expert in model.items]
    return jax.nn.log_softmax(sum(scores[1:], scores[0]))
