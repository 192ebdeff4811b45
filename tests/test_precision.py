"""compute_dtype reaches the accelerators' matrix units, and nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import poejax as pj

VISIBLE = pj.units.Bernoulli(16)
LOW = pj.experts.HiddenBank(VISIBLE, pj.units.Bernoulli(8), compute_dtype="bfloat16")


def lowered(expert, platform):
    params, x = expert.init(jax.random.key(0)), VISIBLE.random_event(jax.random.key(1))

    def loss(params):
        return expert.log_factors(params, x).sum()

    traced = jax.jit(jax.grad(loss)).trace(params)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("platform", "low"), [("cuda", True), ("tpu", True), ("cpu", False)])
def test_products_are_lowered_where_there_is_a_unit_for_it(platform, low):
    # Unmeasured on a device: what is checked is what XLA is asked for.
    assert ("lhs_precision_type = bf16" in lowered(LOW, platform)) == low
    full = pj.experts.HiddenBank(VISIBLE, pj.units.Bernoulli(8))
    assert "bf16" not in lowered(full, platform)


def test_nothing_but_the_products_is_rounded():
    text = lowered(LOW, "cuda")
    lines = [line for line in text.splitlines() if "bf16" in line]
    assert lines
    assert all("dot_general" in line for line in lines)


def test_an_unknown_compute_dtype_is_refused():
    with pytest.raises(ValueError, match="compute_dtype: expected None or 'bfloat16', got 'int8'"):
        pj.experts.HiddenBank(VISIBLE, pj.units.Bernoulli(8), compute_dtype="int8")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_densities_of_low_precision_parameters_are_summed_in_float32(dtype):
    model = pj.models.rbm(784, 20)
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = jax.eval_shape(model.init, keys[0])
    drawn = jax.tree.map(lambda s: jax.random.normal(keys[1], s.shape), shapes)
    low = jax.tree.map(lambda leaf: leaf.astype(dtype), drawn)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    x = jax.random.bernoulli(keys[2], 0.3, (784,))
    found = model.log_density(low, x.astype(dtype))
    assert found.dtype == jnp.float32
    assert abs(float(found) - float(model.log_density(wide, x.astype(float)))) < 1e-3
