"""The command line of the main job: it ends well, refuses clearly, resumes bitwise."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import poejax as pj
from experiments import mnist_rbm
from experiments.lab import rbm_recipe, runs, warps
from poejax import training

ROOT = Path(__file__).parent.parent
SMOKE = dataclasses.replace(mnist_rbm.PRESETS["smoke"], ais_steps=20, sample_steps=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two epochs, to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    config = dataclasses.replace(SMOKE, num_epochs=2, epochs_per_report=1, num_hidden=8)
    mnist_rbm.train_and_evaluate(config, folder)
    return folder


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """Return a function that runs the command: its exit status and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mnist_rbm", *args])
        status = mnist_rbm.main()
        output = capsys.readouterr()
        return status, output.out + output.err

    return run


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "experiments.mnist_rbm", "--preset", "smoke", *args]


@pytest.mark.slow
def test_smoke_run_writes_everything_a_user_looks_at(tmp_path):
    results = mnist_rbm.train_and_evaluate(SMOKE, tmp_path)
    low, high = results["test_interval"]
    assert low < results["test_log_likelihood"] < high < 0
    for name in ("filters", "samples", "reconstructions", "curves"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5_000
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [24, 48]
    params = pj.checkpoint.load_params(tmp_path / "params")
    assert params["hidden"]["w"].shape == (64, 16)
    # A run in the way is not overwritten; another config is not mistaken for this one.
    with pytest.raises(FileExistsError, match="holds a run already; pass --resume"):
        mnist_rbm.train_and_evaluate(SMOKE, tmp_path)
    other = dataclasses.replace(SMOKE, resume=True, num_hidden=8)
    with pytest.raises(ValueError, match=r"another config: num_hidden=8 \(was 16\)"):
        mnist_rbm.train_and_evaluate(other, tmp_path)
    # Resuming a finished run evaluates it again, and finds the same.
    again = mnist_rbm.train_and_evaluate(dataclasses.replace(SMOKE, resume=True), tmp_path)
    assert again["log_z"] == results["log_z"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num-hidden", "0"], "num_hidden: expected at least 1, got 0"),
        (["--learning-rate", "-1"], "learning_rate"),
        (["--batch-size", "100000"], "batch_size: expected at most 1297, got 100000"),
        (["--dataset", "cifar"], "cifar"),
        (["--estimator", "magic"], "magic"),
        (["--ais-chains", "1"], "ais_chains"),
        (["--warped-copies", "-1"], "warped_copies: expected at least 0, got -1"),
        (["--kept-copies", "1"], "kept_copies: expected at most warped_copies = 0, got 1"),
        (
            ["--warped-copies", "1", "--num-epochs", "2"],
            "num_epochs: expected at least two reports",
        ),
        (["--warmup-epochs", "2"], "warmup_epochs: expected at most 1 of num_epochs"),
        (["--visible", "gaussian"], "visible: expected a file in --data"),
        (["--data", "nothing.csv"], "data: found no file"),
    ],
)
def test_impossible_options_end_in_one_clear_message(args, message, assert_refused):
    assert_refused(mnist_rbm.main, args, message)


