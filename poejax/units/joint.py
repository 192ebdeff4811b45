"""Several blocks of different kinds side by side, as one block whose event is a dict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _foreign, _random
from poejax.tails import Reach, Tails, block_diagonal, combine
from poejax.types import Array, Event, Field, Params, PyTree
from poejax.units._index import as_index, divide_index
from poejax.units.base import Unit
from poejax.units.discrete import Categorical

__all__ = ["Joint", "label_unit"]


@dataclasses.dataclass(frozen=True, init=False)
class Joint(Unit):
    """Named blocks of units: `Joint(image=Bernoulli(784), label=Categorical(1, 10))`.

    Events, fields and masks are dicts keyed by block name; the linear statistic is the blocks'
    statistics in the order given, so one weight matrix couples to all of them.
    """

    items: tuple[tuple[str, Unit], ...]

    def __init__(self, **blocks: Unit) -> None:
        if not blocks:
            raise ValueError("Joint: expected at least one named block, got none")
        for name, unit in blocks.items():
            if not isinstance(unit, Unit):
                raise TypeError(f"Joint: expected block {name!r} to be a Unit, got {unit!r}")
        object.__setattr__(self, "items", tuple(blocks.items()))

    def __repr__(self) -> str:
        return f"Joint({', '.join(f'{name}={unit}' for name, unit in self.items)})"

    @property
    def blocks(self) -> dict[str, Unit]:
        """The blocks by name."""
        return dict(self.items)

    @property
    def size(self) -> int:
        """Number of independent units over all blocks."""
        return self.num_sites

    @property
    def event_shape(self) -> PyTree:
        return {name: unit.event_shape for name, unit in self.items}

    @property
    def num_sites(self) -> int:
        return sum(unit.num_sites for _, unit in self.items)

    @property
    def num_linear(self) -> int:
        return sum(unit.num_linear for _, unit in self.items)

    @property
    def num_states(self) -> int | None:
        counts = [unit.num_states for _, unit in self.items]
        return math.prod(c for c in counts if c is not None) if None not in counts else None

    @property
    def has_proper_base(self) -> bool:
        return all(unit.has_proper_base for _, unit in self.items)

    @property
    def is_real(self) -> bool:
        return all(unit.is_real for _, unit in self.items)

    def is_diagonal(self, coordinates: PyTree) -> bool:
        return all(unit.is_diagonal(self._all(coordinates)[name]) for name, unit in self.items)

    def each_block(self, fn: Callable[..., Any], *trees: PyTree) -> Any:
        return self._map(lambda unit, *parts: unit.each_block(fn, *parts), *trees)

    def block_keys(self, rng_key: Array) -> PyTree:
        keys = jax.random.split(rng_key, len(self.items))
        return {
            name: unit.block_keys(key) for (name, unit), key in zip(self.items, keys, strict=True)
        }

    def value_field(self, y: Event, log_odds: Array) -> Params | None:
        return self._unless_none(lambda unit, value: unit.value_field(value, log_odds), y)

    def normal_field(self, y: Event, log_scale: Array) -> Params | None:
        return self._unless_none(lambda unit, value: unit.normal_field(value, log_scale), y)

    def reach(self) -> Reach | None:
        parts = self._unless_none(lambda unit: unit.reach())
        if parts is None:
            return None
        return Reach(
            np.concatenate([part.is_real for part in parts.values()]),
            np.concatenate([part.is_count for part in parts.values()]),
            block_diagonal([part.decay for part in parts.values()]),
        )

    def decay_rows(self, params: Params) -> np.ndarray | None:
        rows = self._unless_none(lambda unit, own: unit.decay_rows(own), params)
        return None if rows is None else block_diagonal(list(rows.values()))

    def bank_tails(self, weights: np.ndarray) -> Tails | None:
        cuts = np.cumsum([unit.num_linear for _, unit in self.items])[:-1]
        parts = np.split(weights, cuts, axis=1)
        named = dict(zip(self.blocks, parts, strict=True))
        blocks = self._unless_none(lambda unit, part: unit.bank_tails(part), named)
        return None if blocks is None else combine(list(blocks.values()))

    def state_at(self, index: Array) -> Event:
        event: dict[str, Event] = {}
        if self.num_states is not None:
            index = as_index(index, self.num_states, self)
        for name, unit in self.items:
            if unit.num_states is None:
                raise ValueError(f"state_at: block {name!r} of {self} has infinitely many events")
            index, remainder = divide_index(index, unit.num_states)
            event[name] = unit.state_at(remainder)
        return event

    def linear_statistic(self, x: Event) -> Array:
        self._check_names("x", x)
        return jnp.concatenate([unit.linear_statistic(x[name]) for name, unit in self.items])

    def linear_field(self, v: Array) -> Field:
        return self._map(lambda unit, part: unit.linear_field(part), self._split(v))

    def init_field(self) -> Params:
        return self._map(lambda unit: unit.init_field())

    def field(self, params: Params) -> Field:
        return self._map(lambda unit, p: unit.field(p), params)

    def linear_part(self, params: Params) -> Array:
        return jnp.concatenate([unit.linear_part(params[name]) for name, unit in self.items])

    def shift_linear(self, params: Params, v: Array) -> Params:
        return self._map(lambda unit, p, part: unit.shift_linear(p, part), params, self._split(v))

    def fit_field(self, x: Event, smoothing: float, weights: Array | None = None) -> Params:
        return self._map(lambda unit, value: unit.fit_field(value, smoothing, weights), x)

    def coordinates(self, x: Event, full: bool = False, weights: Array | None = None) -> PyTree:
        found = self._map(lambda unit, value: unit.coordinates(value, full, weights), x)
        return {name: blocks for name, blocks in found.items() if blocks}

    def check_spread(self, name: str, x: Event) -> None:
        for block, unit in self.items:
            unit.check_spread(f"{name}[{block!r}]", x[block])

    def check_coordinates(self, name: str, coordinates: PyTree) -> None:
        if not isinstance(coordinates, dict) or coordinates.keys() - self.blocks.keys():
            raise ValueError(f"{name}: expected a dict of blocks of {self}, got {coordinates!r}")
        for block, unit in self.items:
            unit.check_coordinates(f"{name}[{block!r}]", coordinates.get(block, {}))

    def standardize(self, coordinates: PyTree, x: Event) -> Event:
        self._check_names("x", x)
        return self._map(lambda u, c, value: u.standardize(c, value), self._all(coordinates), x)

    def standardize_rows(self, coordinates: PyTree, x: Event) -> Event:
        return self._map(lambda u, c, v: u.standardize_rows(c, v), self._all(coordinates), x)

    def restore(self, coordinates: PyTree, y: Event) -> Event:
        return self._map(lambda u, c, value: u.restore(c, value), self._all(coordinates), y)

    def log_volume(self, coordinates: PyTree) -> Array:
        return self._sum(lambda unit, c: unit.log_volume(c), self._all(coordinates))

    def move_field(self, params: Params, coordinates: PyTree) -> Params:
        return self._map(lambda u, p, c: u.move_field(p, c), params, self._all(coordinates))

    def log_mass(self, params: Params) -> Array:
        return self._sum(lambda unit, p: unit.log_mass(p), params)

    def power(self, params: Params, weight: float) -> Params:
        return self._map(lambda unit, p: unit.power(p, weight), params)

    def log_factor(self, params: Params, x: Event) -> Array:
        self._check_names("x", x)
        return self._sum(lambda unit, p, value: unit.log_factor(p, value), params, x)

    def peak(self, params: Params) -> Array:
        return self._sum(lambda unit, p: unit.peak(p), params)

    def log_base(self, x: Event) -> Array:
        return self._sum(lambda unit, value: unit.log_base(value), x)

    def inner(self, field: Field, x: Event) -> Array:
        self._check_names("x", x)
        return self._sum(lambda unit, f, value: unit.inner(f, value), field, x)

    def combine(self, fields: Sequence[Field]) -> Field:
        return {name: unit.combine([field[name] for field in fields]) for name, unit in self.items}

    def scale(self, field: Field, beta: Array | float) -> Field:
        return self._map(lambda unit, f: unit.scale(f, beta), field)

    def log_partitions(self, field: Field) -> Array:
        return jnp.concatenate([unit.log_partitions(field[name]) for name, unit in self.items])

    def log_partition(self, field: Field) -> Array:
        return jnp.sum(jnp.stack([unit.log_partition(field[name]) for name, unit in self.items]))

    def log_partition_change(self, old: Field, new: Field) -> Array:
        changes = [unit.log_partition_change(old[name], new[name]) for name, unit in self.items]
        return jnp.sum(jnp.stack(changes))

    def mean(self, field: Field) -> Event:
        return self._map(lambda unit, f: unit.mean(f), field)

    def sample(self, rng_key: Array, field: Field) -> Event:
        return self._map(lambda unit, f, key: unit.sample(key, f), field, self._keys(rng_key))

    def sample_clamped(
        self, rng_key: Array, field: Field, x: Event, mask: PyTree, coordinates: PyTree = None
    ) -> Event:
        return self._map(
            lambda unit, f, key, value, m, c: unit.sample_clamped(key, f, value, m, c),
            field,
            self._keys(rng_key),
            x,
            mask,
            self._all(coordinates or {}),
        )

    def mean_clamped(
        self, field: Field, x: Event, mask: PyTree, coordinates: PyTree = None
    ) -> Event:
        return self._map(
            lambda unit, f, v, m, c: unit.mean_clamped(f, v, m, c),
            field,
            x,
            mask,
            self._all(coordinates or {}),
        )

    def select(self, mask: PyTree, x: Event, other: Event) -> Event:
        return self._map(lambda unit, m, v, o: unit.select(m, v, o), mask, x, other)

    def random_event(self, rng_key: Array) -> Event:
        return self._map(lambda unit, key: unit.random_event(key), self._keys(rng_key))

    def check(self, name: str, x: Event) -> None:
        self._check_names(name, x)
        for block, unit in self.items:
            unit.check(f"{name}[{block!r}]", x[block])
        _checks.leading_axis(name, _border.tree(name, x))

    def check_mask(self, name: str, mask: PyTree) -> None:
        self._check_names(name, mask)
        for block, unit in self.items:
            unit.check_mask(f"{name}[{block!r}]", mask[block])

    def _check_names(self, name: str, x: Event) -> None:
        if not isinstance(x, dict) or x.keys() != self.blocks.keys():
            found = sorted(x) if isinstance(x, dict) else _foreign.kind(x)
            raise ValueError(f"{name}: expected a dict of {sorted(self.blocks)}, got {found}")

    def _all(self, coordinates: PyTree) -> dict[str, PyTree]:
        return {name: coordinates.get(name, {}) for name, _ in self.items}

    def _split(self, v: Array) -> dict[str, Array]:
        cuts = np.cumsum([unit.num_linear for _, unit in self.items])[:-1]
        parts = jnp.split(v, cuts.tolist())
        return {name: part for (name, _), part in zip(self.items, parts, strict=True)}

    def _keys(self, rng_key: Array) -> dict[str, Array]:
        return {name: _random.fold_in(rng_key, i) for i, (name, _) in enumerate(self.items)}

    def _map(self, fn: Callable[..., Any], *trees: dict[str, Any]) -> dict[str, Any]:
        return {name: fn(unit, *(tree[name] for tree in trees)) for name, unit in self.items}

    def _unless_none(self, fn: Callable[..., Any], *trees: dict[str, Any]) -> dict[str, Any] | None:
        found = self._map(fn, *trees)
        return None if any(part is None for part in found.values()) else found

    def _sum(self, fn: Callable[..., Array], *trees: dict[str, Any]) -> Array:
        terms = list(self._map(fn, *trees).values())
        return sum(terms[1:], terms[0])


def label_unit(visible: Unit, label: str) -> Categorical:
    """Return the unit of a label beside other blocks, or raise ValueError."""
    unit = visible.blocks.get(label) if isinstance(visible, Joint) else None
    if not isinstance(unit, Categorical) or unit.size != 1:
        raise ValueError(
            f"label: expected the name of a block Categorical(1, C) of {visible}, got {label!r}"
        )
    return unit
