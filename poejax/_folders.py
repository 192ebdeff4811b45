"""Folders that appear whole or not at all, and tell when they are damaged."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]
ARRAYS = "poejax_arrays"
PARTIAL, _REPLACED = ".poejax-partial", ".poejax-replaced"
_META, _FORMAT = "poejax.json", 2  # 1, of earlier versions, has no checksum of the description
_SEAL = re.compile(rb',\n "crc32": "([0-9a-f]{8})"\n}')  # the last lines of a description
_SEAL_SIZE = 24


class CheckpointError(RuntimeError):
    """A checkpoint on disk is damaged; the message names the file and the steps that are intact."""


def absolute(path: PathLike) -> Path:
    """Return the path without `~` and relative parts; an empty one would be the current folder."""
    if os.fspath(path) == "":
        raise ValueError("path: expected the name of a folder, got an empty one")
    return Path(path).expanduser().absolute()


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def is_ours(folder: Path) -> bool:
    """Return whether the folder is a checkpoint."""
    return (folder / _META).is_file() or (folder / ARRAYS).is_dir()


def current(folder: Path) -> Path:
    """Return the folder, or the one that an interrupted replacement had set aside."""
    aside = _beside(folder, _REPLACED)
    return aside if is_ours(aside) and not is_ours(folder) else folder


def tidy(folder: Path) -> None:
    """Clear what a killed save or removal left beside the folder."""
    shutil.rmtree(_beside(folder, PARTIAL), ignore_errors=True)
    if current(folder) != folder:
        current(folder).rename(folder)
    shutil.rmtree(_beside(folder, _REPLACED), ignore_errors=True)


def steps_in(root: Path) -> dict[int, Path]:
    """Return the checkpoints of a run's directory by step."""
    names = {p.name.removesuffix(_REPLACED) for p in (root.iterdir() if root.is_dir() else ())}
    folders = {int(n): current(root / n) for n in names if re.fullmatch("0|[1-9][0-9]*", n)}
    return {step: folder for step, folder in folders.items() if is_ours(folder)}


def pick(root: Path, step: int | None) -> tuple[int, Path]:
    """Return a step, the newest when None, and its folder."""
    steps = steps_in(root)
    if not steps:
        raise FileNotFoundError(f"no checkpoint found in {root}")
    if step is not None and step not in steps:
        raise FileNotFoundError(f"no step {step} in {root}, which has {sorted(steps)}")
    number = max(steps) if step is None else step
    return number, steps[number]


def ranked(steps: Mapping[int, Path]) -> list[int]:
    """Return the steps that have the metric last named as `best_metric`, the best first."""
    metas = {}
    for step in sorted(steps, reverse=True):
        with contextlib.suppress(CheckpointError):
            metas[step] = read_meta(steps[step])
    metric, mode = next((m["best"] for m in metas.values() if m.get("best")), (None, "max"))
    scores = {s: m["metrics"][metric] for s, m in metas.items() if metric in m.get("metrics", {})}
    finite = {step: score for step, score in scores.items() if math.isfinite(score)}
    return sorted(finite, key=finite.__getitem__, reverse=mode == "max")


def commit(folder: Path, write: Callable[[Path], None], meta: dict[str, Any]) -> Path:
    """Have a checkpoint's arrays written beside its place, flush them, and move them in."""
    try:
        json.dumps(meta["config"])
    except TypeError as error:
        raise TypeError(f"config: expected what JSON can hold, but {error}") from error
    if folder.exists() and not is_ours(folder):
        raise FileExistsError(f"{folder} exists and is no checkpoint, so it is left alone")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    partial, aside = _beside(folder, PARTIAL), _beside(folder, _REPLACED)
    try:
        partial.mkdir()
        write(partial / ARRAYS)
        meta = {"format": _FORMAT, "files": _checksums(partial / ARRAYS), **meta}
        (partial / _META).write_text(_sealed(meta), newline="\n")
        for path in (*partial.rglob("*"), partial):
            _flush(path)
        if folder.exists():
            folder.rename(aside)
        partial.rename(folder)
        _flush(folder.parent)
    finally:
        tidy(folder)
    return folder


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Return the size and CRC-32 of every file in the folder."""
    found = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        content = path.read_bytes()
        found[path.relative_to(folder).as_posix()] = [len(content), zlib.crc32(content)]
    return found


def _sealed(meta: dict[str, Any]) -> str:
    """Return a description as JSON whose last entry is the CRC-32 of all the bytes before it."""
    body = json.dumps(meta, indent=1).removesuffix("\n}")
    return f'{body},\n "crc32": "{zlib.crc32(body.encode()):08x}"\n}}'


def read_meta(folder: Path) -> dict[str, Any]:
    """Return the description that lies beside the arrays, if it is as it was written."""
    try:
        content = (folder / _META).read_bytes()
        meta = json.loads(content)
        if meta["format"] not in (1, _FORMAT):
            raise ValueError(f"format {meta['format']}, this version reads 1 and {_FORMAT}")
        seal = _SEAL.fullmatch(content[-_SEAL_SIZE:])
        # A seal is demanded by format 2 and refused in format 1, so no damage can do away with it.
        if (seal is None) != (meta["format"] == 1):
            raise ValueError("its checksum is missing or damaged")
        if seal and zlib.crc32(content[:-_SEAL_SIZE]) != int(seal[1], 16):
            raise ValueError(f"expected bytes of CRC-32 {seal[1].decode()}, got others")
        _require_tables(meta)
        return meta
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / _META} is missing or unreadable: {error}") from error


def _require_tables(meta: dict[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError unless `meta` has all that a reader looks at."""
    for entry in meta["leaves"].values():
        shape, dtype = entry["shape"], entry["dtype"]
        if not (type(shape) is list and type(dtype) is str and ("value" in entry or entry["data"])):
            raise ValueError(f"no description of an array: {entry}")
    for size, crc in meta["files"].values():
        if type(size) is not int or type(crc) is not int:
            raise ValueError(f"no size and CRC-32 of a file: {size}, {crc}")
    if not isinstance(meta["config"], dict | None):
        raise ValueError(f"no config: {meta['config']}")


def damage(folder: Path) -> str | None:
    """Say which file is not as it was written, None if all are."""
    try:
        meta, found = read_meta(folder), _checksums(folder / ARRAYS)
    except CheckpointError as error:
        return str(error)
    for name, (size, crc) in meta["files"].items():
        if found.get(name) != [size, crc]:
            state = f"has {found[name][0]} bytes" if name in found else "is missing"
            return f"{folder / ARRAYS / name} {state}, expected {size} bytes of CRC-32 {crc:08x}"
    return None
