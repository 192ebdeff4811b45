"""compute_dtype reaches the accelerators' matrix units, and nothing else."""

from __future__ import annotations

import jax
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
