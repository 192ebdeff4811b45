"""Exponential families of one block of units."""

from poejax.units._base import Unit
from poejax.units._binomial import Binomial
from poejax.units._checks import check_batch, require_values
from poejax.units._discrete import Bernoulli, Categorical, Spin
from poejax.units._gaussian import GaussianDiag
from poejax.units._gaussian_full import Gaussian
from poejax.units._joint import Joint
from poejax.units._poisson import Poisson
from poejax.units._relu import ReLU
from poejax.units._standard_gaussian import StandardGaussian
from poejax.units._vector import VectorUnit

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
