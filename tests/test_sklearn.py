"""The scikit-learn face, and weights from elsewhere."""

from __future__ import annotations

import pickle

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import poejax as pj
from poejax import convert
from poejax.sklearn import RBM

SMALL = {"n_components": 4, "n_iter": 2, "n_chains": 10}


@pytest.mark.slow
def test_scikit_learns_own_checks():
    # On arbitrary real data, which is what most of them send, thresholded.
    check_estimator(RBM(binarize="threshold", **SMALL))


@pytest.mark.slow
def test_it_learns_bars_and_stripes():
    x = pj.datasets.bars_and_stripes(3).astype(np.float64)
    rbm = RBM(16, learning_rate=0.1, batch_size=16, n_iter=3000, random_state=0).fit(x)
    log_z = pj.exact.log_z(rbm.model_, rbm.params_)
    likelihood = float(pj.evidence.log_likelihood(rbm.model_, rbm.params_, x, log_z).mean)
    assert -3.2 < likelihood < -2.5993
    peer = BernoulliRBM(16, learning_rate=0.1, batch_size=16, n_iter=3000, random_state=0).fit(x)
    model, params = convert.from_bernoulli_rbm(peer)
    log_z = pj.exact.log_z(model, params)
    assert float(pj.evidence.log_likelihood(model, params, x, log_z).mean) < likelihood


@pytest.mark.slow
def test_scores_are_exact_and_transform_is_the_posterior():
    x = pj.datasets.bars_and_stripes(3).astype(np.float64)
    rbm = RBM(random_state=1, **SMALL).fit(x)
    p = np.asarray(pj.exact.probabilities(rbm.model_, rbm.params_), float)
    bits = x.astype(int)
    index = bits @ 2 ** np.arange(9)
    flipped = index[:, None] ^ 2 ** np.arange(9)
    expected = np.log(p[index][:, None] / (p[index][:, None] + p[flipped])).sum(1)
    np.testing.assert_allclose(rbm.score_samples(x), expected, rtol=1e-4)
    np.testing.assert_array_equal(rbm.score_samples(x), rbm.score_samples(x))
    logits = x @ rbm.components_.T + rbm.intercept_hidden_
    np.testing.assert_allclose(rbm.transform(x), 1 / (1 + np.exp(-logits)), rtol=1e-4)
    assert rbm.intercept_visible_.shape == (9,)
    assert set(np.unique(rbm.gibbs(x))) <= {0.0, 1.0}
    assert (rbm.gibbs(x) != rbm.gibbs(x)).any()


@pytest.mark.slow
def test_partial_fits_go_on_and_survive_pickling():
    x = pj.datasets.bars_and_stripes(3).astype(np.float64)
    whole = RBM(random_state=3, **SMALL).partial_fit(x).partial_fit(x)
    half = RBM(random_state=3, **SMALL).partial_fit(x)
    resumed = pickle.loads(pickle.dumps(half)).partial_fit(x)
    np.testing.assert_array_equal(whole.components_, resumed.components_)
    assert (half.components_ != whole.components_).any()


@pytest.mark.slow
def test_in_a_pipeline():
    data = pj.datasets.digits()
    x, y = data.train.images[:400] / 255.0, data.train.labels[:400]
    pipeline = make_pipeline(RBM(32, n_iter=20, random_state=0), LogisticRegression(max_iter=300))
    assert pipeline.fit(x, y).score(x, y) > 0.8


def test_data_that_are_no_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"X: expected probabilities in \[0, 1\]"):
        RBM(**SMALL).fit(np.full((4, 3), 200.0))
    with pytest.raises(ValueError, match="binarize: expected 'sample' or 'threshold', got 'half'"):
        RBM(binarize="half", **SMALL).fit(np.ones((4, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate: expected a positive number, got -1.0"),
        ({"learning_rate": True}, "learning_rate: expected a positive number, got True"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1, got 0"),
        ({"binarize": "threshold", "threshold": np.nan}, "threshold: expected a finite number"),
    ],
)
def test_options_are_checked_again_before_a_partial_fit(options, message):
    x = pj.datasets.bars_and_stripes(3).astype(np.float64)
    rbm = RBM(random_state=3, **SMALL | {"learning_rate": np.float32(0.1)}).partial_fit(x)
    with pytest.raises(ValueError, match=message):
        rbm.set_params(**options).partial_fit(x)


def test_weights_of_bernoulli_rbm_give_its_free_energy():
    x = pj.datasets.bars_and_stripes(3).astype(np.float64)
    peer = BernoulliRBM(5, n_iter=5, random_state=0).fit(x)
    model, params = convert.from_bernoulli_rbm(peer)
    found = jax.vmap(model.log_density, (None, 0))(params, jnp.asarray(x))
    np.testing.assert_allclose(found, -peer._free_energy(x), rtol=1e-4)
    with pytest.raises(ValueError, match="a fitted BernoulliRBM, got one without"):
        convert.from_bernoulli_rbm(BernoulliRBM())


@pytest.fixture
def rbms_file(tmp_path):
    def write(kind, w, a, b, nested=True):
        path = tmp_path / f"{kind}.h5"
        with h5py.File(path, "w") as file:
            file["model_type"] = kind
            for update, scale in ((9, 0.0), (10, 1.0)):
                group = file.create_group(f"update_{update}")
                group = group.create_group("params") if nested else group
                group["weight_matrix"], group["vbias"], group["hbias"] = scale * w, a, b
        return path

    return write


@pytest.mark.slow
def test_files_of_rbms(rbms_file, tmp_path):
    rng = np.random.default_rng(0)
    w, a, b = rng.normal(size=(4, 3)), rng.normal(size=4), rng.normal(size=3)
    for nested in (True, False):
        model, params = convert.load_rbms(rbms_file("BBRBM", w, a, b, nested))
        x = model.visible.states()
        pre = np.asarray(x) @ w + b
        expected = np.asarray(x) @ a + np.logaddexp(0, pre).sum(1)
        found = jax.vmap(model.log_density, (None, 0))(params, x)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    path = rbms_file("PBRBM", rng.normal(size=(4, 5, 3)), rng.normal(size=(4, 5)), b)
    model, params = convert.load_rbms(path, update=9)
    assert model.visible == pj.units.Categorical(4, 5)
    assert float(jnp.abs(params["hidden"]["w"]).max()) == 0
    for call, error, message in (
        (lambda: convert.load_rbms(path, update=3), ValueError, r"one of \[9, 10\], got 3"),
        (lambda: convert.load_rbms(path, update=9.0), ValueError, "update: expected an integer"),
        (
            lambda: convert.load_rbms(rbms_file("PBRBM", np.zeros((3, 4, 2)), a[:, None], b)),
            ValueError,
            r"path: expected weight_matrix \[V, q, H\]",
        ),
        (lambda: convert.load_rbms(tmp_path / "none.h5"), FileNotFoundError, "path: no file"),
        (lambda: convert.load_rbms(rbms_file("GBRBM", w, a, b)), ValueError, "got 'GBRBM'"),
        (lambda: convert.load_rbms(__file__), ValueError, "expected an HDF5 file"),
    ):
        with pytest.raises(error, match=message):
            call()
