"""Mixtures of multivariate Gaussians with full, diagonal or spherical covariances."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks
from poejax.mixtures import em
from poejax.mixtures.clusters import named_start
from poejax.mixtures.em import Climb, EMReport
from poejax.types import Array

_HALF_LOG_2PI = 0.9189385332046727
_NUM_AXES = {"full": 3, "diag": 2, "spherical": 1}


class MixtureParams(NamedTuple):
    """p(x) = Σ_k π_k N(x; μ_k, Σ_k); the covariances' shape says of which kind they are.

    log_weights: log π [K], Σ π = 1.
    means: [K, D].
    covariances: [K, D, D] (full), variances [K, D] (diag) or [K] (spherical).
    """

    log_weights: Array
    means: Array
    covariances: Array

    @property
    def num_features(self) -> int:
        """D, the size of one event."""
        return int(self.means.shape[-1])

    def component_log_probs(self, x: Array) -> Array:
        """Return log N(x; μ_k, Σ_k) [K] of one event [D]."""
        is_full = self.covariances.ndim == 3
        roots = jnp.linalg.cholesky(self.covariances) if is_full else jnp.sqrt(self.covariances)

        def one(component: tuple[Array, Array]) -> Array:
            mean, root = component
            if is_full:
                whitened = jax.scipy.linalg.solve_triangular(root, x - mean, lower=True)
                scales = jnp.diag(root)
            else:
                whitened = (x - mean) / root
                scales = jnp.broadcast_to(root, mean.shape)
            return -jnp.sum(0.5 * whitened**2 + jnp.log(scales) + _HALF_LOG_2PI)

        # One component after the other: a batch of events then needs N x D, not N x K x D, memory.
        return jax.lax.map(one, (self.means, roots))

    def sample_component(self, rng_key: Array, component: Array) -> Array:
        """Draw one event [D] from component k."""
        mean, covariance = self.means[component], self.covariances[component]
        noise = jax.random.normal(rng_key, mean.shape, mean.dtype)
        if covariance.ndim == 2:
            return mean + em.matmul(jnp.linalg.cholesky(covariance), noise)
        return mean + jnp.sqrt(covariance) * noise


def fit_em(
    rng_key: Array,
    x: Array,
    num_components: int,
    *,
    covariance: str = "full",
    max_steps: int = 200,
    tol: float = 1e-4,
    ridge: float = 1e-6,
    init: str | Array = "kmeans++",
    num_restarts: int = 1,
    params: MixtureParams | None = None,
) -> tuple[MixtureParams, EMReport]:
    """Fit a mixture of Gaussians to a batch [N, D] by EM.

    E: r_nk = π_k N(x_n; μ_k, Σ_k) / Σ_j ...
    M: N_k = Σ_n r_nk, π_k = N_k/N, μ_k = Σ_n r_nk x_n / N_k,
       Σ_k = Σ_n r_nk (x_n-μ_k)(x_n-μ_k)ᵀ / N_k + ridge·I, or its diagonal, or that one's mean.

    The log-likelihood never falls: EM cannot lower it, and where the ridge (of the order of a
    component's smallest variance) or rounding would, the step is not taken and the fit ends. A
    component that explains no example keeps its mean and covariance, at a weight of about 0; other
    restarts are the remedy. Compiled once per shape and set of options.

    Args:
      rng_key: one typed key; only the named starts draw from it.
      x: batch [N, D], real or integer.
      num_components: K, in 1 ... N.
      covariance: "full", "diag" or "spherical".
      max_steps: upper limit of the number of steps.
      tol: stop when a step gains less, in nats per example, >= 0. 0 goes on until a step lowers
        the log-likelihood, which at the optimum rounding does.
      ridge: added to variances, in squared units of x, >= 0: choose it well below the square of
        the finest detail that counts.
      init: "kmeans++" (seeds), "kmeans" (seeds moved by Lloyd's algorithm), or responsibilities
        [N, K], of which the first M step is taken. Named starts share one covariance, pooled
        within clusters, so that clusters of a single example do not collapse at once.
      num_restarts: independent named starts, of which the best is kept; more are never worse.
      params: start here instead, e.g. from an earlier fit; its covariances fit `covariance`.

    Returns:
      `(params, report)`.

    Raises:
      ValueError: naming the argument, if `x` is empty, not [N, D] or not finite, if an option is
        unknown or out of range, or if a start does not fit.
      FloatingPointError: if a covariance becomes singular (in all restarts): raise `ridge`. Under
        a trace the last finite step is returned instead, with `report.converged` False.

    Source: Dempster, Laird & Rubin (1977), "Maximum likelihood from incomplete data via the EM
    algorithm"; Bishop (2006), "Pattern recognition and machine learning", section 9.2.
    """
    em.check_fit(rng_key, x, "num_components", num_components, max_steps, num_restarts)
    em.check_non_negative("tol", tol)
    em.check_non_negative("ridge", ridge)
    if covariance not in _NUM_AXES:
        raise ValueError(f"covariance: expected one of {tuple(_NUM_AXES)}, got {covariance!r}")
    num_rows, num_features = jnp.shape(x)
    name, given = em.check_start(init, params, num_rows, num_components, num_restarts)
    if params is not None:
        _check_params(params, num_components, num_features, covariance)
    climb = _fit(
        rng_key, x, given, params, ridge, tol, num_components, covariance, max_steps, name,
        num_restarts,
    )  # fmt: skip
    if _checks.is_concrete(climb) and bool(climb.broke_down):
        raise FloatingPointError(
            f"ridge: a covariance became singular at step {int(climb.report.num_steps) + 1}; "
            f"expected a larger one, got {ridge}"
        )
    return climb.params, climb.report


@functools.partial(
    jax.jit,
    static_argnames=("num_components", "covariance", "max_steps", "init", "num_restarts"),
)
def _fit(
    rng_key: Array,
    x: Array,
    given: Array | None,
    params: MixtureParams | None,
    ridge: Array,
    tol: Array,
    num_components: int,
    covariance: str,
    max_steps: int,
    init: str,
    num_restarts: int,
) -> Climb:
    x = em.as_float(x)
    ridge = jnp.asarray(ridge, x.dtype)
    # Far from the origin, float32 has no digits left for the spread: measure from the mean.
    origin = x.mean(axis=0)
    x = x - origin

    def m_step(old: MixtureParams, r: Array) -> MixtureParams:
        counts = r.sum(axis=0)
        is_alive = counts > 10 * jnp.finfo(x.dtype).eps
        safe = jnp.where(is_alive, counts, 1)
        means = em.matmul(r.T, x) / safe[:, None]
        covariances = jax.lax.map(
            lambda c: _covariance(covariance, x - c[0], c[1] / c[2], ridge), (means, r.T, safe)
        )
        new = MixtureParams(em.log_shares(counts), means, covariances)
        keep = old._replace(log_weights=new.log_weights)
        return jax.tree.map(
            lambda a, b: jnp.where(is_alive.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, keep
        )

    def shared(means: Array, residuals: Array, counts: Array) -> MixtureParams:
        pooled = _covariance(covariance, residuals, jnp.full(len(x), 1 / len(x), x.dtype), ridge)
        covariances = jnp.broadcast_to(pooled, (num_components, *pooled.shape))
        return MixtureParams(em.log_shares(counts), means, covariances)

    def start(key: Array) -> MixtureParams:
        if params is not None:
            return jax.tree.map(
                lambda leaf: jnp.asarray(leaf, x.dtype),
                params._replace(means=params.means - origin),
            )
        if given is not None:
            nothing = jnp.zeros((num_components, x.shape[1]), x.dtype)
            empty = shared(nothing, x, jnp.ones(num_components, x.dtype))
            return m_step(empty, jnp.asarray(given, x.dtype))
        centroids, assignments = named_start(init, key, x, num_components)
        counts = jnp.bincount(assignments, length=num_components).astype(x.dtype)
        return shared(centroids, x - centroids[assignments], 1 + counts)

    def no_prior(params: MixtureParams) -> Array:
        del params
        return jnp.zeros((), x.dtype)

    climb = em.best_climb(
        lambda key: em.climb(m_step, no_prior, start(key), x, max_steps, tol),
        rng_key,
        num_restarts,
    )
    return climb._replace(params=climb.params._replace(means=climb.params.means + origin))


def _covariance(kind: str, residuals: Array, shares: Array, ridge: Array) -> Array:
    # residuals [N, D], shares [N] of sum 1.
    if kind == "full":
        scatter = em.matmul((shares[:, None] * residuals).T, residuals)
        return scatter + ridge * jnp.eye(residuals.shape[1], dtype=residuals.dtype)
    variances = em.matmul(shares, residuals**2) + ridge
    return variances if kind == "diag" else variances.mean()


def _check_params(
    params: MixtureParams, num_components: int, num_features: int, covariance: str
) -> None:
    em.check_params(
        params,
        MixtureParams,
        log_weights=(num_components,),
        means=(num_components, num_features),
        covariances=(num_components,) + (num_features,) * (_NUM_AXES[covariance] - 1),
    )
    if _checks.is_concrete(params):
        covariances = np.asarray(params.covariances, np.float64)
        smallest = np.linalg.eigvalsh(covariances) if covariance == "full" else covariances
        if smallest.min() <= 0:
            raise ValueError(
                f"params.covariances: expected positive definite ones, got a smallest eigenvalue "
                f"of {smallest.min():.3g}"
            )
