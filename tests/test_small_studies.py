"""Studies run small, and what they share: bounds of options, tables."""

from __future__ import annotations

import json
import types

import pytest

from experiments import (
    bars_and_stripes,
    benchmark,
    heavy_tails,
    student_t_evidence,
)
from experiments.lab import runs, tables


@pytest.mark.slow
def test_bars_and_stripes_small(tmp_path):
    config = bars_and_stripes.Config(num_hidden=4, num_steps=50, num_chains=10, num_seeds=1)
    results = bars_and_stripes.train_and_evaluate(config, tmp_path)
    assert set(results["log_likelihood"]) == {"exact", "pcd", "cd-1"}
    assert results["ceiling"] == pytest.approx(-2.5993, abs=1e-4)
    assert all(-7 < v < results["ceiling"] for (v,) in results["log_likelihood"].values())
    assert json.loads((tmp_path / "results.json").read_text())["tables"] == results["tables"]


@pytest.mark.slow
def test_benchmark_small(tmp_path):
    results = benchmark.train_and_evaluate(benchmark.PRESETS["smoke"], tmp_path)
    rows = results["rows"]
    suites = {"gibbs", "train", "ais", "exact", "continuous", "tempering", "scale"}
    assert {r["suite"] for r in rows} == suites
    assert all(r["ms"] > 0 for r in rows)
    limits = [r for r in rows if r["name"] == "products alone"]
    assert all(r["of_limit"] == 1 for r in limits)
    assert set(results["slopes"]) == {"chains", "visible units", "hidden units"}
    names = {"fractions.png", "scale.png", "devices.png"}
    assert {p.name for p in (tmp_path / "figures").iterdir()} == names

    trips = results["round_trips"]
    assert trips[0]["name"] == "poejax"
    assert all(r["per_1000"] > 0 and 0 < r["least_acceptance"] <= 1 for r in trips)

    shared = results["devices"]["rows"]
    chains = {(r["scaling"], r["devices"]): r["chains"] for r in shared}
    assert chains == {("strong", 1): 16, ("strong", 2): 16, ("weak", 1): 8, ("weak", 2): 16}
    assert {r["what"] for r in shared} == {"Gibbs sweep", "PCD update"}
    assert all(r["efficiency"] == 1 for r in shared if r["devices"] == 1)
    assert all(r["ms"] > 0 and r["efficiency"] > 0 for r in shared)


def test_a_benchmark_refuses_chains_that_devices_cannot_share():
    with pytest.raises(ValueError, match="shared_chains: expected a multiple of num_devices"):
        benchmark.Config(shared_chains=10, num_devices=(1, 4))
    with pytest.raises(ValueError, match="num_devices: expected 1 first"):
        benchmark.Config(num_devices=(2, 4))


@pytest.mark.slow
def test_heavy_tails_small(tmp_path):
    config = heavy_tails.Config(sizes=(3,), num_chains=(20,), num_steps=20)
    results = heavy_tails.train_and_evaluate(config, tmp_path)
    (run,) = results["runs"]
    assert run["broken"] == results["failed"] == 0
    assert run["largest"] > 1
    with pytest.raises(ValueError, match="num_chains: expected one number per size"):
        heavy_tails.Config(sizes=(3, 4), num_chains=(20,))


@pytest.mark.slow
def test_student_t_evidence_small(tmp_path):
    config = student_t_evidence.Config(
        size=2, exponents=(1.5,), num_betas=40, num_chains=100, num_seeds=1
    )
    heavy, light = student_t_evidence.train_and_evaluate(config, tmp_path)["estimates"]
    assert abs(heavy["error"]) < 4 * heavy["std_err"]
    assert not heavy["warned"]
    assert light["warned"]
    with pytest.raises(ValueError, match=r"exponents: expected above 0\.5"):
        student_t_evidence.Config(exponents=(0.4,))


def test_numbers_out_of_bounds_are_refused_by_name():
    config = types.SimpleNamespace(count=0, rate=0.0, share=1.0, sizes=(2, 1), flag=False, digit=10)
    for name, bound, message in (
        ("count", None, "at least 1, got 0"),
        ("rate", None, "> 0, got 0.0"),
        ("share", (0, 1), r"a number in \[0, 1\), got 1.0"),
        ("sizes", 2, "at least 2, got 1"),
        ("digit", (0, 10), "0 to 9, got 10"),
    ):
        one = types.SimpleNamespace(**{name: getattr(config, name)}, flag=False, text="x")
        with pytest.raises(ValueError, match=f"{name}: expected {message}"):
            runs.check_numbers(one, {} if bound is None else {name: bound})
    runs.check_numbers(config, {"count": 0, "rate": 0, "share": (0, 2), "digit": 3})


def test_tables_are_aligned_and_escaped():
    made = tables.table("kinds | of", ("", "n", "x"), {"a|b": (10, 0.125), "c": (2, "none")}, ".2f")
    assert tables.text([made]).splitlines()[2:] == [
        "      n     x",
        "a|b  10  0.12",
        "c     2  none",
    ]
    assert "| a\\|b | 10 | 0.12 |" in tables.markdown(made).splitlines()
    assert tables.plus_minus([0.01, 0.03], 1, 100) == "2.0 ± 1.4"
    assert tables.plus_minus([1.0]) == "1.00"
