"""Sums of experts: a mixture as one factor of a product."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from poejax._numerics import widen
from poejax.experts._base import Expert, absent_log_weight, get_beta, set_beta
from poejax.experts._combine import keyed, latent_states_at, named, num_latent_states
from poejax.experts._presence import zero_unless
from poejax.types import Array, Event, Field, Latent, Params
from poejax.units import Categorical, Unit


@dataclasses.dataclass(frozen=True)
class Mixture(Expert):
    """log f(x) = log Σ_m π_m f_m(x), f_m the product of member m's factors, normalised or not.

    The latent is {"choice": one-hot [M], "members": {name: z_m}}. The chosen member's latents
    follow their posterior at x and add their field; the others add nothing, and follow their
    posterior at x = 0, so that the joint is normalised over them. Build one with `mixture`; a
    member may be a product, and a Mixture a factor of one. `temper` scales π too.

    Params: {"logits": [M], "members": {name: params}}, π = softmax(logits).
    """

    items: tuple[tuple[str, Expert], ...]

    @property
    def experts(self) -> dict[str, Expert]:
        """The members by name."""
        return dict(self.items)

    @property
    def is_opaque(self) -> bool:
        return any(expert.is_opaque for _, expert in self.items)

    @property
    def has_scale_latents(self) -> bool:
        return any(expert.has_scale_latents for _, expert in self.items)

    @property
    def num_factors(self) -> int:
        return 1

    @property
    def num_latent_states(self) -> int | None:
        count = num_latent_states(self.items)
        return None if count is None else len(self.items) * count

    def init(self, rng_key: Array) -> Params:
        members = {name: expert.init(key) for name, expert, key in keyed(self.items, rng_key)}
        return {"logits": jnp.zeros(len(self.items)), "members": members}

    def log_factors(self, params: Params, x: Event) -> Array:
        return jax.nn.logsumexp(self._log_joints(params, x))[None]

    def log_ratios(self, params: Params, x: Array, sites: Array, values: Array) -> Array:
        log_p = jax.nn.log_softmax(self._log_joints(params, x))
        changes = [
            expert.log_ratios(self._member(params, name), x, sites, values)
            for name, expert in self.items
        ]
        return jax.nn.logsumexp(log_p[:, None, None] + jnp.stack(changes), axis=0)

    def log_joint(self, params: Params, x: Event, z: Latent) -> Array:
        if self.is_opaque:
            return self.log_factors(params, x)[0]
        # Member by member, not through the field: each knows how to keep its digits.
        total = self._log_share(params, z)
        for chosen, name, expert, member in self._each(params, z["choice"]):
            used = expert.log_joint(member, x, z["members"][name])
            total += jnp.where(chosen, used, absent_log_weight(expert, member, z["members"][name]))
        return total

    def latent_log_weight(self, params: Params, z: Latent) -> Array:
        total = self._log_share(params, z)
        for chosen, name, expert, member in self._each(params, z["choice"]):
            used = expert.latent_log_weight(member, z["members"][name])
            absent = absent_log_weight(expert, member, z["members"][name])
            total += jnp.where(chosen, used, absent)
        return total

    def latent_state_at(self, index: Array) -> Latent:
        choice = self._choice().state_at(index % len(self.items))[0]
        return {"choice": choice, "members": latent_states_at(self.items, index // len(self.items))}

    def sample_latent(self, rng_key: Array, params: Params, x: Event) -> Latent:
        if self.is_opaque:
            return ()
        choice_key, members_key = jax.random.split(rng_key)
        choice = self._choice().sample(choice_key, self._log_joints(params, x)[None])[0]
        keys = {name: key for name, _, key in keyed(self.items, members_key)}
        members = {
            name: expert.sample_latent(keys[name], member, zero_unless(chosen, x))
            for chosen, name, expert, member in self._each(params, choice)
        }
        return {"choice": choice, "members": members}

    def latent_mean(self, params: Params, x: Event) -> Latent:
        if self.is_opaque:
            return ()
        choice = jax.nn.softmax(self._log_joints(params, x))
        members = {}
        for (name, expert), p in zip(self.items, choice, strict=True):
            member = self._member(params, name)
            used = expert.latent_mean(member, x)
            absent = expert.latent_mean(member, zero_unless(jnp.array(False), x))
            members[name] = jax.tree.map(lambda a, b, p=p: p * a + (1 - p) * b, used, absent)
        return {"choice": choice, "members": members}

    def visible_field(self, params: Params, z: Latent) -> Field:
        # By share, so that a mean of choices, as in a mean-field pass, gives the mean field.
        fields = []
        for share, (name, expert) in zip(z["choice"], self.items, strict=True):
            field = expert.visible_field(self._member(params, name), z["members"][name])
            chosen = share > 0
            fields.append(
                zero_unless(chosen, self.visible.scale(field, jnp.where(chosen, share, 1)))
            )
        return self.visible.combine(fields)

    def temper(self, params: Params, beta: Array | float) -> Params:
        return set_beta(params, beta)

    def _log_share(self, params: Params, z: Latent) -> Array:
        return get_beta(params) * jnp.sum(z["choice"] * self._log_weights(params))

    def _choice(self) -> Categorical:
        return Categorical(1, len(self.items))

    def _member(self, params: Params, name: str) -> Params:
        return self.experts[name].temper(params["members"][name], get_beta(params))

    def _each(self, params: Params, choice: Array) -> list[tuple[Array, str, Expert, Params]]:
        return [
            (chosen > 0.5, name, expert, self._member(params, name))
            for chosen, (name, expert) in zip(choice, self.items, strict=True)
        ]

    def _log_joints(self, params: Params, x: Event) -> Array:
        """Return beta log π_m + log f_m(x), [M]."""
        votes = [expert.log_product(self._member(params, name), x) for name, expert in self.items]
        return get_beta(params) * self._log_weights(params) + jnp.stack(votes)

    def _log_weights(self, params: Params) -> Array:
        return jax.nn.log_softmax(widen(params["logits"]))


def mixture(visible: Unit, **experts: Expert) -> Mixture:
    """Add experts over shared visible units: the other half of an algebra of experts.

    f(x) = Σ_m π_m f_m(x)

    Args:
      visible: the units all members see.
      **experts: at least two named members over exactly these units; a Product may be one.

    Returns:
      The mixture, an expert.

    Raises:
      ValueError: if fewer than two members are given or one sees other units.
      TypeError: if an argument is not an expert.

    Source: Jacobs, Jordan, Nowlan & Hinton (1991) for mixtures; Hinton (2002) for their products.
    """
    if len(experts) < 2:
        raise ValueError(f"mixture: expected at least two members, got {list(experts)}")
    return Mixture(visible, named("mixture", visible, experts))
