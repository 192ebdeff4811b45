"""Shared helpers of the tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Set before JAX starts: the sharding tests need several devices, all others use the first; and
# nearly all of the suite's time goes into compiling small programs that run once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
        "--xla_backend_optimization_level=0"
    ).strip()

import jax
import jax.monitoring
import pytest

import poejax as pj


@pytest.fixture
def random_params() -> Callable[..., pj.types.Params]:
    """Return a function that draws every leaf of a model's parameters from N(0, scale²)."""

    def draw(model: pj.Product, seed: int = 0, scale: float = 1.0) -> pj.types.Params:
        leaves, tree = jax.tree.flatten(model.init(jax.random.key(seed)))
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        drawn = [
            scale * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, drawn)

    return draw


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Free what a file compiled: each program maps memory, of which a process may have 65,530."""
    yield
    jax.clear_caches()


_compilations: list[str] = []


def _count(event: str, duration: float, **kwargs: object) -> None:
    del duration, kwargs
    if event.endswith("jaxpr_to_mlir_module_duration"):
        _compilations.append(event)


jax.monitoring.register_event_duration_secs_listener(_count)


@pytest.fixture
def compiles_nothing() -> Callable[[], object]:
    """Return a context manager that fails if anything is compiled inside it."""

    @contextmanager
    def guard() -> Iterator[None]:
        before = len(_compilations)
        yield
        assert len(_compilations) == before, f"{len(_compilations) - before} compilations"

    return guard


@pytest.fixture
def assert_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    """Return a function that runs a script: it must fail with a message and leave no file."""

    def check(main: Callable[[], int], args: list[str], message: str) -> None:
        monkeypatch.setattr(sys, "argv", ["run", "--preset", "smoke", *args])
        monkeypatch.chdir(tmp_path)
        try:
            status: object = main()
        except SystemExit as exit:  # the command line parser's own refusals
            status = exit.code
        assert status not in (0, None)
        output = capsys.readouterr()
        assert message in output.out + output.err
        assert not list(tmp_path.iterdir())

    return check
