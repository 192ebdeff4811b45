"""The scikit-learn face over bits, real values and codes: units, weights, sparse input, gaps."""

from __future__ import annotations

import itertools
import pickle

import jax
import numpy as np
import pytest
import scipy.sparse
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import estimator_checks

import poejax as pj
from poejax import recipes
from poejax._sklearn import matrices
from poejax.sklearn import RBM

SMALL = {"n_components": 3, "n_iter": 2, "n_chains": 10, "random_state": 0}
REAL = SMALL | {"visible": "gaussian"}
CODES = SMALL | {"visible": "categorical"}


def _bits(num_rows=40, size=6, seed=0):
    return (np.random.default_rng(seed).random((num_rows, size)) < 0.4).astype(float)


def _reals(num_rows=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_rows, 3)) @ np.array([[2.0, 0, 0], [1.5, 1, 0], [0, -0.5, 0.3]]).T


def _copies(num_rows=300, seed=0):
    """Codes of which the second column repeats the first, and the third is independent."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 3, num_rows)
    return np.stack([first, first, rng.integers(0, 3, num_rows)], axis=1)


def _enumerated(rbm, x):
    """Log-likelihoods of a Gaussian RBM in float64, by summing over the hidden units' states."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, float), rbm.params_)
    origin, scale = params["coordinates"]["origin"], params["coordinates"]["scale"]
    scale = np.diag(scale) if scale.ndim == 1 else scale
    y = np.linalg.solve(scale, (x - origin).T).T
    a, w, b = params["bias"]["field"], params["hidden"]["w"], params["hidden"]["b"]
    precision = np.exp(a["log_precision"])
    log_weights, parts = [], []
    for z in itertools.product((0.0, 1.0), repeat=len(b)):
        linear = a["linear"] + w @ z
        mean = linear / precision
        log_weights.append(b @ z + 0.5 * (linear**2 / precision).sum())
        normal = 0.5 * np.log(precision / (2 * np.pi)) - 0.5 * precision * (y - mean) ** 2
        parts.append(normal.sum(1))
    log_weights = np.array(log_weights) - np.logaddexp.reduce(log_weights)
    mixed = np.logaddexp.reduce(log_weights[:, None] + np.array(parts), axis=0)
    return mixed - np.log(np.diag(scale)).sum()


@pytest.mark.slow
@pytest.mark.parametrize(("offset", "scale"), [(300.0, 1e-2), (1e4, 1.0), (1e6, 1e3), (0.0, 1e-6)])
def test_real_values_are_scored_in_their_own_units(offset, scale):
    x = offset + scale * _reals()
    rbm = RBM(**REAL | {"learning_rate": 0.03}).partial_fit(x).partial_fit(x)
    scores = rbm.score_samples(x)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, _enumerated(rbm, x), atol=2e-3)
    drawn = rbm.sample(400, n_steps=20)
    error = x.std(0) / np.sqrt(60) + drawn.std(0) / 20
    assert (np.abs(drawn.mean(0) - x.mean(0)) < 5 * error).all()
    assert (np.abs(np.log(drawn.std(0) / x.std(0))) < 0.5).all()
    assert rbm.gibbs(x).shape == x.shape


@pytest.mark.slow
def test_before_it_has_learned_a_gaussian_rbm_is_the_gaussian_of_the_rows():
    x = 300 + _reals()
    rbm = RBM(**REAL).fit(x)  # two passes over 48 rows: nothing is learned yet
    assert rbm.gain_ == 0
    mean, covariance = x.mean(0), np.cov(x.T, bias=True) * 1.01
    centred = x - mean
    expected = -0.5 * np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
    expected -= 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    np.testing.assert_allclose(rbm.score_samples(x), expected, atol=0.02)
    # What is missing has the conditional mean given the rest.
    gaps = x.copy()
    gaps[:, 1] = np.nan
    gaps[0] = x[0]
    filled = rbm.impute(gaps)
    np.testing.assert_array_equal(filled[:, [0, 2]], x[:, [0, 2]])
    np.testing.assert_array_equal(filled[0], x[0])
    slope = np.linalg.solve(covariance[np.ix_([0, 2], [0, 2])], covariance[[0, 2], 1])
    expected = mean[1] + centred[:, [0, 2]] @ slope
    np.testing.assert_allclose(filled[1:, 1], expected[1:], atol=0.05)
    np.testing.assert_array_equal(filled, rbm.impute(gaps))


@pytest.mark.slow
def test_real_columns_that_hang_together_get_a_scale_each():
    x = _reals()
    doubled = np.hstack([x, x[:, :1]])
    rbm = RBM(**REAL).fit(doubled)
    assert rbm.params_["coordinates"]["scale"].shape == (4,)
    assert np.isfinite(rbm.score_samples(doubled)).all()
    with pytest.raises(ValueError, match="column 1 constant at 7; drop it"):
        RBM(**REAL).fit(np.stack([x[:, 0], np.full(60, 7.0)], axis=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_fit2d_1sample,
        estimator_checks.check_fit2d_1feature,
        estimator_checks.check_dict_unchanged,
        estimator_checks.check_sample_weight_equivalence_on_dense_data,
        estimator_checks.check_transformer_preserve_dtypes,
    ],
)
def test_scikit_learns_checks_of_real_values(check):
    check("RBM", RBM(**REAL))


