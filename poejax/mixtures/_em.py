"""What all mixtures share: densities, samples, the evidence lower bound and the EM loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

from poejax import _border, _checks, _meshes
from poejax.mixtures import _checks as checks
from poejax.types import Array

M = TypeVar("M", bound="Mixture")


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

    def relative_log_probs(self, x: Array) -> tuple[Array, Array]:
        """Return a part that all log p_k(x) share, [], and the rest of each, [K].

        The rest tells the components apart where log p_k(x) itself is beyond floating point.
        """
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
      nats, []; -inf where it is beyond floating point, with the gradient that is not.

    Raises:
      ValueError: if `x` is no single event.
    """
    shared, joint = _log_joint(params, x)
    return shared + jax.nn.logsumexp(joint)


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
    return jax.nn.softmax(_log_joint(params, x)[1])


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
    checks.responsibilities("responsibilities", responsibilities, jnp.shape(x)[0], num_components)
    return _elbo(params, x, responsibilities)


def climb(
    m_step: Callable[[M, Array], M],
    log_prior: Callable[[M], Array],
    params: M,
    x: Array,
    max_steps: int,
    tol: Array,
    weights: Array | None = None,
) -> Climb:
    """Alternate E and M steps on a batch [N, D] until a step gains less than `tol`.

    `m_step(params, responsibilities) -> params` may keep what `params` says of components that
    explain nothing; it is given the responsibilities times the `weights` [N], of mean 1. A step
    that would lower the objective is not taken, and ends the climb.
    """

    def weigh(values: Array) -> Array:
        if weights is None:
            return values
        w = weights.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(w > 0, w * values, 0)

    def body(carry: Any) -> Any:
        # The E step of the candidate, then the M step for the next: both are compiled only once.
        entry, _, _, best, candidate, log_likelihoods, objectives, tried = carry
        shared, joint = jax.vmap(lambda event: _log_joint(candidate, event))(x)
        rows = jax.nn.logsumexp(joint, axis=1, keepdims=True)
        log_likelihood = weigh(shared[:, None] + rows).mean()
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
        candidate = m_step(candidate, weigh(jnp.exp(joint - rows)))
        entry, tried = entry + taken.astype(entry.dtype), tried + 1
        return entry, goes_on, broke_down, best, candidate, log_likelihoods, objectives, tried

    unknown = jnp.full(max_steps + 1, jnp.nan, x.dtype)
    yes, zero = jnp.ones((), bool), jnp.zeros((), jnp.int32)
    # Compiled, `taken` and `goes_on` may each see a gain of their own, rounded otherwise: at the
    # optimum a step could be refused and the climb go on for ever. What was carried decides.
    start = (zero, yes, ~yes, params, params, unknown, unknown, zero)
    entry, goes_on, broke_down, best, _, log_likelihoods, objectives, tried = jax.lax.while_loop(
        lambda carry: carry[1] & (carry[0] == carry[-1]) & (carry[0] <= max_steps),
        body,
        _meshes.settled(body, start),
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


def _log_joint(params: Mixture, x: Array) -> tuple[Array, Array]:
    # log π_k p_k(x) less a part that all share, and that part first.
    x = _border.array("x", x)
    _checks.shape("x", x, (params.num_features,), "one event of this mixture")
    return _jitted_log_joint(params, x)


@jax.jit
def _jitted_log_joint(params: Mixture, x: Array) -> tuple[Array, Array]:
    shared, relative = params.relative_log_probs(x)
    return shared, params.log_weights + relative


@jax.jit
def _elbo(params: Mixture, x: Array, r: Array) -> Array:
    shared, joint = jax.vmap(lambda event: _log_joint(params, event))(x)
    joint = shared[:, None] + joint
    # 0 · (log joint - log 0) is 0, in the value and in the gradient.
    log_ratio = jnp.where(r > 0, joint, 0) - jnp.log(jnp.where(r > 0, r, 1))
    return jnp.mean(jnp.sum(r * log_ratio, axis=1))
