"""Training states, and models to share, on disk and back: atomic, verified, bitwise equal.

A checkpoint is a folder: `poejax.json` (leaf table, config, metrics, size and CRC-32 of each file,
and last the CRC-32 of all that) and `poejax_arrays/` (written by orbax). It is written under a
temporary name, flushed and renamed, so a process killed at any moment leaves every earlier one
readable. A run's directory holds one folder per step. One writer per directory, on a local or
mounted file system. Of several JAX processes number 0 writes: arrays spread over them are saved by
a call in all of them, which gathers these; others also by process 0 alone, and the rest, which do
not wait, warn. All read, each what it is to hold, under whatever number of devices and processes.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from poejax import _checks, _folders, _leaves
from poejax._folders import CheckpointError, PathLike
from poejax.types import Params, PyTree

__all__ = [
    "CheckpointError",
    "all_steps",
    "best_step",
    "latest_step",
    "load_config",
    "load_params",
    "restore",
    "save",
    "save_params",
]


def save(
    directory: PathLike,
    state: PyTree,
    *,
    step: int | None = None,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    keep_last: int = 3,
    keep_best: int = 1,
    best_metric: str | None = None,
    best_mode: Literal["max", "min"] = "max",
    allow_nonfinite: bool = False,
) -> Path:
    """Save a training state as `directory/<step>`, replacing that step; return once it is on disk.

    Args:
      directory: the run's directory, created if missing.
      state: any pytree of JAX or NumPy arrays, typed keys and Python numbers.
      step: number of the checkpoint, `state.step` when None.
      config: JSON-able settings of the run, for `load_config`.
      metrics: scalars by name.
      keep_last: how many of the highest steps stay, at least 1; the one just saved always does.
      keep_best: how many of the best steps stay besides.
      best_metric: the entry of `metrics` that ranks steps; a step without it is never best.
      best_mode: "max" or "min".
      allow_nonfinite: save NaN and inf too; by default the last good one stays.

    Returns:
      The checkpoint's folder.

    Raises:
      ValueError: for a non-finite leaf (named), or options that do not fit together.
      TypeError: for a leaf, config or metric that cannot be stored.
      FileExistsError: if `directory/<step>` exists and is no checkpoint.
      RuntimeError: in other processes, if process 0 fails to write what was spread over them.
    """
    if step is not None and (isinstance(step, float) or not _checks.is_real(step)):
        raise TypeError(f"step: expected an integer >= 0, got {_checks.describe(step)}")
    number = int(getattr(state, "step", -1) if step is None else step)
    scores = {name: float(value) for name, value in (metrics or {}).items()}
    _checks.positive_int("keep_last", keep_last)
    if number < 0 or keep_best < 0 or best_mode not in ("max", "min"):
        raise ValueError(
            "expected a step (state.step or step=) >= 0, keep_best >= 0 and best_mode 'max' or "
            f"'min', got {number}, {keep_best} and {best_mode!r}"
        )
    if metrics is not None and best_metric is not None and best_metric not in scores:
        raise ValueError(f"best_metric: {best_metric!r} is not among the metrics {list(scores)}")
    table, arrays = _leaves.pack(state, allow_nonfinite)
    best = None if best_metric is None else [best_metric, best_mode]
    root = _folders.absolute(directory)
    meta = {"leaves": table, "config": config, "metrics": scores, "best": best}

    def write() -> None:
        _write_step(root, number, arrays, meta, keep_last, keep_best)

    return _leaves.by_one(state, root / str(number), write)


def _write_step(
    root: Path,
    number: int,
    arrays: Mapping[str, np.ndarray],
    meta: dict[str, Any],
    keep_last: int,
    keep_best: int,
) -> None:
    for name in {p.name.partition(".poejax-")[0] for p in root.glob("*.poejax-*")}:
        _folders.tidy(root / name)
    _folders.commit(root / str(number), _writer(arrays), meta)
    steps = _folders.steps_in(root)
    if number < max(steps):
        warnings.warn(
            f"{root}: saved step {number} beside a newer step {max(steps)}, which restore() picks "
            "unless step= is given; remove newer steps that belong to an abandoned run",
            stacklevel=5,
        )
    kept = {number, *sorted(steps)[-keep_last:], *_folders.ranked(steps)[:keep_best]}
    for other in steps.keys() - kept:
        # Renamed first: a removal that is cut short must not leave half a checkpoint in place.
        trash = steps[other].rename(root / f"{other}{_folders.PARTIAL}")
        shutil.rmtree(trash, ignore_errors=True)


def restore(directory: PathLike, abstract_state: PyTree, *, step: int | None = None) -> PyTree:
    """Read back a state that `save` wrote, bitwise, in the structure of `abstract_state`.

    Args:
      directory: the run's directory.
      abstract_state: a state, or its shapes from `jax.eval_shape`. Arrays and keys go to the
        sharding of their abstract leaf if it has one, else to the default device.
      step: which checkpoint, the highest when None.

    Returns:
      The state; arrays of a dtype that JAX cannot hold (float64 without 64-bit mode) are NumPy's.

    Raises:
      FileNotFoundError: if there is no checkpoint, or not that one.
      ValueError: if leaves, shapes or dtypes differ; names them.
      CheckpointError: if that checkpoint is damaged; nothing is deleted, no other step is tried.
    """
    root = _folders.absolute(directory)
    number, folder = _folders.pick(root, step)
    try:
        return _read(folder, abstract_state)
    except CheckpointError as error:
        others = [
            s
            for s, f in sorted(_folders.steps_in(root).items())
            if s != number and not _folders.damage(f)
        ]
        hint = f"intact steps, for step=: {others}" if others else "no other step is intact"
        raise CheckpointError(f"step {number} in {root} is damaged: {error} ({hint})") from error


def all_steps(directory: PathLike) -> list[int]:
    """Return the steps saved in a run's directory, lowest first."""
    return sorted(_folders.steps_in(_folders.absolute(directory)))


