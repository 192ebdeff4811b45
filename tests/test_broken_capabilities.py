"""What a unit says besides its density is checked too, and a kernel site by site."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance_cases import BINARY

from poejax import kernels, units
from poejax.testing import check_kernel, check_unit
from poejax.types import ChainState

KEY = jax.random.key(1)


class OtherValues(units.Spin):
    def value_at(self, index, dtype):
        return index.astype(dtype)


class TooManyValues(units.Bernoulli):
    num_values = 3


class ScoresBackwards(units.Bernoulli):
    def value_scores(self, slope):
        return super().value_scores(slope)[:, ::-1]


class NoiseOfTheOtherSign(units.Bernoulli):
    def value_field(self, y, log_odds):
        return -super().value_field(y, log_odds)


class NoiseTooWide(units.GaussianDiag):
    def normal_field(self, y, log_scale):
        return super().normal_field(y, 2 * log_scale)


class NothingFar(units.GaussianDiag):
    def reach(self):
        return super().reach()._replace(is_real=np.zeros(self.size, bool))


class CountsEverywhere(units.GaussianDiag):
    def reach(self):
        every = np.ones(self.size, bool)
        return super().reach()._replace(is_real=~every, is_count=every)


class Bounded(units.Bernoulli):
    def bank_tails(self, weights):
        tails = super().bank_tails(weights)
        return tails._replace(tilt=0 * tails.tilt, spread=0 * tails.spread)


class GrowsOneWayOnly(units.Spin):
    def bank_tails(self, weights):
        tails = super().bank_tails(weights)
        return tails._replace(tilt=weights.sum(axis=1), spread=0 * tails.spread)


class GrowsTwiceAsFast(units.StandardGaussian):
    def bank_tails(self, weights):
        tails = super().bank_tails(weights)
        return tails._replace(square=2 * tails.square)


class SaysItIsGaussian(units.ReLU):
    is_standard_gaussian = True


class TakesNumbersOnly(units.Bernoulli):
    def check(self, name, x):
        super().check(name, np.asarray(x, float))


class TakesAnySize(units.Bernoulli):
    def check(self, name, x):
        if not isinstance(x, jax.ShapeDtypeStruct):
            super().check(name, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "law"),
    [
        (OtherValues(3), "values"),
        (TooManyValues(3), "values"),
        (ScoresBackwards(3), "values"),
        (NoiseOfTheOtherSign(3), "values"),
        (NoiseTooWide(2), "closed form"),
        (NothingFar(2), "reach"),
        (CountsEverywhere(2), "reach"),
        (Bounded(3), "tails"),
        (GrowsOneWayOnly(3), "tails"),
        (GrowsTwiceAsFast(2), "tails"),
        (SaysItIsGaussian(2), "closed form"),
        (TakesNumbersOnly(3), "states"),
        (TakesAnySize(3), "states"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_unit_that_says_what_is_wrong(unit, law):
    with pytest.raises(AssertionError, match=f"law '{law}' fails"):
        check_unit(unit, rng_key=KEY)


class HoldsTheFirstSite(kernels.BlockGibbs):
    def step(self, rng_key, params, state):
        mask = jnp.arange(self.model.visible.size) == 0
        both = mask if state.clamp is None else mask | state.clamp
        after, info = super().step(rng_key, params, ChainState(state.x, both))
        return ChainState(after.x, state.clamp), info


@pytest.mark.slow
def test_a_kernel_that_leaves_a_site_alone():
    with pytest.raises(AssertionError, match=r"law 'moves' fails.*\[0\]"):
        check_kernel(HoldsTheFirstSite(BINARY), rng_key=KEY)
    with pytest.raises(TypeError, match="model: expected a product of experts, got None"):
        check_kernel(object(), rng_key=KEY)
