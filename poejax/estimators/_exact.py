"""The exact gradient, from the exact log partition function."""

from __future__ import annotations

import dataclasses

import jax

from poejax import _checks, _meshes
from poejax import exact as enumeration
from poejax._product import Product
from poejax.estimators._common import Rule, mean_log_density
from poejax.types import Array, EstimatorInfo, Event, Params


@dataclasses.dataclass(frozen=True)
class Exact(Rule):
    """Gradient of the exact mean negative log-likelihood. Build with `exact`."""

    def grad(
        self, rng_key: Array, params: Params, state: tuple[()], batch: Event
    ) -> tuple[Params, tuple[()], EstimatorInfo]:
        """Compute the gradient for a batch [B, ...]; `rng_key` is not used."""
        del rng_key

        def loss(params: Params) -> tuple[Array, EstimatorInfo]:
            data = mean_log_density(self.model, params, batch)
            log_z = enumeration.log_z(self.model, params)
            return log_z - data, EstimatorInfo(data, log_z)

        params, batch = _meshes.alike(params, batch)
        grads, info = jax.grad(loss, has_aux=True)(params)
        return grads, state, info


def exact(model: Product) -> Exact:
    """Maximum likelihood by the exact gradient, for models that `exact.method` knows a way for.

    grad = -E_data[∂ log f] + ∂ log Z. In its info `model_log_density` holds log Z.
    """
    _checks.model("model", model)
    return Exact(model)
