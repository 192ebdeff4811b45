"""Opaque experts: any differentiable function as an energy."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import NoReturn

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax.experts._base import Expert, get_beta, require_units, set_beta
from poejax.types import Array, Event, Field, Latent, Params


@dataclasses.dataclass(frozen=True)
class OpaqueExpert(Expert, abc.ABC):
    """An expert of which only the density is known: it has no latents and adds no field.

    A product that holds one is sampled through its gradient, by `kernels.mala`, `kernels.hmc` or
    `kernels.gibbs_with_gradients`. A family states `init` and `log_factors`, which `temper` lets
    it multiply by `get_beta(params)`.
    """

    @property
    def is_opaque(self) -> bool:
        return True

    @property
    def temper_is_power(self) -> bool:
        return True

    @property
    def num_factors(self) -> int:
        return 1

    @property
    def num_latent_states(self) -> None:
        # Not one: it is no sum over a single latent state that enumeration could use.
        return None

    def log_joint(self, params: Params, x: Event, z: Latent) -> Array:
        del z
        return jnp.sum(self.log_factors(params, x))

    def visible_field(self, params: Params, z: Latent) -> Field:
        del params, z
        refuse_opaque(self)

    def temper(self, params: Params, beta: Array | float) -> Params:
        return set_beta(params, beta)


@dataclasses.dataclass(frozen=True)
class Neural(OpaqueExpert):
    """log f(x) = -beta E_φ(x), the energy any JAX or Flax function of one event.

    Params: {"network": what `init_fn` returns}. Whether the product is proper is up to the energy:
    multiply by a Gaussian, or bound it. Two Neural experts are equal if their functions are the
    same objects: build them once, outside the loop, or each call compiles anew.

    Args:
      visible: any units; events reach `apply_fn` as they are, in a floating dtype.
      init_fn: `rng_key -> φ`, any pytree of floating arrays.
      apply_fn: `(φ, x) -> E`, a scalar, differentiable in both.

    Source: Hinton (1999), Products of experts; LeCun et al. (2006), A tutorial on energy-based
    learning.

    Example:
      >>> network = flax.linen.Dense(1)
      >>> energy = pj.experts.Neural(
      ...     pj.units.GaussianDiag(2),
      ...     init_fn=lambda rng_key: network.init(rng_key, jnp.zeros(2)),
      ...     apply_fn=lambda phi, x: network.apply(phi, x)[0],
      ... )
    """

    init_fn: Callable[[Array], Params]
    apply_fn: Callable[[Params, Event], Array]

    def __post_init__(self) -> None:
        require_units("visible", self.visible)
        for name in ("init_fn", "apply_fn"):
            if not callable(found := getattr(self, name)):
                raise TypeError(f"{name}: expected a function, got {found!r}")

    def init(self, rng_key: Array) -> Params:
        return {"network": self.init_fn(rng_key)}

    def log_factors(self, params: Params, x: Event) -> Array:
        self.visible.linear_statistic(x)  # refuses an event of another shape
        x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float, leaf)), x)
        energy = self.apply_fn(params["network"], x)
        _checks.shape("apply_fn(φ, x)", energy, (), "the energy of one event")
        return -(get_beta(params) * energy)[None]


def refuse_opaque(expert: Expert) -> NoReturn:
    """Raise ValueError: what was asked for needs latents or a field."""
    raise ValueError(
        f"expert: expected one with latents and a field, got {expert}, of which only the density "
        "is known; sample with kernels.mala or kernels.hmc (real units) or "
        "kernels.gibbs_with_gradients (discrete units)"
    )
