"""What all mixtures share: densities, samples, the evidence lower bound and the EM loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks
from poejax.types import Array

M = TypeVar("M", bound="Mixture")
_MAX_ROW_SUM_ERROR = 1e-3


class Mixture(Protocol):
    """Parameters of a mixture: a NamedTuple of arrays that knows its components' densities."""

    @property
    def log_weights(self) -> Array:
        """log π_k, [K]."""
        ...

    @property
    def num_features(self) -> int:
        """D, the size of one event."""
        ...

    def component_log_probs(self, x: Array) -> Array:
        """Return log p_k(x) [K] of one event [D], in nats."""
        ...

    def sample_component(self, rng_key: Array, component: Array) -> Array:
        """Draw one event [D] from component k, an integer []."""
        ...


class EMReport(NamedTuple):
    """How a fit went; entry t is after t steps, entry 0 the start; the last value is held.

    log_likelihood: mean log-likelihood of the data, nats per example, [max_steps + 1].
    objective: what EM climbs and never lowers, log_likelihood + log prior / N,
      [max_steps + 1]; for Gaussians there is no prior and it is the log-likelihood.
    num_steps: steps taken, [].
    converged: whether the last step would have gained less than `tol`, [].
    """

    log_likelihood: Array
    objective: Array
    num_steps: Array
    converged: Array


class Climb(NamedTuple):
    """The outcome of the loop; `broke_down` if it met an objective that is not finite, []."""

    params: Any
    report: EMReport
    broke_down: Array


def log_prob(params: Mixture, x: Array) -> Array:
    """Return the log density (or log probability) of one event.

    log p(x) = log Σ_k π_k p_k(x).

    Args:
      params: of any mixture in this package.
      x: one event [D].

    Returns:
      nats, [].

    Raises:
      ValueError: if `x` is no single event.
    """
    return jax.nn.logsumexp(_log_joint(params, x))


def responsibilities(params: Mixture, x: Array) -> Array:
    """Return the posterior over the components given one event.

    r_k = π_k p_k(x) / Σ_j π_j p_j(x).

    Args:
      params: of any mixture in this package.
      x: one event [D].

    Returns:
      [K], non-negative, of sum 1.

    Raises:
      ValueError: if `x` is no single event.
    """
    return jax.nn.softmax(_log_joint(params, x))


def sample(rng_key: Array, params: Mixture) -> Array:
    """Draw one event: k ~ π, x ~ p_k.

    Args:
      rng_key: one typed key.
      params: of any mixture in this package.

    Returns:
      x [D].
    """
    _checks.rng_key("rng_key", rng_key)
    params = jax.tree.map(jnp.asarray, params)
    component_key, event_key = jax.random.split(rng_key)
    component = jax.random.categorical(component_key, params.log_weights)
    return params.sample_component(event_key, component)


def elbo(params: Mixture, x: Array, responsibilities: Array) -> Array:
    """Return the evidence lower bound of a batch, in nats per example.

    L(θ, r) = 1/N Σ_n Σ_k r_nk [log π_k p_k(x_n) - log r_nk] <= 1/N Σ_n log p(x_n),
    with equality when r_nk is the posterior, i.e. after the E step.

    Args:
      params: of any mixture in this package.
      x: batch [N, D].
      responsibilities: [N, K], non-negative rows of sum 1.

    Returns:
      [].

    Raises:
      ValueError: on shapes that do not fit or, for values that are not traced, rows that are no
        probabilities.

    Source: Neal & Hinton (1998), "A view of the EM algorithm that justifies incremental, sparse,
    and other variants".
    """
    num_components = params.log_weights.shape[0]
    check_responsibilities("responsibilities", responsibilities, jnp.shape(x)[0], num_components)
    return _elbo(params, x, responsibilities)


def climb(
    m_step: Callable[[M, Array], M],
    log_prior: Callable[[M], Array],
    params: M,
    x: Array,
    max_steps: int,
    tol: Array,
) -> Climb:
    """Alternate E and M steps on a batch [N, D] until a step gains less than `tol`.

    `m_step(params, responsibilities) -> params` may keep what `params` says of components that
    explain nothing. A step that would lower the objective is not taken, and ends the climb.
    """

    def body(carry: Any) -> Any:
        # The E step of the candidate, then the M step for the next: both are compiled only once.
        entry, _, _, best, candidate, log_likelihoods, objectives, tried = carry
        joint = jax.vmap(lambda event: _log_joint(candidate, event))(x)
        rows = jax.nn.logsumexp(joint, axis=1, keepdims=True)
        log_likelihood = rows.mean()
        objective = log_likelihood + log_prior(candidate) / x.shape[0]
        before = jnp.where(entry > 0, objectives[entry - 1], -jnp.inf)
        gain = objective - before
        taken = gain >= 0
        best = jax.tree.map(lambda new, old: jnp.where(taken, new, old), candidate, best)
        to = jnp.where(taken, entry, max_steps + 1)  # beyond the end: dropped
        log_likelihoods = log_likelihoods.at[to].set(log_likelihood, mode="drop")
        objectives = objectives.at[to].set(objective, mode="drop")
        broke_down = ~jnp.isfinite(objective)
        goes_on = (gain >= tol) & ~broke_down
        candidate = m_step(candidate, jnp.exp(joint - rows))
        entry, tried = entry + taken, tried + 1
        return entry, goes_on, broke_down, best, candidate, log_likelihoods, objectives, tried

    unknown = jnp.full(max_steps + 1, jnp.nan, x.dtype)
    yes, zero = jnp.ones((), bool), jnp.zeros((), jnp.int32)
    # Compiled, `taken` and `goes_on` may each see a gain of their own, rounded otherwise: at the
    # optimum a step could be refused and the climb go on for ever. What was carried decides.
    entry, goes_on, broke_down, best, _, log_likelihoods, objectives, tried = jax.lax.while_loop(
        lambda carry: carry[1] & (carry[0] == carry[-1]) & (carry[0] <= max_steps),
        body,
        (zero, yes, ~yes, params, params, unknown, unknown, zero),
    )
    goes_on = goes_on & (entry == tried)
    num_steps = jnp.maximum(entry - 1, 0)
    held = jnp.minimum(jnp.arange(max_steps + 1), num_steps)
    converged = ~goes_on & ~broke_down
    report = EMReport(log_likelihoods[held], objectives[held], num_steps, converged)
    return Climb(best, report, broke_down)


