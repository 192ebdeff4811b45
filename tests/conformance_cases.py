"""Every unit, kernel and learning rule, on models small enough for the conformance kit."""

from __future__ import annotations

import jax.numpy as jnp
from kernel_cases import MIXED, PLANE, bank, opaque

import poejax as pj
from poejax import estimators, experts, kernels, units

UNITS = {
    "bernoulli": units.Bernoulli(3),
    "spin": units.Spin(3),
    "categorical": units.Categorical(2, 3),
    "gaussian-diag": units.GaussianDiag(2),
    "gaussian": units.Gaussian(1),
    "gaussian-full": units.Gaussian(3),
    "standard-gaussian": units.StandardGaussian(1),
    "standard-gaussians": units.StandardGaussian(3),
    "binomial": units.Binomial(2, 3),
    "poisson": units.Poisson(2),
    "relu": units.ReLU(2),
    "relus": units.ReLU(3),
    "joint": units.Joint(a=units.Spin(2), b=units.Categorical(1, 3)),
    "joint-of-joints": units.Joint(
        a=units.Joint(b=units.Bernoulli(1), c=units.Gaussian(2)), d=units.GaussianDiag(1)
    ),
}
BINARY = bank(units.Bernoulli(4), units.Bernoulli(3))
REAL = pj.models.gaussian_rbm(2, 3)
FULL = pj.product(PLANE, one=experts.Gaussian(PLANE, "full"), mix=experts.GaussianMixture(PLANE, 2))
HEAVY = pj.product(PLANE, bank=experts.StudentT(PLANE, 2))
HEAVY_PARAMS = {
    "bank": {
        "w": jnp.array([[0.8, -0.28], [0.6, 0.96]]),
        "log_scale": jnp.array([0.0, 0.4]),
        "log_exponent": jnp.array([0.9, 0.5]),
    }
}
KERNELS = {
    "gibbs": (kernels.block_gibbs(BINARY), None),
    "gibbs-joint": (kernels.block_gibbs(bank(MIXED, units.Bernoulli(2))), None),
    "gibbs-real": (kernels.block_gibbs(REAL), None),
    "gibbs-full": (kernels.block_gibbs(FULL), None),
    "gibbs-heavy": (kernels.block_gibbs(HEAVY), HEAVY_PARAMS),
    "gradients": (kernels.gibbs_with_gradients(opaque(units.Bernoulli(4)), 3), None),
    "mala": (kernels.mala(REAL, 0.3), None),
    "hmc": (kernels.hmc(FULL, 0.3, 5), None),
}
GRADIENT = {"is_gradient": True}
ESTIMATORS = {
    "exact": (estimators.exact(BINARY), GRADIENT),
    "pcd": (estimators.pcd(BINARY, 8), GRADIENT),
    "pcd-real": (estimators.pcd(REAL, 8), GRADIENT),
    "pcd-tempered": (
        estimators.pcd(BINARY, 8, pj.tempering.replica_exchange(BINARY, (0.0, 0.5, 1.0))),
        GRADIENT,
    ),
    "fast-pcd": (estimators.fast_pcd(BINARY, 8, fast_rate=0.01), {}),
    "jarzynski": (estimators.jarzynski(BINARY, 50), {}),
    "jarzynski-real": (estimators.jarzynski(REAL, 50), {}),
    # With little to gather, which under vmap is done wherever any of a batch freezes.
    "ptt": (
        estimators.ptt(BINARY, 8, rows_per_chain=4, num_thermal=2, thin=1),
        GRADIENT | {"num_draws": 128},
    ),
    "cd": (estimators.cd(BINARY, num_steps=2), {}),
    "centered": (estimators.centered(estimators.pcd(BINARY, 8), BINARY), {}),
    "sparse": (estimators.sparse(estimators.pcd(BINARY, 8), cost=0.0), GRADIENT),
    "blend": (
        estimators.blend(BINARY, a=(estimators.exact(BINARY), 0.5), b=(estimators.cd(BINARY), 0.5)),
        {},
    ),
    "pseudo": (estimators.pseudo_likelihood(BINARY), {}),
    "flow": (estimators.minimum_probability_flow(BINARY), {}),
    "ratio": (estimators.ratio_matching(BINARY), {}),
    "score": (estimators.score_matching(REAL), {}),
    "denoising": (estimators.denoising_score_matching(REAL, 0.5), {}),
}