def latest_step(directory: PathLike) -> int | None:
    """Return the highest step saved in a run's directory, None if there is none."""
    return max(_folders.steps_in(_folders.absolute(directory)), default=None)


def best_step(directory: PathLike) -> int | None:
    """Return the best step by the last named `best_metric`, the latest of equals; None if none."""
    return next(iter(_folders.ranked(_folders.steps_in(_folders.absolute(directory)))), None)


def load_config(path: PathLike, step: int | None = None) -> dict[str, Any]:
    """Read the config stored with a run (its highest step, or `step`) or with shared parameters.

    Args:
      path: a run's directory, or a folder that `save_params` wrote.
      step: which checkpoint of the run.

    Returns:
      The config, {} if none was given.

    Raises:
      FileNotFoundError: if there is no such checkpoint.
      CheckpointError: if its description is damaged.
    """
    folder = _folders.current(_folders.absolute(path))
    return (
        _folders.read_meta(folder if _folders.is_ours(folder) else _folders.pick(folder, step)[1])[
            "config"
        ]
        or {}
    )


def save_params(
    path: PathLike,
    params: Params,
    *,
    config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
) -> Path:
    """Save a model's parameters in the folder `path`, to share without the training state.

    Args:
      path: the folder to create.
      params: nested dicts (string keys) and lists of arrays; to load any other pytree takes
        `abstract_params`.
      config: JSON-able description of the model, for `load_config`.
      overwrite: replace a checkpoint at `path`; the old one stays readable until the new one is.
      allow_nonfinite: save NaN and inf too.

    Returns:
      The folder.

    Raises:
      FileExistsError: if `path` exists and `overwrite` is False, or it is no checkpoint.
      ValueError: for a non-finite leaf (named).
      TypeError: for a container, leaf or config that cannot be stored.
      RuntimeError: as `save`.
    """
    folder = _folders.absolute(path)

    def write() -> None:
        # Only by who writes: to others it may be the folder that was just written.
        if not overwrite and _folders.current(folder).exists():
            raise FileExistsError(f"{folder} exists; overwrite=True replaces it")
        _folders.commit(folder, _writer(arrays), meta)

    table, arrays = _leaves.pack(params, allow_nonfinite)
    tree = jax.tree.unflatten(jax.tree.structure(params), list(table))
    if not _leaves.is_plain(tree):
        tree = None
    meta = {"leaves": table, "config": config, "tree": tree}
    return _leaves.by_one(params, folder, write)