def best_climb(one: Callable[[Array], Climb], rng_key: Array, num_restarts: int) -> Climb:
    """Run `one(rng_key)` several times, one after the other, and keep the highest."""
    climbs = jax.lax.map(one, restart_keys(rng_key, num_restarts))
    best = jnp.argmax(jnp.where(climbs.broke_down, -jnp.inf, climbs.report.objective[:, -1]))
    return jax.tree.map(lambda leaf: leaf[best], climbs)


def restart_keys(rng_key: Array, num_restarts: int) -> Array:
    """Return one key per restart; more restarts repeat the fewer ones, so are never worse."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng_key, jnp.arange(num_restarts))


def log_shares(counts: Array) -> Array:
    """Return the log mixing weights of expected counts [K], finite for empty components too."""
    counts = counts + 10 * jnp.finfo(counts.dtype).eps
    return jnp.log(counts) - jnp.log(counts.sum())


def matmul(a: Array, b: Array) -> Array:
    """Multiply at full precision: accelerators' short cuts would let EM step downhill."""
    return jnp.matmul(a, b, precision="highest")


def as_float(x: Array) -> Array:
    """Return `x` in float32, or in float64 if it is that."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_fit(
    rng_key: Array,
    x: Array,
    name: str,
    num_components: int,
    max_steps: int,
    num_restarts: int,
) -> None:
    """Require a key, a finite non-empty batch [N, D] and no more components than rows."""
    _checks.rng_key("rng_key", rng_key)
    shape = jnp.shape(x)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"x: expected a non-empty batch [N, D], got shape {shape}")
    _checks.finite("x", x)
    if _checks.positive_int(name, num_components) > shape[0]:
        raise ValueError(f"{name}: expected at most the {shape[0]} rows of x, got {num_components}")
    _checks.positive_int("max_steps", max_steps)
    _checks.positive_int("num_restarts", num_restarts)


def check_start(
    init: str | Array, params: Mixture | None, num_rows: int, num_components: int, num_restarts: int
) -> tuple[str, Array | None]:
    """Split `init` into the name of a start and given responsibilities, and check both."""
    named = isinstance(init, str)
    if isinstance(init, str) and init not in ("kmeans++", "kmeans"):
        raise ValueError(
            f'init: expected "kmeans++", "kmeans" or responsibilities [N, K], got {init!r}'
        )
    if not isinstance(init, str):
        check_responsibilities("init", init, num_rows, num_components)
        if params is not None:
            raise ValueError("init: expected a name beside params, got responsibilities")
    if num_restarts > 1 and (params is not None or not named):
        raise ValueError(
            f"num_restarts: expected 1 when the start is given, got {num_restarts}; all restarts "
            "would be the same"
        )
    return (init, None) if isinstance(init, str) else ("responsibilities", init)


def check_responsibilities(name: str, value: Array, num_rows: int, num_components: int) -> None:
    """Require [N, K] and, of values that are not traced, that each row is a distribution."""
    _checks.shape(name, value, (num_rows, num_components), "N rows and K components")
    _checks.finite(name, value)
    if _checks.is_concrete(value):
        host = np.asarray(value)
        error = np.abs(host.sum(axis=1) - 1).max()
        if host.min() < 0 or error > _MAX_ROW_SUM_ERROR:
            raise ValueError(f"{name}: expected non-negative rows of sum 1, got others")


def check_params(params: Any, kind: type[Any], **shapes: tuple[int, ...]) -> None:
    """Require a start of that kind, of these shapes, with finite values and weights of sum 1."""
    if not isinstance(params, kind):
        raise ValueError(f"params: expected {kind.__name__}, got {type(params).__name__}")
    for name, shape in shapes.items():
        _checks.shape(
            f"params.{name}", getattr(params, name), shape, "this data and num_components"
        )
    _checks.finite("params", params)
    if _checks.is_concrete(params):
        total = float(np.exp(np.asarray(params.log_weights, np.float64)).sum())
        if abs(total - 1) > _MAX_ROW_SUM_ERROR:
            raise ValueError(f"params.log_weights: expected weights of sum 1, got {total:.6g}")


def check_non_negative(name: str, value: float) -> None:
    """Require a finite number >= 0."""
    if _checks.is_concrete(value) and not 0 <= float(value) < float("inf"):
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")


def _log_joint(params: Mixture, x: Array) -> Array:
    _checks.shape("x", x, (params.num_features,), "one event of this mixture")
    return _jitted_log_joint(params, x)


@jax.jit
def _jitted_log_joint(params: Mixture, x: Array) -> Array:
    return params.log_weights + params.component_log_probs(x)


@jax.jit
def _elbo(params: Mixture, x: Array, r: Array) -> Array:
    joint = jax.vmap(lambda event: _log_joint(params, event))(x)
    # 0 · (log joint - log 0) is 0, in the value and in the gradient.
    log_ratio = jnp.where(r > 0, joint, 0) - jnp.log(jnp.where(r > 0, r, 1))
    return jnp.mean(jnp.sum(r * log_ratio, axis=1))
