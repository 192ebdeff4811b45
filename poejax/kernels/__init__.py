"""Transition kernels that leave a product of experts invariant."""

from poejax.kernels.discrete import GibbsWithGradients, gibbs_with_gradients
from poejax.kernels.gibbs import BlockGibbs, block_gibbs
from poejax.kernels.hamiltonian import HMC, MALA, hmc, mala
from poejax.kernels.tuning import tune_step_size

__all__ = [
    "HMC",
    "MALA",
    "BlockGibbs",
    "GibbsWithGradients",
    "block_gibbs",
    "gibbs_with_gradients",
    "hmc",
    "mala",
    "tune_step_size",
]
