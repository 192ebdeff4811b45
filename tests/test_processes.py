"""Two processes on this machine: they draw what one draws, share files, and can be killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import process_cases as cases
import pytest

from experiments import mnist_rbm
from experiments.lab import devices, rbm_recipe, runs
from poejax import checkpoint

ROOT = Path(__file__).parent.parent
SECONDS = 500  # until what hangs is given up: the machine may be busy, and processes paused
SMOKE = dataclasses.replace(
    mnist_rbm.PRESETS["smoke"],
    num_hidden=8,
    num_epochs=40,
    epochs_per_report=1,
    ais_steps=20,
    sample_steps=5,
)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def start(args: list[str], num_devices: int, log: Path) -> subprocess.Popen[bytes]:
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    environment = os.environ | {
        "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *args], cwd=ROOT, env=environment, stdout=file, stderr=file
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes of two devices each left."""
    folder = tmp_path_factory.mktemp("two")
    port, script = free_port(), str(ROOT / "tests" / "process_cases.py")
    logs = [folder / f"{i}.log" for i in range(2)]
    both = [start([script, port, str(i), str(folder)], 2, logs[i]) for i in range(2)]
    try:
        ends = [process.wait(SECONDS) for process in both]
    finally:
        for process in both:
            process.kill()
    assert ends == [0, 0], logs[0].read_text()[-3000:] + logs[1].read_text()[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone():
    return cases.learn(None)


@pytest.mark.slow
def test_two_processes_draw_what_one_device_draws(folder, alone):
    with np.load(folder / "seen.npz") as seen:
        draws, chains, log_weights, *looked = seen.values()
    np.testing.assert_array_equal(draws, alone.draws)
    np.testing.assert_array_equal(chains, alone.chains)
    np.testing.assert_allclose(log_weights, alone.log_weights, atol=1e-4)
    wanted = jax.tree.leaves(cases.look(None))
    assert len(looked) == len(wanted)
    for a, b in zip(looked, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_array_equal(checkpoint.load_params(folder / "alone")["w"], np.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize(("data_devices", "model_devices"), [(1, 1), (2, 1), (2, 4)])
def test_what_two_processes_saved_is_restored_on_any_number_of_devices(
    folder, alone, data_devices, model_devices
):
    mesh = devices.make_mesh(data_devices, model_devices)
    state = devices.place(cases.RUN.init(cases.key(), cases.rows()), mesh)
    found = checkpoint.restore(folder / "run", state)
    w = found.params["hidden"]["w"]
    assert len(w.sharding.device_set) == data_devices * model_devices
    np.testing.assert_array_equal(
        found.estimator_state.inner.x, alone.state.estimator_state.inner.x
    )
    for a, b in zip(
        jax.tree.leaves(found.params), jax.tree.leaves(alone.state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-6)
    on, _ = cases.RUN.steps(found, cases.rows(), 2)
    wanted, _ = cases.RUN.steps(alone.state, cases.rows(), 2)
    np.testing.assert_allclose(on.params["hidden"]["w"], wanted.params["hidden"]["w"], atol=1e-5)


@pytest.mark.slow
def test_eight_devices_save_what_one_and_two_restore(tmp_path, alone):
    eight = devices.place(alone.state, devices.make_mesh(4, 2))
    assert len(eight.params["hidden"]["w"].sharding.device_set) == 8
    checkpoint.save(tmp_path, eight)
    for mesh in (None, devices.make_mesh(2, 1)):
        found = checkpoint.restore(tmp_path, devices.place(alone.state, mesh))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone.state), strict=True):
            assert bool((a == b).all())


@pytest.mark.slow
def test_a_run_whose_second_process_is_killed_goes_on_in_one(tmp_path):
    run, logs = tmp_path / "run", [tmp_path / f"{i}.log" for i in range(2)]
    options = [
        *("-m", "experiments.mnist_rbm", "--preset", "smoke", "--workdir", str(run)),
        *("--num-hidden", "8", "--num-epochs", "40", "--epochs-per-report", "1"),
        *("--ais-steps", "20", "--sample-steps", "5", "--num-processes", "2"),
        *("--coordinator-address", f"127.0.0.1:{free_port()}"),
    ]
    both = [start([*options, "--process-id", str(i)], 1, logs[i]) for i in range(2)]
    try:
        until = time.monotonic() + SECONDS
        while len(checkpoint.all_steps(run / "checkpoints")) < 3:
            assert all(process.poll() is None for process in both), logs[0].read_text()[-3000:]
            assert time.monotonic() < until
            time.sleep(0.05)
        both[1].kill()
        # The other ends by itself, most often at once, else when a heartbeat has been missed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert both[0].wait(10) != 0
    finally:
        for process in both:
            process.kill()
            process.wait(SECONDS)
    step = checkpoint.latest_step(run / "checkpoints")
    assert 24 <= step < 480
    problem = mnist_rbm.build(SMOKE)
    images = jnp.asarray(problem.data.train)
    state = rbm_recipe.initial_state(jax.random.key(0), problem.run, images)
    found = checkpoint.restore(run / "checkpoints", state, step=step)
    wanted, _ = problem.run.steps(state, images, step)
    np.testing.assert_array_equal(found.estimator_state.inner.x, wanted.estimator_state.inner.x)
    np.testing.assert_allclose(
        found.average["hidden"]["w"], wanted.average["hidden"]["w"], atol=1e-5
    )
    epochs = step // 12 + 1
    config = dataclasses.replace(SMOKE, resume=True, num_epochs=epochs)
    results = mnist_rbm.train_and_evaluate(config, run)
    assert results["steps"] == 12 * epochs
    lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(12, 12 * epochs + 1, 12))
    assert "coordinator_address" not in json.loads((run / "config.json").read_text())
    assert runs.read_json(run / "results.json")["steps"] == 12 * epochs


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--process-id", "1"], "coordinator_address, num_processes, process_id: expected all"),
        (["--process-id", "-1"], "process_id: expected at least 0, got -1"),
        (
            ["--coordinator-address", "x:1", "--num-processes", "2", "--process-id", "2"],
            "process_id: expected 0 to 1, got 2",
        ),
        (
            ["--data-devices", "3", "--model-devices", "3"],
            "at most 8, the number of devices, got 3",
        ),
        (["--data-devices", "8"], "batch_size: expected a multiple of the 8 devices"),
        (["--model-devices", "5"], "num_hidden: expected a multiple of the 5 devices"),
    ],
)
def test_impossible_places_end_in_one_clear_message(args, message, assert_refused):
    assert_refused(mnist_rbm.main, args, message)
