"""What every expert states: f(x) = ∫ exp(<field(z), t(x)> + g(z)) dz."""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from poejax import _checks
from poejax._inheritance import revert
from poejax._numerics import at_least_float32, map_rows
from poejax.experts import _presence
from poejax.experts._forms import Bank, CoordinateTerms, Coupling, StudentTTerms
from poejax.tails import Tails
from poejax.types import Array, Event, Field, Latent, Params
from poejax.units import Unit

_CORE = {"log_factors", "log_joint", "latent_log_weight", "visible_field", "latent_field"}
_BESIDE = {"init", "fit", "carries_base_rate"}  # do not touch what the factors are
_FORMS = {"bank", "has_free_field", "parts", "tails"}
_SHORT_CUTS = {
    "log_product",
    "log_change",
    "log_ratios",
    "is_gaussian",
    "num_coordinate_terms",
    "has_gaussian_latents",
    "is_student_t",
}


@dataclasses.dataclass(frozen=True)
class Expert(abc.ABC):
    """A factor of a product over the `visible` units, with latents of its own or none.

    Instances hold static configuration only; they hash and compare by value. Methods are pure
    functions of `params` and take one event; use `jax.vmap` for batches. A family states `init`,
    `log_factors`, its latents and the field they add; the joint density follows.

    A family does not think of being absent: its methods as called, here and by others, take
    params with a leaf "present" too (`Product.mask`). What a class says of its factors in other
    words (`log_ratios`, `tails`, closed forms) does not hold of a subclass that changes them. Its
    latents do: who changes `log_factors` states latents and their field to go with them.
    """

    visible: Unit

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        revert(cls, Expert, _void)
        _respect_presence(cls)

    @property
    @abc.abstractmethod
    def num_factors(self) -> int:
        """Number K of factors, the length of `log_factors`."""

    @property
    def num_latent_states(self) -> int | None:
        """Number of latent configurations, 1 without latents, None for continuous latents."""
        return 1

    @property
    def is_opaque(self) -> bool:
        """Whether only the density is known, so that block Gibbs cannot sample it."""
        return False

    @property
    def temper_is_power(self) -> bool:
        """Whether `temper` raises every factor to the power beta, as without a sum over latents."""
        return False

    @property
    def has_scale_latents(self) -> bool:
        """Whether latents set precisions only, so that their mean says nothing of the mean of x."""
        return False

    @property
    def carries_base_rate(self) -> bool:
        """Whether `fit` lets the expert take a share of the data's base rates or moments."""
        return False

    @property
    def parts(self) -> tuple[tuple[str, Expert], ...]:
        """The named experts that this one multiplies, none unless it is a product."""
        return ()

    @property
    def bank(self) -> Bank | None:
        """This expert as a bank of hidden units, if it is one."""
        return None

    @property
    def has_free_field(self) -> bool:
        """Whether it is a field alone, of free parameters params["field"]."""
        return False

    @property
    def is_gaussian(self) -> bool:
        """Whether it has no latents, and its log factor is quadratic in real visible units."""
        return False

    @property
    def num_coordinate_terms(self) -> int | None:
        """Number K of `coordinate_terms`, None where the factor is no such sum."""
        return None

    def coordinate_terms(self, params: Params) -> CoordinateTerms:
        """Return the factor as a sum of K Gaussian terms on every coordinate."""
        raise ValueError(
            f"expert: expected one that is a sum of Gaussians per coordinate, got {self}"
        )

    @property
    def has_gaussian_latents(self) -> bool:
        """Whether latents are N(field, 1), so that they can be integrated out: see `coupling`."""
        return False

    def coupling(self, params: Params) -> Coupling:
        """Return the bias and weights of Gaussian latents."""
        raise ValueError(f"expert: expected one with Gaussian latents, got {self}")

    @property
    def is_student_t(self) -> bool:
        """Whether the factor is one of powers of projections: see `student_t_terms`."""
        return False

    def student_t_terms(self, params: Params) -> StudentTTerms:
        """Return directions, scales and exponents."""
        raise ValueError(f"expert: expected one of Student-t factors, got {self}")

    def depth(self, params: Params) -> Array:
        """Return by how many nats a field's own parameters put the origin below its peak, []."""
        del params
        return jnp.zeros(())

    @abc.abstractmethod
    def init(self, rng_key: Array) -> Params:
        """Draw initial parameters."""

    def fit(
        self,
        rng_key: Array,
        params: Params,
        y: Event,
        share: float,
        weights: Array | None = None,
    ) -> Params:
        """Return a start near a batch `y` [N, ...] in coordinates, from that of `init`.

        An expert that carries the base rates fits them to the power `share`; others keep `params`.
        `weights` [N] are those of the rows, 1 each when None.
        """
        del rng_key, y, share, weights
        return params

    @abc.abstractmethod
    def log_factors(self, params: Params, x: Event) -> Array:
        """Return each factor's own vote log f_k(x), [K]."""

    def log_product(self, params: Params, x: Event) -> Array:
        """Return Σ_k log f_k(x), []."""
        return jnp.sum(self.log_factors(params, x))

    def log_change(self, old: Params, new: Params, x: Event) -> Array:
        """Return Σ_k [log f_k(x | new) - log f_k(x | old)], []; coordinates, if any, alike."""
        # Differences before sums, as factors are large and their changes small.
        return jnp.sum(self.log_factors(new, x) - self.log_factors(old, x))

    def log_ratios(self, params: Params, x: Array, sites: Array, values: Array) -> Array:
        """Return Σ_k log f_k(x') - Σ_k log f_k(x) for events x' that differ from x at one site.

        Here from every x' anew; families override it that know what a site adds. For visible units
        whose events are arrays, a row or a number for each site.

        Args:
          params: this expert's parameters.
          x: one event, of a floating dtype.
          sites: which site differs, [S].
          values: what x' holds there, [S, V, ...].

        Returns:
          [S, V].
        """
        here = self.log_factors(params, x)

        def one(row: tuple[Array, Array]) -> Array:
            there = jax.vmap(x.at[row[0]].set)(row[1])
            votes = jax.vmap(self.log_factors, in_axes=(None, 0))(params, there)
            return jnp.sum(votes - here, axis=-1)

        width = values.shape[1] * max(self.visible.num_linear, self.num_factors)
        return map_rows(one, (sites, values), width)

    def log_joint(self, params: Params, x: Event, z: Latent) -> Array:
        """Return <field(z), t(x)> + g(z), whose integral over z is exp Σ_k log_factors."""
        field = self.visible_field(params, z)
        return self.visible.inner(field, x) + self.latent_log_weight(params, z)

    def latent_log_weight(self, params: Params, z: Latent) -> Array:
        """Return g(z), the part of the joint log density that does not see x."""
        del params, z
        return jnp.zeros(())

    def latent_state_at(self, index: Array) -> Latent:
        """Return the latent configuration number `index` in [0, num_latent_states)."""
        del index
        return ()

    def sample_latent(self, rng_key: Array, params: Params, x: Event) -> Latent:
        """Draw z from p(z | x)."""
        del rng_key, params, x
        return ()

    def latent_mean(self, params: Params, x: Event) -> Latent:
        """Return E[z | x]."""
        del params, x
        return ()

    @abc.abstractmethod
    def visible_field(self, params: Params, z: Latent) -> Field:
        """Return the natural parameters that z adds to the visible units."""

    @abc.abstractmethod
    def temper(self, params: Params, beta: Array | float) -> Params:
        """Return parameters at inverse temperature `beta`: 1 is the identity, 0 constant in x.

        `beta` becomes a scalar leaf that multiplies pre-activations, never a scaled copy of the
        weights, so that many temperatures share one matrix product.
        """

    def tails(self, params: Params) -> Tails | None:
        """Return how the factors grow or decay far out; None where the family cannot say.

        Asked for unbounded visible units only, with concrete parameters.
        """
        del params
        return None


