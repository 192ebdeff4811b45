"""Probabilities and fields in half precision are those numbers, not what half precision draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import inference, stacks, units

KEY = jax.random.key(0)
NARROW = [jnp.float16, jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("dtype", NARROW)
def test_rare_bits_are_drawn_as_rarely_as_they_are(dtype):
    p = jnp.full((2000, 500), 0.001, dtype)
    found = float(stacks.draw_bits(KEY, p).astype(jnp.float32).mean())
    expected = float(p[0, 0])
    assert abs(found - expected) < 4 * np.sqrt(expected / p.size)


@pytest.mark.parametrize("dtype", NARROW)
def test_rare_flips_too(dtype):
    rate = jnp.asarray(0.001, dtype)
    visible, x = units.Bernoulli(1_000_000), jnp.zeros(1_000_000)
    found = float(inference.BitFlips(rate).corrupt(KEY, visible, x).mean())
    assert abs(found - float(rate)) < 4 * np.sqrt(float(rate) / x.size)


@pytest.mark.parametrize("dtype", NARROW[:2])
def test_a_density_of_categories_sums_in_float32(dtype):
    visible = units.Categorical(784, 4)
    model = pj.product(visible, bias=pj.experts.Bias(visible))
    rng = np.random.default_rng(0)
    field = jnp.asarray(1 + rng.random((784, 4)), dtype)
    x = jax.nn.one_hot(rng.integers(0, 4, 784), 4, dtype=dtype)
    exact = (np.asarray(field, np.float64) * np.asarray(x, np.float64)).sum()
    found = model.log_density({"bias": {"field": field}}, x)
    assert float(found) == pytest.approx(exact, rel=1e-6)
