from __future__ import annotations

import dataclasses
import math

import pytest

from experiments import real_tables


@pytest.mark.slow
def test_the_study_runs_small_and_counts_what_went_wrong(tmp_path):
    config = dataclasses.replace(
        real_tables.PRESETS["smoke"], optimizers=("adam",), num_hidden=2, num_passes=2, num_seeds=1
    )
    results = real_tables.train_and_evaluate(config, tmp_path)
    summary = results["summary"]["wine"]
    assert summary["recipe: runs"] == summary["plain: runs"] == 1
    assert summary["recipe: diverged"] == summary["recipe: below a single Gaussian"] == 0
    assert (tmp_path / "results.json").exists()
    assert (tmp_path / "figures" / "gain.png").exists()
    assert all(t["caption"].startswith("wine") for t in real_tables.table(results))


def test_diverged_runs_are_counted_and_left_out_of_means():
    cells = [
        {"seed": 0, "plain adam 0.1": math.nan, "recipe adam 0.1": 0.2},
        {"seed": 1, "plain adam 0.1": -3.0, "recipe adam 0.1": -0.01},
        {"seed": 2, "plain adam 0.1": -1.0, "recipe adam 0.1": 0.4},
    ]
    summary = real_tables.summarize(cells)
    assert summary["plain: diverged"] == 1
    assert summary["plain: below a single Gaussian"] == 2
    assert summary["plain adam 0.1"][0] == -2.0
    assert summary["recipe: below a single Gaussian"] == 0
    assert summary["recipe: worst"] == -0.01
