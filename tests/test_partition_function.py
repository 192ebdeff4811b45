from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from experiments import partition_function
from experiments.lab import ising


def test_log_z_of_the_ising_model():
    # Published for the critical torus; and by enumeration, on both sides of the transition.
    assert ising.log_z(16, ising.CRITICAL) == pytest.approx(238.642, abs=1e-3)
    assert ising.log_z(32, ising.CRITICAL) == pytest.approx(952.648, abs=1e-3)
    for coupling in (0.2, ising.CRITICAL, 0.6):
        model, params = ising.ising(4, coupling)
        assert float(pj.exact.log_z(model, params)) == pytest.approx(
            ising.log_z(4, coupling), abs=2e-5
        )


@pytest.mark.slow
def test_critical_ising_by_replica_exchange():
    model, params = ising.ising(16, ising.CRITICAL)
    _, report = pj.tempering.sample(
        jax.random.key(0), model, params, ising.even_base(model), num_chains=20, num_steps=1000
    )
    error = float(report.log_z.log_z) - ising.log_z(16, ising.CRITICAL)
    assert abs(error) < 3 * float(report.log_z.std_err)
    assert float(report.log_z.std_err) < 0.1
    assert np.ptp(np.asarray(report.acceptance)) < 0.2
    assert jnp.all(report.round_trips > 0)


@pytest.mark.slow
def test_the_study_runs_small(tmp_path):
    config = partition_function.Config(sweeps=(20_000,), ising_sizes=(4,), num_seeds=1)
    results = partition_function.train_and_evaluate(config, tmp_path)
    errors = {(row["model"], row["method"]): row["error"] for row in results["estimates"]}
    assert len(errors) == 15
    assert max(map(abs, errors.values())) < 2
    assert (tmp_path / "figures" / "cost.png").exists()


def test_the_study_refuses_a_torus_without_a_chessboard():
    with pytest.raises(ValueError, match="ising_sizes: expected even numbers"):
        partition_function.Config(ising_sizes=(5,))
