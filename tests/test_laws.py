"""Every expert obeys the laws, and `check_expert` names the law that a broken one violates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import units
from poejax.experts import Bias, HiddenBank
from poejax.testing import check_expert

MIXED = units.Joint(pixels=units.Bernoulli(3), label=units.Categorical(1, 3))
VISIBLE = {
    "bernoulli": units.Bernoulli(3),
    "spin": units.Spin(3),
    "categorical": units.Categorical(2, 3),
    "gaussian": units.GaussianDiag(3),
    "joint": MIXED,
}
HIDDEN = {
    "bernoulli": units.Bernoulli(3),
    "spin": units.Spin(3),
    "categorical": units.Categorical(2, 3),
    "gaussian": units.StandardGaussian(2),
    "joint": MIXED,
}
ALWAYS = {"retrace", "field", "gradient", "jit", "vmap", "temper"}
ENUMERATED = ALWAYS | {"integral", "sample", "mean"}


def random_params(expert, seed=0):
    """Parameters of scale one: no term of the laws can hide in rounding."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(expert.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


def nested():
    visible = units.Bernoulli(3)
    inner = pj.product(
        visible, bias=Bias(visible), bank=HiddenBank(visible, units.StandardGaussian(1))
    )
    return pj.product(visible, inner=inner, bias=Bias(visible))


def table():
    for name, visible in VISIBLE.items():
        yield f"bias-{name}", Bias(visible), ALWAYS | {"integral"}
        for other, hidden in HIDDEN.items():
            yield f"{name}-{other}", HiddenBank(visible, hidden), ENUMERATED
    yield "one-gaussian-nested", nested(), ENUMERATED
    visible = units.Bernoulli(3)
    product = pj.product(
        visible,
        inner=pj.product(visible, spins=HiddenBank(visible, units.Spin(3)), bias=Bias(visible)),
        bank=HiddenBank(visible, units.Bernoulli(3)),
    )
    yield "nested", product, ENUMERATED
    # Three real latents are beyond the grid: what the Monte Carlo laws can see is checked.
    yield "many-real", HiddenBank(visible, units.StandardGaussian(3)), ALWAYS | {"mean"}


ROWS = list(table())


