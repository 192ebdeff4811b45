"""What the README shows runs as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "README.md").read_text()


BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_it_can_be_read_in_one_sitting():
    assert TEXT.count("\n") <= 150


@pytest.mark.slow
def test_python_blocks_run_and_reach_what_they_say(capsys):
    assert len(BLOCKS) == 4
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert -2.9 < float(capsys.readouterr().out) < -2.5993
    assert names["chains"].x.shape == (100, 9)
    assert set(names["params"]) == {"bias", "hidden"}


def test_its_speed_is_that_of_the_benchmark():
    path = Path(__file__).parent.parent / "experiments" / "results" / "benchmark.json"
    of = json.loads(path.read_text())["runs"][0]["tables"][0]
    row = next(r for r in of["rows"] if r[0] == "Gibbs sweep, 784x500, 100 chains")
    _, ms, fraction, scikit_learn, torch_loop, _ = row
    words = " ".join(TEXT.split())
    assert f"takes {ms} ms: {fraction} of the speed" in words
    assert f"{scikit_learn} times that of scikit-learn, {torch_loop} of a torch loop" in words
    low = next(r for r in of["rows"] if r[0] == "Gibbs in bfloat16, 784x500, 100 chains")
    assert f"in bfloat16, on a CPU with a unit for it, {low[1]} ms" in words


def test_each_part_of_the_guide_is_short():
    guide = "".join(BLOCKS[1:])
    parts = re.split(r"^@dataclasses", guide, flags=re.MULTILINE)[1:]
    assert len(parts) == 4
    assert max(part.count("\n") for part in parts) < 30


def test_links_and_pictures_are_there():
    root = Path(__file__).parent.parent
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    local = [root / link for link in links if "://" not in link]
    made = root / "experiments" / "README.md"  # from the results of studies, when they have run
    assert len(local) >= 5
    assert [path for path in local if not path.exists() and path != made] == []


def test_both_commands_install_from_this_repository():
    commands = [line for line in TEXT.splitlines() if line.startswith("python3 -m venv .venv")]
    assert len(commands) == 2
    ci = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    test_command = commands[1].split("&& ")[-1].removeprefix(".venv/bin/")
    assert test_command in ci
