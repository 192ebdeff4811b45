"""Units, families and kernels answer for themselves: nobody else asks what class they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import poejax

ROOT = Path(poejax.__file__).parent
ROOMS = ("units", "experts", "kernels")
# Where a user's argument is checked.
ALLOWED = {
    ("experts/base.py", "Unit"),
    ("experts/combine.py", "Expert"),
    ("kernels/tuning.py", "GradientKernel"),
    ("nn.py", "HiddenBank"),
    ("nn.py", "Bernoulli"),
    ("units/joint.py", "Unit"),
    ("units/joint.py", "Categorical"),
}


def classes():
    """(class name, file) of all parts."""
    files = [path for room in ROOMS for path in (ROOT / room).glob("*.py")]
    files += ROOT.glob("*product.py")
    return {
        (node.name, path)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }


def names_in(node):
    return {
        getattr(inner, "attr", getattr(inner, "id", None))
        for inner in ast.walk(node)
        if isinstance(inner, (ast.Name, ast.Attribute))
    }


def asked(tree):
    """Names of classes in isinstance(...), issubclass(...) and comparisons of type(...)."""
    for node in ast.walk(tree):
        called = getattr(getattr(node, "func", None), "id", None)
        if called in ("isinstance", "issubclass"):
            yield from names_in(node.args[1])
        elif isinstance(node, ast.Compare) and any(
            getattr(getattr(side, "func", None), "id", None) == "type"
            for side in (node.left, *node.comparators)
        ):
            yield from names_in(node)


def found():
    parts = classes()
    names = {name for name, _ in parts}
    return {
        (str(path.relative_to(ROOT)).replace("/_", "/"), name)
        for path in ROOT.rglob("*.py")
        for name in asked(ast.parse(path.read_text()))
        if name in names and (name, path) not in parts
    }


def test_no_room_asks_for_the_class_of_a_part():
    assert found() == ALLOWED


@pytest.mark.parametrize(
    "code", ["isinstance(x, units.Spin)", "type(e) is Bias", "type(e) in (A, experts.Bias)"]
)
def test_such_questions_are_seen(code):
    assert {"Spin", "Bias"} & set(asked(ast.parse(code)))
