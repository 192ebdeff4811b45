"""Things that do not fit each other are refused where they meet, by name."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import _border, estimators, evidence, kernels, training
from poejax.types import Weighted

KEY = jax.random.key(0)
RBM = pj.models.rbm(4, 3)
X = jnp.asarray(np.random.default_rng(0).random((100, 4)) < 0.5, jnp.float32)
RUN = training.Run(estimators.pcd(RBM, 10), optax.sgd(0.1), 4)


class NoDataclass:
    def __init__(self, model):
        self.model = model

    def init(self, rng_key, params, x, clamp=None):
        return pj.types.ChainState(x, clamp)

    def step(self, rng_key, params, state):
        return state, ()


@dataclasses.dataclass(frozen=True)
class WithAnArray(kernels.BlockGibbs):
    scale: jax.Array


def test_a_run_with_an_average_and_a_state_without():
    state = RUN.init(KEY, X)
    with pytest.raises(ValueError, match="state: expected one with an average"):
        dataclasses.replace(RUN, average=True).steps(state, X, 2)
    with pytest.raises(TypeError, match="callback: expected a function, got 3"):
        RUN.steps(state, X, 2, callback=3)
    with pytest.raises(TypeError, match="model: expected a product of experts, got 3"):
        dataclasses.replace(RUN, model=3)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [estimators.pcd(RBM, 10), estimators.pseudo_likelihood(RBM)])
def test_batches_of_rows_without_weight_move_nothing(rule):
    weights = np.zeros(100)
    weights[:5] = 1
    data = Weighted(X, jnp.asarray(weights))
    run = training.Run(rule, optax.sgd(0.1), 4)
    state, _ = run.steps(run.init(KEY, data), data, 25)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        (kernels.block_gibbs(pj.models.rbm(4, 2)), ValueError, "kernel of the model itself"),
        (kernels.block_gibbs, TypeError, "kernel: expected a kernel such as"),
        (NoDataclass(RBM), TypeError, "kernel: expected a frozen dataclass with a field model"),
        (WithAnArray(RBM, jnp.ones(2)), TypeError, "kernel: expected a frozen dataclass"),
    ],
)
def test_kernels_that_cannot_walk_the_path(kernel, error, message):
    params, betas = RBM.init(KEY), evidence.linear_betas(3)
    base = evidence.base_rate(RBM, X)
    state = evidence.ais_init(KEY, RBM, params, base, betas, 4)
    for call in (
        lambda: evidence.ais(KEY, RBM, params, base, betas, 4, kernel),
        lambda: evidence.ais_steps(state, RBM, params, base, betas, 2, kernel),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_name_that_params_hold():
    with pytest.raises(ValueError, match="another name than 'coordinates'"):
        pj.product(RBM.visible, coordinates=pj.experts.Bias(RBM.visible))


@dataclasses.dataclass(frozen=True, eq=False)
class Shift:
    by: np.ndarray

    def __call__(self, rng_key, rows):
        return rows

    __hash__ = None


def test_a_preprocess_that_cannot_be_hashed_is_checked_every_time():
    calls = []
    for _ in range(2):
        _border.once(X, Shift(np.ones(2)), lambda: calls.append(1))
    assert len(calls) == 2
