"""Data of one's own: files read as they are, units found or told, numbers in the file's units."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from experiments import mnist_rbm
from experiments.lab import own_data, table_files

SMALL = dataclasses.replace(
    mnist_rbm.PRESETS["smoke"],
    num_epochs=2,
    epochs_per_report=1,
    num_hidden=4,
    batch_size=10,
    ais_steps=300,
    sample_steps=20,
)


def saved(path: Path, values: object) -> Path:
    np.save(path, np.asarray(values))
    return path


def load(path: Path, units: own_data.Units | None = None, binarization: str = "stochastic"):
    return own_data.load(path, units, binarization, 2)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "first{0}second{0}third\n", '\n"1st"{0}2{0}3\n'])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_files_as_programs_write_them(tmp_path, delimiter, header, end):
    path = tmp_path / "x.csv"
    values = np.array([[1.5, -2e9, 3], [0, 1e-300, 7]])
    rows = "\n".join(
        delimiter.join(f'"{v!r}"' if v == 3 else f"{v!r}" for v in r) for r in values.tolist()
    )
    text = f"\ufeff{header.format(delimiter)}{rows}\n\n"
    path.write_bytes(text.replace("\n", end).encode())
    table = table_files.read(path)
    np.testing.assert_array_equal(table.values, values)
    assert (table.names is None) == (header == "")
    assert (table.remarks == ()) == (header == "")


def test_csv_row_numbers_of_pandas_are_left_out(tmp_path):
    (tmp_path / "x.csv").write_text(",a,b\n0,5,6\n1,7,8\n")
    table = table_files.read(tmp_path / "x.csv")
    np.testing.assert_array_equal(table.values, [[5, 6], [7, 8]])
    assert table.names == ("a", "b")
    (tmp_path / "x.csv").write_text(",a,b\n3,5,6\n1,7,8\n")
    assert table_files.read(tmp_path / "x.csv").values.shape == (2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,2\n3\n4,5\n",
            r"expected 2 columns as in row 1, got 1 in row 2 \(line 3 of the file\)",
        ),
        ("1,2\n3,4,5\n", r"expected 2 columns as in row 1, got 3 in row 2 \(line 2"),
        (
            "a,b\n1,2\n\n3,x\n",
            r"expected a number, got 'x' in row 2 \(line 4 of the file\), column 2",
        ),
        ("1,\n3,4\n", r"expected a number, got '' in row 1 \(line 1 of the file\), column 2"),
        ("1,NA\n3,4\n", r"expected a number, got 'NA' in row 1"),
        ("a,b\n1,2\n3,nan\n", r"got nan in row 2, column 2 \(b\) \(counted from 1\), 1 in all"),
        ("1,2\n-inf,nan\n", r"got -inf in row 2, column 1 \(counted from 1\), 2 in all"),
        ("a,b\n", "expected rows in"),
        ("\n\n", "expected rows of numbers, got none"),
        ("", "expected rows of numbers, got none"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_named_by_its_place(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        table_files.read(tmp_path / "x.csv")


def test_other_files_that_cannot_be_read(tmp_path):
    cube = np.zeros((3, 2, 2))
    cube[1, 0, 1] = np.nan
    np.savez(tmp_path / "several.npz", a=cube, b=cube)
    np.save(tmp_path / "objects.npy", np.array([{}, {}], object), allow_pickle=True)
    for name, content in (
        ("cut.npz", b"PK\3\4"),
        ("cut.npy", b"\x93NUMPY"),
        ("x.csv", b"\xff\xfe1"),
    ):
        (tmp_path / name).write_bytes(content)
    for path, message in (
        (
            tmp_path / "several.npz",
            "several arrays, a, b, and none of them is called x, data, train",
        ),
        (tmp_path / "objects.npy", "cannot read .*objects.npy: .*allow_pickle=False"),
        (tmp_path / "cut.npz", "cannot read"),
        (tmp_path / "cut.npy", "cannot read"),
        (tmp_path / "x.csv", "cannot read .*x.csv: .*utf-8"),
        (saved(tmp_path / "text.npy", ["a", "b"]), "expected an array of numbers in .*<U1"),
        (saved(tmp_path / "complex.npy", [1j]), "expected an array of numbers"),
        (saved(tmp_path / "nan.npy", cube), r"got nan in row 2, column 2 \(counted from 1\)"),
        (saved(tmp_path / "one.npy", 3), "expected rows"),
        (saved(tmp_path / "few.npy", np.eye(9)), "expected at least 10 rows to split, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            load(path)
    (tmp_path / "x.txt").write_text("1 2")
    with pytest.raises(ValueError, match=r"ends in \.npy, \.npz or \.csv"):
        load(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match=r"found no file .*nothing\.npy"):
        load(tmp_path / "nothing.npy")
    np.savez(tmp_path / "named.npz", y=cube, data=np.eye(12))
    assert load(tmp_path / "named.npz").description["remarks"] == ["array 'data' of y, data"]


RNG = np.random.default_rng(0)
SQUARE = RNG.integers(0, 256, (20, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "units", "kind", "visible", "shape"),
    [
        (RNG.random((20, 5)) < 0.5, None, "bits", pj.units.Bernoulli(5), None),
        (RNG.integers(0, 2, (20, 64)), None, "bits", pj.units.Bernoulli(64), (8, 8)),
        (2.0 * RNG.integers(0, 2, (20, 3)) - 1, None, "bits", pj.units.Bernoulli(3), None),
        (SQUARE, None, "intensities", pj.units.Bernoulli(64), (8, 8)),
        (SQUARE.astype(np.float16)[:, :60], None, "intensities", pj.units.Bernoulli(60), None),
        (SQUARE.reshape(20, 4, 16, 1), None, "intensities", pj.units.Bernoulli(64), (4, 16)),
        (SQUARE / 255, None, "intensities", pj.units.Bernoulli(64), (8, 8)),
        (SQUARE.reshape(20, 8, 8) // 16, None, "intensities", pj.units.Bernoulli(64), (8, 8)),
        (SQUARE // 16, "bernoulli", "intensities", pj.units.Bernoulli(64), (8, 8)),
        (SQUARE // 16, None, "categories", pj.units.Categorical(64, 16), None),
        (SQUARE // 8 - 5, "categorical", "categories", pj.units.Categorical(64, 32), None),
        (SQUARE - 1, None, "reals", pj.units.GaussianDiag(64), None),
        (SQUARE * 2, None, "reals", pj.units.GaussianDiag(64), None),
        (SQUARE.reshape(20, 8, 8) - 0.5, None, "reals", pj.units.GaussianDiag(64), (8, 8)),
        (SQUARE, "gaussian", "reals", pj.units.GaussianDiag(64), None),
        (SQUARE[:, 0] / 7, None, "reals", pj.units.GaussianDiag(1), None),
        (SQUARE.reshape(20, 4, 4, 4) / 7, None, "reals", pj.units.GaussianDiag(64), None),
    ],
)
def test_units_are_found_or_told_and_said(tmp_path, values, units, kind, visible, shape):
    data = load(saved(tmp_path / "x.npy", values), units)
    assert (data.description["values"], data.visible, data.shape) == (kind, visible, shape)
    said = own_data.said(data)
    assert "\n" not in said
    assert f"20 rows of {visible.num_sites} columns" in said
    assert ("told --visible" if units else "--visible says otherwise") in said
    assert "16 rows to train, 2 to watch, 2 to test" in said
    # Each row is in one split, as an event that the model takes and that stands for its values.
    splits = (data.train, data.validation, data.test)
    x = jnp.concatenate([data.preprocess(jax.random.key(0), jnp.asarray(p)) for p in splits])
    visible.check("x", x)
    if kind in ("categories", "reals"):
        rows = {tuple(np.round(row, 3)) for row in values.reshape(20, -1).astype(float)}
        assert {tuple(np.round(row, 3)) for row in data.to_values(x).astype(float)} == rows


def test_units_that_the_values_are_not_are_refused(tmp_path):
    path = saved(tmp_path / "x.npy", SQUARE - 0.5)
    with pytest.raises(
        ValueError, match=r"visible: expected bits, or intensities .* from -0\.5 to"
    ):
        load(path, "bernoulli")
    with pytest.raises(ValueError, match="visible: expected 2 to 64 different whole numbers"):
        load(path, "categorical")
    with pytest.raises(ValueError, match="visible: expected 2 to 64 different whole numbers"):
        load(saved(tmp_path / "y.npy", SQUARE), "categorical")
    constant = SQUARE + 0.5
    constant[:, [2, 7]] = 0.1
    with pytest.raises(
        ValueError, match=r"variance above 0 .* column 3, column 8 \(counted from 1\)"
    ):
        load(saved(tmp_path / "z.npy", constant))
    (tmp_path / "z.csv").write_text("a,b\n" + "".join(f"{i + 0.5},1e300\n" for i in range(10)))
    with pytest.raises(ValueError, match=r"got none in column 2 \(b\)"):
        load(tmp_path / "z.csv")


@pytest.mark.parametrize("binarization", ["stochastic", "threshold"])
def test_intensities_of_any_scale_are_the_same_bits(tmp_path, binarization):
    fine = np.repeat(np.array([[0, 1, 127, 128, 254, 255]], np.uint8), 8000, axis=0)
    means = []
    for values in (fine, fine.astype(float), fine / 255):
        data = load(saved(tmp_path / "x.npy", values), "bernoulli", binarization)
        assert data.train.dtype == (np.float32 if values.max() == 1 else np.uint8)
        means.append(data.preprocess(jax.random.key(0), jnp.asarray(data.train)).mean(axis=0))
    p = fine[0] / 255 if binarization == "stochastic" else (fine[0] > 127).astype(float)
    for mean in means:
        assert np.abs((mean - p) * np.sqrt(6400) / np.maximum(np.sqrt(p * (1 - p)), 1e-9)).max() < 4


@pytest.mark.parametrize("offset", [0.0, 300.0, 1e4, 1e6])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_standard_units_lose_nothing_far_from_zero(tmp_path, offset, scale):
    z = RNG.standard_normal((50, 3))
    v = scale * (offset + z)
    data = load(saved(tmp_path / "x.npy", v), "gaussian")
    order = np.random.RandomState(0).permutation(50)
    train = v[order[:40]]
    expected = (train - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(data.train, expected, atol=1e-6)
    assert data.log_volume == pytest.approx(np.log(train.std(axis=0)).sum(), rel=1e-6)
    np.testing.assert_allclose(data.to_values(data.train), train, atol=2e-6 * scale)


@pytest.mark.slow
def test_real_values_end_to_end_in_the_units_of_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    z = RNG.standard_normal((60, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]])
    v = 1e6 + np.array([1e3, 1e-2]) * z
    saved(tmp_path / "x.npy", v)
    results = mnist_rbm.train_and_evaluate(
        dataclasses.replace(SMALL, data=Path("x.npy")), tmp_path / "run"
    )
    assert f"{tmp_path / 'x.npy'}: 60 rows of 2 columns" in capsys.readouterr().out
    figures = {p.name for p in (tmp_path / "run" / "figures").iterdir()}
    assert figures == {"curves.png", "marginals.png", "moments.png"}
    # The exact log-likelihood of the model that was kept, as a density of v.
    stored = json.loads((tmp_path / "run" / "data.json").read_text())
    assert stored == results["data"]
    mean, std = np.asarray(stored["mean"]), np.asarray(stored["std"])
    model = pj.models.gaussian_rbm(2, 4)
    params = pj.checkpoint.load_params(tmp_path / "run" / "params")
    order = np.random.RandomState(0).permutation(60)
    for split, rows in (("train", v[order[:-12]]), ("test", v[order[-6:]])):
        x = jnp.asarray((rows - mean) / std, jnp.float32)
        exact = jax.vmap(lambda row: pj.exact.log_prob(model, params, row))(x).mean()
        for side in ("", "reverse_"):
            error = results[f"{side}{split}_log_likelihood"] - (float(exact) - np.log(std).sum())
            assert abs(error) < 4 * max(results[f"{side}log_z_std_err"], 1e-4)
            low, high = results[f"{side}{split}_interval"]
            assert low < results[f"{side}{split}_log_likelihood"] < high
    # The file is part of the run.
    saved(tmp_path / "x.npy", z)
    resumed = dataclasses.replace(SMALL, data=Path("x.npy"), resume=True)
    with pytest.raises(ValueError, match=r"x\.npy is not what the run began with: crc32"):
        mnist_rbm.train_and_evaluate(resumed, tmp_path / "run")


@pytest.mark.slow
def test_categories_end_to_end(tmp_path):
    path = tmp_path / "survey.csv"
    rows = RNG.integers(1, 4, (60, 3))
    np.savetxt(path, rows, fmt="%d", delimiter=",", header="a,b,c", comments="")
    results = mnist_rbm.train_and_evaluate(dataclasses.replace(SMALL, data=path), tmp_path / "s")
    model = mnist_rbm.build(dataclasses.replace(SMALL, data=path)).run.model
    assert model.visible == pj.units.Categorical(3, 3)
    params = pj.checkpoint.load_params(tmp_path / "s" / "params")
    test = rows[np.random.RandomState(0).permutation(60)[-6:]] - 1
    exact = jax.vmap(lambda x: pj.exact.log_prob(model, params, x))(jax.nn.one_hot(test, 3)).mean()
    error = results["test_log_likelihood"] - float(exact)
    assert abs(error) < 4 * max(results["log_z_std_err"], 1e-4)
    assert results["data"]["levels"] == [1, 2, 3]
    assert (tmp_path / "s" / "figures" / "marginals.png").stat().st_size > 5_000


def test_a_folder_of_idx_files_keeps_its_splits(tmp_path):
    folder = tmp_path / "clothes"
    folder.mkdir()
    for part in ("train", "t10k"):
        for kind, inner in (("images-idx3", (6, 5)), ("labels-idx1", ())):
            header = struct.pack(f">BBBB{1 + len(inner)}I", 0, 0, 8, 1 + len(inner), 30, *inner)
            body = RNG.integers(0, 256, (30, *inner), np.uint8).tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + body)
    config = dataclasses.replace(SMALL, data=folder, num_validation=5)
    data = mnist_rbm.build(config).data
    assert [len(part) for part in (data.train, data.validation, data.test)] == [25, 5, 30]
    assert (data.name, data.shape, data.visible) == ("clothes", (6, 5), pj.units.Bernoulli(30))
    assert "60 rows of 30 columns, images of 6 x 5; a folder of IDX files" in own_data.said(data)
    with pytest.raises(ValueError, match="visible: expected bernoulli for a folder of images"):
        load(folder, "gaussian")


def test_copies_are_warped_of_images_of_intensities_alone(tmp_path):
    rng, name = np.random.default_rng(0), str(tmp_path / "x.npy")
    config = dataclasses.replace(
        mnist_rbm.PRESETS["smoke"], data=tmp_path / "x.npy", batch_size=5, warped_copies=1
    )
    for values in (
        rng.integers(0, 2, (40, 8, 8)),  # of bits nothing but zeros would be left
        rng.normal(size=(40, 64)),
        rng.integers(0, 255, (40, 12, 16, 3)),
    ):
        np.save(name, values)
        with pytest.raises(ValueError, match="warped_copies: expected 0, as x"):
            mnist_rbm.build(config)
    np.save(name, rng.integers(0, 255, (40, 8, 8)))
    assert mnist_rbm.build(config).data.shape == (8, 8)
