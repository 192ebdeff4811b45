"""Damaged and older checkpoints are named, found or read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from checkpoint_cases import (
    array_file,
    assert_consistent,
    assert_identical,
    rich_state,
    small_state,
    truncate,
)

from poejax import checkpoint as ckpt


def flip_a_bit(folder: Path) -> None:
    content = bytearray(array_file(folder).read_bytes())
    content[len(content) // 2] ^= 4
    array_file(folder).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (truncate, r"poejax_arrays.* has \d+ bytes, expected \d+ bytes"),
        (flip_a_bit, r"poejax_arrays.* of CRC-32"),
        (lambda f: array_file(f).unlink(), r"poejax_arrays.* is missing"),
        (lambda f: shutil.rmtree(f / "poejax_arrays"), r"poejax_arrays.* is missing"),
        (lambda f: (f / "poejax.json").unlink(), r"poejax.json is missing or unreadable"),
        (lambda f: (f / "poejax.json").write_text("{garbage"), r"poejax.json is missing or unread"),
        (lambda f: (f / "poejax.json").write_bytes(b"\xff\x00"), r"poejax.json is missing or unr"),
    ],
)
def test_damage_is_named_and_older_steps_restore(
    tmp_path: Path, damage: Callable[[Path], None], text: str
) -> None:
    for step in (10, 20, 30):
        ckpt.save(tmp_path, small_state(step))
    damage(tmp_path / "10")
    damage(tmp_path / "30")
    with pytest.raises(ckpt.CheckpointError, match=text) as caught:
        ckpt.restore(tmp_path, small_state(0))
    assert "step 30" in str(caught.value)
    assert "intact steps, for step=: [20]" in str(caught.value)
    assert ckpt.all_steps(tmp_path) == [10, 20, 30]
    assert_identical(ckpt.restore(tmp_path, small_state(0), step=20), small_state(20))
    ckpt.save(tmp_path, small_state(30))
    assert assert_consistent(tmp_path) == 30


@pytest.mark.slow
def test_any_flipped_bit_of_a_description_is_found(tmp_path: Path) -> None:
    config = {"rate": 0.125, "name": "λ"}
    metrics = {"metrics": {"ll": -85.25}, "best_metric": "ll"}
    file = ckpt.save(tmp_path / "run", small_state(1), config=config, **metrics) / "poejax.json"
    shared = ckpt.save_params(tmp_path / "params", {"w": jnp.ones(2)}, config=config)
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        file.write_bytes(broken)
        with pytest.raises(ckpt.CheckpointError, match=r"poejax\.json is missing or unreadable"):
            ckpt.load_config(tmp_path / "run")
    # As does an end that is missing, and a line that was put in.
    for broken in (content[:-1], content + b" ", content.replace(b"0.125", b"0.25")):
        file.write_bytes(broken)
        with pytest.raises(ckpt.CheckpointError, match=r"step 1 in .* is damaged"):
            ckpt.restore(tmp_path / "run", small_state(0))
        assert ckpt.best_step(tmp_path / "run") is None
    file.write_bytes(content)
    assert ckpt.load_config(tmp_path / "run") == config
    (shared / "poejax.json").write_text((shared / "poejax.json").read_text().replace("w", "v", 1))
    with pytest.raises(ckpt.CheckpointError, match="CRC-32"):
        ckpt.load_params(shared)


def as_written_before_checksums(folder: Path) -> dict[str, Any]:
    """Rewrite a description in format 1, and return it."""
    file = folder / "poejax.json"
    meta = json.loads(file.read_text()) | {"format": 1}
    del meta["crc32"]
    file.write_text(json.dumps(meta, indent=1))
    return meta


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path) -> None:
    state = rich_state()
    meta = as_written_before_checksums(ckpt.save(tmp_path, state, config={"seed": 1}))
    assert_identical(ckpt.restore(tmp_path, state), state)
    assert ckpt.load_config(tmp_path) == {"seed": 1}
    file = tmp_path / "41" / "poejax.json"
    for changed in (
        meta | {"format": 2},  # a checksum cannot just be left out
        meta | {"format": 3},
        meta | {"crc32": "00000000"},
        meta | {"config": 3},
        {name: value for name, value in meta.items() if name != "leaves"},
        meta | {"leaves": {".step": {"shape": []}}},
        meta | {"files": {"a": 3}},
        meta | {"files": {"a": [3, None]}},
        [meta],
    ):
        file.write_text(json.dumps(changed, indent=1))
        with pytest.raises(ckpt.CheckpointError, match="unreadable"):
            ckpt.restore(tmp_path, state)
