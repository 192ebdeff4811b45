"""Learning rules: where the model's samples come from, or how to do without."""

from poejax.estimators._centered import centered
from poejax.estimators._common import surrogate
from poejax.estimators._contrastive import cd, pcd
from poejax.estimators._discriminative import blend, discriminative
from poejax.estimators._exact import exact
from poejax.estimators._fast import fast_pcd
from poejax.estimators._jarzynski import jarzynski
from poejax.estimators._losses import from_loss
from poejax.estimators._missing import Incomplete, imputed
from poejax.estimators._neighbours import (
    minimum_probability_flow,
    pseudo_likelihood,
    ratio_matching,
)
from poejax.estimators._ptt import ptt
from poejax.estimators._score_matching import denoising_score_matching, score_matching
from poejax.estimators._sparse import sparse
from poejax.types import Weighted

__all__ = [
    "Incomplete",
    "Weighted",
    "blend",
    "cd",
    "centered",
    "denoising_score_matching",
    "discriminative",
    "exact",
    "fast_pcd",
    "from_loss",
    "imputed",
    "jarzynski",
    "minimum_probability_flow",
    "pcd",
    "pseudo_likelihood",
    "ptt",
    "ratio_matching",
    "score_matching",
    "sparse",
    "surrogate",
]
