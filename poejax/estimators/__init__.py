"""Learning rules: where the model's samples come from."""

from poejax.estimators.centered import centered
from poejax.estimators.contrastive import cd, pcd
from poejax.estimators.exact import exact

__all__ = ["cd", "centered", "exact", "pcd"]