@pytest.mark.slow
def test_resume_needs_the_workdir_only_and_may_train_on(finished, main, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = json.loads((run / "results.json").read_text())
    status, said = main("--resume", "--workdir", str(run))
    assert status == 0, said
    again = json.loads((run / "results.json").read_text())
    assert {k: again[k] for k in again if "log" in k} == {
        k: before[k] for k in before if "log" in k
    }
    # Evaluated otherwise, without a step of training.
    status, said = main("--resume", "--workdir", str(run), "--ais-steps", "30", "--ais-chains", "7")
    assert status == 0, said
    other = json.loads((run / "results.json").read_text())
    assert (other["ais_steps"], other["ais_chains"], other["steps"]) == (30, 7, before["steps"])
    # Trained longer: what is written down follows, so that the next resume needs nothing said.
    status, said = main("--resume", "--workdir", str(run), "--num-epochs", "3")
    assert status == 0, said
    config = json.loads((run / "config.json").read_text())
    assert (config["num_epochs"], config["num_hidden"], config["ais_steps"]) == (3, 8, 30)
    assert pj.checkpoint.latest_step(run / "checkpoints") == 36
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [12, 24, 36]
    for args, message in (
        (["--num-epochs", "2"], "num_epochs: expected at least 3, which the run in"),
        (["--seed", "7", "--num-epochs", "4"], "another config: seed=7 (was 0), says"),
        (["--preset", "default"], "another config: preset='default' (was 'smoke')"),
    ):
        status, said = main("--resume", "--workdir", str(run), *args)
        assert status == 1
        assert message in said
        assert json.loads((run / "config.json").read_text()) == config


def test_resume_of_nothing_says_so(main, tmp_path):
    for args in (["--workdir", "mistyped"], ["--workdir=~/mistyped"], []):
        status, said = main("--preset", "smoke", "--resume", *args)
        assert status == 1
        assert "resume: no run lies in" in said
    with pytest.raises(FileNotFoundError, match="no run lies in"):
        mnist_rbm.train_and_evaluate(dataclasses.replace(SMOKE, resume=True), tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_checkpoints_without_config_are_a_run_too(finished, main, tmp_path):
    run = tmp_path / "copied"
    shutil.copytree(finished / "checkpoints", run / "checkpoints")
    status, said = main("--preset", "smoke", "--seed", "7", "--workdir", str(run))
    assert status == 1
    assert "holds a run already; pass --resume" in said
    status, said = main("--resume", "--workdir", str(run), "--seed", "7")
    assert status == 1
    assert "another config: seed=7 (was 0)" in said
    assert "checkpoints" in said
    status, said = main("--resume", "--workdir", str(run))
    assert status == 0, said
    assert (run / "config.json").read_text() == (finished / "config.json").read_text()
    # With metrics.jsonl lost, the time it took is unknown and nothing else is.
    whole, found = (json.loads((d / "results.json").read_text()) for d in (finished, run))
    assert found["training_seconds"] is found["examples_per_second"] is None
    assert found["test_log_likelihood"] == whole["test_log_likelihood"]
    assert not (run / "figures" / "curves.png").exists()
    # Another run's checkpoints beside a config are told apart.
    config = json.loads((run / "config.json").read_text()) | {"seed": 7}
    (run / "config.json").write_text(json.dumps(config))
    status, said = main("--resume", "--workdir", str(run))
    assert status == 1
    assert "another config: seed=7 (was 0)" in said


@pytest.mark.slow
def test_configs_of_other_versions(finished, main, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"momentum": 0.9}))
    status, said = main("--resume", "--workdir", str(run))
    assert status == 1
    assert "this version knows no momentum=0.9; go on with the version that wrote it" in said
    # Options that came later have the defaults that hold what runs did before them.
    earlier = {name: value for name, value in config.items() if name not in ("data", "visible")}
    (run / "config.json").write_text(json.dumps(earlier))
    status, said = main("--resume", "--workdir", str(run))
    assert status == 0, said
    (run / "config.json").write_text("{}")
    shutil.rmtree(run / "checkpoints")
    status, said = main("--resume", "--workdir", str(run))
    assert status == 1
    assert "holds a run without a config" in said


