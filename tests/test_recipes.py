"""Recipes: a Gaussian RBM that learns what there is, and no less than one Gaussian."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import poejax as pj
from poejax import recipes


def _clusters(num_rows, seed):
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size=(num_rows, 2))
    return 300 + np.hstack([4 * signs, np.zeros((num_rows, 1))]) + rng.normal(size=(num_rows, 3))


def _gaussian_score(train, test):
    mean, covariance = train.mean(0), np.cov(train.T, bias=True)
    centred = test - mean
    square = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
    return -0.5 * square.mean() - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]


def _score(fit, x):
    log_z = pj.exact.log_z(fit.model, fit.params)
    return float(pj.evidence.log_likelihood(fit.model, fit.params, x, log_z).mean)


@pytest.mark.slow
@pytest.mark.parametrize("method", recipes.OPTIMIZERS)
def test_clusters_are_found(method):
    train, test = _clusters(600, 0), _clusters(600, 1)
    fit = recipes.fit_gaussian_rbm(
        jax.random.key(0), train, 4, num_passes=60, optimizer=method, learning_rate=0.1
    )
    gain = _score(fit, test) - _gaussian_score(train, test)
    assert gain > 0.5
    assert abs(gain - fit.gain) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("method", recipes.OPTIMIZERS)
@pytest.mark.parametrize("learning_rate", [1e-3, 1e-1, 1e3])
def test_nothing_that_is_learned_is_worse_than_one_gaussian(method, learning_rate):
    # 80 rows of a Gaussian: there is nothing to learn but noise.
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(80, 5)), rng.normal(size=(400, 5))
    fit = recipes.fit_gaussian_rbm(
        jax.random.key(0), train, 8, num_passes=30, optimizer=method, learning_rate=learning_rate
    )
    assert _score(fit, test) > _gaussian_score(train, test) - 0.05


@pytest.mark.slow
def test_the_order_of_rows_does_not_matter():
    x = _clusters(60, 0)
    order = np.random.default_rng(0).permutation(60)
    fits = [
        recipes.fit_gaussian_rbm(jax.random.key(0), rows, 2, num_passes=2) for rows in (x, x[order])
    ]
    a, b = (jax.tree.leaves((fit.params, fit.state.estimator_state)) for fit in fits)
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_log_z_beyond_enumeration():
    model = pj.models.gaussian_rbm(3, recipes._MAX_EXACT + 1)
    params = model.init(jax.random.key(0))
    w = 0.4 * jax.random.normal(jax.random.key(1), params["hidden"]["w"].shape)
    params["hidden"]["w"] = w
    found, error = recipes.gaussian_rbm_log_z(jax.random.key(2), model, params)
    assert 0 < error < 0.1
    assert abs(found - float(pj.exact.log_z(model, params))) < 4 * error


def test_an_optimizer_is_the_same_object_for_the_same_arguments():
    optimizer = recipes.gaussian_rbm_optimizer(0.1, 100, "sgd")
    assert optimizer is recipes.gaussian_rbm_optimizer(0.1, 100, "sgd")
    with pytest.raises(ValueError, match="method: expected one of adam, sgd, got 'rmsprop'"):
        recipes.gaussian_rbm_optimizer(0.1, 100, "rmsprop")


@pytest.mark.slow
def test_far_rows_bound_the_precision():
    # Heavy tails: the bulk is narrow, and a Gaussian of its width would lose much by far rows.
    x = np.random.default_rng(1).standard_t(2.5, size=(300, 2))
    fit = recipes.fit_gaussian_rbm(
        jax.random.key(0), x, 4, num_passes=40, batch_size=20, learning_rate=0.3
    )
    y = np.linalg.solve(np.asarray(fit.params["coordinates"]["scale"]), (x - x.mean(0)).T).T
    precision = np.exp(np.asarray(fit.state.params["bias"]["field"]["log_precision"]))
    assert fit.gain > 0
    assert (0.5 * (precision - 1) * (y**2).max(0) / 300 < 0.0301).all()