def _void(parent: type, defined: set[str]) -> set[str]:
    del parent
    return (_SHORT_CUTS if defined - _BESIDE else set()) | (_FORMS if defined & _CORE else set())


def absent_log_weight(expert: Expert, params: Params, z: Latent) -> Array:
    """Return the log density of z given x = 0: what latents do while their expert is absent.

    There t(x) = 0, so that the joint is g(z), and ∫ exp g(z) dz = exp Σ_k log_factors(0).
    """
    zero = jax.tree.map(
        jnp.zeros, expert.visible.event_shape, is_leaf=lambda shape: isinstance(shape, tuple)
    )
    return expert.latent_log_weight(params, z) - jnp.sum(expert.log_factors(params, zero))


def _absent_weight(expert: Expert, found: Array, arguments: Mapping[str, Any]) -> Array:
    if expert.is_opaque:
        return jnp.zeros_like(found)
    return absent_log_weight(expert, arguments["params"], arguments["z"])


def _absent_terms(
    expert: Expert, found: CoordinateTerms, arguments: Mapping[str, Any]
) -> CoordinateTerms:
    # The factor 1, shared by the terms.
    log_share = jnp.full_like(found.log_peak, -jnp.log(len(found.mean)))
    return CoordinateTerms(log_share, found.mean, jnp.zeros_like(found.precision))