def test_lines_that_are_no_records_are_dropped(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"step": 1, "seconds": 2.5}\n[3]\n{"epoch": 2}\n\xff\n{"step": 2, "seco')
    found = runs.MetricsLog(log, 1)
    assert found.records == [{"step": 1, "seconds": 2.5}]
    assert (found.last("seconds", 1), found.last("seconds", 0)) == (2.5, 0.0)
    assert np.isnan(found.last("seconds", 2))
    found.append({"step": 2, "seconds": float("nan")})
    assert np.isnan(runs.MetricsLog(log, 2).last("seconds", 2))


@pytest.mark.slow
def test_paths_with_a_home_folder_and_empty_ones(main, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    args = ["--preset", "smoke", "--ais-steps", "2", "--sample-steps", "1", "--num-epochs", "1"]
    status, said = main(*args, "--workdir=~/x")
    assert status == 0, said
    assert [p.name for p in tmp_path.iterdir()] == ["home"]
    assert {"config.json", "checkpoints", "figures"} <= {
        p.name for p in (tmp_path / "home" / "x").iterdir()
    }
    for empty in (["--workdir="], ["--workdir", ""]):
        status, said = main(*args, *empty)
        assert status == 1
        assert "workdir: expected a value, got an empty one" in said
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


@pytest.mark.slow
def test_warped_copies_are_learned_first_and_the_images_after_them(tmp_path, monkeypatch):
    seen, steps = [], training.Run.steps

    def watched(run, state, rows, num_steps, *args):
        seen.append((len(rows), float(rows.mean()), num_steps))
        return steps(run, state, rows, num_steps, *args)

    monkeypatch.setattr(training.Run, "steps", watched)
    config = dataclasses.replace(SMOKE, epochs_per_report=1, warped_copies=2, warped_share=0.5)
    problem = mnist_rbm.build(config)
    mnist_rbm.train(config, problem, tmp_path)
    images, shape = problem.data.train, problem.data.shape
    copies = warps.warped(images, shape, 2, config.seed)
    assert [row[::2] for row in seen] == [(2 * len(images), 24), (len(images), 24)]
    assert [row[1] for row in seen] == pytest.approx([copies.mean(), images.mean()], rel=1e-5)
    seen.clear()
    config = dataclasses.replace(config, kept_copies=1)
    (tmp_path / "kept").mkdir()
    mnist_rbm.train(config, mnist_rbm.build(config), tmp_path / "kept")
    both = np.concatenate([images, copies[: len(images)]])
    assert seen == [
        (2 * len(images), pytest.approx(copies.mean(), rel=1e-5), 24),
        (2 * len(images), pytest.approx(both.mean(), rel=1e-5), 24),
    ]
    shares = {0.01: 1, 0.5: 2, 0.99: 3}
    for share, num_epochs in shares.items():
        assert dataclasses.replace(config, warped_share=share).num_warped == num_epochs


@pytest.mark.slow
def test_training_in_bfloat16_is_evaluated_in_float32(tmp_path):
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(SMOKE, num_hidden=64, compute_dtype=dtype)
        problem = mnist_rbm.build(config)
        of = [
            dict(model.items)["hidden"].compute_dtype
            for model in (problem.model, problem.run.model)
        ]
        assert of == [None, None if dtype == "float32" else dtype]
        (tmp_path / dtype).mkdir()
        state, _ = mnist_rbm.train(config, problem, tmp_path / dtype)
        found[dtype] = np.asarray(state.params["hidden"]["w"])
        assert found[dtype].dtype == np.float32
    assert np.abs(found["float32"] - found["bfloat16"]).max() > 0
    assert np.corrcoef(*(w.ravel() for w in found.values()))[0, 1] > 0.8


def test_a_warm_up_rises_linearly_to_the_rate_that_is_held_and_lowered():
    plain = rbm_recipe.held_then_lowered(0.5, 100)
    warm = rbm_recipe.held_then_lowered(0.5, 100, num_warmup=10)
    assert [float(warm(i)) for i in (0, 4, 9)] == pytest.approx([0.05, 0.25, 0.5])
    for i in (10, 29, 60, 100):
        assert float(warm(i)) == float(plain(i))
    assert float(plain(100)) == pytest.approx(0.01)


@pytest.mark.slow
def test_divergence_exits_non_zero_and_keeps_the_last_good_checkpoint(tmp_path):
    args = ["--learning-rate", "1e38", "--workdir", str(tmp_path / "run")]
    done = subprocess.run(command(*args), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not finite at step" in done.stderr
    assert "params['" in done.stderr
    assert pj.checkpoint.latest_step(tmp_path / "run" / "checkpoints") == 0


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "num_kills"), [("pcd", 5), ("ptt", 2)])
def test_killed_often_and_resumed_is_bitwise_the_uninterrupted_run(tmp_path, estimator, num_kills):
    changes = {"num_epochs": 60, "epochs_per_report": 1, "num_hidden": 8, "estimator": estimator}
    if estimator == "pcd":
        changes |= {"warped_copies": 2, "kept_copies": 1, "compute_dtype": "bfloat16"}
    options = [part for k, v in changes.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    options += ["--ais-steps", "2", "--sample-steps", "1"]
    config = dataclasses.replace(mnist_rbm.PRESETS["smoke"], **changes)
    problem = mnist_rbm.build(config)
    (tmp_path / "whole").mkdir()
    whole, _ = mnist_rbm.train(config, problem, tmp_path / "whole")

    killed, rng, kills = tmp_path / "killed", random.Random(0), 0
    log = killed / "metrics.jsonl"

    def lines() -> int:
        return len(log.read_text().splitlines()) if log.exists() else 0

    # The processes share what XLA compiles; it changes no bit, and saves a minute.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for attempt in range(num_kills):
        go_on = ["--resume"] if attempt else []
        process = subprocess.Popen(
            command(*options, "--workdir", str(killed), *go_on),
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            env=os.environ | cache,
        )
        # Let it get on by a few reports, then kill it at any moment, mid-save included.
        target = lines() + rng.randint(1, 6)
        deadline = time.monotonic() + 120
        while lines() < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 0 < lines() < 60, f"attempt {attempt} was not killed in mid-run"
    assert kills == num_kills
    subprocess.run(
        command(*options, "--workdir", str(killed), "--resume"),
        cwd=ROOT,
        check=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | cache,
    )
    resumed = pj.checkpoint.restore(killed / "checkpoints", whole)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["step"] for record in records] == [12 * (i + 1) for i in range(60)]
    if estimator == "ptt":  # from the entropy of independent pixels upwards, live
        assert records[0]["batch_log_likelihood"] + 1 < records[-1]["batch_log_likelihood"] < 0
