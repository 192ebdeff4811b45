"""What a class says of its mathematics in other words, once a subclass changes it."""

from __future__ import annotations

from collections.abc import Callable


def revert(cls: type, root: type, void: Callable[[type, set[str]], set[str]]) -> None:
    """Set on `cls` what `root` says, in place of statements of its parents that no longer hold.

    Args:
      cls: the class as it is made.
      root: whose defaults claim nothing.
      void: `(parent, names defined by classes that come before it) -> names`, which of the
        parent's statements those definitions void.
    """
    defined: set[str] = set()  # by mixins too
    for parent in cls.__mro__[: cls.__mro__.index(root)]:
        own = {name for name in parent.__dict__ if not name.startswith(("__", "_abc"))}
        for name in (void(parent, defined) & own) - defined:
            setattr(cls, name, root.__dict__[name])
        defined |= own
