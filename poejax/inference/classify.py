"""Class probabilities of a product over a joint block of inputs and a label."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax.experts import Expert, HiddenBank, combine
from poejax.product import Product
from poejax.types import Array, Event, Params
from poejax.units import Categorical, Joint


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
    unit = label_unit(model, label)
    if not isinstance(x, dict):
        raise ValueError(f"x: expected a dict of blocks, got {type(x).__name__}")
    classes = jax.nn.one_hot(jnp.arange(unit.num_classes), unit.num_classes)[:, None]
    params, blank = model.standardize(params, x | {label: jnp.zeros((1, unit.num_classes))})
    zero = jax.tree.map(jnp.zeros_like, blank)

    def score(expert: Expert, params: Params) -> Array:
        def votes(y: Array) -> Array:
            return jnp.sum(combine.log_factors(expert, params, blank | {label: y}))

        if not isinstance(expert, HiddenBank) or "present" in params:
            return jax.vmap(votes)(classes)
        of_x, of_nothing = (expert.latent_field(params, event) for event in (blank, zero))

        def log_partition(y: Array) -> Array:
            of_y = expert.latent_field(params, zero | {label: y})
            field = jax.tree.map(lambda a, b, c: a + (b - c), of_x, of_y, of_nothing)
            return expert.hidden.log_partition(field)

        return jax.vmap(log_partition)(classes)

    scores = [score(expert, params[name]) for name, expert in model.items]
    return jax.nn.log_softmax(sum(scores[1:], scores[0]))


def label_unit(model: Product, label: str) -> Categorical:
    """Return the label's unit, or raise ValueError."""
    _checks.model("model", model)
    visible = model.visible
    unit = visible.blocks.get(label) if isinstance(visible, Joint) else None
    if not isinstance(unit, Categorical) or unit.size != 1:
        raise ValueError(
            f"label: expected the name of a block Categorical(1, C) of {visible}, got {label!r}"
        )
    return unit
