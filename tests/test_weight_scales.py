"""Of weights only ratios matter: whatever dtype and scale they come in, and rows of weight 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import mixtures, training
from poejax.types import Weighted

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
BITS = (RNG.random((256, 3)) < [0.2, 0.3, 0.5]).astype(np.float32)
MODEL = pj.models.rbm(3, 2)
SHARES = RNG.integers(1, 4, len(BITS))
SCALED = {
    "int64": SHARES * 10_000_000,
    "uint8": (SHARES * 80).astype(np.uint8),
    "float16": (SHARES * 300).astype(np.float16),
    "bfloat16": jnp.asarray(SHARES * 300, jnp.bfloat16),
    "int32 of JAX": jnp.asarray(SHARES * 30_000_000),
    "tiny": SHARES * 1e-60,
    "large": SHARES * 1e60,
}


@pytest.mark.parametrize("kind", SCALED)
def test_any_scale_and_dtype_learns_what_small_numbers_do(kind):
    plain, scaled = Weighted(BITS, SHARES.astype(np.float32)), Weighted(BITS, SCALED[kind])
    for given in (plain, scaled):
        assert np.isfinite(pj.evidence.base_rate(MODEL, given).log_z)
    starts = [MODEL.init_from(KEY, of) for of in (plain, scaled)]
    fields = [np.asarray(start["bias"]["field"]) for start in starts]
    mean = np.average(BITS, axis=0, weights=SHARES)
    np.testing.assert_allclose(*fields, atol=1e-5)
    np.testing.assert_allclose(fields[1], np.log(mean / (1 - mean)), atol=0.05)

    run = training.Run(pj.estimators.pcd(MODEL, 20), optax.sgd(0.1), 64)
    states = [run.steps(run.init(KEY, of, starts[0]), of, 20)[0] for of in (plain, scaled)]
    learned = [state.params["bias"]["field"] for state in states]
    np.testing.assert_allclose(*learned, rtol=1e-4, atol=1e-5)

    exact = pj.estimators.exact(MODEL)
    grads = [exact.grad(KEY, starts[0], (), of)[0]["bias"]["field"] for of in (plain, scaled)]
    np.testing.assert_allclose(*grads, atol=1e-6)


@pytest.mark.parametrize("fill", [-999.0, 1e6, 1e30])
@pytest.mark.parametrize("covariance", ["diag", "full", "spherical"])
def test_a_mixture_sees_nothing_of_rows_of_weight_0(fill, covariance):
    x = np.random.default_rng(0).normal(size=(100, 2))
    x[:60] = fill
    weights = np.r_[np.zeros(60), np.ones(40)]
    found = mixtures.fit_em(KEY, x, 1, covariance=covariance, weights=weights)[0]
    alone = mixtures.fit_em(KEY, x[60:], 1, covariance=covariance)[0]
    np.testing.assert_allclose(found.means, alone.means, rtol=1e-6)
    np.testing.assert_allclose(found.covariances, alone.covariances, rtol=1e-6)


@pytest.mark.parametrize("fill", [-999.0, 2147483647.0, 1e30])
def test_centroids_neither_but_they_are_assigned(fill):
    x = np.random.default_rng(0).normal(size=(100, 2))
    x[:60] = fill
    x[60:] += 2  # no mean near 0, of which the bound is a share
    x[60:80] += 8
    weights = np.r_[np.zeros(60), np.ones(40)]
    found = mixtures.kmeans(KEY, x, 2, weights=weights)
    means = np.stack([x[60:80].mean(0), x[80:].mean(0)])
    order = np.argsort(-np.asarray(found.centroids)[:, 0])
    np.testing.assert_allclose(np.asarray(found.centroids)[order], means, rtol=1e-5)
    nearest = order[0] if fill > 0 else order[1]
    np.testing.assert_array_equal(found.assignments[:60], nearest)
    np.testing.assert_array_equal(found.assignments[60:], np.repeat(order, 20))


def test_columns_that_vary_in_rows_of_weight_0_alone_are_refused():
    x = np.array([[1.0, 0.3], [1.0, -0.2], [1.0, 0.5], [5.0, 0.1]])
    rows = Weighted(x, np.array([1.0, 1, 1, 0]))
    for visible in (pj.units.GaussianDiag(2), pj.units.Gaussian(2)):
        model = pj.product(visible, bias=pj.experts.Bias(visible))
        with pytest.raises(ValueError, match=r"data: expected variance in every \w+, got"):
            model.init_from(KEY, rows)
        with pytest.raises(ValueError, match=r"data: expected variance in every \w+, got"):
            pj.evidence.base_rate(model, rows)


@pytest.mark.parametrize("batch_size", [1, 20, 1000])
def test_a_loss_that_weighs_its_rows_itself_is_minimised_as_it_stands(batch_size):
    x = np.random.default_rng(1).normal(size=(1000, 1)).astype(np.float32)
    w = np.where(x[:, 0] > 0, 9.0, 1.0).astype(np.float32)

    def loss(key, params, batch):
        del key
        return jnp.mean(batch.weights * jnp.sum((batch.x - params["mean"]) ** 2, axis=-1))

    run = training.Run(
        pj.estimators.from_loss(loss),
        optax.sgd(0.002),
        batch_size,
        average=True,
        average_decay=0.999,
    )
    data = Weighted(x, w)
    state = run.init(KEY, data, {"mean": np.zeros(1, np.float32)})
    state, _ = run.steps(state, data, 10_000)
    assert float(state.average["mean"][0]) == pytest.approx(
        np.average(x[:, 0], weights=w), abs=0.02
    )


def test_optimizers_that_need_the_loss_get_that_of_the_gradient():
    ratios = []

    def update(grads, state, params, *, value, value_fn, **_):
        own = jax.grad(value_fn)(params)
        ratio = jnp.sum(own["bias"]["field"] * grads["bias"]["field"])
        jax.debug.callback(ratios.append, ratio / jnp.sum(grads["bias"]["field"] ** 2))
        jax.debug.callback(ratios.append, value_fn(params) / value)
        return jax.tree.map(lambda g: -0.01 * g, grads), state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    run = training.Run(pj.estimators.pseudo_likelihood(MODEL), tx, 20)
    data = Weighted(BITS, np.random.default_rng(1).random(len(BITS)) ** 4)
    run.steps(run.init(KEY, data, MODEL.init_from(KEY, data)), data, 5)
    jax.effects_barrier()
    assert len(ratios) >= 10
    np.testing.assert_allclose(ratios, 1, rtol=1e-4)
