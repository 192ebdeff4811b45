"""Losses without samples: zero at the truth, against NumPy, consistent, refused where wrong."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.flatten_util import ravel_pytree
from loss_cases import (
    BINARY,
    CONTINUOUS,
    DISCRETE,
    NOISE,
    ONE_HOT,
    REAL,
    SPIN,
    TRUTH,
    bank_over,
    exact_events,
    flat,
    gradient,
    random_params,
)
from scipy import optimize

import poejax as pj
from poejax import diagnostics, estimators, training, units
from poejax.experts import Bias, HiddenBank


def expected_loss(estimator, params, weights):
    """The loss averaged over all events with the given weights, so without noise."""
    states = estimator.model.visible.states()
    keys = jax.random.split(jax.random.key(0), len(weights))
    return weights @ jax.vmap(estimator.loss, (0, None, 0))(keys, params, states)


def gradient_at_the_truth(estimator):
    with jax.enable_x64(True):
        params = random_params(estimator.model)
        p = pj.exact.probabilities(estimator.model, params)
        return flat(jax.jit(jax.grad(lambda q: expected_loss(estimator, q, p)))(params))


@pytest.mark.slow
@pytest.mark.parametrize("name", DISCRETE)
def test_the_expected_gradient_is_zero_at_the_truth(name):
    assert np.abs(gradient_at_the_truth(DISCRETE[name])).max() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", DISCRETE)
def test_ratios_at_twice_the_inverse_temperature_would_be_seen(name, monkeypatch):
    right = diagnostics.neighbour_log_ratios
    monkeypatch.setattr(diagnostics, "neighbour_log_ratios", lambda *args: 2 * right(*args))
    assert np.abs(gradient_at_the_truth(DISCRETE[name])).max() > 1e-3


# The same in NumPy, from a table of log densities.


def log_f(vector, model, t):
    """Log density of events given by their linear statistics [n, M]."""
    size, num_hidden = model.visible.num_linear, model.experts["hidden"].hidden.size
    if model == REAL:
        a, log_precision, b, w = np.split(vector, np.cumsum([size, size, num_hidden]))
        quadratic = 0.5 * t**2 @ np.exp(log_precision)
    else:
        (a, b, w), quadratic = np.split(vector, np.cumsum([size, num_hidden])), 0
    return t @ a - quadratic + np.logaddexp(0, b + t @ w.reshape(size, num_hidden)).sum(1)


def neighbours(unit, t):
    """All events one site away, [sites, others, M]."""
    if isinstance(unit, units.Categorical):
        classes = np.eye(unit.num_classes)
        return np.array(
            [
                [
                    np.concatenate([t[: i * len(classes)], c, t[(i + 1) * len(classes) :]])
                    for c in classes
                    if not np.array_equal(c, t[i * len(classes) : (i + 1) * len(classes)])
                ]
                for i in range(unit.size)
            ]
        )
    flips = np.repeat(t[None], len(t), axis=0)
    flips[np.diag_indices(len(t))] = -t if isinstance(unit, units.Spin) else 1 - t
    return flips[:, None]


def discrete_reference(kind, model, vector, t):
    total = 0.0
    for row in t:
        f = np.exp(log_f(vector, model, row[None]))[0]
        others = neighbours(model.visible, row)
        g = np.exp(log_f(vector, model, others.reshape(-1, len(row)))).reshape(others.shape[:2])
        conditional = f / (f + g.sum(1))
        total += {
            "pseudo": -np.log(conditional).sum(),
            "flow": np.sqrt(g / f).sum(),
            "ratio": ((1 - conditional) ** 2).sum(),
        }[kind]
    return total / len(t)


def score_reference(vector, x):
    """Score [n, D] and its Jacobian [n, D, D] of the Gaussian-Bernoulli machine."""
    a, log_precision, b, w = np.split(vector, np.cumsum([2, 2, 3]))
    w, precision = w.reshape(2, 3), np.exp(log_precision)
    h = 1 / (1 + np.exp(-(b + x @ w)))
    curvature = np.einsum("ij,nj,kj->nik", w, h * (1 - h), w) - np.diag(precision)
    return a - precision * x + h @ w.T, curvature


def continuous_reference(kind, estimator, vector, x, keys):
    if kind == "denoising":
        noise = np.stack([jax.random.normal(k, (2,), float) for k in keys])
        score, _ = score_reference(vector, x + NOISE * noise)
        return 0.5 * np.mean(np.sum((score + noise / NOISE) ** 2, axis=1))
    score, curvature = score_reference(vector, x)
    trace = np.trace(curvature, axis1=1, axis2=2)
    if estimator.num_projections is not None:
        draw = jax.random.normal if estimator.directions == "gaussian" else jax.random.rademacher
        v = np.stack([draw(k, (estimator.num_projections, 2), float) for k in keys])
        trace = np.einsum("npi,nij,npj->n", v, curvature, v) / estimator.num_projections
    return np.mean(0.5 * np.sum(score**2, axis=1) + trace)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DISCRETE, *CONTINUOUS])
def test_loss_and_gradient_against_numpy(name):
    estimator = (DISCRETE | CONTINUOUS)[name]
    model, key = estimator.model, jax.random.key(3)
    with jax.enable_x64(True):
        params = random_params(model, 1)
        draws = jax.random.split(jax.random.key(4), 5)
        x = jax.jit(jax.vmap(model.visible.random_event))(draws).astype(float)
        grads, info = gradient(estimator, key, params, x)
        keys = pj.chains.chain_keys(key, 5)
        t = np.asarray(x).reshape(5, -1)

        def loss(vector):
            if name in CONTINUOUS:
                return continuous_reference(name, estimator, vector, t, keys)
            return discrete_reference(name.split("-")[0], model, vector, t)

        # Leaves come in the order of their names; the reference takes the same: a, (λ), b, w.
        vector = flat(params)
        assert float(info.loss) == pytest.approx(loss(vector), rel=1e-12)
        h = 1e-5 * np.eye(len(vector))
        differences = [(loss(vector + e) - loss(vector - e)) / 2e-5 for e in h]
        np.testing.assert_allclose(grads, differences, atol=2e-8, rtol=1e-6)
    assert info._fields == ("loss",)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pseudo", "pseudo-one-hot", "flow", "ratio"])
def test_minimising_over_the_full_distribution_finds_the_truth(name):
    estimator = DISCRETE[name]
    model = estimator.model
    with jax.enable_x64(True):
        p = pj.exact.probabilities(model, random_params(model, 2))
        start, unflatten = ravel_pytree(random_params(model, 3, 0.1))

        @jax.jit
        def objective(vector):
            value = lambda v: expected_loss(estimator, unflatten(v), p)  # noqa: E731
            return jax.value_and_grad(value)(vector)

        options = {"maxiter": 5000, "gtol": 1e-10, "ftol": 1e-16}
        found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)

        def kl(vector):
            q = pj.exact.probabilities(model, unflatten(jnp.asarray(vector)))
            return float(p @ (jnp.log(p) - jnp.log(q)))

        assert kl(start) > 0.05
        assert kl(found.x) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "centre"), [("pseudo", True), ("flow", False), ("ratio", True)])
def test_training_on_exact_samples_approaches_the_truth(name, centre):
    estimator = DISCRETE[name]
    p = pj.exact.probabilities(BINARY, random_params(BINARY, 2))
    index = jax.random.categorical(jax.random.key(0), jnp.log(p), shape=(4000,))
    x = jax.vmap(BINARY.visible.state_at)(index).astype(jnp.uint8)
    if centre:
        estimator = estimators.centered(estimator, BINARY)
    tx = optax.adam(0.02)
    state = training.init(jax.random.key(1), BINARY, estimator, tx, x)

    def kl(params):
        return float(p @ (jnp.log(p) - jnp.log(pj.exact.probabilities(BINARY, params))))

    before = kl(state.params)
    state, metrics = training.train_steps(estimator, tx, state, x, 500, 1500)
    assert before > 0.2
    assert kl(state.params) < 0.01
    assert metrics.info.loss.shape == (1500,)


def test_a_few_sites_are_unbiased_for_all():
    params = random_params(BINARY, 1)
    x = BINARY.visible.states()[:5]
    few = estimators.pseudo_likelihood(BINARY, 2)
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.vmap(lambda k: gradient(few, k, params, x)[0])(keys)
    expected = np.asarray(gradient(DISCRETE["pseudo"], keys[0], params, x)[0])
    z = reference.mean_z_scores(draws, expected)
    assert np.abs(z).max() < reference.z_threshold(z.size)
    assert np.abs(reference.mean_z_scores(draws, 0.9 * expected)).max() > 10


class Opaque(HiddenBank):
    """A bank that says nothing but its density."""

    is_opaque = True
    log_joint = latent_log_weight = sample_latent = latent_mean = visible_field = None


@pytest.mark.parametrize("name", ["pseudo", "flow", "ratio", "exact", "sliced", "denoising"])
def test_the_density_is_all_that_is_needed(name):
    right = (DISCRETE | CONTINUOUS)[name]
    model = right.model
    bank = model.experts["hidden"]
    opaque = Opaque(bank.visible, bank.hidden)
    opaque = pj.product(bank.visible, bias=Bias(bank.visible), hidden=opaque)
    params, key = random_params(model), jax.random.key(1)
    x = jax.vmap(model.visible.random_event)(jax.random.split(key, 5))
    found = gradient(dataclasses.replace(right, model=opaque), key, params, x)[0]
    np.testing.assert_allclose(found, gradient(right, key, params, x)[0], rtol=1e-5, atol=1e-6)


def test_integers_and_low_precision_are_scored_in_float32():
    params = random_params(REAL, 1)
    rows = np.array([[1, 2], [0, 3]])
    for name in ("exact", "denoising"):
        found = [
            gradient(CONTINUOUS[name], jax.random.key(0), params, jnp.asarray(rows, dtype))[0]
            for dtype in (jnp.float32, jnp.uint8, jnp.bfloat16)
        ]
        np.testing.assert_array_equal(found[1], found[0])
        np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.slow
def test_equal_estimators_compile_once(compiles_nothing):
    x = exact_events(TRUTH)[:64]
    tx = optax.sgd(0.01)

    def go(estimator, seed):
        state = training.init(jax.random.key(seed), estimator.model, estimator, tx, x)
        return training.train_steps(estimator, tx, state, x, 16, 4)

    go(estimators.score_matching(pj.models.gaussian_rbm(2, 3), 1), 0)
    go(estimators.score_matching(pj.models.gaussian_rbm(2, 3), 1), 1)
    with compiles_nothing():
        go(estimators.score_matching(pj.models.gaussian_rbm(2, 3), 1), 2)


JOINT = bank_over(units.Joint(a=units.Bernoulli(2), b=units.GaussianDiag(1)))
DISCRETE_ONLY = "model: expected visible units of finitely many values, got"
REAL_ONLY = "model: expected GaussianDiag or Gaussian visible units, got"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: estimators.score_matching(BINARY), REAL_ONLY + " Bernoulli"),
        (lambda: estimators.score_matching(JOINT), REAL_ONLY + " Joint"),
        (lambda: estimators.score_matching(bank_over(units.ReLU(2))), REAL_ONLY + " ReLU"),
        (lambda: estimators.denoising_score_matching(SPIN, 0.1), REAL_ONLY + " Spin"),
        (lambda: estimators.pseudo_likelihood(REAL), DISCRETE_ONLY + " GaussianDiag"),
        (lambda: estimators.pseudo_likelihood(JOINT), DISCRETE_ONLY + " Joint"),
        (lambda: estimators.minimum_probability_flow(REAL), DISCRETE_ONLY),
        (lambda: estimators.minimum_probability_flow(JOINT), DISCRETE_ONLY),
        (lambda: estimators.ratio_matching(ONE_HOT), "expected visible units of two values"),
        (lambda: estimators.ratio_matching(JOINT), "expected visible units of two values"),
        (lambda: estimators.score_matching(REAL, 0), "num_projections: expected an integer of"),
        (lambda: estimators.score_matching(REAL, 1, "sphere"), "directions: expected one of"),
        (lambda: estimators.denoising_score_matching(REAL, 0.0), "noise_scale: expected a posi"),
        (lambda: estimators.denoising_score_matching(REAL, np.inf), "noise_scale: expected a posi"),
        (lambda: estimators.denoising_score_matching(REAL, "1"), "noise_scale: expected a posi"),
        (lambda: estimators.pseudo_likelihood(BINARY, 5), "num_sites: expected at most 4, got 5"),
        (lambda: estimators.pseudo_likelihood(BINARY, 0), "num_sites: expected an integer of at"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
