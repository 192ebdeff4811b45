"""Evidence of models too large to enumerate, with honest error bars."""

from poejax._bases import Base, base_rate, gaussian_base, student_t_base
from poejax._paths import linear_betas, salakhutdinov_murray_betas
from poejax._weights import LogZ
from poejax.evidence._annealing import (
    AISState,
    ais,
    ais_init,
    ais_result,
    ais_steps,
    reverse_ais,
)
from poejax.evidence._bracket import Bracket, bracket
from poejax.evidence._likelihood import LogLikelihood, log_likelihood
from poejax.evidence._report import Progress, TwoSided, test_log_likelihood
from poejax.evidence._schedule import adaptive_betas
from poejax.evidence._smc import smc

__all__ = [
    "AISState",
    "Base",
    "Bracket",
    "LogLikelihood",
    "LogZ",
    "Progress",
    "TwoSided",
    "adaptive_betas",
    "ais",
    "ais_init",
    "ais_result",
    "ais_steps",
    "base_rate",
    "bracket",
    "gaussian_base",
    "linear_betas",
    "log_likelihood",
    "reverse_ais",
    "salakhutdinov_murray_betas",
    "smc",
    "student_t_base",
    "test_log_likelihood",
]
