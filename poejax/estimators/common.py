"""The one gradient rule that all sampling estimators share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from poejax.product import Product
from poejax.types import Array, EstimatorInfo, Event, Params


def mean_log_density(model: Product, params: Params, x: Event) -> Array:
    """Return the mean unnormalised log density of a batch."""
    return jnp.mean(jax.vmap(model.log_density, in_axes=(None, 0))(params, x))


def contrast(
    model: Product, params: Params, x_data: Event, x_model: Event
) -> tuple[Params, EstimatorInfo]:
    """Gradient of the surrogate whose expectation under exact `x_model` is the NLL gradient.

    grad of  -mean log_density(params, x_data) + mean log_density(params, x_model), x_model fixed

    The surrogate's value is no likelihood and is not returned.
    """

    def surrogate(params: Params) -> tuple[Array, EstimatorInfo]:
        data = mean_log_density(model, params, x_data)
        fantasy = mean_log_density(model, params, jax.lax.stop_gradient(x_model))
        return fantasy - data, EstimatorInfo(data, fantasy)

    return jax.grad(surrogate, has_aux=True)(params)
