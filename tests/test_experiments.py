"""The command line of the main job: it ends well, refuses clearly, resumes bitwise."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import poejax as pj
from experiments import (
    bars_and_stripes,
    benchmark,
    heavy_tails,
    mnist_rbm,
    student_t_evidence,
)

ROOT = Path(__file__).parent.parent
SMOKE = dataclasses.replace(mnist_rbm.PRESETS["smoke"], ais_steps=20, sample_steps=5)


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "experiments.mnist_rbm", "--preset", "smoke", *args]


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
    ],
)
def test_impossible_options_end_in_one_clear_message(args, message, assert_refused):
    assert_refused(mnist_rbm.main, args, message)


def test_divergence_exits_non_zero_and_keeps_the_last_good_checkpoint(tmp_path):
    args = ["--learning-rate", "1e38", "--workdir", str(tmp_path / "run")]
    done = subprocess.run(command(*args), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not finite at step" in done.stderr
    assert "params['" in done.stderr
    assert pj.checkpoint.latest_step(tmp_path / "run" / "checkpoints") == 0


def test_killed_five_times_and_resumed_is_bitwise_the_uninterrupted_run(tmp_path):
    options = ["--num-epochs", "60", "--epochs-per-report", "1", "--num-hidden", "8"]
    options += ["--ais-steps", "2", "--sample-steps", "1"]
    config = dataclasses.replace(
        mnist_rbm.PRESETS["smoke"], num_epochs=60, epochs_per_report=1, num_hidden=8
    )
    problem = mnist_rbm.build(config)
    (tmp_path / "whole").mkdir()
    whole, _ = mnist_rbm.train(config, problem, tmp_path / "whole")

    killed, rng, kills = tmp_path / "killed", random.Random(0), 0
    log = killed / "metrics.jsonl"

    def lines() -> int:
        return len(log.read_text().splitlines()) if log.exists() else 0

    # The six processes share what XLA compiles; it changes no bit, and saves a minute.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for attempt in range(5):
        process = subprocess.Popen(
            command(*options, "--workdir", str(killed), "--resume"),
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
    assert kills == 5
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
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [12 * (i + 1) for i in range(60)]


def test_bars_and_stripes_small():
    config = bars_and_stripes.Config(num_hidden=4, num_steps=50, num_chains=10, num_seeds=1)
    results = bars_and_stripes.train_and_evaluate(config)
    assert set(results) == {"exact", "pcd", "cd-1"}
    assert all(-7 < float(values.mean()) < -2.5993 for values in results.values())


def test_benchmark_small():
    config = benchmark.Config(
        num_visible=20, num_hidden=10, num_chains=100, num_steps=2, num_rounds=1
    )
    seconds = benchmark.train_and_evaluate(config)
    assert len(seconds) == 5
    assert all(value > 0 for value in seconds.values())


def test_heavy_tails_small():
    config = heavy_tails.Config(sizes=(3,), num_chains=(20,), num_steps=20)
    (run,) = heavy_tails.train_and_evaluate(config)
    assert run.num_broken == 0
    assert run.largest > 1
    with pytest.raises(ValueError, match="num_chains: expected one number per size"):
        heavy_tails.Config(sizes=(3, 4), num_chains=(20,))


def test_student_t_evidence_small():
    config = student_t_evidence.Config(
        size=2, exponents=(1.5,), num_betas=40, num_chains=100, num_seeds=1
    )
    heavy, light = student_t_evidence.train_and_evaluate(config)
    assert abs(heavy.error) < 4 * heavy.std_err
    assert not heavy.warned
    assert light.warned
    with pytest.raises(ValueError, match=r"exponents: expected above 0\.5"):
        student_t_evidence.Config(exponents=(0.4,))
