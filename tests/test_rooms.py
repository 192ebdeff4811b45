"""The plan of the house, from its imports: no circle, no study that needs another, no long file."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUDIES = sorted(p.parent.name for p in ROOT.glob("experiments/*/__main__.py"))


def modules(room: str) -> dict[str, Path]:
    """Return the files of a package by module name."""

    def name(path: Path) -> str:
        parts = path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    return {name(path): path for path in sorted((ROOT / room).rglob("*.py"))}


FILES = modules("poejax") | modules("experiments")


def imports(text: str) -> set[str]:
    """Return the modules of the house that a file names, under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & FILES.keys()
            if inner - FILES.keys():
                found.add(node.module)
    return {module for module in found if module in FILES}


IMPORTS = {module: imports(path.read_text()) - {module} for module, path in FILES.items()}


def test_no_file_imports_itself_through_others():
    # The package's own face names every room on purpose, and no room imports it.
    graph = {
        module: needed - {"poejax"} for module, needed in IMPORTS.items() if module != "poejax"
    }
    assert tuple(graphlib.TopologicalSorter(graph).static_order())
    inside = {module for module, needed in IMPORTS.items() if "poejax" in needed}
    assert not {module for module in inside if module.startswith("poejax.")}


def test_a_circle_under_type_checking_would_be_found():
    text = "from typing import TYPE_CHECKING as T\nif T:\n    from poejax._product import P\n"
    graph = {"poejax.types": imports(text), "poejax._product": {"poejax.types"}}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_imports_no_other(study):
    own = f"experiments.{study}"
    needed = set().union(
        *(n for module, n in IMPORTS.items() if f"{module}.".startswith(f"{own}."))
    )
    rooms = {
        ".".join(module.split(".")[:2]) for module in needed if module.startswith("experiments.")
    }
    assert rooms <= {own, "experiments.lab"}


def test_what_is_shared_imports_no_study():
    for module, needed in IMPORTS.items():
        if module.startswith("experiments.lab"):
            assert not {n for n in needed if n.split(".")[:2] != ["experiments", "lab"]} & {
                n for n in needed if n.startswith("experiments")
            }
        if module.startswith("poejax"):
            assert not {n for n in needed if n.startswith("experiments")}


def test_files_can_be_read_in_one_sitting():
    lengths = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert not {module: n for module, n in lengths.items() if n > 350}


def test_no_public_name_hides_a_module():
    for module in FILES:
        *room, name = module.split(".")
        parent = importlib.import_module(".".join(room)) if room else None
        if parent is not None and module.startswith("poejax.") and not name.startswith("__"):
            found = getattr(parent, name, None)
            assert found is None or inspect.ismodule(found), module


def test_public_modules_say_what_is_public():
    for module, path in FILES.items():
        if module.startswith("poejax") and not any(n.startswith("_") for n in module.split(".")):
            assert "\n__all__ = " in path.read_text(), module
