"""Checkpoints come back bitwise, survive being killed, and say what is wrong."""

from __future__ import annotations

import json
import logging
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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
    return max((p for p in folder.rglob("*") if p.is_file() and p.name != "poejax.json"), key=_size)


def _size(path: Path) -> int:
    return path.stat().st_size


def run_python(code: str, *args: object, devices: int = 1) -> str:
    """Run code in a fresh process with that many virtual devices; return what it printed."""
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("abstract", ["state", "shapes"])
def test_roundtrip_is_bitwise(tmp_path: Path, abstract: str) -> None:
    state = rich_state()
    target: Any = state
    if abstract == "shapes":
        # float64 has no shape struct without 64-bit mode, and is restored from a state instead.
        state.estimator_state.pop("double")
        state.estimator_state.pop("strided")
        state.estimator_state.pop("big")
        target = jax.eval_shape(lambda: state)
    folder = ckpt.save(tmp_path / "run", state, config={"seed": 1, "name": "λ"})
    assert folder == tmp_path / "run" / "41"
    restored = ckpt.restore(tmp_path / "run", target)
    assert_identical(restored, state)
    assert ckpt.load_config(tmp_path / "run") == {"seed": 1, "name": "λ"}
    assert float(jax.random.uniform(restored.rng_key)) == float(jax.random.uniform(state.rng_key))
    assert not restored.params["hidden"]["w"].committed


def test_optimizer_continues_bitwise(tmp_path: Path) -> None:
    tx = optax.adam(1e-2)
    params = {"w": jnp.arange(6.0)}
    state = State(jnp.int32(0), params, tx.init(params))

    def advance(state: State) -> State:
        updates, opt_state = tx.update(jax.tree.map(jnp.sin, state.params), state.opt_state)
        return State(state.step + 1, optax.apply_updates(state.params, updates), opt_state)

    for _ in range(3):
        state = advance(state)
    ckpt.save(tmp_path, state)
    again = ckpt.restore(tmp_path, jax.eval_shape(lambda: state))
    for _ in range(3):
        state, again = advance(state), advance(again)
    assert_identical(again, state)


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    scores = {1: 0.0, 2: 5.0, 3: float("nan"), 4: 5.0, 5: 1.0, 6: 2.0, 7: 3.0}
    for step, score in scores.items():
        ckpt.save(
            tmp_path,
            small_state(step),
            keep_last=2,
            keep_best=2,
            metrics={"ll": jnp.float32(score), "other": 0.0},
            best_metric="ll",
            config={"step": step},
        )
    assert ckpt.all_steps(tmp_path) == [2, 4, 6, 7]
    assert ckpt.latest_step(tmp_path) == 7
    assert ckpt.best_step(tmp_path) == 4
    assert ckpt.load_config(tmp_path, 4) == {"step": 4}
    assert_identical(ckpt.restore(tmp_path, small_state(0), step=2), small_state(2))
    # A save without metrics does not forget which metric ranks, nor its best steps.
    ckpt.save(tmp_path, small_state(8), keep_last=1, keep_best=1)
    assert ckpt.all_steps(tmp_path) == [4, 8]
    minimum = {"keep_last": 1, "metrics": {"ll": 0.5}, "best_metric": "ll", "best_mode": "min"}
    ckpt.save(tmp_path, small_state(9), **minimum)
    ckpt.save(tmp_path, small_state(10), **(minimum | {"metrics": {"ll": 7.0}}))
    assert ckpt.all_steps(tmp_path) == [9, 10]
    assert ckpt.load_config(tmp_path) == {}


def test_replaces_a_step_and_warns_below_the_newest(tmp_path: Path) -> None:
    ckpt.save(tmp_path, small_state(5), config={"try": 1})
    ckpt.save(tmp_path, small_state(6), step=5, config={"try": 2})
    assert_identical(ckpt.restore(tmp_path, small_state(0)), small_state(6))
    assert ckpt.load_config(tmp_path) == {"try": 2}
    with pytest.warns(UserWarning, match="saved step 3 beside a newer step 5"):
        ckpt.save(tmp_path, small_state(3), keep_last=1)
    assert ckpt.all_steps(tmp_path) == [3, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "5"]


