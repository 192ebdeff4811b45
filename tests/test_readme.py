"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

TEXT = (Path(__file__).parent.parent / "README.md").read_text()


def test_python_blocks_run_and_reach_what_they_say(capsys):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    patterns, pressures = map(float, capsys.readouterr().out.split())
    assert -2.9 < patterns < -2.5993
    assert names["chains"].x.shape == (100, 9)
    # Ten independent columns of deviation ½ have -10 (½ log 2πe - log 2) nats per row.
    assert abs(pressures + 10 * (0.5 * np.log(2 * np.pi * np.e) - np.log(2))) < 0.2
    assert np.shape(names["params"]["coordinates"]["origin"]) == (10,)


def test_both_commands_install_from_this_repository():
    commands = [line for line in TEXT.splitlines() if line.startswith("python3 -m venv .venv")]
    assert len(commands) == 2
    ci = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    test_command = commands[1].split("&& ")[-1].removeprefix(".venv/bin/")
    assert test_command in ci
