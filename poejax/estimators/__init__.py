"""Learning rules: where the model's samples come from."""

from poejax.estimators.centered import centered
from poejax.estimators.common import surrogate
from poejax.estimators.contrastive import cd, pcd
from poejax.estimators.discriminative import blend, discriminative
from poejax.estimators.exact import exact
from poejax.estimators.missing import Incomplete, imputed

__all__ = [
    "Incomplete",
    "blend",
    "cd",
    "centered",
    "discriminative",
    "exact",
    "imputed",
    "pcd",
    "surrogate",
]
