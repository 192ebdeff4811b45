"""What a class says of its mathematics in other words does not outlive a change of it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import experts, propriety, units

BITS = units.Bernoulli(3)


class Doubled:
    """A mixin: twice the log factors."""

    is_opaque = True
    num_latent_states = None

    def log_factors(self, params, x):
        return 2 * super().log_factors(params, x)


@dataclasses.dataclass(frozen=True)
class DoubledBank(Doubled, experts.HiddenBank):
    pass


@dataclasses.dataclass(frozen=True)
class InitOnly(experts.HiddenBank):
    def init(self, rng_key):
        return jax.tree.map(lambda leaf: leaf + 1, super().init(rng_key))


class Wide(units.StandardGaussian):
    """h(x) = exp(-x²/8), of which the closed forms of its parent are wrong."""

    def log_base(self, x):
        return -x @ x / 8

    def log_partitions(self, field):
        return 2 * field**2 + 0.5 * jnp.log(8 * jnp.pi)

    def mean(self, field):
        return 4 * field

    def sample(self, rng_key, field):
        return 4 * field + 2 * jax.random.normal(rng_key, (self.size,))


def bank(cls, hidden=2):
    model = pj.product(BITS, hidden=cls(BITS, units.Bernoulli(hidden)))
    params = model.init(jax.random.key(0))
    params["hidden"]["w"] = 3 * jax.random.normal(jax.random.key(1), (3, hidden))
    return model, params


@pytest.mark.slow
def test_a_mixin_changes_what_neighbours_are_worth():
    model, params = bank(DoubledBank)
    log_f = np.asarray(jax.vmap(model.log_density, (None, 0))(params, BITS.states()), float)
    x, here = jnp.array([1.0, 0.0, 1.0]), 5
    others = log_f[[here ^ (1 << site) for site in range(3)]]
    expected = np.sum(log_f[here] - np.logaddexp(log_f[here], others))
    found = pj.diagnostics.pseudo_log_likelihood(jax.random.key(0), model, params, x)
    assert float(found) == pytest.approx(expected, abs=1e-4)
    assert float(model.log_density(model.mask(params, hidden=False), x)) == 0
    assert model.experts["hidden"].bank is None


def test_a_mixin_changes_what_can_be_normalised():
    real = units.GaussianDiag(2)
    hidden = DoubledBank(real, units.StandardGaussian(2))
    model = pj.product(real, bias=experts.Bias(real), hidden=hidden)
    params = model.init(jax.random.key(0))
    params["hidden"]["w"] = 0.8 * jnp.eye(2)
    assert propriety.classify(model, params).verdict == "unknown"


def test_a_start_of_ones_own_changes_nothing_else():
    model, _ = bank(InitOnly)
    expert = model.experts["hidden"]
    assert expert.bank is expert
    assert InitOnly.log_ratios is experts.HiddenBank.log_ratios
    assert InitOnly.tails is experts.HiddenBank.tails


@pytest.mark.slow
def test_another_density_of_a_unit_has_no_closed_form_of_its_parent():
    plane = units.Gaussian(2)
    one = experts.Gaussian(plane, "full")
    model = pj.product(plane, one=one, hidden=experts.HiddenBank(plane, Wide(2)))
    params = model.init(jax.random.key(0))
    params["hidden"]["w"] = 0.3 * jnp.eye(2)
    assert not Wide(2).is_standard_gaussian
    assert Wide(2).reach() is None
    assert Wide(2).bank_tails(np.eye(2)) is None
    # By hand: A_hidden adds ½ 4 |Wᵀx|² = 0.18 |x|² to -½ |x - μ|².
    mean = np.asarray(params["one"]["mean"], float)
    expected = -np.log(0.64) + 0.5 * (1 / 0.64 - 1) * mean @ mean + np.log(8 * np.pi)
    assert float(pj.exact.log_z(model, params)) == pytest.approx(expected, abs=1e-3)
    assert pj.exact.method(model) == "quadrature"
