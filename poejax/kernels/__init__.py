"""Transition kernels that leave a product of experts invariant."""

from poejax.kernels._discrete import GibbsWithGradients, gibbs_with_gradients
from poejax.kernels._gibbs import BlockGibbs, block_gibbs
from poejax.kernels._hamiltonian import HMC, MALA, hmc, mala
from poejax.kernels._tuning import tune_step_size

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
