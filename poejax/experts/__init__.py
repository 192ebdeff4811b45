"""Expert families, one per file."""

from poejax.experts._base import Expert, get_beta, set_beta
from poejax.experts._bias import Bias
from poejax.experts._gaussian import Gaussian
from poejax.experts._gaussian_mixture import GaussianMixture
from poejax.experts._hidden_bank import HiddenBank
from poejax.experts._mixture import Mixture, mixture
from poejax.experts._neural import Neural, OpaqueExpert
from poejax.experts._power import Power
from poejax.experts._student_t import StudentT
from poejax.experts._unigauss import Unigauss
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
