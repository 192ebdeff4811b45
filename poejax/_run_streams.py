"""How a run reads the rows of its steps ahead, out of `streams.Rows`."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _parts, _random, _run_checks, _run_steps, _sources
from poejax._product import Product
from poejax._run_steps import Metrics, Served, TrainState
from poejax.streams import Rows
from poejax.types import Array, PyTree, Weighted

_SAMPLE_ROWS, _SAMPLE_BYTES, _LEAST_ROWS = 8192, 2**26, 64
_SAMPLE = 0x726F7773  # apart from what a run derives from its key, which counts from 0

_Result = TypeVar("_Result")


class Rule(_run_steps.Program, Protocol):
    """A run, with what its rows are checked against."""

    @property
    def model(self) -> Product | None: ...


def find(data: Any) -> Rows | None:
    """Return the stream that is given in place of data, None if it is none."""
    if isinstance(data, Weighted) and isinstance(data.x, Rows):
        return Rows(Weighted(data.x.source, data.weights), data.x.chunk_bytes)
    return data if isinstance(data, Rows) else None


def on_sample(rng_key: Array, data: Any, call: Callable[[Any], _Result]) -> _Result:
    """Call with the data, or with a random sample of a stream's rows."""
    if (stream := find(data)) is None:
        return call(data)
    _checks.rng_key("rng_key", rng_key)
    most = max(_LEAST_ROWS, _SAMPLE_BYTES // max(1, _sources.num_bytes(stream.first)))
    numbers = stream.draw(_random.fold_in(rng_key, _SAMPLE), min(_SAMPLE_ROWS, most))
    with _parts.rows(numbers, is_sample=True):
        return call(stream.take(numbers))


class Reader:
    """The chunks of a call of `Run.steps`: one is read while the one before is trained on.

    Use as a context, at whose end no thread is left. Of data in memory it gives them back.
    """

    def __init__(self, run: Rule, data: Any, num_steps: int, every: int) -> None:
        self._data, self._stream, self._run = data, find(data), run
        self._key: Array | None = None
        self._next: _Asked | None = None
        self._mean: Array | None = None
        self._step = 0
        self._halt = threading.Event()
        if self._stream is not None:
            batch_bytes = run.batch_size * max(1, _sources.num_bytes(self._stream.first))
            limit = max(1, self._stream.chunk_bytes // batch_bytes)
            self._sizes = _sizes(num_steps, every, limit)
            self._worker = concurrent.futures.ThreadPoolExecutor(1, "poejax-rows")

    def __enter__(self) -> Any:
        return self._data if self._stream is None else self

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._halt.set()
            self._worker.shutdown(wait=True, cancel_futures=True)

    def take(
        self, program: _run_steps.Program, state: TrainState, num_steps: int, average_weight: float
    ) -> tuple[TrainState, Metrics]:
        """Take steps on the rows that come next, as `_run_steps.take` does on all rows."""
        if self._key is None:
            self._start(state)
        good, seen, taken = state, [], 0
        while taken < num_steps:
            assert self._next is not None
            size, batches = self._next.size, self._next.batches.result()
            # Before the steps: a device would do first what it was told first.
            self._next = self._ask()
            state, metrics = _run_steps.take(
                program, state, Served(batches, self._mean), size, average_weight, good
            )
            seen.append(metrics)
            taken += size
        if len(seen) == 1:
            return state, seen[0]
        return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), *seen)

    def _start(self, state: TrainState) -> None:
        assert self._stream is not None
        if not _checks.is_concrete(state):
            raise TypeError("state: expected values, as rows are read for; got some under a trace")
        num_rows, batch_size = len(self._stream), self._run.batch_size
        if batch_size > num_rows:
            raise ValueError(
                f"batch_size: expected at most {num_rows} rows of data, got {batch_size}"
            )
        weights = self._stream.weights
        self._mean = None if weights is None else _run_steps.mean(weights)
        self._key, self._step = state.rng_key, int(state.step)
        self._next = self._ask()

    def _ask(self) -> _Asked | None:
        """Have the worker read the next chunk, if there is one."""
        size = next(self._sizes, None)
        if size is None:
            return None
        assert self._stream is not None
        numbers = _run_steps.row_numbers(
            self._key, self._step, size, self._run.batch_size, len(self._stream)
        )
        self._step += size
        # What belongs to a thread in JAX, and decides on what survives, goes along.
        is_wide = jax.dtypes.canonicalize_dtype(np.int64) == np.int64
        return _Asked(size, self._worker.submit(self._read, np.asarray(numbers), is_wide))

    def _read(self, numbers: np.ndarray, is_wide: bool) -> PyTree:
        assert self._stream is not None
        flat = numbers.reshape(-1)
        found = _sources.read(self._stream.source, flat, self._stream.first, self._halt.is_set)
        with jax.enable_x64(is_wide), _parts.rows(flat):
            rows = _border.tree("data", found)
            _require_same_kind(rows, found)
            _run_checks.check_rows(self._run.preprocess, rows)
            if self._run.preprocess is None:
                _run_checks.check_events(
                    self._run.estimator, self._run.model, None, rows, lambda: rows
                )
        return jax.tree.map(lambda leaf: leaf.reshape(*numbers.shape, *leaf.shape[1:]), rows)


class _Asked(NamedTuple):
    size: int
    batches: concurrent.futures.Future[PyTree]


def _sizes(num_steps: int, every: int, limit: int) -> Iterator[int]:
    """Yield the steps of each chunk: parts of what callbacks ask for, as equal as they can be."""
    for taken in range(0, num_steps, every):
        chunk = min(every, num_steps - taken)
        size = -(-chunk // -(-chunk // limit))
        for start in range(0, chunk, size):
            yield min(size, chunk - start)


def _require_same_kind(rows: PyTree, found: PyTree) -> None:
    """Raise where integers are too wide for JAX, and only some chunks would be taken as real."""
    for (path, leaf), before in zip(
        jax.tree_util.tree_leaves_with_path(rows), jax.tree.leaves(found), strict=True
    ):
        if before.dtype.kind in "iu" and leaf.dtype.kind == "f":
            held = jax.dtypes.canonicalize_dtype(before.dtype)
            raise ValueError(
                f"data{_checks.leaf_name(path)}: expected integers that {held} holds, got "
                f"{int(before.min())} to {int(before.max())}; store them as float64"
            )