def test_nothing_there(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert ckpt.all_steps(missing) == []
    assert ckpt.latest_step(missing) is None
    assert ckpt.best_step(missing) is None
    for call in (
        lambda: ckpt.restore(missing, small_state(0)),
        lambda: ckpt.load_config(missing),
        lambda: ckpt.load_params(missing),
    ):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint found .*missing"):
            call()
    assert not missing.exists()
    ckpt.save(tmp_path, small_state(5))
    with pytest.raises(FileNotFoundError, match=r"no step 4 in .*, which has \[5\]"):
        ckpt.restore(tmp_path, small_state(0), step=4)


def test_mismatch_names_each_difference(tmp_path: Path) -> None:
    ckpt.save(tmp_path, small_state(5))
    wrong = small_state(0)._replace(
        params={"w": jnp.zeros((40, 31)), "extra": jnp.zeros(2)},
        estimator_state=jnp.zeros(5, jnp.int8),
        rng_key=jax.random.key(0),
    )
    with pytest.raises(ValueError, match="does not fit") as caught:
        ckpt.restore(tmp_path, wrong)
    message = str(caught.value)
    assert ".params['w']: expected float32[40, 31], found float32[40, 30]" in message
    assert ".params['extra']: expected float32[2], found nothing" in message
    assert ".params['b']: expected nothing, found int64[3]" in message
    assert ".estimator_state: expected int8[5], found uint8[5]" in message
    assert ".rng_key: expected key<fry>[], found nothing" in message
    ckpt.save(tmp_path / "keys", State(1, {}, rng_key=jax.random.key(0, impl="rbg")))
    with pytest.raises(ValueError, match=r"expected key<fry>\[\], found key<rbg>\[\]"):
        ckpt.restore(tmp_path / "keys", State(1, {}, rng_key=jax.random.key(0)))


def truncate(folder: Path) -> None:
    file = array_file(folder)
    file.write_bytes(file.read_bytes()[: _size(file) // 2])


def flip_a_bit(folder: Path) -> None:
    content = bytearray(array_file(folder).read_bytes())
    content[len(content) // 2] ^= 4
    array_file(folder).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (truncate, r"poejax_arrays.* has \d+ bytes, expected \d+ bytes"),
        (flip_a_bit, r"poejax_arrays.* of CRC-32"),
        (lambda f: array_file(f).unlink(), r"poejax_arrays.* is missing"),
        (lambda f: shutil.rmtree(f / "poejax_arrays"), r"poejax_arrays.* is missing"),
        (lambda f: (f / "poejax.json").unlink(), r"poejax.json is missing or unreadable"),
        (lambda f: (f / "poejax.json").write_text("{garbage"), r"poejax.json is missing or unread"),
        (lambda f: (f / "poejax.json").write_bytes(b"\xff\x00"), r"poejax.json is missing or unr"),
    ],
)
def test_damage_is_named_and_older_steps_restore(
    tmp_path: Path, damage: Callable[[Path], None], text: str
) -> None:
    for step in (10, 20, 30):
        ckpt.save(tmp_path, small_state(step))
    damage(tmp_path / "10")
    damage(tmp_path / "30")
    with pytest.raises(ckpt.CheckpointError, match=text) as caught:
        ckpt.restore(tmp_path, small_state(0))
    assert "step 30" in str(caught.value)
    assert "intact steps, for step=: [20]" in str(caught.value)
    assert ckpt.all_steps(tmp_path) == [10, 20, 30]
    assert_identical(ckpt.restore(tmp_path, small_state(0), step=20), small_state(20))
    ckpt.save(tmp_path, small_state(30))
    assert assert_consistent(tmp_path) == 30


def test_refuses_what_is_not_finite(tmp_path: Path) -> None:
    ckpt.save(tmp_path, small_state(1))
    diverged = small_state(2)
    diverged.params["w"] = diverged.params["w"].at[3, 4].set(jnp.nan)
    with pytest.raises(ValueError, match=r"\.params\['w'\] is not finite"):
        ckpt.save(tmp_path, diverged)
    with pytest.raises(ValueError, match=r"\.opt_state\[0\] is not finite"):
        ckpt.save(tmp_path, small_state(2)._replace(opt_state=(jnp.bfloat16(jnp.inf),)))
    assert assert_consistent(tmp_path) == 1
    ckpt.save(tmp_path, diverged, allow_nonfinite=True)
    assert_identical(ckpt.restore(tmp_path, diverged), diverged)
    with pytest.raises(ValueError, match=r"\['w'\] is not finite"):
        ckpt.save_params(tmp_path / "params", diverged.params)
    assert not (tmp_path / "params").exists()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"step": -1}, ValueError, "step"),
        ({"keep_last": 0}, ValueError, "keep_last"),
        ({"best_mode": "largest"}, ValueError, "largest"),
        ({"best_metric": "ll", "metrics": {"lll": 1.0}}, ValueError, "'ll' is not among"),
        ({"config": {"f": print}}, TypeError, "config.*JSON"),
        ({"state": State(1, {"name": "rbm"})}, TypeError, r"\.params\['name'\].*str"),
        ({"state": {"w": jnp.zeros(2)}}, ValueError, "step"),
    ],
)
def test_refused_saves_leave_no_trace(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        ckpt.save(tmp_path / "run", **({"state": small_state(1)} | options))
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "thesis.tex").write_text("years of work")
    (tmp_path / "notes").mkdir()
    for step in (2, 3):
        ckpt.save(tmp_path, small_state(step), keep_last=1)
    assert ckpt.all_steps(tmp_path) == [3]
    with pytest.raises(FileExistsError, match="no checkpoint"):
        ckpt.save(tmp_path, small_state(4), step=1)
    with pytest.raises(FileExistsError, match="no checkpoint"):
        ckpt.save_params(tmp_path / "1", {"w": jnp.ones(2)}, overwrite=True)
    assert (tmp_path / "1" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "notes").exists()


