"""A run that draws its own parameters says so where real data lie far from them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import experts, training, units
from poejax.estimators import Incomplete
from poejax.types import Weighted

KEY = jax.random.key(0)
NOISE = np.random.default_rng(0).normal(size=(200, 3))
MODEL = pj.models.gaussian_rbm(3, 2)
FAR = [(300.0, 1.0), (-1e4, 1.0), (1e6, 1e4), (0.0, 1e6), (300.0, 1e6), (1.0, 1e-3)]


def begun(model, data, params=None, preprocess=None, estimator=None):
    """What was warned of, of the start of a run."""
    estimator = pj.estimators.cd(model) if estimator is None else estimator
    run = training.Run(estimator, optax.sgd(0.1), 10, preprocess=preprocess)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run.init(KEY, data, params)
    assert all(warning.category is UserWarning for warning in seen)
    assert all(warning.filename == __file__ for warning in seen)
    return [str(warning.message) for warning in seen]


@pytest.mark.parametrize(("offset", "scale"), FAR)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_data_far_from_the_start_are_named_with_the_remedy(offset, scale, dtype):
    data = NOISE.copy()
    data[:, 1] = offset + scale * data[:, 1]
    (said,) = begun(MODEL, data.astype(dtype))
    assert "data: expected real columns near a standard normal" in said
    assert f"got column 1 of mean {data[:, 1].mean():.3g}" in said
    assert "params=model.init_from(rng_key, events)" in said
    assert not begun(MODEL, data.astype(dtype), MODEL.init_from(KEY, data.astype(dtype)))


def test_the_warning_is_of_the_line_that_starts_the_run():
    with pytest.warns(UserWarning, match="near a standard normal") as seen:
        training.init(KEY, pj.estimators.cd(MODEL), optax.sgd(0.1), 1e4 + NOISE)
    assert seen[0].filename == __file__


def test_data_that_are_small_in_every_column():
    small = (1e-6 * NOISE).astype(np.float32)
    assert len(begun(MODEL, small)) == 1
    # One alone may be a pixel at the edge.
    assert not begun(MODEL, np.concatenate([small[:, :1], NOISE[:, 1:]], axis=1))


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (20.0, 1.0), (0.5, 0.2), (-3.0, 10.0)])
def test_data_near_it_are_not(offset, scale):
    assert not begun(MODEL, (offset + scale * NOISE).astype(np.float32))


def test_rows_from_all_over_are_looked_at():
    many = np.random.default_rng(0).normal(size=(600_000, 3)).astype(np.float32)
    many[:500_000, 1] = 0.0  # sorted by it
    assert not begun(MODEL, many)
    many[500_000:, 1] += 1e3
    assert len(begun(MODEL, many)) == 1
    constant = many.astype(np.float64)
    constant[:, 1] = 0.1
    constant[1, 1] = 0.2  # which is not looked at
    assert np.std(constant[::2, 1]) > 0  # by rounding alone
    assert not begun(MODEL, constant)
    seen = jax.eval_shape(
        lambda key: (
            training.Run(pj.estimators.cd(MODEL), optax.sgd(0.1), 10)
            .init(key, jnp.asarray(many))
            .params
        ),
        KEY,
    )
    assert seen["hidden"]["w"].shape == (3, 2)


def test_what_counts_are_the_rows_and_sites_that_are_learned():
    far = np.where(np.arange(200)[:, None] < 100, NOISE, 1e5 + 9 * NOISE).astype(np.float32)
    near = np.arange(200) < 100
    assert len(begun(MODEL, far)) == 1
    assert not begun(MODEL, Weighted(far, near.astype(np.float32)))
    rule = pj.estimators.imputed(pj.estimators.cd(MODEL))
    observed = np.repeat(near[:, None], 3, axis=1)
    assert not begun(MODEL, Incomplete(far, observed), estimator=rule)
    (said,) = begun(MODEL, Incomplete(far, np.ones_like(observed)), estimator=rule)
    assert said.startswith("data.x: ")


def test_blocks_are_looked_at_and_named_one_by_one():
    bits = (NOISE[:, :2] > 0).astype(np.float32)
    visible = units.Joint(real=units.GaussianDiag(3), bits=units.Bernoulli(2))
    joint = pj.product(
        visible,
        bias=experts.Bias(visible),
        hidden=experts.HiddenBank(visible, units.Bernoulli(2)),
    )
    (said,) = begun(joint, {"real": 1e4 + NOISE, "bits": bits})
    assert said.startswith("data['real']: ")
    assert not begun(joint, {"real": NOISE.astype(np.float32), "bits": bits})
    assert not begun(pj.models.rbm(2, 2), bits)
    # A block that nobody observed has nothing to be far from.
    rule = pj.estimators.imputed(pj.estimators.cd(joint))
    unseen = {"real": np.zeros((200, 3), bool), "bits": np.ones((200, 2), bool)}
    rows = Incomplete({"real": 1e4 + NOISE.astype(np.float32), "bits": bits}, unseen)
    assert not begun(joint, rows, estimator=rule)
    (said,) = begun(MODEL, NOISE, preprocess=lambda key, rows: 1e4 + jnp.asarray(rows, float))
    assert said.startswith("preprocess(data): ")
