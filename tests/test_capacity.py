"""The study of hidden units and epochs, run small."""

import pytest

from experiments import capacity


@pytest.mark.slow
def test_the_study_runs_small(tmp_path):
    results = capacity.train_and_evaluate(capacity.PRESETS["smoke"], tmp_path)
    runs = {(row["hidden"], row["epochs"]): row for row in results["runs"]}
    assert set(runs) == {(4, 2), (16, 2), (4, 5), (16, 5)}
    for row in runs.values():
        assert row["low"] <= row["test"] <= row["high"] < 0
    for hidden in (4, 16):
        assert runs[hidden, 2]["test"] + 0.5 < runs[hidden, 5]["test"]
    assert len(results["tables"][0]["rows"]) == 4
    assert (tmp_path / "capacity.png").stat().st_size > 5_000


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="num_hidden: expected at least one, got none"):
        capacity.Config(num_hidden=())
    with pytest.raises(ValueError, match="num_epochs: expected at least 1, got 0"):
        capacity.Config(num_epochs=(0, 5))
