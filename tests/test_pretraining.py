"""The pre-training study: fair pairs, margins, resuming a killed study, stacks that go on."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

import poejax as pj
from experiments import pretraining
from experiments.lab.cells import Cells
from experiments.pretraining import networks as study
from experiments.pretraining import report
from poejax import stacks

SMOKE = dataclasses.replace(
    pretraining.PRESETS["smoke"], arms=("pre-trained", "random"), num_seeds=2, min_updates=100
)


def test_balanced_rows_are_nested_and_balanced():
    labels = np.repeat(np.arange(10), np.arange(5, 15))
    rows = study.balanced_rows(labels, seed=3)
    assert sorted(rows) == list(range(len(labels)))
    for count in (10, 30, 50):
        np.testing.assert_array_equal(np.bincount(labels[rows[:count]]), count // 10)
    assert not np.array_equal(rows, study.balanced_rows(labels, seed=4))


def test_margins_are_paired_by_seed():
    better = {0: 0.10, 1: 0.20, 2: 0.30, 3: 9.0}
    worse = {2: 0.35, 1: 0.22, 0: 0.12}  # seed 3 is not done yet
    mean, std_err = report.margin(better, worse)
    differences = np.array([0.02, 0.02, 0.05])
    assert mean == pytest.approx(differences.mean())
    assert std_err == pytest.approx(differences.std(ddof=1) / np.sqrt(3))


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole = pretraining.train_and_evaluate(SMOKE, tmp_path / "whole")
    assert len(whole) == 2 * 2 * 2  # depths, arms, seeds
    errors = report.errors_by_kind(whole)
    assert max(errors[40, 1]["pre-trained"].values()) < 0.5  # chance is 0.9
    assert max(errors[40, 1]["random"].values()) < 0.6

    # Killed in the middle of writing the third result, and once more in the sixth.
    class KilledError(Exception):
        pass

    save, saved, kill_at = Cells.save, [], [3, 6]

    def dying(self, name, value):
        if kill_at and len(saved) + 1 == kill_at[0]:
            kill_at.pop(0)
            raise KilledError
        saved.append(name)
        save(self, name, value)

    monkeypatch.setattr(Cells, "save", dying)
    killed = tmp_path / "killed"
    config = SMOKE
    for _ in range(2):
        with pytest.raises(KilledError):
            pretraining.train_and_evaluate(config, killed)
        assert list(json.loads((killed / "results.json").read_text())) == saved
        config = dataclasses.replace(SMOKE, resume=True)
    results = pretraining.train_and_evaluate(config, killed)
    assert len(saved) == len(set(saved)) == 8  # nothing was run twice
    drop = "seconds"
    strip = {name: {k: v for k, v in cell.items() if k != drop} for name, cell in results.items()}
    for name, cell in whole.items():
        assert strip[name] == {k: v for k, v in cell.items() if k != drop}, name
    assert (killed / "figures" / "errors.png").stat().st_size > 5_000

    # More seeds and other labels may be asked for later; another rule may not.
    grown = dataclasses.replace(config, num_seeds=3, depths=(1,), arms=("random",))
    more = pretraining.train_and_evaluate(grown, killed)
    assert len(more) == 9
    assert "labels40/depth1/random/seed2" in more
    with pytest.raises(ValueError, match=r"another config: min_epochs=9 \(was 5\)"):
        pretraining.train_and_evaluate(dataclasses.replace(config, min_epochs=9), killed)
    (table,) = report.table(more)
    assert [row[:3] for row in table["rows"]] == [["40", "1", "2-3"], ["40", "2", "2"]]


@pytest.mark.slow
def test_vmapped_networks_are_those_trained_one_by_one(tmp_path):
    config = dataclasses.replace(SMOKE, depths=(1,), arms=("random",), learning_rates=(1e-2,))
    results = [
        pretraining.train_and_evaluate(
            dataclasses.replace(config, together=together), tmp_path / str(together)
        )
        for together in (1, 2)
    ]
    for a, b in zip(results[0].values(), results[1].values(), strict=True):
        # Rounding differs between the two programs; what is learned hardly does.
        assert a["test_error"] == pytest.approx(b["test_error"], abs=0.02)
    first, second = (cell["test_error"] for cell in results[0].values())
    assert first != second


@pytest.mark.slow
def test_going_on_above_learned_layers_is_bitwise_one_call():
    x = pj.datasets.bars_and_stripes(3).astype(np.float32)
    tx = optax.sgd(0.3)

    def fit(sizes, below=()):
        return stacks.fit_greedy(
            jax.random.key(1), x, sizes, pj.estimators.cd, tx, 16, 50, below=below
        )

    whole, lower = fit((5, 3)), fit((5,))
    jax.tree.map(np.testing.assert_array_equal, whole[1][1], fit((5, 3), lower)[1][1])
    with pytest.raises(ValueError, match=r"below: expected the first layers of sizes 9, \[4, 3\]"):
        fit((4, 3), lower)
    with pytest.raises(ValueError, match="below: expected the first layers"):
        fit((5,), whole)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--labels", "5"], "labels: expected at least 10, or 0 for all"),
        (["--labels", "2000"], "labels: expected less than 1297, or 0 for all, got 2000"),
        (["--depths", "0"], "depths: expected at least 1, got 0"),
        (["--learning-rates", "0"], "learning_rates: expected > 0"),
        (["--arms", "magic"], "magic"),
    ],
)
def test_impossible_options_end_in_one_clear_message(args, message, assert_refused):
    assert_refused(pretraining.main, args, message)
