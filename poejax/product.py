"""Composition: a product of experts is a sum of log factors, of latents and of fields."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax.experts import Expert
from poejax.types import Array, Event, Field, Latent, Params
from poejax.units import Unit


@dataclasses.dataclass(frozen=True)
class Product(Expert):
    """p(x) = h(x) Π_k f_k(x) / Z over shared visible units, itself an expert, so products nest.

    Params, latents and factors are keyed or ordered by expert name. The base measure h is counted
    once, in `log_density` of the outermost product, and never in `log_factors`. Build one with
    `product`.
    """

    items: tuple[tuple[str, Expert], ...]

    @property
    def experts(self) -> dict[str, Expert]:
        """The experts by name."""
        return dict(self.items)

    @property
    def num_factors(self) -> int:
        return sum(expert.num_factors for _, expert in self.items)

    @property
    def num_latent_states(self) -> int | None:
        counts = [expert.num_latent_states for _, expert in self.items]
        return math.prod(c for c in counts if c is not None) if None not in counts else None

    @property
    def is_opaque(self) -> bool:
        return any(expert.is_opaque for _, expert in self.items)

    def init(self, rng_key: Array) -> Params:
        """Draw initial parameters of all experts: {name: params}."""
        _checks.rng_key("rng_key", rng_key)
        return {name: expert.init(key) for name, expert, key in self._keyed(rng_key)}

    def log_density(self, params: Params, x: Event) -> Array:
        """Return log h(x) + Σ_k log f_k(x), unnormalised, []."""
        return self.visible.log_base(x) + jnp.sum(self.log_factors(params, x))

    def log_factors(self, params: Params, x: Event) -> Array:
        """Return all experts' votes in the order given, [K]."""
        return jnp.concatenate([e.log_factors(params[name], x) for name, e in self.items])

    def latent_log_weight(self, params: Params, z: Latent) -> Array:
        """Return Σ_k g_k(z_k)."""
        return jnp.sum(
            jnp.stack([e.latent_log_weight(params[name], z[name]) for name, e in self.items])
        )

    def latent_state_at(self, index: Array) -> Latent:
        """Return the latent configuration number `index`, {name: z}."""
        z = {}
        for name, expert in self.items:
            count = min(expert.num_latent_states or 1, 2**31 - 1)
            z[name] = expert.latent_state_at(index % count)
            index = index // count
        return z

    def sample_latent(self, rng_key: Array, params: Params, x: Event) -> Latent:
        """Draw {name: z_k ~ p(z_k | x)}: latents are independent given x."""
        keyed = self._keyed(rng_key)
        return {name: e.sample_latent(key, params[name], x) for name, e, key in keyed}

    def latent_mean(self, params: Params, x: Event) -> Latent:
        """Return {name: E[z_k | x]}."""
        return {name: e.latent_mean(params[name], x) for name, e in self.items}

    def visible_field(self, params: Params, z: Latent) -> Field:
        """Return Σ_k field_k(z_k)."""
        return self.visible.combine(
            [e.visible_field(params[name], z[name]) for name, e in self.items]
        )

    def temper(self, params: Params, beta: Array | float) -> Params:
        """Return the parameters with every expert at inverse temperature `beta`."""
        return {name: expert.temper(params[name], beta) for name, expert in self.items}

    def sample_visible(self, rng_key: Array, params: Params, z: Latent) -> Event:
        """Draw x from p(x | z)."""
        return self.visible.sample(rng_key, self.visible_field(params, z))

    def visible_mean(self, params: Params, z: Latent) -> Event:
        """Return E[x | z]."""
        return self.visible.mean(self.visible_field(params, z))

    def init_visible(self, rng_key: Array) -> Event:
        """Draw a random start for a chain, without looking at the parameters."""
        return self.visible.random_event(rng_key)

    def check_params(self, params: Params) -> None:
        """Raise ValueError unless `params` has this model's structure, shapes and finite values."""
        expected = jax.eval_shape(self.init, jax.random.key(0))
        _checks.same_structure("params", params, expected, optional="beta")
        _checks.finite("params", params)

    def _keyed(self, rng_key: Array) -> list[tuple[str, Expert, Array]]:
        # Keys go by position, so that an expert's draw does not depend on how many come after it.
        return [(n, e, jax.random.fold_in(rng_key, i)) for i, (n, e) in enumerate(self.items)]


def product(visible: Unit, **experts: Expert) -> Product:
    """Multiply experts over shared visible units.

    p(x) = h(x) Π_k f_k(x) / Z

    Args:
      visible: the units all experts see.
      **experts: named experts over exactly these units; a Product is an expert too.

    Returns:
      The product; `product.experts[name]` is the expert of that name.

    Raises:
      ValueError: if no expert is given or an expert sees other units.
      TypeError: if an argument is not an expert.

    Example:
      >>> visible = pj.units.Bernoulli(784)
      >>> model = pj.product(
      ...     visible,
      ...     bias=pj.experts.Bias(visible),
      ...     hidden=pj.experts.HiddenBank(visible, pj.units.Bernoulli(500)),
      ... )

    Source: Hinton (2002), Training products of experts by minimizing contrastive divergence.
    """
    if not experts:
        raise ValueError("product: expected at least one expert, got none")
    for name, expert in experts.items():
        if not isinstance(expert, Expert):
            raise TypeError(f"product: expected {name!r} to be an Expert, got {expert!r}")
        if expert.visible != visible:
            raise ValueError(
                f"product: expected expert {name!r} to see {visible}, got {expert.visible}"
            )
    return Product(visible, tuple(experts.items()))
