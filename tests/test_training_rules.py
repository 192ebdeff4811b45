"""The comparison of learning rules: what it compares, and that it tells good rules from bad."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import poejax as pj
from experiments import training_rules
from experiments.training_rules import report, rules, tasks


def test_the_tasks_are_what_they_are_called():
    ceilings = {"bars": -108.131 / 32, "shifter": -np.log(48)}
    for name, ceiling in ceilings.items():
        task = tasks.load(name, 1)
        assert task.ceiling == pytest.approx(ceiling, abs=1e-4)
        # The model that the base rates make is the independent one.
        model = pj.models.rbm(task.x.shape[1], 1)
        base = pj.evidence.base_rate(model, task.x, 1e-6)
        log_density = np.mean([base.model.log_density(base.params, x) for x in task.x])
        assert tasks.independent(task.x) == pytest.approx(float(log_density - base.log_z), abs=1e-3)


def test_ones_are_told_from_zeros():
    task = tasks.load("ones", 2)
    assert task.x.shape[1] == 196
    assert task.ones.error < 0.02
    assert abs(np.mean(task.ones.of(task.held_out)) - 0.5) < 0.1


@pytest.mark.parametrize("name", rules.RULES)
def test_runs_are_equal_by_value_so_that_seeds_share_what_compiles(name):
    task = tasks.load("bars", 1)
    setting = rules.Setting(3, 100, 32, 0.1)
    runs = [rules.run_of(name, True, setting, task.x) for _ in range(2)]
    assert runs[0] == runs[1]
    assert hash(runs[0]) == hash(runs[1])
    assert runs[0] != rules.run_of(name, False, setting, task.x)


@pytest.mark.slow
def test_rules_are_told_apart_and_chains_are_looked_at(tmp_path):
    config = dataclasses.replace(
        training_rules.PRESETS["smoke"],
        bars=rules.Setting(12, 4_000, 32, 0.1),
        ones=rules.Setting(4, 2_000, 100, 0.2, num_chains=20, num_rungs=3, has_exact=False),
        num_seeds=1,
    )
    results = training_rules.train_and_evaluate(config, tmp_path)
    bars, ones = (results["data"][name] for name in ("bars", "ones"))
    assert len(bars["runs"]) == 16
    assert len(ones["runs"]) == 14
    final = {(run["rule"], run["centered"]): run["log_likelihood"][-1] for run in bars["runs"]}
    assert max(final.values()) < bars["ceiling"]
    assert min(final.values()) > bars["independent"] + 3
    # One step from the data is not enough for patterns that lie apart; samples of the model are.
    for is_centered in (False, True):
        for name in ("exact", "tempered PCD", "PTT"):
            assert final[name, is_centered] > final["CD-1", is_centered] + 0.3
        assert abs(final["PTT", is_centered] - final["exact", is_centered]) < 0.3
    for run in ones["runs"]:
        assert 0 <= run["ones"] <= 1
        assert (run["ones_of_chains"] is None) == run["rule"].startswith("CD-")
        assert run["log_likelihood"][-1] > ones["independent"] + 1
        assert np.all(np.diff(run["seconds"]) > 0)
    assert [len(table["rows"]) for table in report.table(results)] == [16, 14]
    assert (tmp_path / "figures" / "curves.png").exists()


def test_pieces_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="num_points: expected a divisor of the 6000 updates"):
        training_rules.Config(num_points=7)
