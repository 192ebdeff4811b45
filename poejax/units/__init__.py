"""Exponential families of one block of units."""

from poejax.units.base import Unit, VectorUnit
from poejax.units.discrete import Bernoulli, Categorical, Spin
from poejax.units.gaussian import GaussianDiag, StandardGaussian
from poejax.units.gaussian_full import Gaussian
from poejax.units.joint import Joint
from poejax.units.relu import ReLU

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "GaussianDiag",
    "Joint",
    "ReLU",
    "Spin",
    "StandardGaussian",
    "Unit",
    "VectorUnit",
]
