"""By how much densities change with a single site, where more changes than a linear statistic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import poejax as pj
from poejax import experts, units

KEY = jax.random.key(0)


@pytest.mark.parametrize(("size", "num_trials"), [(784, 255), (784, 16), (64, 255)])
def test_pseudo_likelihood_of_independent_counts_is_their_likelihood(size, num_trials):
    rng = np.random.default_rng(0)
    visible = units.Binomial(size, num_trials)
    model = pj.product(visible, bias=experts.Bias(visible))
    x, field = rng.binomial(num_trials, 0.5, size=size), 0.1 * rng.normal(size=size)
    found = pj.diagnostics.pseudo_log_likelihood(
        KEY, model, {"bias": {"field": jnp.asarray(field)}}, jnp.asarray(x, float), num_sites=size
    )
    exact = stats.binom.logpmf(x, num_trials, 1 / (1 + np.exp(-field))).sum()
    assert float(found) == pytest.approx(exact, abs=2e-5 * size)


def test_ratios_of_a_field_of_squares():
    visible = units.GaussianDiag(2)
    bias = experts.Bias(visible)
    params = {"field": {"linear": jnp.array([1.0, 2.0]), "log_precision": jnp.zeros(2)}}
    args = params, jnp.zeros(2), jnp.array([0, 1]), jnp.full((2, 1), 3.0)
    np.testing.assert_allclose(bias.log_ratios(*args)[:, 0], [-1.5, 1.5], rtol=1e-6)
    np.testing.assert_allclose(
        experts.Expert.log_ratios(bias, *args), bias.log_ratios(*args), rtol=1e-6
    )


def test_a_field_of_the_linear_statistic_alone_keeps_the_short_way(monkeypatch):
    def long_way(*args):
        raise AssertionError("every event anew")

    monkeypatch.setattr(experts.Expert, "log_ratios", long_way)
    for visible in (units.Bernoulli(3), units.Categorical(3, 4), units.Binomial(3, 5)):
        model = pj.product(visible, bias=experts.Bias(visible))
        params = model.init(KEY)
        x = model.init_visible(KEY, params)
        assert np.isfinite(pj.diagnostics.pseudo_log_likelihood(KEY, model, params, x))
