"""Exact evidence and exact draws: closed forms, enumeration in chunks, quadrature."""

from poejax.exact._cubature import Quadrature, quadrature
from poejax.exact._dispatch import MAX_STATES, log_prob, log_z, method, probabilities, sample

__all__ = [
    "MAX_STATES",
    "Quadrature",
    "log_prob",
    "log_z",
    "method",
    "probabilities",
    "quadrature",
    "sample",
]
