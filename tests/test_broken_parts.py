"""The conformance kit names the law that a broken unit, kernel or learning rule violates."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from conformance_cases import BINARY, FULL

import poejax as pj
from poejax import estimators, kernels, units
from poejax.estimators import pcd
from poejax.testing import check_estimator, check_kernel, check_unit
from poejax.types import ChainState, Weighted
from poejax.units.base import Unit

KEY = jax.random.key(1)


class PartitionOff(units.Bernoulli):
    def log_partitions(self, field):
        return super().log_partitions(field) + 0.001


class PartitionOfHalfTheField(units.Bernoulli):
    def log_partitions(self, field):
        return super().log_partitions(0.5 * field)


class ChangeOfHalfTheField(units.Bernoulli):
    def log_partition_change(self, old, new):
        return super().log_partition_change(0.5 * old, 0.5 * new)


class MeanAtTwiceTheField(units.Bernoulli):
    def mean(self, field):
        return super().mean(2 * field)

    def sample(self, rng_key, field):
        return units.Bernoulli(self.size).sample(rng_key, field)


class SamplerAtTwiceTheField(units.Spin):
    def sample(self, rng_key, field):
        return super().sample(rng_key, 2 * field)


class SamplesTogether(units.Bernoulli):
    def sample(self, rng_key, field):
        return (jax.random.uniform(rng_key) < self.mean(field)).astype(field.dtype)


class SamplerTooWide(units.StandardGaussian):
    def sample(self, rng_key, field):
        mean = self.mean(field)
        return mean + 1.1 * (super().sample(rng_key, field) - mean)


class LinearFieldNegative(units.Bernoulli):
    def linear_field(self, v):
        return -v


class ShiftsTwice(units.Bernoulli):
    def shift_linear(self, params, v):
        return params + 2 * v


class CombinesTheFirst(units.Bernoulli):
    def combine(self, fields):
        return fields[0] if len(fields) == 2 else super().combine(fields)


class ScalesBySquare(units.Bernoulli):
    def scale(self, field, beta):
        return beta**2 * field


class KeepsNothing(units.Bernoulli):
    def select(self, mask, x, other):
        return other


class OverwritesAfterSampling(units.Gaussian):
    sample_clamped = Unit.sample_clamped
    mean_clamped = Unit.mean_clamped


class SmoothsAlways(units.Bernoulli):
    def fit_field(self, x, smoothing, weights=None):
        return super().fit_field(x, 0.1, weights)


class FitsWithoutWeights(units.Bernoulli):
    def fit_field(self, x, smoothing, weights=None):
        return super().fit_field(x, smoothing)


class StatesTwice(units.Bernoulli):
    def state_at(self, index):
        return super().state_at(index // 2 * 2)


class ChecksNothing(units.Bernoulli):
    def check(self, name, x):
        pass


class WrongShape(units.Bernoulli):
    def mean(self, field):
        return super().mean(field)[None]

    def sample(self, rng_key, field):
        return units.Bernoulli(self.size).sample(rng_key, field)


class LooksAtValues(units.Bernoulli):
    def mean(self, field):
        return super().mean(field) if field[0] > 0 else jax.nn.sigmoid(field)


class HashedByIdentity(units.Bernoulli):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


BROKEN_UNITS = [
    (PartitionOff(3), "partition"),
    (PartitionOfHalfTheField(3), "mean"),
    (ChangeOfHalfTheField(3), "partition"),
    (MeanAtTwiceTheField(3), "mean"),
    (SamplerAtTwiceTheField(3), "sample"),
    (SamplesTogether(3), "sample"),
    (SamplerTooWide(3), "sample"),
    (LinearFieldNegative(3), "linear"),
    (ShiftsTwice(3), "linear"),
    (CombinesTheFirst(3), "combine"),
    (ScalesBySquare(3), "combine"),
    (KeepsNothing(3), "clamp"),
    (OverwritesAfterSampling(2), "clamp"),
    (SmoothsAlways(3), "fit"),
    (FitsWithoutWeights(3), "fit"),
    (StatesTwice(3), "partition"),
    (ChecksNothing(3), "states"),
    (WrongShape(3), "shape"),
    (LooksAtValues(3), "jit"),
    (HashedByIdentity(3), "retrace"),
]


def name_of(case):
    return type(case).__name__ if dataclasses.is_dataclass(case) else str(case)


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "law"), BROKEN_UNITS, ids=name_of)
def test_a_broken_unit(unit, law):
    with pytest.raises(AssertionError, match=f"law '{law}' fails"):
        check_unit(unit, rng_key=KEY)


class Cached(NamedTuple):
    x: Any
    clamp: Any
    log_density: Any


class AtTwiceBeta(kernels.BlockGibbs):
    def step(self, rng_key, params, state):
        return super().step(rng_key, self.model.temper(params, 2.0), state)


class Stays(kernels.BlockGibbs):
    def step(self, rng_key, params, state):
        return state, super().step(rng_key, params, state)[1]


class ForgetsTheClamp(kernels.BlockGibbs):
    def step(self, rng_key, params, state):
        after, info = super().step(rng_key, params, ChainState(state.x))
        return ChainState(after.x, state.clamp), info


class Overwrites(kernels.BlockGibbs):
    def step(self, rng_key, params, state):
        after, info = super().step(rng_key, params, ChainState(state.x))
        if state.clamp is None:
            return after, info
        x = self.model.visible.select(state.clamp, state.x, after.x)
        return ChainState(x, state.clamp), info


class RemembersParams(kernels.BlockGibbs):
    def init(self, rng_key, params, x, clamp=None):
        return Cached(x, clamp, self.model.log_density(params, x))


class Narrows(kernels.BlockGibbs):
    def step(self, rng_key, params, state):
        after, info = super().step(rng_key, params, state)
        return ChainState(after.x.astype(jnp.bfloat16), after.clamp), info


class DiffersWhenTraced(kernels.BlockGibbs):
    def step(self, rng_key, params, state):
        key = jax.random.fold_in(rng_key, isinstance(state.x, jax.core.Tracer))
        return super().step(key, params, state)


class ByIdentity(kernels.BlockGibbs):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


BROKEN_KERNELS = [
    (AtTwiceBeta(BINARY), "invariant"),
    (Stays(BINARY), "moves"),
    (ForgetsTheClamp(BINARY), "clamp"),
    (Overwrites(FULL), "clamp"),
    (RemembersParams(BINARY), "init"),
    (Narrows(BINARY), "step"),
    (DiffersWhenTraced(BINARY), "jit"),
    (ByIdentity(BINARY), "retrace"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "law"), BROKEN_KERNELS, ids=name_of)
def test_a_broken_kernel(kernel, law):
    with pytest.raises(AssertionError, match=f"law '{law}' fails"):
        check_kernel(kernel, rng_key=KEY)


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """An estimator whose gradient is that of another, changed."""

    inner: Any

    @property
    def model(self):
        return self.inner.model

    def init(self, rng_key, params, data):
        return self.inner.init(rng_key, params, data)

    def grad(self, rng_key, params, state, batch):
        grads, state, info = self.inner.grad(rng_key, params, state, batch)
        return jax.tree.map(self.change, grads), self.keep(state), info

    def change(self, grad):
        return grad

    def keep(self, state):
        return state


class WrongSign(Wrapped):
    def change(self, grad):
        return -grad


class Half(Wrapped):
    def change(self, grad):
        return 0.5 * grad


class InBfloat16(Wrapped):
    def change(self, grad):
        return grad.astype(jnp.bfloat16)


class NotANumber(Wrapped):
    def change(self, grad):
        return grad * jnp.nan


class Grows(Wrapped):
    def keep(self, state):
        return (state,)


class IgnoresWeights(Wrapped):
    def grad(self, rng_key, params, state, batch):
        batch = batch.x if isinstance(batch, Weighted) else batch
        return super().grad(rng_key, params, state, batch)


EXACT = estimators.exact(BINARY)
BROKEN_ESTIMATORS = [
    (WrongSign(pcd(BINARY, 8)), False, "descent"),
    (Half(EXACT), True, "gradient"),
    (Half(estimators.pseudo_likelihood(BINARY)), False, "loss"),
    (InBfloat16(EXACT), False, "structure"),
    (NotANumber(EXACT), False, "structure"),
    (Grows(EXACT), False, "state"),
    (IgnoresWeights(EXACT), False, "weights"),
]


@pytest.mark.slow
def test_contrastive_divergence_is_told_that_it_is_biased():
    # Two modes far apart, and data in neither: one sweep does not reach them.
    ones = jnp.ones((4, 3))
    params = {"bias": {"field": -3 * ones[:, 0]}, "hidden": {"w": 2 * ones, "b": -4 * ones[0]}}
    with pytest.raises(AssertionError, match="law 'gradient' fails"):
        check_estimator(estimators.cd(BINARY), params, rng_key=KEY, is_gradient=True)


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "is_gradient", "law"), BROKEN_ESTIMATORS, ids=name_of)
def test_a_broken_estimator(estimator, is_gradient, law):
    with pytest.raises(AssertionError, match=f"law '{law}' fails"):
        check_estimator(estimator, rng_key=KEY, is_gradient=is_gradient)


def test_no_exact_samples_and_improper_params_are_refused():
    heavy = pj.product(units.Gaussian(2), t=pj.experts.StudentT(units.Gaussian(2), 1))
    with pytest.raises(ValueError, match=r"normalis"):
        check_kernel(kernels.block_gibbs(heavy), rng_key=KEY)
