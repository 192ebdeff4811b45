"""What every block of units states: an exponential family p(x | field) ∝ h(x) exp<field, t(x)>."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks, _foreign
from poejax._inheritance import revert
from poejax._numerics import as_float
from poejax.tails import Reach, Tails, nowhere
from poejax.types import Array, Event, Field, Params, PyTree

__all__ = ["Unit", "as_float"]

_DENSITY = {"log_base", "inner", "field", "linear_field", "linear_statistic", "log_partitions"}
_IN_OTHER_WORDS = {"bank_tails", "decay_rows", "is_standard_gaussian", "reach", "normal_field"}
_IN_OTHER_WORDS |= {"value_field", "log_partition", "log_partition_change"}


@dataclasses.dataclass(frozen=True)
class Unit(abc.ABC):
    """A block of units, an exponential family.

    p(x | field) = h(x) exp(<field, t(x)> - A(field)). Instances hold sizes only; they hash and
    compare by value. Every method takes one event; use `jax.vmap` for batches.

    A unit of one's own states what is abstract here, and what more it can: its values, if they are
    few, open Gibbs with gradients, pseudo-likelihood and the like to it; `reach` and `bank_tails`
    tell whether products over it, and banks of it, can be normalised. What it does not state is
    refused, by name, where it is needed.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        revert(cls, Unit, _void)

    @property
    @abc.abstractmethod
    def event_shape(self) -> PyTree:
        """Shape of one event; a dict of shapes for a joint block."""

    @property
    @abc.abstractmethod
    def num_sites(self) -> int:
        """Number of independent units."""

    @property
    @abc.abstractmethod
    def num_linear(self) -> int:
        """Length M of the linear statistic, the number of rows of a weight matrix."""

    @property
    @abc.abstractmethod
    def num_states(self) -> int | None:
        """Number of distinct events; None for continuous units."""

    @property
    @abc.abstractmethod
    def has_proper_base(self) -> bool:
        """Whether ∫ h(x) dx is finite, so that the block is normalised at field zero."""

    @property
    def is_real(self) -> bool:
        """Whether every vector of real numbers is an event, which gradients may then move."""
        return False

    @property
    def is_quadratic(self) -> bool:
        """Whether fields hold a precision besides a linear part, as those of real visible units."""
        return False

    @property
    def is_standard_gaussian(self) -> bool:
        """Whether events given their field are N(field, 1)."""
        return False

    def is_diagonal(self, coordinates: PyTree) -> bool:
        """Whether sites are independent given their field, in the user's units too."""
        del coordinates
        return True

    def each_block(self, fn: Callable[..., Any], *trees: PyTree) -> Any:
        """Return `fn(unit, *parts)` for every block of which an event consists, as an event."""
        return fn(self, *trees)

    def block_keys(self, rng_key: Array) -> PyTree:
        """Return a key for each block, as an event."""
        return rng_key

    @property
    def num_values(self) -> int | None:
        """Number C of values that a site can take, which `value_at` numbers; None if unlimited."""
        return None

    def value_at(self, index: Array, dtype: Any) -> Array:
        """Return the values numbered `index` [...] in [0, C), ascending, [..., *site shape]."""
        raise _without_values(self)

    def value_index(self, x: Event) -> Array:
        """Return the number of the value at each site of an event, [num_sites]."""
        raise _without_values(self)

    def value_scores(self, slope: Array) -> Array:
        """Return <slope_i, v> for every site i and value v, `slope` as an event, [num_sites, C]."""
        raise _without_values(self)

    def value_field(self, y: Event, log_odds: Array) -> Params | None:
        """Return the field that favours y_i by `log_odds` over each other value of its site.

        None where no linear statistic singles out one of a site's values.
        """
        del y, log_odds
        return None

    def normal_field(self, y: Event, log_scale: Array) -> Params | None:
        """Return the field -½ |x - y|² / scale²; None unless units are real and visible."""
        del y, log_scale
        return None

    def reach(self) -> Reach | None:
        """Return where events may lie far out; None if the unit cannot say."""
        return nowhere(self.num_linear) if self.num_states is not None else None

    def decay_rows(self, params: Params) -> np.ndarray | None:
        """Return rows whose precision is that of a field's free parameters, [R, num_linear].

        On the host, for concrete parameters; none for fields without a precision, None if the
        unit cannot say.
        """
        del params
        return np.zeros((0, self.num_linear)) if self.has_proper_base else None

    def bank_tails(self, weights: np.ndarray) -> Tails | None:
        """Return the tails of A(Wᵀy + b) in y, for hidden units, weights [D, num_linear].

        On the host; None if the unit cannot say.
        """
        del weights
        return None

    def states(self) -> Event:
        """Return all events, [num_states, ...]; for small discrete blocks."""
        if self.num_states is None:
            raise ValueError(f"states: {self} has infinitely many events and cannot be enumerated")
        if self.num_states > 2**24:
            raise ValueError(f"states: {self} has {self.num_states} states; use state_at in chunks")
        return jax.vmap(self.state_at)(jnp.arange(self.num_states))

    @abc.abstractmethod
    def state_at(self, index: Array) -> Event:
        """Return the event number `index` in [0, num_states)."""

    @abc.abstractmethod
    def linear_statistic(self, x: Event) -> Array:
        """Return the part of t(x) that weight matrices couple to, [M]."""

    @abc.abstractmethod
    def linear_field(self, v: Array) -> Field:
        """Return the field whose inner product with t(x) is vᵀ linear_statistic(x)."""

    @abc.abstractmethod
    def init_field(self) -> Params:
        """Return free parameters of a field: zero linear part, unit precision if any."""

    @abc.abstractmethod
    def field(self, params: Params) -> Field:
        """Return the field of free parameters (log precisions become precisions)."""

    @abc.abstractmethod
    def linear_part(self, params: Params) -> Array:
        """Return the linear part of a field's free parameters (or of their gradient), [M]."""

    @abc.abstractmethod
    def shift_linear(self, params: Params, v: Array) -> Params:
        """Return the free parameters with `v` [M] added to the linear part."""

    @abc.abstractmethod
    def fit_field(self, x: Event, smoothing: float, weights: Array | None = None) -> Params:
        """Return free parameters whose mean is that of the batch `x` [N, ...], smoothed.

        `smoothing` in [0, 1] is the share given to the uniform distribution (discrete), or added
        to the variance as a fraction of it (continuous), so that no site is certain. `weights`
        [N] are those of the rows, 1 each when None.
        """

    def coordinates(self, x: Event, full: bool = False, weights: Array | None = None) -> PyTree:
        """Return {"origin", "scale"} near the batch `x` [N, ...]; {} for units that need none.

        Real visible units are computed in y = (x - origin) / scale, or with a full scale
        y = scale⁻¹ (x - origin), so that data far from zero, or of any size, keep their digits.
        """
        del x, full, weights
        return {}

    def check_spread(self, name: str, x: Event) -> None:
        """Raise ValueError if real units do not vary in some direction over a batch [N, ...]."""
        del name, x

    def check_coordinates(self, name: str, coordinates: PyTree) -> None:
        """Raise ValueError unless `coordinates` are such as `coordinates` gives."""
        if coordinates != {}:
            raise ValueError(f"{name}: expected none for {self}, got {coordinates!r}")

    def standardize(self, coordinates: PyTree, x: Event) -> Event:
        """Return the event y in coordinates of the event x in the user's units."""
        del coordinates
        return x

    def standardize_rows(self, coordinates: PyTree, x: Event) -> Event:
        """Standardize a batch [N, ...], on the host in float64 wherever it can be looked at."""
        del coordinates
        return x

    def restore(self, coordinates: PyTree, y: Event) -> Event:
        """Return the event in the user's units; the inverse of `standardize`."""
        del coordinates
        return y

    def log_volume(self, coordinates: PyTree) -> Array:
        """Return log |dx/dy|, []."""
        del coordinates
        return jnp.zeros(())

    def move_field(self, params: Params, coordinates: PyTree) -> Params:
        """Return free parameters, in `coordinates`, of a field given about zero in x's units."""
        del coordinates
        return params

    def log_mass(self, params: Params) -> Array:
        """Return log ∫ h(x) exp(log_factor(params, x)) dx, []."""
        return self.log_partition(self.field(params))

    def power(self, params: Params, weight: float) -> Params:
        """Return the free parameters of the field times a positive `weight`."""
        return jax.tree.map(lambda leaf: weight * leaf, params)

    def log_factor(self, params: Params, x: Event) -> Array:
        """Return <a, t(x)> for the field a of free parameters, less `peak`."""
        return self.inner(self.field(params), x)

    def peak(self, params: Params) -> Array:
        """Return the largest value of <a, t(x)> for real units, from where theirs is measured.

        Of the order of precision times squared mean, it would drown the rest far from zero. 0 for
        units of which no value is far from zero.
        """
        del params
        return jnp.zeros(())

    def log_base(self, x: Event) -> Array:
        """Return log h(x), zero unless the family says otherwise."""
        del x
        return jnp.zeros(())

    @abc.abstractmethod
    def inner(self, field: Field, x: Event) -> Array:
        """Return <field, t(x)>."""

    def combine(self, fields: Sequence[Field]) -> Field:
        """Return the field of a product: fields add."""
        if not fields:
            return self.linear_field(jnp.zeros(self.num_linear))
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *fields)

    def scale(self, field: Field, beta: Array | float) -> Field:
        """Return the field at inverse temperature `beta`."""
        return jax.tree.map(lambda leaf: beta * leaf, field)

    @abc.abstractmethod
    def log_partitions(self, field: Field) -> Array:
        """Return A(field) of each unit, [num_sites], or [1] where they hang together.

        +inf where it cannot be normalised.
        """

    def log_partition(self, field: Field) -> Array:
        """Return A(field) = log ∫ h(x) exp<field, t(x)> dx."""
        return jnp.sum(self.log_partitions(field))

    def log_partition_change(self, old: Field, new: Field) -> Array:
        """Return A(new) - A(old), []: differences before the sum, as they are small."""
        return jnp.sum(self.log_partitions(new) - self.log_partitions(old))

    @abc.abstractmethod
    def mean(self, field: Field) -> Event:
        """Return E[x | field], shaped as an event."""

    @abc.abstractmethod
    def sample(self, rng_key: Array, field: Field) -> Event:
        """Draw one event from p(x | field)."""

    def sample_clamped(
        self, rng_key: Array, field: Field, x: Event, mask: PyTree, coordinates: PyTree = None
    ) -> Event:
        """Draw the sites where `mask` [num_sites] is False given that the others keep `x`.

        Units that are independent given the field may simply be overwritten. The field is in
        `coordinates`, `x` and what is returned are not.
        """
        return self.select(mask, x, self.restore(coordinates, self.sample(rng_key, field)))

    def mean_clamped(
        self, field: Field, x: Event, mask: PyTree, coordinates: PyTree = None
    ) -> Event:
        """Return the mean of what `sample_clamped` draws."""
        return self.select(mask, x, self.restore(coordinates, self.mean(field)))

    def select(self, mask: PyTree, x: Event, other: Event) -> Event:
        """Return `x` at the sites where `mask` [num_sites] is True, `other` elsewhere."""
        return jnp.where(_per_site(mask, x), x, other)

    def random_event(self, rng_key: Array) -> Event:
        """Draw a random start: the unit at field zero (and unit precision)."""
        return self.sample(rng_key, self.field(self.init_field()))

    @abc.abstractmethod
    def check(self, name: str, x: Event) -> None:
        """Raise ValueError unless the batch `x` [N, ...] holds finite events of this block.

        Under a trace it has no values: `units.check_batch` and `units.require_values` allow that.
        """

    def check_mask(self, name: str, mask: PyTree) -> None:
        """Raise unless `mask` is boolean with one entry per site."""
        if not hasattr(mask, "dtype"):
            raise TypeError(f"{name}: expected a boolean array, got {_foreign.kind(mask)}")
        if mask.dtype != jnp.bool_:
            raise TypeError(f"{name}: expected a boolean mask, got dtype {mask.dtype}")
        _checks.shape(name, mask, (self.num_sites,), self)


def _per_site(mask: Array, x: Array) -> Array:
    return jnp.reshape(mask, mask.shape + (1,) * (jnp.ndim(x) - mask.ndim))


def _void(parent: type, defined: set[str]) -> set[str]:
    # A class without a partition function says these for whoever completes it.
    missing = getattr(parent, "__abstractmethods__", {"log_partitions"})
    return _IN_OTHER_WORDS if defined & _DENSITY and "log_partitions" not in missing else set()


def _without_values(unit: Unit) -> ValueError:
    return ValueError(f"units: expected sites of finitely many values, got {unit}")