@pytest.mark.slow
def test_codes_are_learned_scored_drawn_and_filled_in():
    x = _copies()
    rbm = RBM(8, visible="categorical", n_iter=60, n_chains=50, random_state=0).fit(x)
    assert rbm.model_.visible == pj.units.Categorical(3, 3)
    p = np.asarray(pj.exact.probabilities(rbm.model_, rbm.params_), float).reshape(3, 3, 3)
    p = p.transpose(2, 1, 0)  # states count the first site fastest
    rows = tuple(x.T)
    expected = sum(
        np.log(p[rows] / p.sum(axis)[tuple(np.delete(x, axis, 1).T)]) for axis in range(3)
    )
    np.testing.assert_allclose(rbm.score_samples(x), expected, rtol=1e-3, atol=1e-3)
    drawn = rbm.sample(200, n_steps=50)
    assert drawn.dtype.kind == "i"
    assert set(np.unique(drawn)) == {0, 1, 2}
    assert (drawn[:, 0] == drawn[:, 1]).mean() > 0.8
    gaps = x.astype(float)
    gaps[:150, 1], gaps[150:, 0] = np.nan, -1
    np.testing.assert_array_equal(rbm.impute(gaps), x)
    assert rbm.transform(x).shape == (300, 8)
    for bad, found in ((3, "3 in row 0, column 0"), (0.5, "0.5 in row 0"), (-1, "-1 in row 0")):
        with pytest.raises(ValueError, match=f"X: expected codes 0 to 2, got {found}"):
            rbm.transform(np.array([[bad, 0, 0]]))
    assert RBM(**CODES | {"num_classes": 5}).fit(x).params_["bias"]["field"].shape == (3, 5)


@pytest.mark.slow
def test_bits_are_drawn_and_filled_in():
    x = pj.datasets.bars_and_stripes(2).astype(float)
    rbm = RBM(8, n_iter=200, batch_size=8, random_state=0).fit(x)
    p = np.asarray(pj.exact.probabilities(rbm.model_, rbm.params_), float)
    drawn = rbm.sample(1000, n_steps=100).astype(int) @ 2 ** np.arange(4)
    found = np.bincount(drawn, minlength=16) / 1000
    assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / 1000) + 0.005).all()
    gaps = np.array([[1, np.nan, 0, 0.0], [1, 0, 0.25, 1]])
    filled = rbm.impute(gaps)
    assert abs(filled[0, 1] - p[3] / (p[1] + p[3])) < 0.1
    np.testing.assert_array_equal(filled[~np.isnan(gaps)], gaps[~np.isnan(gaps)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "x"),
    [(SMALL, _bits()), (REAL, _reals()), (CODES, _copies(40))],
    ids=["bernoulli", "gaussian", "categorical"],
)
def test_integer_weights_are_repetitions(options, x):
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, len(x))
    repeated = np.repeat(x, weights, axis=0)
    order = rng.permutation(len(x))
    whole = RBM(**options).fit(repeated)
    weighted = RBM(**options).fit(x[order], sample_weight=weights[order])
    np.testing.assert_array_equal(whole.transform(x), weighted.transform(x))
    np.testing.assert_array_equal(whole.score_samples(x), weighted.score_samples(x))
    whole = RBM(**options).partial_fit(repeated)
    weighted = RBM(**options).partial_fit(x, sample_weight=weights)
    np.testing.assert_array_equal(whole.transform(x), weighted.transform(x))
    with pytest.raises(ValueError, match="sample_weight: expected some weight above zero"):
        RBM(**options).fit(x, sample_weight=np.zeros(len(x)))


