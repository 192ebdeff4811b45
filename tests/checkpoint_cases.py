"""States to save, what it means that they came back, and fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poejax import checkpoint as ckpt


class State(NamedTuple):
    """Has the fields of a training state."""

    step: Any
    params: Any
    opt_state: Any = ()
    estimator_state: Any = ()
    rng_key: Any = None
    average: Any = None


def small_state(step: int) -> State:
    """Return a state in which every number is the step, so that mixing two steps shows."""
    filled = {"w": jnp.full((40, 30), float(step)), "b": np.full(3, step)}
    return State(jnp.int32(step), filled, (), jnp.full((5,), step, jnp.uint8))


def rich_state() -> State:
    """Return every kind of leaf and of empty node that a training state may hold."""
    rng = np.random.default_rng(0)
    params = {
        "bias": {"field": jnp.asarray(rng.standard_normal(12), jnp.float32)},
        "hidden": {
            "w": jnp.asarray(rng.standard_normal((12, 7)), jnp.float32),
            "b": jnp.asarray(rng.standard_normal(7), jnp.bfloat16),
        },
        "a/b.c": {"d']['e": jnp.float32(-0.0)},
        "parameter-free": {},
    }
    tx = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    sgd = optax.sgd(0.1, momentum=0.9)
    extras = {
        "chains": jnp.asarray(rng.integers(0, 2, (5, 12)), jnp.uint8),
        "clamp": np.array([True, False]),
        "keys": jax.random.split(jax.random.key(1), 5),
        "rbg": jax.random.key(2, impl="rbg"),
        "double": rng.standard_normal(3),
        "subnormal": jnp.asarray(np.array([1e-42, -1e-42], np.float32)),
        "strided": np.arange(24, dtype=np.int64).reshape(4, 6).T[::2],
        "empty": jnp.zeros((0, 3)),
        "count": 3,
        "big": 2**60 + 1,
        "rate": 0.1,
        "on": True,
        "nothing": None,
        "no_tuple": (),
        "list": [jnp.complex64(1 + 2j), np.float16(0.5)],
    }
    return State(
        jnp.int32(41),
        params,
        (tx.init(params), sgd.init(params["hidden"])),
        extras,
        jax.random.key(7),
    )


def assert_identical(found: Any, expected: Any) -> None:
    """Require one structure, the same types of keys and numbers, and the same bytes everywhere."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if isinstance(y, (bool, int, float)):
            assert type(x) is type(y)
            assert x == y
            continue
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        if jnp.issubdtype(y.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(x) == jax.random.key_impl(y)
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def assert_consistent(directory: Path) -> int:
    """Require that the newest checkpoint is all of one step, and return that step."""
    step = ckpt.latest_step(directory)
    assert step is not None
    assert_identical(ckpt.restore(directory, small_state(0)), small_state(step))
    return step


def array_file(folder: Path) -> Path:
    """Return the largest file that orbax wrote."""
    return max(
        (p for p in folder.rglob("*") if p.is_file() and p.name != "poejax.json"), key=file_size
    )


def file_size(path: Path) -> int:
    return path.stat().st_size


def run_python(code: str, *args: object, devices: int = 1) -> str:
    """Run code in a fresh process with that many virtual devices; return what it printed."""
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def truncate(folder: Path) -> None:
    """Cut off the second half of what orbax wrote."""
    file = array_file(folder)
    file.write_bytes(file.read_bytes()[: file_size(file) // 2])
