"""Rows that are read as training comes to them: the same run, bitwise, from wherever they come."""

from __future__ import annotations

import itertools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import bitwise
from stream_cases import (
    BATCH,
    BITS,
    END,
    GREY,
    KEY,
    MODEL,
    NUM,
    RNG,
    RUN,
    START,
    STEPS,
    TX,
    WEIGHTS,
    h5,
    saved,
)

import poejax as pj
from poejax import _parts, _run_steps, _run_streams, datasets, estimators, streams, training
from poejax.streams import Rows
from poejax.types import Weighted


def same_run(run, data, rows, steps=STEPS) -> bool:
    """Whether a run on `rows` starts and ends as one on `data` in memory."""
    starts = run.init(KEY, data), run.init(KEY, rows)
    ends = run.steps(starts[0], data, steps), run.steps(starts[1], rows, steps)
    return bitwise(*starts) and bitwise(*ends)


def joined(folder, array):
    cuts = [0, 70, 70, 71, 140, len(array)]
    parts = enumerate(itertools.pairwise(cuts))
    paths = [saved(folder, array[a:b], f"{i}.npy") for i, (a, b) in parts]
    return streams.from_files(paths).source


SOURCES = {
    "array": lambda folder, x: x,
    "float64": lambda folder, x: x.astype(float),
    "memmap": lambda folder, x: np.load(saved(folder, x), mmap_mode="r"),
    "h5py": h5,
    "files": joined,
    "list": lambda folder, x: list(x),
    "lists of numbers": lambda folder, x: x.tolist(),
    "device": lambda folder, x: jnp.asarray(x),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("chunk_bytes", [1, 3 * BATCH * 36, 2**26])
def test_a_run_is_that_on_rows_in_memory_wherever_they_lie(name, chunk_bytes, tmp_path):
    rows = Rows(SOURCES[name](tmp_path, BITS), chunk_bytes)
    start = RUN.init(KEY, rows)
    assert bitwise(start, START)
    assert bitwise(RUN.steps(start, rows, STEPS), END)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 7, 20, None])
def test_callbacks_and_resumed_runs_see_the_same_states(every):
    rows, seen, expected = Rows(BITS, 3 * BATCH * 36), [], []
    RUN.steps(START, BITS, 15, lambda *args: expected.append(args), every)
    RUN.steps(START, rows, 15, lambda *args: seen.append(args), every)
    assert bitwise(seen, expected)
    state, _ = RUN.steps(START, rows, 13)
    state, _ = RUN.steps(state, BITS, 15)
    assert bitwise(RUN.steps(state, rows, STEPS - 28)[0], END[0])


@pytest.mark.slow
def test_a_run_resumes_from_a_checkpoint_in_the_middle_of_an_epoch(tmp_path):
    rows = Rows(BITS, 3000)
    state, _ = RUN.steps(START, rows, 33)
    pj.checkpoint.save(tmp_path, state)
    state = pj.checkpoint.restore(tmp_path, RUN.init(jax.random.key(5), rows))
    assert bitwise(RUN.steps(state, rows, STEPS - 33)[0], END[0])


@pytest.mark.slow
def test_the_functions_of_training_take_rows_too():
    rows, rule = Rows(BITS, 3000), RUN.estimator
    state = training.init(KEY, MODEL, rule, TX, rows, average=True)
    assert bitwise(training.train_steps(rule, TX, state, rows, BATCH, STEPS), END)


def test_the_order_is_that_of_every_row_once_an_epoch_and_one_row_off_is_seen(monkeypatch):
    found = np.asarray(_run_steps.row_numbers(KEY, 0, 20, BATCH, NUM)).ravel()
    assert len(np.unique(found)) == 20 * BATCH
    late = np.asarray(_run_steps.row_numbers(KEY, 3, 17, BATCH, NUM)).ravel()
    np.testing.assert_array_equal(late, found[3 * BATCH :])
    row_numbers = _run_steps.row_numbers
    monkeypatch.setattr(_run_steps, "row_numbers", lambda *a: (row_numbers(*a) + 1) % NUM)
    assert not bitwise(RUN.steps(START, Rows(BITS), STEPS), END)
    monkeypatch.setattr(_run_steps, "row_numbers", lambda k, i, *a: row_numbers(k, i + 1, *a))
    assert not bitwise(RUN.steps(START, Rows(BITS), STEPS), END)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_the_order_is_the_same_under_other_generators(impl):
    state = START._replace(rng_key=jax.random.key(0, impl=impl))
    expected = RUN.steps(state, BITS, 25)
    assert bitwise(RUN.steps(state, Rows(BITS, 3000), 25), expected)