@pytest.mark.slow
@pytest.mark.parametrize("options", [SMALL, REAL, CODES], ids=["bits", "reals", "codes"])
def test_weights_of_any_kind_move_the_base_rates(options):
    x = {"gaussian": _reals(), "categorical": _copies(60)}.get(options.get("visible"), _bits())
    weights = np.random.default_rng(2).random(len(x)) + (x[:, 0] > 0)
    share = weights / weights.sum()
    rbm = RBM(**options | {"learning_rate": 1e-6}).fit(x, sample_weight=weights)
    mean = share @ (x == 1 if options is CODES else x)
    if options is REAL:
        found = np.asarray(rbm.params_["coordinates"]["origin"])
    else:
        rates = jax.nn.softmax if options is CODES else jax.nn.sigmoid
        found = np.asarray(rates(rbm.params_["bias"]["field"]))
        found = found[:, 1] if options is CODES else found
        mean = 0.99 * mean + 0.01 / (3 if options is CODES else 2)
    np.testing.assert_allclose(found, mean, atol=1e-4)
    np.testing.assert_allclose(
        RBM(**options).fit(x, sample_weight=weights).transform(x),
        RBM(**options).fit(x, sample_weight=weights * 4).transform(x),
        atol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", [scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_sparse_rows_are_the_dense_ones(form):
    x = _bits()
    dense, sparse = RBM(**SMALL).fit(x), RBM(**SMALL).fit(form(x))
    np.testing.assert_array_equal(sparse.transform(form(x)), dense.transform(x))
    np.testing.assert_array_equal(sparse.score_samples(form(x)), dense.score_samples(x))
    dense.partial_fit(x)
    sparse.partial_fit(form(x))
    np.testing.assert_array_equal(sparse.components_, dense.components_)


@pytest.mark.slow
def test_sparse_rows_too_many_to_be_dense_go_by_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    x = np.repeat(rng.random((200, 1)) < 0.5, 8, axis=1).astype(float)
    options = {"n_components": 4, "n_iter": 60, "n_chains": 20, "random_state": 0}
    whole = RBM(**options).fit(x)
    monkeypatch.setattr(matrices, "LARGE", 2000)
    monkeypatch.setattr(matrices, "BLOCK", 50 * 8 * 8)
    sparse = scipy.sparse.csr_matrix(x)
    by_blocks = RBM(**options).fit(sparse)
    assert by_blocks.score(sparse) > -1.0 > RBM(**options | {"n_iter": 1}).fit(x).score(x)
    np.testing.assert_allclose(
        whole.score_samples(sparse),
        np.concatenate([whole.score_samples(v) for v in np.split(x, 4)]),
    )
    weighted = RBM(**options).fit(sparse, sample_weight=rng.random(200))
    assert weighted.score(sparse) > -1.0


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_values_beyond_the_unit_interval_by_rounding_are_clipped(dtype):
    eps = np.finfo(dtype).eps
    x = np.random.default_rng(0).random((40, 6)).astype(dtype)
    x[0, :2] = 1 + eps, -eps
    exact = np.clip(x, 0, 1)
    np.testing.assert_array_equal(
        RBM(**SMALL).fit(x).components_, RBM(**SMALL).fit(exact).components_
    )
    with pytest.raises(ValueError, match=r"expected probabilities in \[0, 1\]"):
        RBM(**SMALL).fit(x + dtype(1e-3))
    rng = np.random.default_rng(0)
    scaled = MinMaxScaler().fit_transform(rng.normal(size=(40, 6)) * 1e3)
    RBM(**SMALL).fit(scaled)


@pytest.mark.slow
@pytest.mark.parametrize(("there", "here"), [("rbg", "threefry2x32"), ("threefry2x32", "rbg")])
def test_pickles_keep_the_implementation_of_their_key(there, here):
    x = _bits()
    with jax.default_prng_impl(there):
        rbm = RBM(**SMALL).fit(x)
        written = pickle.dumps(rbm)
        rbm.partial_fit(x)
    with jax.default_prng_impl(here):
        loaded = pickle.loads(written).partial_fit(x)
    np.testing.assert_array_equal(loaded.components_, rbm.components_)


def test_pickles_from_before_there_were_kinds_of_units_load():
    x = _bits()
    rbm = RBM(**SMALL).fit(x)
    old = rbm.__getstate__()
    for name in ("_key_impl", "visible", "num_classes", "optimizer"):
        del old[name]
    loaded = RBM.__new__(RBM)
    loaded.__setstate__(old)
    assert loaded.get_params() == rbm.get_params()
    np.testing.assert_array_equal(loaded.partial_fit(x).components_, rbm.partial_fit(x).components_)


@pytest.mark.slow
def test_a_line_per_pass(capsys):
    RBM(**SMALL | {"verbose": 1}).fit(_bits())
    RBM(**CODES | {"verbose": 1}).fit(_copies(40))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["[RBM] pass 1", "[RBM] pass 2"] * 2
    RBM(**REAL | {"verbose": 1}).fit(_reals())
    assert "nats above one Gaussian" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"visible": "real"}, "visible: expected 'bernoulli', 'gaussian' or 'categorical'"),
        ({"optimizer": "lbfgs"}, "optimizer: expected 'adam' or 'sgd', got 'lbfgs'"),
        ({"num_classes": 1}, "num_classes: expected at least 2"),
    ],
)
def test_options_of_units_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        RBM(**SMALL | options).fit(_bits())


@pytest.mark.slow
def test_resampling_meets_every_weight():
    random = np.random.default_rng(0)
    weights = np.array([0.3, 0.0, 2.5, 1.0, 0.7])
    counts = np.stack(
        [np.bincount(recipes.resampled(random, weights), minlength=5) for _ in range(4000)]
    )
    expected = weights * 5 / weights.sum()
    assert (counts.sum(1) == 5).all()
    assert ((counts == np.floor(expected)) | (counts == np.ceil(expected))).all()
    np.testing.assert_allclose(counts.mean(0), expected, atol=5 * 0.5 / np.sqrt(4000))
    np.testing.assert_array_equal(recipes.resampled(random, np.array([2.0, 0, 1])), [0, 0, 2])