def test_shared_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = {
        "hidden": {"w": jnp.ones((3, 2), jnp.bfloat16), "b": np.zeros(2, np.float32)},
        "empty": {},
        "layers": [jnp.arange(3), None],
        "key": jax.random.key(3),
    }
    path = ckpt.save_params("models/rbm", params, config={"num_hidden": 2})
    assert path == tmp_path / "models" / "rbm"
    loaded = ckpt.load_params("models/rbm")
    assert_identical(loaded, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    assert ckpt.load_config("models/rbm") == {"num_hidden": 2}
    assert_identical(ckpt.load_params("models/rbm", jax.eval_shape(lambda: params)), params)
    with pytest.raises(ValueError, match=r"\['b'\]: expected nothing, found float32\[2\]"):
        ckpt.load_params("models/rbm", {"hidden": {"w": jnp.ones((3, 2))}})

    with pytest.raises(FileExistsError, match="overwrite=True"):
        ckpt.save_params("models/rbm", {"w": jnp.ones(1)})
    assert_identical(ckpt.load_params("models/rbm"), params)
    ckpt.save_params("models/rbm", {"w": jnp.ones(1)}, overwrite=True)
    assert_identical(ckpt.load_params("models/rbm"), {"w": jnp.ones(1)})
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["rbm"]
    truncate(path)
    with pytest.raises(ckpt.CheckpointError, match="poejax_arrays"):
        ckpt.load_params("models/rbm")

    ckpt.save_params("tuples", ((jnp.ones(2),), State(1, jnp.ones(3))))
    with pytest.raises(ValueError, match="pass abstract_params"):
        ckpt.load_params("tuples")
    pair = ((jnp.ones(2),), State(1, jnp.ones(3)))
    assert_identical(ckpt.load_params("tuples", pair), pair)
    with pytest.raises(ValueError, match="training state"):
        ckpt.load_params(ckpt.save("run", small_state(1)))


def test_prints_and_logs_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    absl = logging.getLogger("absl")
    before = (absl.level, list(absl.filters), list(absl.handlers))
    with caplog.at_level(logging.INFO, logger="absl"):
        for step in range(3):
            ckpt.save(tmp_path, small_state(step), keep_last=1)
        ckpt.restore(tmp_path, small_state(0))
        ckpt.best_step(tmp_path)
        absl.info("the user's own line")
    assert [record.getMessage() for record in caplog.records] == ["the user's own line"]
    assert capfd.readouterr() == ("", "")
    assert (absl.level, absl.filters, absl.handlers) == before


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


def test_description_is_json_a_person_can_read(tmp_path: Path) -> None:
    folder = ckpt.save(tmp_path, small_state(3), metrics={"ll": -1.5}, best_metric="ll")
    meta = json.loads((folder / "poejax.json").read_text())
    assert meta["metrics"] == {"ll": -1.5}
    assert meta["leaves"][".params['w']"]["shape"] == [40, 30]
    assert meta["leaves"][".params['w']"]["dtype"] == "float32"
