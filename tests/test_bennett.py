"""Bennett's ratio between samples of two models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poejax import tempering


def test_bennett_between_gaussians():
    # log Z of exp(-½ x² / s²) is ½ log 2π s².
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(100):
        a, b = rng.normal(0, 1, 400), rng.normal(1, 0.5, 100)

        def u(x):
            return -0.5 * ((x - 1) / 0.5) ** 2 + 0.5 * x**2 + 300

        found = tempering.bennett(jnp.asarray(u(a)), jnp.asarray(u(b)))
        errors.append((float(found.log_ratio) - 300 - np.log(0.5)) / float(found.std_err))
    assert abs(np.mean(errors)) < 3.5 * np.std(errors) / 10
    assert 0.8 < np.std(errors) < 1.25


def test_bennett_knows_chains_from_samples():
    # Chains that do not move are one sample each.
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 50), rng.normal(0.5, 1, 50)
    u = (
        jnp.asarray(0.5 * a**2 - 0.5 * (a - 0.5) ** 2),
        jnp.asarray(0.5 * b**2 - 0.5 * (b - 0.5) ** 2),
    )
    one = tempering.bennett(*u)
    many = tempering.bennett(*(jnp.tile(v, (100, 1)) for v in u))
    assert float(many.log_ratio) == pytest.approx(float(one.log_ratio), abs=1e-5)
    assert 0.7 < float(many.std_err) / float(one.std_err) < 1.4


def test_bennett_is_differentiated_by_its_equation_and_sums_in_float32():
    rng = np.random.default_rng(0)
    up, down = (jnp.asarray(rng.normal(size=8), jnp.float32) for _ in range(2))

    def ratio(s):
        return tempering.bennett(up + s * jnp.arange(8.0), down).log_ratio

    assert float(jax.grad(ratio)(0.0)) == pytest.approx(
        float(ratio(1e-2) - ratio(-1e-2)) / 2e-2, rel=1e-2
    )
    many = rng.normal(size=70_000)
    half = tempering.bennett(*(jnp.asarray(v, jnp.float16) for v in (many, many[:50])))
    single = tempering.bennett(many, many[:50])
    assert float(half.std_err) == pytest.approx(float(single.std_err), rel=1e-2)
    for bad in (np.zeros((0, 3)), np.zeros(1)):
        with pytest.raises(ValueError, match="up, down: expected"):
            tempering.bennett(bad, bad)
    with pytest.raises(TypeError, match="up: expected an array of real numbers"):
        tempering.bennett("a", many)
