"""A checkpoint survives failing files and kills, and moves to other devices."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_cases import assert_consistent, run_python, small_state

from poejax import checkpoint as ckpt


def test_a_failure_at_any_file_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop before the n-th change to the file system, for every n, with no clean-up afterwards."""

    class StoppedError(BaseException):
        pass

    remaining = -1

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal remaining
            remaining -= 1
            if remaining < 0:
                raise StoppedError
            return function(*args, **kwargs)

        return call

    run, model = tmp_path / "run", tmp_path / "model"
    ckpt.save(run, small_state(1), keep_last=1)
    ckpt.save_params(model, {"step": jnp.int32(0)})
    attempt, stops = 0, 0
    while attempt < 2 or stops > 0:
        attempt, stops = attempt + 1, 0
        known, version = assert_consistent(run), ckpt.load_params(model)["step"]
        for write in (
            lambda n: ckpt.save(run, small_state(n), keep_last=1),
            lambda n: ckpt.save(run, small_state(n), keep_last=1, step=n),
            lambda n: ckpt.save_params(model, {"step": jnp.int32(n)}, overwrite=True),
        ):
            with monkeypatch.context() as patch:
                remaining = attempt
                for owner, name in ((Path, "rename"), (Path, "write_text"), (shutil, "rmtree")):
                    patch.setattr(owner, name, counted(getattr(owner, name)))
                try:
                    write(attempt + 1)
                except StoppedError:
                    stops += 1
            assert assert_consistent(run) in (known, attempt + 1)
            assert ckpt.load_params(model)["step"] in (version, attempt + 1)
    assert attempt > 5
    ckpt.save(run, small_state(1000), keep_last=1)
    assert [p.name for p in run.iterdir()] == ["1000"]


@pytest.mark.slow
def test_a_killed_run_restores(tmp_path: Path) -> None:
    code = """
        import sys
        import jax.numpy as jnp, numpy as np
        from poejax import checkpoint as ckpt

        run = sys.argv[1]
        step = (ckpt.latest_step(run) or 0) + 1
        while True:
            state = {
                "w": jnp.full((784, 500), float(step)), "chains": np.full((500, 784), step % 256)
            }
            for _ in range(2):
                ckpt.save(run, state, step=step, keep_last=2)
            print(step, flush=True)
            step += 1
    """
    rng = random.Random(0)
    shapes = {
        "w": jax.ShapeDtypeStruct((784, 500), jnp.float32),
        "chains": np.zeros((500, 784), int),
    }
    reached = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        printed = process.communicate()[0].split()
        step = ckpt.latest_step(tmp_path)
        assert step is not None
        assert step > reached
        assert step >= max(map(int, printed), default=0)
        state = ckpt.restore(tmp_path, shapes)
        assert np.all(np.asarray(state["w"]) == step)
        assert np.all(state["chains"] == step % 256)
        reached = step


def test_one_device_to_eight(tmp_path: Path) -> None:
    save = """
        import sys
        import jax, jax.numpy as jnp
        from poejax import checkpoint as ckpt

        assert len(jax.devices()) == 1
        keys = jax.random.split(jax.random.key(0), 8)
        state = {"w": jnp.arange(32.0).reshape(8, 4), "keys": keys}
        ckpt.save(sys.argv[1], state, step=1)
    """
    load = """
        import sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from poejax import checkpoint as ckpt

        mesh = jax.make_mesh((8,), ("chains",))
        keys = jax.random.split(jax.random.key(0), 8)
        state = {"w": jnp.arange(32.0).reshape(8, 4), "keys": keys}
        sharding = NamedSharding(mesh, P("chains"))
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
        )
        for target in (shapes, jax.device_put(state, sharding)):
            found = ckpt.restore(sys.argv[1], target)
            assert found["w"].sharding == found["keys"].sharding == sharding
            assert found["w"].addressable_shards[0].data.shape == (1, 4)
            assert np.array_equal(found["w"], state["w"])
            draws = [jax.vmap(jax.random.normal)(s["keys"]) for s in (found, state)]
            assert np.array_equal(*draws)
        ckpt.save(sys.argv[1], found, step=2)
        plain = ckpt.restore(sys.argv[1], state)
        assert len(plain["w"].devices()) == 1 and np.array_equal(plain["w"], state["w"])
        print(len(jax.devices()))
    """
    run_python(save, tmp_path)
    assert run_python(load, tmp_path, devices=8) == "8\n"