@pytest.mark.slow
def test_intensities_become_events_as_they_are_trained_on(tmp_path):
    run = training.Run(estimators.pcd(MODEL, 20), TX, BATCH, preprocess=datasets.stochastic)
    rows = Rows(np.load(saved(tmp_path, GREY), mmap_mode="r"), 300)
    assert same_run(run, GREY, rows)
    with pytest.raises(TypeError, match=r"data: expected intensities 0..255 of dtype uint8"):
        run.steps(run.init(KEY, GREY), Rows(GREY / 255), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, w: Weighted(Rows(x, 900), w),
        lambda x, w: Weighted(Rows(list(x), 900), jnp.asarray(w)),
        lambda x, w: Rows(Weighted(x, w), 900),
        lambda x, w: Rows([Weighted(*pair) for pair in zip(x, w, strict=True)], 900),
    ],
)
def test_weights_come_beside_rows_or_inside_them(wrap):
    run = training.Run(estimators.pcd(MODEL, 20), TX, BATCH)
    assert same_run(run, Weighted(BITS, WEIGHTS), wrap(BITS, WEIGHTS))
    sparse = np.where(np.arange(NUM) < 20, WEIGHTS, 0.0)  # whole chunks have no weight
    state = run.init(KEY, Weighted(BITS, sparse))
    expected = run.steps(state, Weighted(BITS, sparse), 60)
    assert bitwise(run.steps(state, wrap(BITS, sparse), 60), expected)
    with pytest.raises(ValueError, match=r"data.weights: expected finite numbers >= 0.*row 7"):
        run.steps(START, wrap(BITS, np.where(np.arange(NUM) == 7, -1.0, 1.0)), 3)


@pytest.mark.slow
@pytest.mark.parametrize("is_inside", [True, False])
def test_rows_may_be_dicts(is_inside):
    visible = pj.units.Joint(image=pj.units.Bernoulli(9), label=pj.units.Categorical(1, 3))
    model = pj.product(visible, bias=pj.experts.Bias(visible))
    labels = np.eye(3, dtype=np.float32)[RNG.integers(0, 3, (NUM, 1))]
    data = {"image": BITS, "label": labels}
    inside = [{"image": x, "label": y} for x, y in zip(BITS, labels, strict=True)]
    rows = Rows(inside if is_inside else data, 900)
    assert same_run(training.Run(estimators.cd(model), TX, BATCH), data, rows)


@pytest.mark.slow
def test_rows_with_masks_are_taken():
    observed = RNG.random(BITS.shape) < 0.7
    data = estimators.Incomplete(np.where(observed, BITS, np.nan).astype(np.float32), observed)
    rule = estimators.imputed(estimators.cd(MODEL), MODEL, num_steps=2)
    run = training.Run(rule, TX, BATCH)
    assert same_run(run, data, Rows(data, 900))
    bad = data.x.copy()
    bad[88] = np.where(observed[88], 3, np.nan)
    with pytest.raises(ValueError, match=r"^data.x: .* got 3.0 in row 88"):
        run.steps(run.init(KEY, data), Rows(data._replace(x=bad), 900), 21)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_bytes", [1, 900, 2**26])
@pytest.mark.parametrize(("value", "got"), [(9.0, "got 9.0"), (np.nan, "got nan")])
def test_a_stray_value_is_named_with_its_row_in_the_source(value, got, chunk_bytes):
    x = BITS.copy()
    number = int(np.asarray(_run_steps.row_numbers(START.rng_key, 0, 20, BATCH, NUM))[12, 3])
    x[number, 4] = value
    seen = []
    with pytest.raises(ValueError, match=f"^data: .* {got} in row {number}, column 4"):
        RUN.steps(START, Rows(x, chunk_bytes), 60, lambda s, m: seen.append(int(s.step)), every=5)
    assert seen == [5, 10]
    with pytest.raises(ValueError, match=f"^data: .* {got} in row {number}, column 4"):
        RUN.init(KEY, Rows(x))


def init_numbers(rows, rng_key):
    numbers = []
    _run_streams.on_sample(rng_key, rows, lambda x: numbers.extend(map(_parts.number, range(8192))))
    return numbers


@pytest.mark.slow
def test_a_start_looks_at_a_sample_of_rows_that_is_a_function_of_the_key():
    many = (np.random.default_rng(1).random((9000, 9)) < 0.3).astype(np.float32)
    rows = Rows(many)
    numbers = rows.draw(KEY, 8192)
    assert len(np.unique(numbers)) == 8192
    assert (np.diff(numbers) > 0).all()
    np.testing.assert_array_equal(numbers, rows.draw(KEY, 8192))
    assert not np.array_equal(numbers, rows.draw(jax.random.key(1), 8192))
    np.testing.assert_array_equal(rows.sample(KEY, 50), many[rows.draw(KEY, 50)])
    np.testing.assert_array_equal(rows.sample(KEY, 9001), many)
    offsets = RUN.init(KEY, rows).estimator_state.visible_offset
    assert bitwise(RUN.init(KEY, rows).estimator_state.visible_offset, offsets)
    all_rows = RUN.init(KEY, many).estimator_state.visible_offset
    assert 0 < np.abs(offsets - all_rows).max() < 0.01
    seen = numbers[1000]
    many[seen] = 7
    key = next(k for k in map(jax.random.key, range(9)) if seen in init_numbers(rows, k))
    with pytest.raises(ValueError, match=rf"^data: .* got 7.0 in row {seen}, column 0"):
        RUN.init(key, rows)


