"""Exponential families of one block of units."""

from poejax.units.base import Unit
from poejax.units.binomial import Binomial
from poejax.units.checks import check_batch, require_values
from poejax.units.discrete import Bernoulli, Categorical, Spin
from poejax.units.gaussian import GaussianDiag
from poejax.units.gaussian_full import Gaussian
from poejax.units.joint import Joint
from poejax.units.poisson import Poisson
from poejax.units.relu import ReLU
from poejax.units.standard_gaussian import StandardGaussian
from poejax.units.vector import VectorUnit

__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "Gaussian",
    "GaussianDiag",
    "Joint",
    "Poisson",
    "ReLU",
    "Spin",
    "StandardGaussian",
    "Unit",
    "VectorUnit",
    "check_batch",
    "require_values",
]
