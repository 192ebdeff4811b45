"""Expert families, one per file."""

from poejax.experts.base import Expert, get_beta, set_beta
from poejax.experts.bias import Bias
from poejax.experts.gaussian import Gaussian
from poejax.experts.gaussian_mixture import GaussianMixture
from poejax.experts.hidden_bank import HiddenBank
from poejax.experts.mixture import Mixture, mixture
from poejax.experts.neural import Neural, OpaqueExpert
from poejax.experts.power import Power
from poejax.experts.student_t import StudentT
from poejax.experts.unigauss import Unigauss
from poejax.tails import Tails

__all__ = [
    "Bias",
    "Expert",
    "Gaussian",
    "GaussianMixture",
    "HiddenBank",
    "Mixture",
    "Neural",
    "OpaqueExpert",
    "Power",
    "StudentT",
    "Tails",
    "Unigauss",
    "get_beta",
    "mixture",
    "set_beta",
]
