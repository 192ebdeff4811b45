"""Ladders of models whose neighbours exchange configurations."""

from poejax.tempering._bennett import LogRatio, bennett

__all__ = ["LogRatio", "bennett"]