def load_params(path: PathLike, abstract_params: Params | None = None) -> Params:
    """Read back what `save_params` wrote: JAX arrays with the dtypes they had.

    Args:
      path: the folder.
      abstract_params: parameters or shapes to check against and take shardings from.

    Returns:
      The parameters; arrays of a dtype that JAX cannot hold are NumPy's.

    Raises:
      FileNotFoundError: if there is no checkpoint at `path`.
      ValueError: if they do not fit `abstract_params`, or `path` holds a training state.
      CheckpointError: if the checkpoint is damaged.
    """
    folder = _folders.current(_folders.absolute(path))
    if not _folders.is_ours(folder):
        raise FileNotFoundError(f"no checkpoint found at {folder}")
    meta = _folders.read_meta(folder)
    if "tree" not in meta:
        raise ValueError(f"{folder} holds a training state, not parameters: use restore")
    if abstract_params is not None:
        return _read(folder, abstract_params)
    if meta["tree"] is None:
        raise ValueError(f"{folder}: pass abstract_params, these are not only dicts and lists")
    data = _load(folder)
    return jax.tree.map(
        lambda name: _leaves.leaf(meta["leaves"][name], data.get(name)), meta["tree"]
    )


def _read(folder: Path, abstract: PyTree) -> PyTree:
    meta, wanted = _folders.read_meta(folder), _leaves.named(abstract)
    have = {name: (tuple(e["shape"]), e["dtype"]) for name, e in meta["leaves"].items()}
    want = {name: _leaves.spec(leaf) for name, leaf in wanted.items()}
    differ = [
        f"\n  {name}: expected {_leaves.show(want.get(name))}, found {_leaves.show(have.get(name))}"
        for name in dict.fromkeys([*want, *have])
        if _leaves.show(want.get(name), traced=True) != _leaves.show(have.get(name), traced=True)
    ]
    if differ:
        more = f"\n  and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise ValueError(f"{folder} does not fit the expected state:" + "".join(differ[:5]) + more)
    data = _load(folder)
    leaves = [_leaves.leaf(meta["leaves"][n], data.get(n), leaf) for n, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _writer(arrays: Mapping[str, np.ndarray]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if arrays:  # orbax refuses to write nothing
            with _orbax() as checkpointer:
                checkpointer.save(path, args=ocp.args.StandardSave(arrays))

    return write


def _load(folder: Path) -> dict[str, np.ndarray]:
    if (damage := _folders.damage(folder)) is not None:
        raise CheckpointError(damage)
    specs = {n: e["data"] for n, e in _folders.read_meta(folder)["leaves"].items() if "data" in e}
    data = {n: np.broadcast_to(np.zeros((), dtype), shape) for n, (shape, dtype) in specs.items()}
    target = {name: blank for name, blank in data.items() if blank.size}
    if target:
        try:
            with _orbax() as checkpointer:
                restore_args = ocp.args.StandardRestore(target)
                data |= checkpointer.restore(folder / _folders.ARRAYS, args=restore_args)
        except Exception as error:
            raise CheckpointError(
                f"orbax cannot read {folder / _folders.ARRAYS}: {error}"
            ) from error
    return data


@contextlib.contextmanager
def _orbax() -> Iterator[ocp.Checkpointer]:
    """Lend a checkpointer, and drop its INFO lines (twenty a save) where the user shows INFO."""

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        # Orbax is not to wait for other processes, which need not come.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield checkpointer
    finally:
        logger.removeFilter(keep)
