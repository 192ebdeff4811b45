"""Exact evidence and exact draws: closed forms, enumeration in chunks, quadrature."""

from poejax.exact.cubature import Quadrature, quadrature
from poejax.exact.dispatch import MAX_STATES, log_prob, log_z, method, probabilities, sample

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
