"""Gaussians by EM: the fit in coordinates of order one, and its results in the user's units."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks, _meshes
from poejax.mixtures import _checks as checks
from poejax.mixtures import _em as em
from poejax.mixtures import _frame as frames
from poejax.mixtures._clusters import named_start
from poejax.mixtures._em import Climb, EMReport
from poejax.mixtures._frame import Frame
from poejax.mixtures._gaussian import MixtureParams
from poejax.types import Array

_NUM_AXES = {"full": 3, "diag": 2, "spherical": 1}
_FAR_OFF = 64.0  # typical deviations
_RIDGE = 1e-6  # of a column's squared typical deviation, unless given


def fit_em(
    rng_key: Array,
    x: Array,
    num_components: int,
    *,
    covariance: str = "full",
    weights: Array | None = None,
    max_steps: int = 200,
    tol: float = 1e-4,
    ridge: float | None = None,
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

    Values that the host can look at are centred and scaled, column by column, in float64 before
    they narrow, so neither offsets nor units cost digits. A column that is constant to rounding
    counts as exactly so: its variance is the ridge, or refused without one.

    Args:
      rng_key: one typed key; only the named starts draw from it.
      x: batch [N, D], real or integer.
      num_components: K, in 1 ... N.
      covariance: "full", "diag" or "spherical".
      weights: [N] >= 0, not all 0; a row of weight 2 counts as two such rows, one of weight 0 as
        none (but must be finite). 1 when None.
      max_steps: upper limit of the number of steps.
      tol: stop when a step gains less, in nats per example, >= 0. 0 goes on until a step lowers
        the log-likelihood, which at the optimum rounding does.
      ridge: added to variances, in squared units of x, >= 0: choose it well below the square of
        the finest detail that counts. When None, 1e-6 of the square of the column's median
        non-zero deviation from its median, or for a constant column, and with "spherical", of
        that of whole rows: the smallest variance that a component can take.
      init: "kmeans++" (seeds), "kmeans" (seeds moved by Lloyd's algorithm), or responsibilities
        [N, K], of which the first M step is taken. Named starts share one covariance, pooled
        within clusters, so that clusters of a single example do not collapse at once.
      num_restarts: independent named starts, of which the best is kept; more are never worse.
      params: start here instead, e.g. from an earlier fit; its covariances fit `covariance`.

    Returns:
      `(params, report)`.

    Raises:
      ValueError: naming the argument, if `x` is empty, not [N, D], not finite or such that the
        result's precision (float32 unless jax_enable_x64) cannot hold its squares or tell the
        means from their neighbours, if an option is unknown or out of range, or if a start does
        not fit.
      FloatingPointError: if a covariance becomes singular (in all restarts), as it does without a
        ridge if columns are constant or, with "full", collinear: raise `ridge`. Under a trace the
        last finite step is returned instead, with `report.converged` False.

    Source: Dempster, Laird & Rubin (1977), "Maximum likelihood from incomplete data via the EM
    algorithm"; Bishop (2006), "Pattern recognition and machine learning", section 9.2.
    """
    rows: Any = checks.fit(
        rng_key, x, "num_components", num_components, max_steps, num_restarts, weights
    )
    checks.non_negative("tol", tol)
    if ridge is not None:
        checks.non_negative("ridge", ridge)
    if covariance not in _NUM_AXES:
        raise ValueError(f"covariance: expected one of {tuple(_NUM_AXES)}, got {covariance!r}")
    name, given = checks.start(init, params, len(rows), num_components, num_restarts)
    if params is not None:
        _check_params(params, num_components, rows.shape[1], covariance)
    rows, weights, counts = checks.counted(rows, weights)
    given = given if counts is None or given is None else jnp.asarray(given)[counts]
    frame = frames.measure(rows)
    frames.check_values(rows, frame, squares=True)
    dtype = frames.working_dtype(rows)
    weights, _ = checks.mean_one(weights, dtype)
    if covariance == "spherical":
        unit = frame.shared_unit + 0 * frame.unit
        typical = frame.shared_typical + 0 * frame.typical
    else:
        unit, typical = frame.unit, frame.typical
    y = frames.coordinates(rows, frame, unit)
    floor = _RIDGE * (typical / unit) ** 2 if ridge is None else ridge / unit / unit
    if (
        isinstance(rows, np.ndarray)
        and _checks.is_concrete(floor)
        and (alike := _dependent(y, floor, covariance))
    ):
        raise FloatingPointError(_singular(ridge, f": {alike}"))
    if params is not None:
        params = _into(params, frame, unit, dtype)
    # Far below the others a column counts for nothing in distances: only not to divide by 0.
    relative = (unit / frame.shared_unit).clip(2.0**-60)
    climb = _fit(
        rng_key, y, weights, given, params, floor, tol, relative,
        num_components, covariance, max_steps, name, num_restarts,
    )  # fmt: skip
    if _checks.is_concrete(climb) and bool(climb.broke_down):
        raise FloatingPointError(_singular(ridge, f" at step {int(climb.report.num_steps) + 1}"))
    return _back(rows, frame, unit, climb)


