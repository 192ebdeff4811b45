"""Score matching for real visible units: exact, sliced and denoising."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks
from poejax._numerics import as_float, at_least_float32
from poejax._product import Product
from poejax.estimators._losses import LossEstimator
from poejax.types import Array, Event, Params

_DIRECTIONS = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}


@dataclasses.dataclass(frozen=True)
class ScoreMatching(LossEstimator):
    """Build with `score_matching`."""

    num_projections: int | None
    directions: str

    def loss(self, rng_key: Array, params: Params, x: Event) -> Array:
        """Return ½ |score|² + trace of the score's Jacobian, or its sliced estimate."""
        params, x = self.model.standardize(params, at_least_float32(as_float(x)))
        v = self._directions(rng_key, x)

        def directional(v: Array) -> tuple[Array, Array]:
            score, curvature = jax.jvp(lambda x: _score(self.model, params, x), (x,), (v,))
            return score, jnp.sum(v * curvature)

        score, curvatures = jax.vmap(directional, out_axes=(None, 0))(v)
        trace = jnp.sum(curvatures) if self.num_projections is None else jnp.mean(curvatures)
        return 0.5 * jnp.sum(score**2) + trace

    def _directions(self, rng_key: Array, x: Array) -> Array:
        if self.num_projections is None:
            return jnp.eye(x.size, dtype=x.dtype)
        return _DIRECTIONS[self.directions](rng_key, (self.num_projections, x.size), x.dtype)


@dataclasses.dataclass(frozen=True)
class DenoisingScoreMatching(LossEstimator):
    """Build with `denoising_score_matching`."""

    noise_scale: float

    def loss(self, rng_key: Array, params: Params, x: Event) -> Array:
        """Return ½ |score(x + σε) + ε/σ|², ε ~ N(0, I)."""
        params, x = self.model.standardize(params, at_least_float32(as_float(x)))
        noise = jax.random.normal(rng_key, x.shape, x.dtype)
        score = _score(self.model, params, x + self.noise_scale * noise)
        return 0.5 * jnp.sum((score + noise / self.noise_scale) ** 2)


def score_matching(
    model: Product, num_projections: int | None = None, directions: str = "rademacher"
) -> ScoreMatching:
    """Score matching: fit the gradient of the log density in x, in which log Z cancels.

    J = E_data[½ |ψ(x)|² + tr ∂ψ(x)/∂x],  ψ(x) = ∂ log density(x) / ∂x

    equals ½ E_data |ψ - ψ_data|² up to a constant. The trace takes D derivatives of the score, by
    forward over reverse mode. Sliced score matching takes the mean of vᵀ (∂ψ/∂x) v over a few
    random directions with E[v vᵀ] = I instead: unbiased, with the norm kept exact (the form of
    reduced variance). Any expert will do, opaque ones too, if its log density has two
    derivatives in x; a network of rectified units has no curvature, and its trace would be lost.
    Where the parameters hold coordinates the score is that in coordinates, so that columns of
    different units weigh alike.

    Args:
      model: a product over GaussianDiag or Gaussian visible units.
      num_projections: directions per event; all D axes, hence the exact trace, when None.
      directions: "rademacher" (entries ±1, less variance) or "gaussian"; for sliced only.

    Returns:
      An estimator; its info holds the mean loss J, which may be negative.

    Raises:
      ValueError: if the visible units are not real with a Lebesgue base, or an argument is out of
        range.

    Source: Hyvärinen (2005); Song, Garg, Shi & Ermon (2019), Sliced score matching.
    """
    _require_real(model)
    if num_projections is not None:
        num_projections = _checks.positive_int("num_projections", num_projections)
    if directions not in _DIRECTIONS:
        raise ValueError(f"directions: expected one of {[*_DIRECTIONS]}, got {directions!r}")
    return ScoreMatching(model, num_projections, directions)


def denoising_score_matching(model: Product, noise_scale: float) -> DenoisingScoreMatching:
    """Denoising score matching: fit the score to the direction back from added noise.

    J = E_data E_ε ½ |ψ(x + σε) + ε/σ|²,  ψ(x) = ∂ log density(x) / ∂x,  ε ~ N(0, I)

    One derivative of the score is enough. It is score matching for the data blurred by N(0, σ²):
    that blurred density is what the model learns. Small σ blurs less and has more variance.

    Args:
      model: a product over GaussianDiag or Gaussian visible units.
      noise_scale: σ > 0, in the units of x, or of the parameters' coordinates if they hold any.

    Returns:
      An estimator; its info holds the mean loss J.

    Raises:
      ValueError: if the visible units are not real with a Lebesgue base, or σ is not positive.

    Source: Vincent (2011), A connection between score matching and denoising autoencoders.
    """
    _require_real(model)
    is_number = np.ndim(noise_scale) == 0 and np.issubdtype(
        np.asarray(noise_scale).dtype, np.number
    )
    if not (is_number and 0 < noise_scale < math.inf):
        raise ValueError(f"noise_scale: expected a positive finite number, got {noise_scale!r}")
    return DenoisingScoreMatching(model, float(noise_scale))


def _score(model: Product, params: Params, x: Array) -> Array:
    return jax.grad(model.log_density, argnums=1)(params, x)


def _require_real(model: Product) -> None:
    _checks.model("model", model)
    if not model.visible.is_quadratic:
        raise ValueError(
            f"model: expected GaussianDiag or Gaussian visible units, got {model.visible}"
        )
