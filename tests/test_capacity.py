"""The study of hidden units and epochs, run small, and tables over seeds."""

import dataclasses

import pytest

from experiments import capacity
from experiments.mnist_rbm import seeds


@pytest.mark.slow
def test_the_study_runs_small(tmp_path):
    config = dataclasses.replace(capacity.PRESETS["smoke"], num_epochs=(2, 60))
    results = capacity.train_and_evaluate(config, tmp_path)
    runs = {(row["hidden"], row["epochs"]): row for row in results["runs"]}
    assert set(runs) == {(4, 2), (16, 2), (4, 60), (16, 60)}
    for row in runs.values():
        assert row["low"] <= row["test"] <= row["high"] < 0
    for hidden in (4, 16):
        assert runs[hidden, 2]["test"] + 0.5 < runs[hidden, 60]["test"]
    assert len(results["tables"][0]["rows"]) == 4
    assert (tmp_path / "capacity.png").stat().st_size > 5_000


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="num_hidden: expected at least one, got none"):
        capacity.Config(num_hidden=())
    with pytest.raises(ValueError, match="num_epochs: expected at least 1, got 0"):
        capacity.Config(num_epochs=(0, 5))
    with pytest.raises(ValueError, match="seeds: expected different ones"):
        capacity.Config(seeds=(0, 0))


def run_of(seed, **config):
    sides = {
        f"{side}test_{name}": value
        for side in ("", "reverse_")
        for name, value in (("log_likelihood", -80.0 - seed), ("interval", [-81.0, -79.0]))
    }
    return sides | {
        "workdir": f"run{seed}",
        "seed": seed,
        "ais_ess": 50.0,
        "reverse_ais_ess": 60.0,
        "ais_steps": 10,
        "ais_chains": 100,
        "train_log_likelihood": -79.0,
        "training_seconds": 12.0,
        "seconds": 15.0,
        "binarization": "stochastic",
        "machine": "a machine",
        "date": "2026-11-28",
        "config": {"num_hidden": 5, "num_epochs": 2, "seed": seed} | config,
    }


def test_runs_of_several_seeds_make_one_table():
    results = seeds.gathered([run_of(seed) for seed in range(3)])
    resumed = seeds.gathered([run_of(0), run_of(1, resume=True)])
    assert len(resumed["tables"][0]["rows"]) == 3
    earlier = seeds.gathered([run_of(0), run_of(1, warmup_epochs=0, compute_dtype="float32")])
    assert len(earlier["tables"][0]["rows"]) == 3
    opened = [run_of(0), run_of(1) | {"test_interval": [-83.0, None]}]
    assert seeds.gathered(opened)["tables"][0]["rows"][1][1] == "-81.00 [-83.00, inf]"
    *rows, last = results["tables"][0]["rows"]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert last[1] == last[2] == "-81.00 ± 1.00"
    assert results["config"]["seeds"] == [0, 1, 2]
    for found, words in (
        ([run_of(0)], "at least two runs, got 1"),
        ([run_of(0), run_of(0)], r"different seeds, got \[0, 0\]"),
        ([run_of(0), {"workdir": "runs/parts"}], "experiments.mnist_rbm, got runs/parts"),
        ([run_of(0), run_of(1, num_hidden=6)], r"others in \['num_hidden'\]"),
        ([run_of(0), run_of(1, warmup_epochs=1)], r"others in \['warmup_epochs'\]"),
    ):
        with pytest.raises(ValueError, match=f"workdirs: .*{words}"):
            seeds.gathered(found)
