"""Every unit, kernel and learning rule obeys the laws of its kind."""

from __future__ import annotations

import jax
import pytest
from conformance_cases import ESTIMATORS, KERNELS, UNITS

from poejax.testing import check_estimator, check_kernel, check_unit

ALWAYS = {"jit", "vmap", "retrace"}
OF_UNITS = ALWAYS | {"shape", "states", "linear", "combine", "mean", "sample", "fit", "clamp"}
OF_UNITS |= {"values", "closed form", "reach", "tails"}
OF_KERNELS = ALWAYS | {"init", "step", "invariant", "moves", "clamp", "scan"}
OF_ESTIMATORS = ALWAYS | {"structure", "state", "weights", "scan"}
TOO_LARGE = {"gaussian-full", "standard-gaussians", "relus", "joint-of-joints"}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNITS)
def test_units(name):
    laws = OF_UNITS if name in TOO_LARGE else OF_UNITS | {"partition"}
    assert set(check_unit(UNITS[name], rng_key=jax.random.key(0))) == laws


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name):
    kernel, params = KERNELS[name]
    assert set(check_kernel(kernel, params, rng_key=jax.random.key(0))) == OF_KERNELS


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators(name):
    estimator, options = ESTIMATORS[name]
    found = set(check_estimator(estimator, rng_key=jax.random.key(0), **options))
    of_loss = name in {"pseudo", "flow", "ratio", "score", "denoising"}
    expected = {"loss"} if of_loss else {"descent", "gradient"} if options else {"descent"}
    assert found == OF_ESTIMATORS | expected
