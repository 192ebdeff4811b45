"""Columns of real data that hardly vary, depend on others or are whole numbers far from zero."""

import jax
import numpy as np
import pytest

import poejax as pj
from poejax import recipes
from poejax.sklearn import RBM

KEY = jax.random.key(0)


def test_columns_that_rarely_vary_are_learned():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(100, 6))
        x[:, 0] = 0
        x[rng.integers(100), 0] = 1.0
        found = recipes.fit_gaussian_rbm(jax.random.key(seed), x, 2, num_passes=1, num_chains=5)
        assert np.isfinite(found.gain)


def test_dates_are_no_constant():
    days = np.array([[2_460_000], [2_460_001], [2_460_002], [2_460_000]])
    model = pj.models.gaussian_rbm(1, 2)
    coordinates = model.init_from(KEY, days)["coordinates"]
    assert float(coordinates["scale"][0]) == pytest.approx(days.std(), rel=1e-3)
    with pytest.raises(ValueError, match="got column 0 constant at"):
        model.init_from(KEY, np.full_like(days, 2_460_000))


@pytest.mark.parametrize("num_rows", [3, 100])
def test_dependent_columns_have_no_full_coordinates(num_rows):
    z = np.random.default_rng(0).normal(size=(num_rows, 2))
    data = np.column_stack([z, z.sum(axis=1)])
    model = pj.models.gaussian_rbm(3, 2)
    with pytest.raises(ValueError, match="data: expected variance in every direction, got"):
        model.init_from(KEY, data, full=True)
    assert np.isfinite(model.init_from(KEY, data)["coordinates"]["scale"]).all()


def test_nearly_dependent_columns_keep_full_coordinates():
    z = np.random.default_rng(0).normal(size=(100, 3))
    data = np.column_stack([z[:, :2], z[:, :2].sum(axis=1) + 1e-4 * z[:, 2]])
    scale = pj.models.gaussian_rbm(3, 2).init_from(KEY, data, full=True)["coordinates"]["scale"]
    np.testing.assert_allclose(scale @ scale.T, np.cov(data.T, ddof=0), rtol=1e-4)


def test_a_value_that_is_not_finite_is_found_where_it_stands():
    x = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match=r"x: expected shape .*, got"):
        recipes.fit_gaussian_rbm(KEY, x[:, 0], 2, num_passes=1)
    x[3, 1] = np.inf
    with pytest.raises(ValueError, match="x: expected finite values, got inf in row 3, column 1"):
        recipes.fit_gaussian_rbm(KEY, x, 2, num_passes=1)


def test_a_fit_with_other_units_forgets_coordinates():
    rng = np.random.default_rng(0)
    rbm = RBM(2, visible="gaussian", n_iter=1, n_chains=5, random_state=0)
    rbm.fit(rng.normal(size=(30, 3)))
    assert "coordinates" in rbm.params_
    rbm.set_params(visible="bernoulli").fit((rng.random((30, 3)) < 0.5).astype(float))
    assert "coordinates" not in rbm.params_
    assert not hasattr(rbm, "gain_")
    assert np.isfinite(pj.exact.log_z(rbm.model_, rbm.params_))
