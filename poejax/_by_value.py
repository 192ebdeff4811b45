"""Functions compared by what they do: their code and what it refers to, not their identity."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections.abc import Hashable
from typing import Any


class Identity:
    """An object compared by identity; it is kept alive, so that its identity is not given anew."""

    def __init__(self, value: Any) -> None:
        """Hold `value`."""
        self.value = value

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same object."""
        return isinstance(other, Identity) and other.value is self.value

    def __hash__(self) -> int:
        """Hash the identity."""
        return id(self.value)


def of(value: Any) -> Hashable:
    """Return what equals that of another value if the two behave the same.

    Functions are equal if their code is, and so are defaults, closures and the globals they name;
    optimizers of optax, being tuples of closures, if they were built alike; frozen dataclasses if
    their fields are. What an importable module defines at its top, and arrays, are compared by
    identity, all else by its own equality.
    """
    return _of(value, ())


def _of(value: Any, above: tuple[Any, ...]) -> Hashable:
    for depth, other in enumerate(above):
        if value is other:
            return "recursion", depth
    above = (*above, value)

    def all_of(values: Any) -> tuple[Hashable, ...]:
        return tuple(_of(v, above) for v in values)

    if isinstance(value, tuple | list):
        return type(value), all_of(value)
    if isinstance(value, dict):
        return type(value), all_of(value), all_of(value.values())
    if isinstance(value, functools.partial):
        return type(value), all_of((value.func, value.args, value.keywords))
    if isinstance(value, types.MethodType):
        return type(value), all_of((value.__func__, value.__self__))
    if isinstance(value, types.FunctionType) and not _is_importable(value):
        known = value.__globals__
        used = {n: known[n] for n in sorted(_names(value.__code__)) if n in known}
        cells = [_content(cell) for cell in value.__closure__ or ()]
        settings = (value.__defaults__, value.__kwdefaults__, value.__dict__)
        return value.__code__, all_of((used, cells, settings))
    if dataclasses.is_dataclass(type(value)) and _has_value(type(value)):
        return type(value), all_of([getattr(value, f.name) for f in dataclasses.fields(value)])
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    return type(value), value  # with its type, as 1 == True == 1.0


def _is_importable(function: types.FunctionType) -> bool:
    module: Any = sys.modules.get(function.__module__)
    return getattr(module, function.__qualname__, None) is function


def _has_value(dataclass: Any) -> bool:
    options = dataclass.__dataclass_params__
    return bool(options.frozen and options.eq)


def _names(code: types.CodeType) -> set[str]:
    """Return the names that a function's code may look up, the functions it defines included."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not assigned yet
        return None
