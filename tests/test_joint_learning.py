"""Learning labels and learning from incomplete events, against exact gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import estimators, experts, training, units

VISIBLE = units.Joint(image=units.Bernoulli(4), label=units.Categorical(1, 3))
MODEL = pj.product(
    VISIBLE,
    bias=experts.Bias(VISIBLE),
    hidden=experts.HiddenBank(VISIBLE, units.Bernoulli(3)),
)
RBM = pj.models.rbm(5, 3)


def batch(num_rows=6):
    keys = jax.random.split(jax.random.key(7), num_rows)
    return jax.vmap(VISIBLE.random_event)(keys)


@pytest.mark.slow
def test_the_discriminative_gradient(random_params):
    params, x = random_params(MODEL), batch()

    def loss(params):
        def one(x):
            scores = [
                MODEL.log_density(params, x | {"label": jax.nn.one_hot(k, 3)[None]})
                for k in range(3)
            ]
            return jnp.sum(x["label"][0] * jax.nn.log_softmax(jnp.stack(scores)))

        return -jnp.mean(jax.vmap(one)(x))

    estimator = estimators.discriminative(MODEL)
    grads, _, info = estimator.grad(jax.random.key(0), params, (), x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, jax.grad(loss)(params)
    )
    assert float(info.class_log_prob) == pytest.approx(-float(loss(params)), abs=1e-5)
    assert 0 <= float(info.error_rate) <= 1


@pytest.mark.slow
def test_a_blend_adds_gradients_and_trains(random_params):
    params, x = random_params(MODEL), batch()
    generative, discriminative = estimators.exact(MODEL), estimators.discriminative(MODEL)
    hybrid = estimators.blend(MODEL, a=(discriminative, 1.0), b=(generative, 0.1))
    grads, _, info = hybrid.grad(jax.random.key(0), params, {"a": (), "b": ()}, x)
    parts = [e.grad(jax.random.key(0), params, (), x)[0] for e in (discriminative, generative)]
    jax.tree.map(
        lambda g, a, b: np.testing.assert_allclose(g, a + 0.1 * b, atol=1e-5), grads, *parts
    )
    assert set(info) == {"a", "b"}
    tx = optax.adam(0.1)
    hybrid = estimators.blend(MODEL, a=(discriminative, 1.0), b=(estimators.pcd(MODEL, 20), 0.01))
    state = training.init(jax.random.key(1), MODEL, hybrid, tx, x)
    state, metrics = training.train_steps(hybrid, tx, state, x, 6, 100)
    log_p = metrics.info["a"].class_log_prob
    assert float(log_p[-1]) > float(log_p[0]) + 0.3


def test_a_blend_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one estimator"):
        estimators.blend(MODEL)
    with pytest.raises(ValueError, match="other: expected an estimator of"):
        estimators.blend(MODEL, other=(estimators.cd(RBM), 1.0))
    for weight in (np.nan, np.inf, "0.5", None):
        with pytest.raises(ValueError, match="other: expected a finite weight, got"):
            estimators.blend(MODEL, other=(estimators.cd(MODEL), weight))
    with pytest.raises(ValueError, match="label: expected the name of a block"):
        estimators.discriminative(RBM)


@pytest.mark.parametrize("wrap", [estimators.centered, estimators.imputed])
def test_wrappers_refuse_an_estimator_that_does_not_fit(wrap):
    with pytest.raises(ValueError, match=r"estimator: expected an estimator of .*Bernoulli"):
        wrap(estimators.pcd(MODEL, 2), RBM)
    with pytest.raises(TypeError, match="estimator: expected an estimator such as"):
        wrap("pcd", RBM)
    with pytest.raises(ValueError, match="put `imputed` outside"):
        wrap(estimators.imputed(estimators.cd(RBM), RBM), RBM)


@pytest.mark.slow
def test_what_missing_sites_hold_does_not_matter(random_params):
    params, data = random_params(RBM), incomplete()
    estimator = estimators.imputed(estimators.cd(RBM), RBM)
    holes = data._replace(x=jnp.where(data.observed, data.x, jnp.nan))
    estimator.check_data("data", holes)
    grads = [estimator.grad(jax.random.key(0), params, (), d)[0] for d in (data, holes)]
    jax.tree.map(np.testing.assert_array_equal, *grads)


def incomplete(num_rows=4):
    x = jax.random.bernoulli(jax.random.key(1), 0.5, (num_rows, 5)).astype(float)
    observed = jax.random.bernoulli(jax.random.key(2), 0.5, (num_rows, 5))
    return estimators.Incomplete(x, observed)


def observed_nll(params, data):
    """Exact mean of -log p(x_obs) by summing over the missing sites."""
    states = RBM.visible.states()
    log_p = jax.vmap(RBM.log_density, (None, 0))(params, states)
    fits = ((states[None] == data.x[:, None]) | ~data.observed[:, None]).all(-1)
    log_joint = jax.nn.logsumexp(jnp.where(fits, log_p, -jnp.inf), axis=1)
    return jax.nn.logsumexp(log_p) - jnp.mean(log_joint)


@pytest.mark.slow
def test_the_gradient_from_incomplete_events_is_unbiased(random_params):
    params, data = random_params(RBM, scale=0.7), incomplete()
    expected = jax.grad(observed_nll)(params, data)

    def scores(data):
        estimator = estimators.imputed(estimators.exact(RBM), RBM, num_steps=30)
        keys = jax.random.split(jax.random.key(3), 2000)
        grads = jax.vmap(lambda key: estimator.grad(key, params, (), data)[0])(keys)
        return [
            np.abs((g.mean(0) - e) / np.maximum(g.std(0) / 2000**0.5, 1e-6)).max()
            for g, e in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True)
        ]

    assert max(scores(data)) < 4.3  # 23 numbers at 1e-3 together
    # Taking what is written at missing sites for data is not the same.
    taken = data._replace(observed=jnp.ones_like(data.observed))
    assert max(scores(taken)) > 4.3


@pytest.mark.slow
def test_training_on_incomplete_events_raises_their_likelihood():
    data = incomplete(40)
    estimator = estimators.imputed(
        estimators.centered(estimators.pcd(RBM, 50), RBM), RBM, num_steps=5
    )
    tx = optax.sgd(0.05)
    state = training.init(jax.random.key(0), RBM, estimator, tx, data)
    before = observed_nll(state.params, data)
    state, _ = training.train_steps(estimator, tx, state, data, 20, 300)
    assert float(observed_nll(state.params, data)) < float(before) - 0.02


def test_bad_incomplete_data():
    estimator, tx = estimators.imputed(estimators.cd(RBM), RBM), optax.sgd(0.1)

    def init(data):
        return training.init(jax.random.key(0), RBM, estimator, tx, data)

    with pytest.raises(TypeError, match=r"data: expected Incomplete\(x, observed\)"):
        init(jnp.ones((4, 5)))
    good = incomplete()
    with pytest.raises(TypeError, match=r"data.observed: expected a boolean mask"):
        init(good._replace(observed=good.x))
    with pytest.raises(ValueError, match=r"data.x: expected values in \{0, 1\}"):
        init(good._replace(x=good.x + 0.5))
    with pytest.raises(ValueError, match=r"data.x: expected shape \(N, 5\)"):
        init(good._replace(x=good.x[:, :1]))
