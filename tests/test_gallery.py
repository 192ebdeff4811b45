"""The gallery: its page is the one its results make, and a run's results find their way into it."""

from __future__ import annotations

import json

import pytest

from experiments import bars_and_stripes, gallery
from experiments.lab import runs


def test_the_page_is_the_one_that_the_results_make():
    assert (gallery.ROOM / "README.md").read_text() == gallery.page()


def test_every_study_has_results_and_every_figure_is_there_and_small():
    studies = {path.parent.name for path in gallery.ROOM.glob("*/__main__.py")}
    records = {p.stem: runs.read_json(p) for p in (gallery.ROOM / "results").glob("*.json")}
    assert records.keys() == studies
    figures = {record["figure"] for record in records.values() if record["figure"]}
    files = list((gallery.ROOM / "results").glob("*.png"))
    assert {path.name for path in files} == figures
    assert sum(path.stat().st_size for path in files) < 3e6
    for study, record in records.items():
        for run in record["runs"]:
            assert run["command"].startswith(f"python -m experiments.{study}")
            for table in run["tables"]:
                assert all(len(row) == len(table["columns"]) for row in table["rows"]), study


@pytest.mark.slow
def test_a_run_is_taken_in_the_place_of_the_same_command(tmp_path):
    config = bars_and_stripes.Config(num_hidden=2, num_steps=20, num_chains=5, num_seeds=2)
    results = bars_and_stripes.train_and_evaluate(config, tmp_path / "run")
    path = tmp_path / "bars_and_stripes.json"
    record = {
        "shows": "Much.",
        "figure": None,
        "runs": [{"command": "python -m experiments.other"}],
    }
    path.write_text(json.dumps(record))
    for _ in range(2):
        gallery.take(tmp_path / "run", "bars_and_stripes", "", tmp_path)
    first, other = runs.read_json(path)["runs"]
    assert (first["command"], first["seeds"]) == (
        "python -m experiments.bars_and_stripes",
        "0 to 1",
    )
    assert first["tables"] == results["tables"]
    assert other["command"] == "python -m experiments.other"
    with pytest.raises(ValueError, match="not enough values"):
        gallery.take(tmp_path / "run", "bars_and_stripes", "missing", tmp_path)
