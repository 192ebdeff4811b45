"""Three families in one product: trained, sampled, and normalised in two ways."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import pytest

from experiments import three_families

MAX_Z = 4.0  # two-sided 6e-5 per comparison


@pytest.mark.slow
def test_three_families_train_sample_and_are_normalised(tmp_path):
    results = three_families.train_and_evaluate(three_families.PRESETS["smoke"], tmp_path)
    (found,) = results["ais"]
    assert 0 < found["std_err"] < 0.15
    assert abs(found["log_z"] - results["log_z_quadrature"]) < MAX_Z * found["std_err"]
    assert results["log_z_quadrature_error"] < 1e-3
    samples = results["samples"]
    error = samples["mean_radius_of_samples"] - samples["mean_radius"]
    assert abs(error) < MAX_Z * samples["mean_radius_std_err"]
    assert 0.3 < samples["acceptance"] < 0.95
    low, middle = results["gaussian_log_likelihood"], results["test_log_likelihood"]
    assert low + 0.2 < middle < results["true_log_likelihood"]
    assert (tmp_path / "three_families.png").stat().st_size > 20_000


def test_energy_is_bounded():
    network = three_families.init_network(jax.random.key(0))
    network = jax.tree.map(lambda leaf: leaf + 100.0, network)
    far = jnp.array([1e6, -1e6])
    assert abs(float(three_families.energy(network, far))) <= 5.0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--target", "moons"], "target: expected one of"),
        (["--num-steps", "7"], "num_steps: expected a multiple of 10, got 7"),
    ],
)
def test_impossible_options_end_in_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", "--workdir", str(tmp_path / "run"), *args])
    assert three_families.main() == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())
