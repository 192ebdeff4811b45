"""What rows can be read from, and what is refused because it has none."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from comparing import bitwise
from stream_cases import BITS, END, KEY, MODEL, RUN, START, STEPS, WEIGHTS, h5, saved

import poejax as pj
from poejax import streams
from poejax.streams import Rows
from poejax.types import Weighted


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda grain, x: x, lambda grain, x: grain.MapDataset.source(x)])
def test_grain_reads_rows(wrap):
    grain = pytest.importorskip("grain")
    rows = streams.from_grain(wrap(grain, BITS), chunk_bytes=3000)
    assert bitwise(RUN.steps(RUN.init(KEY, rows), rows, STEPS), END)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=3)
    twice = grain.MapDataset.source(BITS).map(lambda x: 1 - x)
    found = streams.from_grain(twice, options).take([5, 0, 5])
    np.testing.assert_array_equal(found, 1 - BITS[[5, 0, 5]])


def test_grain_must_give_every_row_by_its_number():
    grain = pytest.importorskip("grain")
    source = grain.MapDataset.source(BITS)
    with pytest.raises(TypeError, match=r"source: expected a grain.MapDataset .* got a Prefetch"):
        streams.from_grain(source.to_iter_dataset())
    with pytest.raises(ValueError, match=r"source: expected 1 to 2\*\*31 - 1 rows"):
        streams.from_grain(source.repeat())
    row = int(np.argmin(BITS[:, 0]))
    with pytest.raises(ValueError, match=f"data: expected a row, got None in row {row}"):
        streams.from_grain(source.filter(lambda x: x[0] > 0)).take([row])


@pytest.mark.parametrize(
    ("odd", "found"),
    [
        (np.zeros((3, 8), np.float32), r"\(8,\) and float32"),
        (np.zeros((3, 9)), r"\(9,\) and float64"),
    ],
)
def test_a_file_of_other_rows_is_refused(odd, found, tmp_path):
    paths = [saved(tmp_path, BITS), saved(tmp_path, odd, "odd.npy")]
    with pytest.raises(ValueError, match=rf"paths: expected rows of .* got {found} in .*odd.npy"):
        streams.from_files(paths)


def test_what_is_no_file_of_rows_is_refused(tmp_path):
    (tmp_path / "text.npy").write_text("a,b\n1,2\n")
    np.savez(tmp_path / "many.npz", a=BITS)
    for name in ("text.npy", "many.npz"):
        with pytest.raises(ValueError, match=rf"paths: expected .npy files .*{name}"):
            streams.from_files([tmp_path / name])
    with pytest.raises(ValueError, match=r"paths: expected .npy files with an array of rows"):
        streams.from_files([saved(tmp_path, np.float32(1))])
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        streams.from_files([tmp_path / "gone.npy"])
    with pytest.raises(ValueError, match="paths: expected at least one file"):
        streams.from_files([])
    with pytest.raises(TypeError, match=r"paths: expected a list of paths, got 'x\.npy'"):
        streams.from_files("x.npy")


def test_what_has_no_rows_is_refused(tmp_path):
    pandas = pytest.importorskip("pandas")
    for source, message in (
        ("x.npy", "expected rows, got 'x.npy'; streams.from_files"),
        (3, "expected something with a length and rows by number, got an int"),
        (None, "got None"),
        (pandas.DataFrame(BITS), "expected rows by number, got a DataFrame"),
        (h5(tmp_path, BITS).file, "expected rows by number, got a File of arrays by name"),
        (np.ma.masked_equal(BITS, 0), "expected an array without a mask"),
    ):
        with pytest.raises(TypeError, match=f"^source: .*{message}"):
            Rows(source)
    with pytest.raises(ValueError, match="source: expected one common number of rows"):
        Rows({"a": BITS, "b": BITS[:3]})
    with pytest.raises(ValueError, match=r"source: expected 1 to 2\*\*31 - 1 rows, got 0"):
        Rows([])
    with pytest.raises(ValueError, match="chunk_bytes: expected an integer"):
        Rows(BITS, 0)
    with pytest.raises(ValueError, match=r"numbers: expected some in \[0, 203\), got -1 to 3"):
        Rows(BITS).take([-1, 3])
    with pytest.raises(ValueError, match="numbers: expected integers"):
        Rows(BITS).take([0.5])


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (BITS[0, :8], r"float32\[9\], got float32\[8\] in row 50"),
        (BITS[0].astype(int), r"float32\[9\], got int64\[9\] in row 50"),
        ({"x": BITS[0]}, r"float32\[9\], got {x: float32\[9\]} in row 50"),
    ],
)
def test_a_row_unlike_the_first_is_named(odd, words):
    rows = Rows([*BITS[:50], odd, *BITS[50:]])
    with pytest.raises(ValueError, match=f"data: expected rows as row 0, {words}"):
        RUN.steps(START, rows, STEPS)


@pytest.mark.slow
def test_what_needs_rows_in_memory_says_so():
    rows, params = Rows(BITS), START.params
    for call in (
        lambda: pj.evidence.base_rate(MODEL, rows),
        lambda: pj.evidence.base_rate(MODEL, Weighted(rows, WEIGHTS)),
        lambda: pj.evidence.log_likelihood(MODEL, params, rows, 0.0),
        lambda: pj.mixtures.fit_em(KEY, rows, 2),
        lambda: pj.inference.rank(MODEL, params, rows),
        lambda: MODEL.init_from(KEY, rows),
    ):
        with pytest.raises(
            TypeError,
            match=r": expected an array in memory, got streams.Rows of 203 rows, .*\.sample\(rng",
        ):
            call()
    pj.evidence.base_rate(MODEL, rows.sample(KEY, 100))


def test_grain_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"from_grain needs grain: pip install poejax\[data\]"):
        streams.from_grain(BITS)
