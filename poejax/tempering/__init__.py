"""Ladders of models whose neighbours exchange configurations."""

from poejax.tempering._bennett import LogRatio, bennett
from poejax.tempering._sample import Report, sample

__all__ = ["LogRatio", "Report", "bennett", "sample"]
