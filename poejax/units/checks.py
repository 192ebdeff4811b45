"""What batches of events are checked for."""

from __future__ import annotations

from poejax import _border, _checks
from poejax.types import Array, Event
from poejax.units.base import Unit

__all__ = ["check_batch", "require_values"]


def check_batch(
    name: str, x: Event, event_shape: tuple[int, ...], owner: Unit, real: bool = False
) -> None:
    """Raise unless `x` is a non-empty finite batch [N, *event_shape], of measurements if `real`."""
    wanted = f"shape ({', '.join(['N', *map(str, event_shape)])}) for {owner}"
    if isinstance(x, dict):
        raise TypeError(f"{name}: expected one array of {wanted}, got a dict")
    x = _border.array(name, x)
    if x.shape[1:] != event_shape or x.ndim != len(event_shape) + 1:
        raise ValueError(f"{name}: expected {wanted}, got {x.shape}")
    _checks.leading_axis(name, x)
    if real:
        _border.survives(name, x, real=True)
    else:
        _border.finite(name, x)


def require_values(name: str, x: Array, holds: _border.Holds, expected: str, owner: Unit) -> None:
    """Raise unless `holds(x)` everywhere, quoting the first value that fails; tracers pass.

    `holds` is a function of a module, by entry or by row: device arrays compile it.
    """
    x = _border.array(name, x)
    if _border.is_abstract(x):
        return
    if (place := _border.first_failure(x, holds)) is not None:
        raise ValueError(
            f"{name}: expected {expected} for {owner}, got "
            f"{_border.entry(x, place)}{_border.where(place, x.ndim)}"
        )
