"""Proper bases: where an annealing path starts, with exact sampler and log Z."""

from __future__ import annotations

import dataclasses
import functools

import jax

from poejax import _checks
from poejax.experts import Bias
from poejax.product import Product, product
from poejax.types import Array, Event, Params


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["params", "log_z"], meta_fields=["model"]
)
@dataclasses.dataclass(frozen=True)
class Base:
    """A normalised start of the annealing path: a product without latents, and its log Z."""

    model: Product
    params: Params
    log_z: Array

    def sample(self, rng_key: Array) -> Event:
        """Draw one exact event."""
        return self.model.sample_visible(rng_key, self.params, dict.fromkeys(self.params, ()))


def base_rate(model: Product, data: Event, smoothing: float = 0.05) -> Base:
    """Independent units with the data's means: a base for annealing that is close to the data.

    Args:
      model: the model whose evidence is wanted; only its visible units are used.
      data: batch of events [N, ...].
      smoothing: in (0, 1), share of the uniform distribution mixed in (discrete units) or relative
        increase of the variance (real units), so that the base is broader than the data.

    Returns:
      The base, with exact sampler and log Z.

    Raises:
      ValueError: if `data` is empty or holds no events of the visible units.

    Source: Salakhutdinov & Murray (2008), section 4, with symmetric smoothing.
    """
    visible = model.visible
    visible.check("data", data)
    if not 0 < smoothing < 1:
        raise ValueError(f"smoothing: expected a number in (0, 1), got {smoothing}")
    params = {"bias": {"field": visible.fit_field(data, smoothing)}}
    _checks.finite("data: base rate of a site without variance, ", params)
    base_model = product(visible, bias=Bias(visible))
    log_z = visible.log_partition(visible.field(params["bias"]["field"]))
    return Base(base_model, params, log_z)