@functools.partial(
    jax.jit,
    static_argnames=("num_components", "covariance", "max_steps", "init", "num_restarts"),
)
def _fit(
    rng_key: Array,
    x: Array,
    weights: Array | None,
    given: Array | None,
    params: MixtureParams | None,
    ridge: Array,
    tol: Array,
    unit: Array,
    num_components: int,
    covariance: str,
    max_steps: int,
    init: str,
    num_restarts: int,
) -> Climb:
    # All in the frame's coordinates; `unit` [D] takes columns back to one that they share.
    ridge, unit = jnp.asarray(ridge, x.dtype), jnp.asarray(unit, x.dtype)

    def weigh(r: Array) -> Array:
        return r if weights is None else (weights * r.T).T

    def m_step(old: MixtureParams, r: Array) -> MixtureParams:
        counts = r.sum(axis=0)
        is_alive = counts > 10 * jnp.finfo(x.dtype).eps
        safe = jnp.where(is_alive, counts, 1)
        means = em.matmul(r.T, x) / safe[:, None]
        eps = 4 * jnp.finfo(x.dtype).eps
        covariances = jax.lax.map(
            lambda c: _covariance(covariance, x - c[0], c[1] / c[2], ridge, eps * jnp.abs(c[0])),
            (means, r.T, safe),
        )
        new = MixtureParams(em.log_shares(counts), means, covariances)
        keep = old._replace(log_weights=new.log_weights)
        return jax.tree.map(
            lambda a, b: jnp.where(is_alive.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, keep
        )

    def shared(means: Array, centres: Array, counts: Array) -> MixtureParams:
        shares = weigh(jnp.full(len(x), 1 / len(x), x.dtype))
        pooled = _covariance(covariance, x - centres, shares, ridge, jnp.zeros_like(ridge))
        covariances = jnp.broadcast_to(pooled, (num_components, *pooled.shape))
        return MixtureParams(em.log_shares(counts), means, covariances)

    def start(key: Array) -> MixtureParams:
        if params is not None:
            return jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), params)
        if given is not None:
            nothing = jnp.zeros((num_components, x.shape[1]), x.dtype)
            mean = weigh(x).mean(axis=0)
            empty = shared(nothing + mean, mean, jnp.ones(num_components, x.dtype))
            return m_step(empty, weigh(jnp.asarray(given, x.dtype)))
        # Distances count columns as the user's units do.
        clusters = named_start(init, key, x * unit, num_components, weights=weights)
        centroids = clusters.centroids / unit
        membership = jax.nn.one_hot(clusters.assignments, num_components, dtype=x.dtype)
        counts = weigh(membership).sum(axis=0)
        return shared(centroids, centroids[clusters.assignments], 1 + counts)

    def no_prior(params: MixtureParams) -> Array:
        del params
        return jnp.zeros((), x.dtype)

    return em.best_climb(
        lambda key: em.climb(m_step, no_prior, start(key), x, max_steps, tol, weights),
        rng_key,
        num_restarts,
    )


def _covariance(kind: str, residuals: Array, shares: Array, ridge: Array, rounding: Array) -> Array:
    # residuals [N, D], shares [N] of sum 1, ridge [D], rounding [D] of the residuals.
    variances = em.matmul(shares, residuals**2)
    # What rounding leaves of nothing is nothing: a variance of 1e-16 would be a precision of 1e16.
    variances = jnp.where(variances <= rounding**2, 0, variances)
    if kind == "full":
        scatter = em.matmul((shares[:, None] * residuals).T, residuals)
        return jnp.where(jnp.eye(len(ridge), dtype=bool), jnp.diag(variances + ridge), scatter)
    variances = variances + ridge
    return variances if kind == "diag" else variances.mean()


def _into(params: MixtureParams, frame: Frame, unit: Any, dtype: Any) -> MixtureParams:
    """Return parameters in the frame's coordinates, from float64 if the host can look at them."""
    xp: Any = jnp
    if _checks.is_concrete(params) and isinstance(unit, np.ndarray):
        xp = np
    wide = np.float64 if xp is np else dtype
    log_weights, means, covariances = (xp.asarray(leaf, wide) for leaf in params)
    means = xp.where(frame.is_constant, 0, (means - frame.origin) / unit)
    covariances = _rescaled(covariances, 1 / unit)
    return MixtureParams(*(xp.asarray(leaf, dtype) for leaf in (log_weights, means, covariances)))


