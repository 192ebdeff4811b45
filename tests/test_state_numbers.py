"""Numbers of states beyond 31 bits: right in 64-bit mode, refused without it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import units


@pytest.mark.parametrize("power", [0, 30, 31, 32, 35, 39, 61])
def test_bits_beyond_31(power):
    with jax.enable_x64(True):
        for unit, off in ((units.Bernoulli(62), 0), (units.Spin(62), -1)):
            for state in (unit.state_at(2**power), jax.jit(unit.state_at)(jnp.asarray(2**power))):
                assert np.flatnonzero(state == 1).tolist() == [power]
                assert set(np.delete(state, power).tolist()) == {off}


def test_digits_beyond_31_bits():
    digits = np.random.default_rng(0).integers(5, size=25)
    number = sum(int(d) * 5**i for i, d in enumerate(digits))
    with jax.enable_x64(True):
        found = np.asarray(units.Categorical(40, 5).state_at(jnp.asarray(number)))
    np.testing.assert_array_equal(found.argmax(1), [*digits, *[0] * 15])
    largest = units.Categorical(40, 5).state_at(jnp.int32(2**31 - 1)).argmax(1)
    assert sum(int(d) * 5**i for i, d in enumerate(largest)) == 2**31 - 1


@pytest.mark.slow
def test_blocks_and_experts_beyond_31_bits():
    unit = units.Joint(a=units.Bernoulli(33), b=units.Categorical(3, 4), c=units.Spin(5))
    number = (1 << 32) + (27 << 33) + (5 << 39)
    visible = units.Bernoulli(3)
    banks = {name: pj.experts.HiddenBank(visible, block) for name, block in unit.items}
    model = pj.product(visible, **banks)
    with jax.enable_x64(True):
        for found in (unit.state_at(number), model.latent_state_at(jnp.asarray(number))):
            assert np.flatnonzero(found["a"]).tolist() == [32]
            assert found["b"].argmax(1).tolist() == [3, 2, 1]
            assert found["c"].tolist() == [1, -1, 1, -1, -1]
    # Blocks of more states than an index can hold keep it whole.
    largest = unit.state_at(2**31 - 1)
    assert largest["a"].tolist() == [1] * 31 + [0] * 2
    assert not largest["b"].argmax(1).any()


@pytest.mark.parametrize("index", [2**31, np.int64(2**35), np.uint64(2**40)])
@pytest.mark.parametrize("unit", [units.Bernoulli(50), units.Categorical(40, 4)], ids=str)
def test_what_an_index_cannot_hold_is_refused(unit, index):
    with pytest.raises(ValueError, match="index: expected at most 31 bits without 64-bit mode"):
        unit.state_at(index)


@pytest.mark.parametrize("index", [-1, 8, np.int64(2**40)])
def test_what_numbers_no_state_is_refused(index):
    for unit in (units.Bernoulli(3), units.Spin(3), units.Joint(a=units.Spin(3))):
        with pytest.raises(ValueError, match=r"index: expected a state of .*, 0 to 7, got"):
            unit.state_at(index)


def test_a_budget_beyond_31_bits():
    def traced(num_hidden, max_states=2**62):
        model = pj.models.rbm(70, num_hidden)
        params = jax.eval_shape(model.init, jax.random.key(0))
        return jax.eval_shape(lambda p: pj.exact.log_z(model, p, max_states=max_states), params)

    traced(30)
    for num_hidden in (31, 32, 40):
        with pytest.raises(ValueError, match=r"at most 1073741824 states .*takes 64 bits"):
            traced(num_hidden)
    with jax.enable_x64(True):
        traced(31), traced(40)
        with pytest.raises(ValueError, match=r"states to enumerate, got 2\*\*63 "):
            traced(63, 2**70)
