"""Mixtures fitted by EM, what products of experts are compared against: p(x) = Σ_k π_k p_k(x).

Mixtures add densities where products multiply them, so EM gives the exact gradient's fixed points
without any sampling, but every example has to be explained by one component.
"""

from poejax.mixtures._bernoulli import BernoulliMixtureParams, fit_em_bernoulli
from poejax.mixtures._clusters import Clusters, kmeans
from poejax.mixtures._em import EMReport, Mixture, elbo, log_prob, responsibilities, sample
from poejax.mixtures._fit import fit_em
from poejax.mixtures._gaussian import MixtureParams

__all__ = [
    "BernoulliMixtureParams",
    "Clusters",
    "EMReport",
    "Mixture",
    "MixtureParams",
    "elbo",
    "fit_em",
    "fit_em_bernoulli",
    "kmeans",
    "log_prob",
    "responsibilities",
    "sample",
]