def test_real_rows_are_checked_by_columns_at_the_start_only():
    model = pj.models.gaussian_rbm(3, 2)
    x = 1000 + np.random.default_rng(2).normal(size=(60, 3))
    run = training.Run(estimators.cd(model), optax.sgd(1e-6), 2)
    start = run.init(KEY, x - 1000)
    close = np.round(x[:1] + np.arange(60)[:, None] * 1e-9, 12)  # no pair that float32 tells apart
    mixed = np.concatenate([close, x])
    run.steps(start, Rows(mixed - 1000, 1), 50)
    with pytest.raises(ValueError, match=r"data: expected columns whose spread float32 resolves"):
        run.init(KEY, Rows(close))
    with pytest.raises(ValueError, match="data: expected variance in every column, got column 1"):
        run.init(KEY, Rows(x * [1, 0, 1]))


@pytest.mark.slow
def test_too_few_rows_and_wide_integers_are_refused():
    with pytest.raises(ValueError, match="batch_size: expected at most 5 rows of data, got 10"):
        RUN.steps(START, Rows(BITS[:5]), 3)
    wide = BITS.astype(np.int64)
    assert bitwise(RUN.steps(START, Rows(wide, 900), 25), RUN.steps(START, wide, 25))
    wide[3, 3] = 2**40
    with pytest.raises(ValueError, match="data: expected integers that int32 holds"):
        RUN.steps(START, Rows(wide, 900), 25)


class Slow:
    """Rows that take time, or fail at one."""

    def __init__(self, seconds=0.0, bad=None):
        self.seconds, self.bad, self.read = seconds, bad, 0

    def __len__(self):
        return NUM

    def __getitem__(self, i):
        time.sleep(self.seconds)
        self.read += 1
        if i == self.bad:
            raise OSError(f"row {i} is on a disk that is gone")
        return BITS[i]


def threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("poejax")]


@pytest.mark.slow
def test_an_error_of_the_reader_surfaces_as_it_is_once_its_rows_are_due():
    number = int(np.asarray(_run_steps.row_numbers(START.rng_key, 0, 20, BATCH, NUM))[12, 3])
    seen = []
    with pytest.raises(OSError, match=f"row {number} is on a disk that is gone"):
        RUN.steps(START, Rows(Slow(bad=number), 1), 60, lambda s, m: seen.append(s), every=5)
    assert [int(state.step) for state in seen] == [5, 10]
    assert bitwise(seen[-1], RUN.steps(START, BITS, 10)[0])
    assert not threads()


def test_at_most_one_chunk_is_read_ahead_and_an_interrupt_leaves_no_thread():
    source, seen = Slow(), []

    def interrupt(state, metrics):
        time.sleep(0.2)
        seen.append(source.read)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RUN.steps(START, Rows(source, 2 * BATCH * 36), 200, interrupt, every=2)
    # Row 0, for its shape, and chunks of two batches: one ahead of those that were trained on.
    assert seen == [1 + 2 * BATCH * (i + 2) for i in range(3)]
    assert not threads()


def test_a_slow_read_is_given_up():
    source = Slow(seconds=0.002)
    rows = Rows(source, 2**26)
    started = time.perf_counter()
    with _run_streams.Reader(RUN, rows, 20_000, 20_000) as reader:
        reader._start(START)  # what is asked for is 200,000 rows, of which 1,024 take two seconds
    assert source.read <= NUM + 1
    assert time.perf_counter() - started < 100
    assert not threads()


def test_chunks_of_one_size_compile_once(compiles_nothing):
    rows = Rows(BITS, 5 * BATCH * 36)
    state, _ = RUN.steps(START, rows, 15)
    with compiles_nothing():
        RUN.steps(state, Rows(1 - BITS, 5 * BATCH * 36), 15)


@pytest.mark.slow
def test_a_step_that_is_not_finite_names_the_last_state_in_hand():
    run = training.Run(
        estimators.cd(MODEL), optax.sgd(lambda step: jnp.where(step < 7, 0.1, jnp.nan)), BATCH
    )
    state = run.init(KEY, BITS)
    messages = []
    for data in (BITS, Rows(BITS, 1)):
        with pytest.raises(FloatingPointError) as error:
            run.steps(state, data, 20)
        messages.append(str(error.value))
        assert "at step 8; the state passed in (step 0)" in messages[-1]
    assert messages[0] == messages[1]


@pytest.mark.slow
def test_a_run_in_double_precision_is_that_in_memory():
    with jax.enable_x64(True):
        model = pj.models.gaussian_rbm(3, 2)
        x = 1e9 + np.random.default_rng(2).normal(size=(60, 3))  # which float32 does not hold
        params = model.init_from(KEY, x)
        run = training.Run(estimators.cd(model), optax.sgd(1e-3), 7)
        starts = [run.init(KEY, data, params) for data in (x, Rows(x))]
        ends = [run.steps(starts[0], data, 20) for data in (x, Rows(x, 1))]
    assert bitwise(*starts)
    assert bitwise(*ends)
    assert ends[0][0].params["hidden"]["w"].dtype == np.float64
