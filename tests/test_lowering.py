"""What runs on a device lowers for CUDA and TPU, as far as one can see without either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import export

import poejax as pj
from poejax import datasets, training

KEY = jax.random.key(0)
BITS = jnp.asarray(datasets.bars_and_stripes(3), jnp.float32)
RBM = pj.models.rbm(9, 4)
REAL = pj.units.Gaussian(3)
HEAVY = pj.product(REAL, heavy=pj.experts.StudentT(REAL, 3))
ROUNDED = pj.product(
    RBM.visible, hidden=pj.experts.HiddenBank(RBM.visible, RBM.visible, compute_dtype="bfloat16")
)
COUNTS = pj.product(pj.units.Categorical(3, 4), bias=pj.experts.Bias(pj.units.Categorical(3, 4)))


def sweeps(kernel: Any) -> tuple[Callable[..., Any], Any]:
    params = kernel.model.init(KEY)
    chains = pj.chains.init(KEY, kernel, params, 8)
    return lambda params, chains: pj.chains.run(KEY, kernel, params, chains, 3)[0], (params, chains)


def updates() -> tuple[Callable[..., Any], Any]:
    images = (255 * BITS).astype(jnp.uint8)
    rule = pj.estimators.centered(pj.estimators.pcd(RBM, 8))
    run = training.Run(rule, optax.adam(0.01), 4, preprocess=datasets.stochastic, average=True)
    return lambda state, data: run.steps(state, data, 5)[0], (run.init(KEY, images), images)


def annealing() -> tuple[Callable[..., Any], Any]:
    params, betas = RBM.init(KEY), pj.evidence.linear_betas(4)
    base = pj.evidence.base_rate(RBM, BITS)
    return (
        lambda params, base: pj.evidence.ais(KEY, RBM, params, base, betas, 8),
        (params, base),
    )


CASES: dict[str, Callable[[], tuple[Callable[..., Any], Any]]] = {
    "gibbs": lambda: sweeps(pj.kernels.block_gibbs(RBM)),
    "gibbs, bfloat16 products": lambda: sweeps(pj.kernels.block_gibbs(ROUNDED)),
    "gibbs, classes": lambda: sweeps(pj.kernels.block_gibbs(COUNTS)),
    "gibbs, student-t": lambda: sweeps(pj.kernels.block_gibbs(HEAVY)),
    "hmc": lambda: sweeps(pj.kernels.hmc(HEAVY, 0.1)),
    "gibbs with gradients": lambda: sweeps(pj.kernels.gibbs_with_gradients(RBM)),
    "updates": updates,
    "annealing": annealing,
    "enumeration": lambda: (lambda params: pj.exact.log_z(RBM, params), (RBM.init(KEY),)),
}


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", CASES)
def test_lowers(name, platform):
    fn, arguments = CASES[name]()
    assert export.export(jax.jit(fn), platforms=[platform])(*arguments).mlir_module()