@pytest.mark.parametrize(("expert", "laws"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_laws(expert, laws):
    checked = check_expert(expert, random_params(expert), rng_key=jax.random.key(1))
    assert set(checked) == laws
    assert len(checked) == len(laws)


def test_laws_in_float64():
    with jax.enable_x64(True):
        expert = HiddenBank(MIXED, units.Bernoulli(2))
        params = random_params(expert)
        assert params["w"].dtype == jnp.float64
        assert set(check_expert(expert, params, rng_key=jax.random.key(1))) == ENUMERATED


def test_default_params_are_not_too_small_to_matter():
    expert = WrongSignOfTheField(units.Bernoulli(3), units.Bernoulli(3))
    with pytest.raises(AssertionError, match="'integral'"):
        check_expert(expert, rng_key=jax.random.key(0))


class WrongSignOfTheField(HiddenBank):
    def visible_field(self, params, z):
        return -super().visible_field(params, z)


class TransposedField(HiddenBank):
    def visible_field(self, params, z):
        return super().visible_field(params | {"w": params["w"].T}, z)


class FieldIgnoresBeta(HiddenBank):
    def visible_field(self, params, z):
        return super().visible_field(params | {"beta": 1.0}, z)


class WeightIgnoresBeta(HiddenBank):
    def latent_log_weight(self, params, z):
        return super().latent_log_weight(params | {"beta": 1.0}, z)


class MiscountedFactors(HiddenBank):
    @property
    def num_factors(self):
        return 1


class JointOfTheOtherSign(HiddenBank):
    def log_joint(self, params, x, z):
        field = self.visible_field(params, z)
        return self.latent_log_weight(params, z) - self.visible.inner(field, x)


class SamplerAtTwiceBeta(HiddenBank):
    def sample_latent(self, rng_key, params, x):
        return super().sample_latent(rng_key, self.temper(params, 2.0), x)


class SamplerFromTheBiasAlone(HiddenBank):
    def sample_latent(self, rng_key, params, x):
        return super().sample_latent(rng_key, params | {"w": jnp.zeros_like(params["w"])}, x)


class SamplerOffTheStates(HiddenBank):
    def sample_latent(self, rng_key, params, x):
        return 2 * super().sample_latent(rng_key, params, x)


class SamplerTooWide(HiddenBank):
    def sample_latent(self, rng_key, params, x):
        mean = self.latent_mean(params, x)
        return mean + 1.3 * (super().sample_latent(rng_key, params, x) - mean)


class SamplerOffCentre(HiddenBank):
    def sample_latent(self, rng_key, params, x):
        return super().sample_latent(rng_key, params, x) + 0.2


class MeanAtTwiceBeta(HiddenBank):
    def latent_mean(self, params, x):
        return super().latent_mean(self.temper(params, 2.0), x)


class StoppedGradient(HiddenBank):
    def log_factors(self, params, x):
        return super().log_factors(params | {"b": jax.lax.stop_gradient(params["b"])}, x)


class TemperDoesNothing(HiddenBank):
    def temper(self, params, beta):
        return params


class TemperIsNoIdentity(HiddenBank):
    def temper(self, params, beta):
        return super().temper(params, beta * (1.5 - 0.5 * beta) * 1.1)


class DiffersWhenTraced(HiddenBank):
    def latent_mean(self, params, x):
        mean = super().latent_mean(params, x)
        return mean + 0.1 if isinstance(x, jax.core.Tracer) else mean


class LooksAtValues(HiddenBank):
    def log_factors(self, params, x):
        return super().log_factors(params, x) * (1.0 if x[0] > 0 else 2.0)


class HashedByIdentity(HiddenBank):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


BINARY, REAL = units.Bernoulli(3), units.StandardGaussian(1)
MUTANTS = [
    (WrongSignOfTheField, BINARY, "integral", 1.0),
    (TransposedField, BINARY, "integral", 1.0),
    (FieldIgnoresBeta, BINARY, "integral", 0.37),
    (WeightIgnoresBeta, BINARY, "integral", 0.37),
    (WeightIgnoresBeta, REAL, "integral", 0.37),
    (MiscountedFactors, BINARY, "integral", 1.0),
    (JointOfTheOtherSign, BINARY, "field", 1.0),
    (SamplerAtTwiceBeta, BINARY, "sample", 1.0),
    (SamplerFromTheBiasAlone, BINARY, "sample", 1.0),
    (SamplerOffTheStates, BINARY, "sample", 1.0),
    (SamplerTooWide, REAL, "sample", 1.0),
    (SamplerOffCentre, units.StandardGaussian(3), "mean", 1.0),
    (MeanAtTwiceBeta, BINARY, "mean", 1.0),
    (StoppedGradient, BINARY, "gradient", 1.0),
    (TemperDoesNothing, BINARY, "temper", 1.0),
    (TemperIsNoIdentity, BINARY, "temper", 1.0),
    (DiffersWhenTraced, BINARY, "jit", 1.0),
    (LooksAtValues, BINARY, "jit", None),
    (HashedByIdentity, BINARY, "retrace", None),
]


@pytest.mark.parametrize(
    ("mutant", "hidden", "law", "beta"), MUTANTS, ids=[f"{m[0].__name__}-{m[2]}" for m in MUTANTS]
)
def test_a_broken_expert_is_told_which_law_it_breaks(mutant, hidden, law, beta):
    expert = mutant(units.Bernoulli(3), hidden)
    where = f"law '{law}' fails" if beta is None else f"law '{law}' fails at beta={beta:g}:"
    with pytest.raises(AssertionError, match=where) as error:
        check_expert(expert, random_params(expert), rng_key=jax.random.key(1))
    assert mutant.__name__ in str(error.value)
    assert "expected" in str(error.value)
    assert "found" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rng_key": jnp.zeros(2, jnp.uint32)}, TypeError, "rng_key: expected a typed key"),
        ({"num_events": 1}, ValueError, "num_events: expected at least 2"),
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer of at least 1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        check_expert(Bias(units.Bernoulli(2)), **({"rng_key": jax.random.key(0)} | arguments))
