"""Checkpoints come back bitwise and say what is wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_cases import (
    State,
    assert_consistent,
    assert_identical,
    rich_state,
    small_state,
    truncate,
)

from poejax import checkpoint as ckpt


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


def test_no_name_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: ckpt.save("", small_state(1)),
        lambda: ckpt.save_params("", {}, overwrite=True),
        lambda: ckpt.latest_step(""),
    ):
        with pytest.raises(ValueError, match="expected the name of a folder, got an empty one"):
            call()


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


def test_description_is_json_a_person_can_read(tmp_path: Path) -> None:
    folder = ckpt.save(tmp_path, small_state(3), metrics={"ll": -1.5}, best_metric="ll")
    meta = json.loads((folder / "poejax.json").read_text())
    assert meta["metrics"] == {"ll": -1.5}
    assert meta["leaves"][".params['w']"]["shape"] == [40, 30]
    assert meta["leaves"][".params['w']"]["dtype"] == "float32"
