"""Any table is taken right or refused by name, by every function that takes data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import table_cases as cases
from hypothesis import HealthCheck, given, settings

from poejax import _border

REAL, BINARY = dict(cases.real_functions()), dict(cases.binary_functions())
_SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def check(function: cases.Function, table: cases.Table) -> None:
    """Require one of two outcomes: a right result, or a short refusal that names the argument."""
    try:
        found = function.call(table.given)
    except (ValueError, TypeError, FloatingPointError) as error:
        message = str(error)
        assert message.startswith(function.names), f"{table.about}: {message}"
        assert len(message) < 400, f"{table.about}: {message[:400]}"
        return
    assert function.is_right(table.x, found), f"{table.about}: wrong in silence"


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@_SETTINGS
@given(table=cases.real_tables())
def test_real_tables_are_taken_right_or_refused(name: str, table: cases.Table) -> None:
    check(REAL[name], table)


@pytest.mark.slow
@pytest.mark.parametrize("name", BINARY)
@_SETTINGS
@given(table=cases.binary_tables())
def test_binary_tables_are_taken_right_or_refused(name: str, table: cases.Table) -> None:
    check(BINARY[name], table)


@pytest.mark.parametrize("name", ["init_from", "base_rate"])
def test_a_planted_narrowing_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = _border.array
    monkeypatch.setattr(_border, "array", lambda name, x: np.asarray(entry(name, x), np.float16))
    x = 1500 + 0.5 * np.random.default_rng(0).normal(size=(cases.ROWS, cases.COLUMNS))
    table = cases.Table(x, x, "float64 1500 +- 0.5")
    with pytest.raises(AssertionError, match="wrong in silence"):
        check(REAL[name], table)


@pytest.mark.slow
def test_ordinary_tables_are_taken() -> None:
    def fails(function: cases.Function, x: Any) -> bool:
        try:
            return not function.is_right(x, function.call(x))
        except (ValueError, TypeError):
            return True

    x = 300 + np.random.default_rng(0).normal(size=(cases.ROWS, cases.COLUMNS))
    assert not [name for name, function in REAL.items() if fails(function, x)]
    bits = (x > 300).astype(float)
    assert not [name for name, function in BINARY.items() if fails(function, bits)]
