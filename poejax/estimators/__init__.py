"""Learning rules: where the model's samples come from, or what is minimised without any."""

from poejax.estimators.centered import centered
from poejax.estimators.contrastive import cd, pcd
from poejax.estimators.exact import exact
from poejax.estimators.neighbours import (
    minimum_probability_flow,
    pseudo_likelihood,
    ratio_matching,
)
from poejax.estimators.score_matching import denoising_score_matching, score_matching

__all__ = [
    "cd",
    "centered",
    "denoising_score_matching",
    "exact",
    "minimum_probability_flow",
    "pcd",
    "pseudo_likelihood",
    "ratio_matching",
    "score_matching",
]
