"""What an expert may be besides a factor: forms that closed solutions are known for."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from poejax.types import Array, Event, Field, Params
from poejax.units import Unit


class CoordinateTerms(NamedTuple):
    """A factor as Σ_k exp(log_peak_k - ½ precision_k (x - mean_k)²) on every coordinate, [K, D].

    Measured from each term's own mean, so that means far from zero cost no precision.
    """

    log_peak: Array
    mean: Array
    precision: Array


class Coupling(NamedTuple):
    """Gaussian latents of unit covariance: bias [N], and weights to the visible units [D, N].

    log_volume: ½ log 2π for each of them, 0 if their expert is absent, which is the factor 1.
    """

    b: Array
    w: Array
    log_volume: Array


class StudentTTerms(NamedTuple):
    """A factor Π_j (α_j + (w_jᵀx)²)^(-ν_j): unit vectors as columns [D, J], log α and ν, [J]."""

    directions: Array
    log_scale: Array
    exponent: Array


class Bank(Protocol):
    """Hidden units of which log f_j(x) = A_hidden(b + t(x)ᵀw)_j, with params {"w", "b"}."""

    @property
    def hidden(self) -> Unit:
        """The hidden units."""
        ...

    def latent_field(self, params: Params, x: Event) -> Field:
        """Return the field of the hidden units given x."""
        ...

    def features(self, params: Params, x: Event, bias: bool = True) -> Array:
        """Return the means of the hidden units' linear statistics, zeros if absent."""
        ...
