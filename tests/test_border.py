"""Where data enter: what is converted, what is looked at before it narrows, what messages say."""

from __future__ import annotations

import gc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import poejax as pj
from poejax import _border

RNG = np.random.default_rng(0)
BITS = (RNG.random((30, 4)) < 0.4).astype(np.float32)


class Rows(NamedTuple):
    x: object
    age: object


def pandas_frames():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(BITS.astype(float), columns=list("abcd"))
    yield frame, BITS
    yield frame.astype({"a": bool, "b": "Int64", "c": "float32"}), BITS
    yield frame["a"], BITS[:, 0]
    missing = frame.astype("boolean")
    missing.iloc[3, 1] = pd.NA
    wanted = BITS.copy()
    wanted[3, 1] = np.nan
    yield missing, wanted


def polars_frames():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": [1.5, 2.0], "b": [True, None], "c": [3, None]})
    yield frame, [[1.5, 1, 3], [2, np.nan, np.nan]]
    yield frame["a"], [1.5, 2.0]


def torch_tensors():
    torch = pytest.importorskip("torch")
    bits = torch.tensor(BITS)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool):
        yield bits.to(dtype), BITS
    yield bits.requires_grad_(), BITS
    yield bits.detach().to_sparse(), BITS


def other_arrays():
    sparse = pytest.importorskip("scipy.sparse")
    yield sparse.csr_matrix(BITS), BITS
    yield sparse.coo_array(BITS), BITS
    yield np.ma.array(BITS, mask=False), BITS
    for dtype in (">f4", ">i8", np.longdouble, "<f8"):
        yield BITS.astype(dtype), BITS


@pytest.mark.parametrize("make", [pandas_frames, polars_frames, torch_tensors, other_arrays])
def test_arrays_of_other_libraries_are_read(make):
    for given, wanted in make():
        found = _border.array("x", given)
        assert type(found) is np.ndarray
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, wanted)
        jnp.asarray(found)


def test_files_on_disk_are_read(tmp_path):
    np.save(tmp_path / "x.npy", BITS)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(_border.array("x", mapped), mapped)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = BITS.astype(">f8")
        np.testing.assert_array_equal(_border.array("x", file["x"]), BITS)


def test_arrays_that_jax_takes_pass_untouched():
    keys = jax.random.split(jax.random.key(0), 3)
    for x in (jnp.ones(3), keys, jax.ShapeDtypeStruct((2,), float), BITS):
        assert _border.array("x", x) is x
    jax.jit(lambda x: _border.array("x", x))(jnp.ones(3))


def test_integers_that_would_wrap_become_floats():
    wide = np.array([[2**40, 1]])
    np.testing.assert_array_equal(_border.array("x", wide), wide.astype(float))
    assert _border.array("x", wide % 2**31).dtype == np.int64
    with jax.enable_x64(True):
        assert _border.array("x", wide).dtype == np.int64


def test_leaves_are_named():
    found = _border.tree("data", {"image": BITS.astype(">f4"), "rows": Rows(BITS, BITS[:, 0])})
    assert found["image"].dtype == np.float32
    assert isinstance(found["rows"], Rows)
    with pytest.raises(TypeError, match=r"^data\['rows'\]\.age: expected an array, got a str$"):
        _border.tree("data", {"rows": Rows(BITS, "old")})
    with pytest.raises(TypeError, match=r"^data\['image'\]: expected an array, got a list; use nu"):
        _border.tree("data", {"image": [[1.0]]})


def masked():
    return np.ma.array(BITS, mask=BITS > 0)


def huge_sparse():
    return pytest.importorskip("scipy.sparse").csr_array((10**6, 10**6))