def _no_decay(expert: Expert, found: StudentTTerms, arguments: Mapping[str, Any]) -> StudentTTerms:
    return found._replace(exponent=jnp.zeros_like(found.exponent))


_ABSENT: dict[str, _presence.Absent] = {
    "log_factors": _presence.zeros,
    "log_product": _presence.zeros,
    "log_ratios": _presence.zeros,
    "log_joint": _absent_weight,
    "latent_log_weight": _absent_weight,
    "sample_latent": _presence.unchanged,
    "latent_mean": _presence.unchanged,
    "latent_field": _presence.unchanged,
    "features": _presence.zeros,
    "visible_field": _presence.zeros,
    "coordinate_terms": _absent_terms,
    "coupling": _presence.zeros,
    "student_t_terms": _no_decay,
    "depth": _presence.zeros,
}
_SIGNATURES = {
    name: inspect.signature(getattr(Expert if hasattr(Expert, name) else Bank, name))
    for name in _ABSENT
}


def _respect_presence(cls: type) -> None:
    for name, absent in _ABSENT.items():
        method = _unwrapped(cls, name)
        if method is not None and not getattr(method, "__isabstractmethod__", False):
            wrapped = _presence.respects_presence(method, _SIGNATURES[name], absent)
            setattr(cls, name, wrapped)
    if cls is not Expert and (change := _unwrapped(cls, name := "log_change")):
        setattr(cls, name, _presence.respects_two(change, Expert.log_change))


def _unwrapped(cls: type, name: str) -> Any:
    # Of its own, or of a mixin, which no class of experts has wrapped.
    owner = next((c for c in cls.__mro__ if name in c.__dict__), None)
    is_new = owner is not None and (owner is cls or not issubclass(owner, Expert))
    return owner.__dict__[name] if is_new else None


_respect_presence(Expert)


def statistic_changes(visible: Unit, x: Array, sites: Array, values: Array) -> Array:
    """Return by how much `values` at `sites` change those sites' linear statistics, [S, V, M / D].

    For `log_ratios`; the linear statistic of the D sites lies in order.
    """
    here = visible.linear_statistic(x).reshape(visible.num_sites, -1)[sites]
    return at_least_float32(values.reshape(*values.shape[:2], -1) - here[:, None])


def require_units(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a block of units, not its size, say."""
    if not isinstance(value, Unit):
        raise TypeError(
            f"{name}: expected units such as units.Bernoulli(784), got {_checks.describe(value)}"
        )


def set_beta(params: Params, beta: Array | float) -> Params:
    """Return `params` with the leaf `beta` multiplied in, in their dtype or float32 if wider."""
    leaves = jax.tree.leaves(params) or [0.0]  # an expert may have no parameters
    beta = jnp.asarray(beta, jnp.promote_types(jnp.result_type(*leaves), jnp.float32))
    return params | {"beta": beta * params.get("beta", 1.0)}


def get_beta(params: Params) -> Array | float:
    """Return the inverse temperature of `params`, 1 unless tempered."""
    return params.get("beta", 1.0)
