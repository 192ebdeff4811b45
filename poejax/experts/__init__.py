"""Expert families, one per file."""

from poejax.experts.base import Expert
from poejax.experts.bias import Bias
from poejax.experts.hidden_bank import HiddenBank

__all__ = ["Bias", "Expert", "HiddenBank"]