def _back(x: Any, frame: Frame, unit: Any, climb: Climb) -> tuple[MixtureParams, EMReport]:
    """Return a fit in the user's units, and refuse what the precision cannot say in them."""
    params, report, dtype = climb.params, climb.report, climb.params.means.dtype
    is_host = isinstance(x, np.ndarray) and _checks.is_concrete(climb)
    xp: Any = np if is_host else jnp
    wide = np.float64 if is_host else dtype
    means = frame.origin + unit * xp.asarray(params.means, wide)
    covariances = _rescaled(xp.asarray(params.covariances, wide), unit)
    if is_host:
        _check_result(x, frame, means, covariances, params.covariances.ndim == 3, dtype)
    shift = xp.log(unit).sum()

    def narrow(leaf: Any) -> Array:
        return jnp.asarray(xp.asarray(leaf, dtype))

    params = MixtureParams(params.log_weights, narrow(means), narrow(covariances))
    report = report._replace(
        log_likelihood=narrow(xp.asarray(report.log_likelihood, wide) - shift),
        objective=narrow(xp.asarray(report.objective, wide) - shift),
    )
    return params, report


def _rescaled(covariances: Any, unit: Any) -> Any:
    if covariances.ndim == 3:
        return covariances * unit[:, None] * unit
    return covariances * (unit if covariances.ndim == 2 else unit[0]) ** 2


def _check_result(
    x: Any, frame: Frame, means: Any, covariances: Any, is_full: bool, dtype: Any
) -> None:
    variances = np.diagonal(covariances, axis1=1, axis2=2) if is_full else covariances
    variances = np.broadcast_to(variances.reshape(len(means), -1), means.shape)
    if (variances < np.finfo(dtype).tiny).any():
        column = int(np.argmin(variances.min(axis=0)))
        raise ValueError(
            f"x: expected columns whose variances {dtype} can hold, got one of "
            f"{variances.min():.3g} in column {column}, of typical deviation "
            f"{frame.typical[column]:.3g}; multiply the column by a large number, raise ridge, or "
            "set jax_enable_x64"
        )
    steps = np.spacing(abs(means).astype(dtype)).astype(np.float64)
    coarse = (2 * steps > np.sqrt(variances)) & ~frame.is_constant
    for k, column in np.argwhere(coarse):
        if frames.is_lossy(x, column):
            what = f"and a component of {np.sqrt(variances[k, column]):.3g}"
            frames.refuse_unsayable(x, frame, column, what)


def _dependent(y: Any, floor: Any, covariance: str) -> str:
    """Say which column of a batch in its coordinates makes every covariance singular, if one does.

    In float64: in float32, rounding hides it behind a precision of 1e7 or more.
    """
    if not (isinstance(y, np.ndarray) and _checks.is_concrete(floor)):
        return ""
    enough = float(np.finfo(y.dtype).eps)
    if covariance == "spherical" or (np.asarray(floor, np.float64) >= enough).all():
        return ""
    # Few rows far off would make all others look alike.
    y = y[abs(y).max(axis=1) <= _FAR_OFF]
    if not len(y):
        return ""
    floor, mean = np.asarray(floor, np.float64), y.mean(axis=0, dtype=np.float64)
    if covariance == "diag":
        scatter = np.diag(np.square(y - mean).mean(axis=0, dtype=np.float64) + floor)
    else:
        centred = y.astype(np.float64) - mean
        scatter = centred.T @ centred / len(y) + np.diag(floor)
    scales = np.sqrt(np.diagonal(scatter))
    if (scales == 0).any():
        return f"column {int(np.argmin(scales))} of x is constant"
    if covariance == "diag":
        return ""
    # Each pivot is what of a column's variance the columns before it do not explain.
    left = scatter / scales / scales[:, None]
    for column in range(len(left)):
        if left[column, column] <= enough:
            return f"column {column} of x is, to rounding, a sum of multiples of others"
        below = left[column + 1 :, column]
        left[column + 1 :, column + 1 :] -= np.outer(below, below) / left[column, column]
    return ""


def _singular(ridge: Any, where: str) -> str:
    got = f"{_RIDGE:g} of the columns' squared deviations" if ridge is None else f"{ridge}"
    return f"ridge: a covariance became singular{where}; expected a larger one, got {got}"


def _check_params(
    params: MixtureParams, num_components: int, num_features: int, covariance: str
) -> None:
    checks.params(
        params,
        MixtureParams,
        log_weights=(num_components,),
        means=(num_components, num_features),
        covariances=(num_components,) + (num_features,) * (_NUM_AXES[covariance] - 1),
    )
    if _checks.is_concrete(params):
        covariances = _meshes.to_host(params.covariances, np.float64)
        smallest = np.linalg.eigvalsh(covariances) if covariance == "full" else covariances
        if smallest.min() <= 0:
            raise ValueError(
                f"params.covariances: expected positive definite ones, got a smallest eigenvalue "
                f"of {smallest.min():.3g}"
            )
