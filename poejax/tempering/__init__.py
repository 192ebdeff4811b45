"""Ladders of models whose neighbours exchange configurations."""

from poejax.tempering._bennett import LogRatio, bennett
from poejax.tempering._kernel import ExchangeState, ReplicaExchange, replica_exchange
from poejax.tempering._ladder import ExchangeInfo, Replicas
from poejax.tempering._sample import Report, sample, sample_trajectory

__all__ = [
    "ExchangeInfo",
    "ExchangeState",
    "LogRatio",
    "ReplicaExchange",
    "Replicas",
    "Report",
    "bennett",
    "replica_exchange",
    "sample",
    "sample_trajectory",
]