def table(**columns):
    return pytest.importorskip("pandas").DataFrame({"a": [0.0, 1.0], **columns})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [[0, 1]], "x: expected an array, got a list; use numpy.asarray"),
        (lambda: {"x": BITS}, "x: expected an array, got a dict"),
        (lambda: None, "x: expected an array, got None"),
        (lambda: "BITS", "x: expected an array, got a str"),
        (object, "x: expected an array, got an object"),
        (lambda: BITS.astype(complex), "x: expected real numbers, got dtype complex128"),
        (lambda: BITS.astype(object), "x: expected real numbers, got dtype object"),
        (lambda: BITS.astype(str), "x: expected real numbers, got dtype <U32"),
        (lambda: BITS.astype("M8[s]"), r"x: expected real numbers, got dtype datetime64\[s\]"),
        (lambda: jnp.ones(3, complex), "x: expected real numbers, got dtype complex64"),
        (masked, r"x: expected no masked entries, got \d+; use estimators.Incomplete or fill them"),
        (huge_sparse, "x: expected a dense array, .* got shape .1000000, 1000000. of 7450.6 GiB"),
        (lambda: table(b=["u", "v"]), "x: expected numeric or boolean columns, got column 'b' of"),
        (
            lambda: table(when=np.array(["2020", "2021"], "M8[s]")),
            "x: expected numeric or boolean columns, got column 'when' of dtype datetime64",
        ),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_in_one_line(make, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as caught:
        _border.array("x", make())
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_value_that_is_not_finite_is_quoted_with_its_place(convert, value):
    x = BITS.copy()
    x[7, 2] = x[9, 0] = value
    with pytest.raises(ValueError, match=rf"^x: expected finite values, got {value} in row 7, col"):
        _border.narrow("x", convert(x))
    with pytest.raises(ValueError, match=rf"^p: expected finite values, got {value} at \[7, 2\]$"):
        pj._checks.finite("p", convert(x))


def test_a_wrong_value_far_down_is_found_in_chunks():
    x = np.zeros((40_000, 9), np.uint8)
    x[39_999, 3] = 200
    unit = pj.units.Bernoulli(9)
    unit.check("x", x % 2)
    for given in (x, jnp.asarray(x)):
        with pytest.raises(ValueError, match="got 200 in row 39999, column 3"):
            unit.check("x", given)


def test_one_hot_rows_say_what_is_wrong_with_them():
    unit = pj.units.Categorical(3, 4)
    x = np.eye(4, dtype=np.uint8)[RNG.integers(0, 4, (20, 3))]
    unit.check("x", x)
    for row, message in (
        ([0, 0, 0, 0], "got a row of sum 0 in row 11, site 2"),
        ([1, 0, 1, 0], "got a row of sum 2 in row 11, site 2"),
        ([0, 3, 0, 0], "got 3 in row 11, site 2, class 1"),
    ):
        bad = x.copy()
        bad[11, 2] = row
        with pytest.raises(
            ValueError, match=f"x: expected one-hot rows for Categorical.* {message}"
        ):
            unit.check("x", bad)


@pytest.mark.parametrize("offset", [0, 300, 1e4, 1e6])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_only_digits_that_matter_are_missed(offset, scale, dtype):
    with np.errstate(over="ignore"):
        x = (offset + scale * RNG.normal(size=(50, 3))).astype(dtype)
    if not np.isfinite(x).all():
        pytest.skip("beyond the dtype")
    rounding = np.abs(x.astype(float) - x.astype(np.float32).astype(float)).max(axis=0)
    spread = x.astype(float).std(axis=0)
    lost = np.flatnonzero(rounding > 0.01 * spread)
    if len(lost):
        message = (
            f"^x: expected columns whose spread float32 resolves, got column {lost[0]} of mean"
        )
        with pytest.raises(ValueError, match=message) as caught:
            _border.narrow("x", x, real=True)
        assert "subtract the column's mean in float64 first, or set jax_enable_x64" in str(
            caught.value
        )
    else:
        np.testing.assert_array_equal(_border.narrow("x", x, real=True), x.astype(np.float32))
    with jax.enable_x64(True):
        assert _border.narrow("x", x, real=True).dtype == dtype


def test_integers_pass_where_they_come_out_exactly():
    steps = np.arange(40).reshape(20, 2)
    exact = _border.narrow("x", 2**26 + 8 * steps, real=True)
    np.testing.assert_array_equal(exact.astype(np.float32).astype(int), 2**26 + 8 * steps)
    for given in (2**26 + steps, jnp.asarray(2**26 + steps), 2**40 + steps):
        with pytest.raises(ValueError, match="x: expected columns whose spread float32 resolves"):
            _border.narrow("x", given, real=True)


def test_constants_and_single_rows_lose_nothing():
    for x in (np.full((5, 2), 0.1), np.array([[2460000.123456, 0.1]]), np.full((5, 2), 0.1 + 0.2)):
        _border.narrow("x", x, real=True)


def test_what_overflows_is_refused():
    x = np.ones((4, 2))
    x[2, 1] = -1e39
    with pytest.raises(
        ValueError, match=r"x: expected magnitudes of at most 3.4e\+38, as float32 h"
    ):
        _border.narrow("x", x)
    x[2, 1] = 1e20
    np.testing.assert_array_equal(_border.narrow("x", x), x.astype(np.float32))
    for given in (x, x.astype(np.float32), jnp.asarray(x)):
        with pytest.raises(
            ValueError, match=r"whose squares float32 holds, got .*e\+?\d+ in row 2"
        ):
            _border.narrow("x", given, real=True)
    with jax.enable_x64(True):
        _border.narrow("x", x, real=True)


@pytest.mark.parametrize("constant", [0.0, 1e-30, 300.7, -1e6, 1e30])
@pytest.mark.parametrize("convert", [np.float64, np.float32, jnp.asarray])
def test_a_constant_column_is_named_whatever_the_constant(constant, convert):
    x = RNG.normal(size=(50, 3))
    _border.require_spread("x", convert(x))
    x[:, 1] = constant * (1 + 1e-8 * RNG.normal(size=50))
    with pytest.raises(
        ValueError, match=r"^x: expected variance in every column, got column 1 con"
    ):
        _border.require_spread("x", convert(x))
    # As narrow beside its mean as float32 still tells apart.
    x[:, 1] = constant + (abs(constant) * 1e-4 + 1e-30) * RNG.normal(size=50)
    _border.require_spread("x", convert(x))


def test_device_arrays_are_looked_at_once_and_host_arrays_every_time():
    calls = []
    device, host = jnp.asarray(BITS), BITS.copy()
    for x, expected in ((device, 1), (host, 3), ({"a": device, "b": host}, 3)):
        calls.clear()
        for _ in range(3):
            _border.once(x, "anything", lambda: calls.append(1))
        assert len(calls) == expected
    _border.once(device, "something else", lambda: calls.append(1))
    assert len(calls) == 4

    def fail():
        raise ValueError("x")

    for _ in range(2):  # what failed is looked at again
        with pytest.raises(ValueError, match="x"):
            _border.once(device, "failing", fail)
    size = len(_border._passed)
    del device, x
    gc.collect()
    assert len(_border._passed) < size
