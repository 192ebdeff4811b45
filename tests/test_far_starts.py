"""A run that draws its own parameters says so where real data lie far from them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import experts, units
from poejax.types import Weighted

KEY = jax.random.key(0)
NOISE = np.random.default_rng(0).normal(size=(200, 3))
MODEL = pj.models.gaussian_rbm(3, 2)
FAR = [(300.0, 1.0), (-1e4, 1.0), (1e6, 1e4), (0.0, 1e6), (0.0, 1e-6), (300.0, 1e6)]


def begun(model, data, params=None, preprocess=None):
    """What was warned of, of the start of a run."""
    run = pj.training.Run(pj.estimators.pcd(model, 10), optax.sgd(0.1), 10, preprocess=preprocess)
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
    assert f"got one of mean {data[:, 1].mean():.3g}" in said
    assert "params=model.init_from(rng_key, data)" in said
    assert not begun(MODEL, data.astype(dtype), MODEL.init_from(KEY, data.astype(dtype)))


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (20.0, 1.0), (0.5, 0.2), (-3.0, 10.0)])
def test_data_near_it_are_not(offset, scale):
    assert not begun(MODEL, (offset + scale * NOISE).astype(np.float32))


def test_what_counts_are_the_rows_and_blocks_that_are_learned():
    far = np.where(np.arange(200)[:, None] < 100, NOISE, 1e5 + 9 * NOISE).astype(np.float32)
    near = np.arange(200) < 100
    assert len(begun(MODEL, far)) == 1
    assert not begun(MODEL, Weighted(far, near.astype(np.float32)))
    bits = (NOISE[:, :2] > 0).astype(np.float32)
    visible = units.Joint(real=units.GaussianDiag(3), bits=units.Bernoulli(2))
    joint = pj.product(
        visible,
        bias=experts.Bias(visible),
        hidden=experts.HiddenBank(visible, units.Bernoulli(2)),
    )
    assert len(begun(joint, {"real": far, "bits": bits})) == 1
    assert not begun(joint, {"real": NOISE.astype(np.float32), "bits": bits})
    assert not begun(pj.models.rbm(2, 2), bits)
    (said,) = begun(MODEL, NOISE, preprocess=lambda key, rows: 1e4 + jnp.asarray(rows, float))
    assert said.startswith("preprocess(data): ")
