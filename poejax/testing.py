"""The laws that tie an expert's density, latents, sampler and field together, for any expert."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from poejax import _checks
from poejax.experts import Expert
from poejax.types import Array, Event, Params, PyTree

_MAX_STATES = 2**10  # latent configurations that are summed over
_NODES = {1: 10, 2: 5}  # per panel and axis, for one and two real latents
_ENDS = 2.0 ** -np.arange(10, 2, -2)  # fractions of the draws that bound the outer panels
_FRACTIONS = np.concatenate([_ENDS, np.arange(1, 8) / 8, 1 - _ENDS[::-1]])
_TAIL = 0.5 * (2.0 ** np.arange(1, 7) - 1)  # panels that double in width, beyond the outermost


def check_expert(
    expert: Expert,
    params: Params | None = None,
    *,
    rng_key: Array,
    betas: Sequence[float] = (1.0, 0.37),
    num_events: int = 8,
    num_samples: int = 4096,
    level: float = 1e-5,
    tolerance: float | None = None,
) -> tuple[str, ...]:
    """Check a small expert, or product of experts, against the laws that every expert obeys.

    For random events x, x', at every inverse temperature:

    "integral": ∫ exp log_joint(x, z) dz = exp Σ_k log_factors(x)_k, with num_factors terms
    "field":    log_joint(x, z) - log_joint(x', z) = <visible_field(z), t(x) - t(x')>, and
                log_joint(x, z) = <visible_field(z), t(x)> + latent_log_weight(z)
    "sample":   sample_latent draws from exp(log_joint(x, z) - Σ_k log_factors(x)_k)
    "mean":     latent_mean is the mean of that distribution
    "gradient": ∂ Σ_k log_factors(x)_k = E[∂ log_joint(x, z) | x], for derivatives by the params
    "jit", "vmap": compiled = eager, and batched = one by one, to rounding
    "temper":   temper(params, 1) changes no factor; under temper(params, 0) none depends on x
    "retrace":  a deep copy of the expert is equal, hashes equal and compiles nothing new

    Up to 1024 latent configurations are summed over. Continuous latents of one or two numbers are
    integrated on a grid that follows the draws (in their logarithm, if log_joint is not finite
    below zero), which suits a density that is smooth but for a kink at zero. With more latents
    "integral" and "sample" are skipped, while "mean" and "gradient" hold the sampler to the density
    by Monte Carlo. Without latents "sample" and "mean" say nothing and are skipped; an opaque
    expert, which has no field, is held to the laws that speak of its density alone.

    Args:
      expert: any expert; a Product, nested or not, is one.
      params: its parameters, of scale one so that no term hides in rounding; None draws
        `expert.init` and adds standard normal noise.
      rng_key: one typed key; the verdict is a function of it.
      betas: inverse temperatures; keep one that is not 1.
      num_events: number of visible events, drawn by `visible.random_event`, at least 2.
      num_samples: latent draws per event.
      level: probability, per law and inverse temperature, that a right sampler fails by chance.
      tolerance: rounding allowed, relative to the largest term; 64 units in the last place if None.

    Returns:
      The names of the laws that were checked.

    Raises:
      AssertionError: at the first law that fails, with its name, beta, expected and found values.
      ValueError: if an argument is out of range.
    """
    _checks.rng_key("rng_key", rng_key)
    if _checks.positive_int("num_events", num_events) < 2:
        raise ValueError("num_events: expected at least 2, to compare events, got 1")
    _checks.positive_int("num_samples", num_samples)
    if params is None:
        flat, unflatten = ravel_pytree(expert.init(jax.random.fold_in(rng_key, 0)))
        params = unflatten(flat + jax.random.normal(jax.random.fold_in(rng_key, 1), flat.shape))
    if tolerance is None:
        dtype = jnp.result_type(float, *jax.tree.leaves(params))
        tolerance = 64 * float(jnp.finfo(dtype).eps)
    event_key, draw_key = jax.random.split(rng_key)
    x = jax.vmap(expert.visible.random_event)(jax.random.split(event_key, num_events))
    keys = jax.random.split(draw_key, (num_events, num_samples))
    checked = ["retrace"]
    try:
        _check_retrace(expert, params, x)
        # A low default precision of the matrix products would be mistaken for a broken law.
        with jax.default_matmul_precision("highest"):
            for beta in betas:
                laws = _Laws(expert, float(beta), tolerance, level)
                checked += _check_at(laws, params, keys, x)
    except jax.errors.JAXTypeError as error:
        what = f"law 'jit' fails: expected {expert} to compile, found {error}"
        raise AssertionError(what) from error
    return tuple(dict.fromkeys(checked))


@dataclasses.dataclass(frozen=True)
class _Laws:
    """Compares arrays and says which law of which expert fails at which beta."""

    expert: Expert
    beta: float
    tolerance: float
    level: float

    def fail(self, law: str, what: str, expected: Any, found: Any) -> NoReturn:
        raise AssertionError(
            f"law {law!r} fails at beta={self.beta:g}: {what}: expected {expected}, found {found}; "
            f"expert {self.expert}"
        )

    def equal(self, law: str, what: str, expected: Any, found: Any, slack: Any = 0.0) -> None:
        """Require `found` to be `expected` to rounding of its largest entry, plus `slack`."""
        expected, found = np.asarray(expected, float), np.asarray(found, float)
        if expected.shape != found.shape:
            self.fail(law, f"shape of {what}", expected.shape, found.shape)
        allowed = self.tolerance * (1 + np.max(np.abs(expected), initial=0.0)) + slack
        self.not_positive(law, what, expected, found, np.abs(found - expected) - allowed)

    def sampled(self, law: str, what: str, expected: Any, found: Any, std_err: Any) -> None:
        """Require equality to standard errors, over all entries at once (Bonferroni)."""
        quantile = NormalDist().inv_cdf(1 - self.level / (2 * max(1, np.size(found))))
        self.equal(law, what, expected, found, quantile * std_err)

    def not_positive(self, law: str, what: str, expected: Any, found: Any, excess: Any) -> None:
        """Require that no entry of `excess` is positive or NaN, or quote the worst."""
        if not np.all(excess <= 0):
            worst = np.unravel_index(np.argmax(np.nan_to_num(excess, nan=np.inf)), excess.shape)
            at = f"{what}, entry {tuple(map(int, worst))}"
            self.fail(law, at, f"{expected[worst]:.7g}", f"{found[worst]:.7g}")


def _check_at(laws: _Laws, params: Params, keys: Array, x: Event) -> list[str]:
    """Check all laws but "retrace" at one inverse temperature."""
    expert, beta = laws.expert, jnp.asarray(laws.beta, jnp.result_type(float))
    found = jax.device_get(_evaluate(expert, params, beta, keys, x))
    said = {name: _flat_rows(value, keys.shape) for name, value in found["said"].items()}
    for i in range(2):
        arguments = (params, beta, keys[i, 0], jax.tree.map(lambda leaf, i=i: leaf[i], x))
        compiled = _say_compiled(expert, *arguments)
        for name, eager in _say(expert, *arguments).items():
            laws.equal("jit", name, _flat_rows(eager), _flat_rows(compiled[name]))
            laws.equal("vmap", name, _flat_rows(eager), said[name][i, 0])
    factors, draws, mean = (said[k] for k in ("log_factors", "sample_latent", "latent_mean"))
    slack = laws.tolerance * np.max(np.abs(said["log_joint"]))
    laws.equal("integral", "number of factors", expert.num_factors, factors.shape[-1])
    checked, n = ["gradient", "jit", "vmap", "temper"], keys.shape[1]
    if not expert.is_opaque:
        what = "log_joint(x', z) - log_joint(x, z)"
        laws.equal("field", what, found["field_gap"], found["joint_gap"], slack)
        what, inner = "log_joint(x, z) - <visible_field(z), t(x)>", said["inner"]
        weight = said["log_joint"] - inner
        slack_of_both = slack + laws.tolerance * np.max(np.abs(inner))
        laws.equal("field", what, said["latent_log_weight"], weight, slack_of_both)
        checked += ["field"]
    if "table" in found:
        table, points = found["table"].astype(float), found["points"]
        log_sum = np.logaddexp.reduce(table, axis=1)
        p = np.exp(table - log_sum[:, None])
        what = "log ∫ exp log_joint dz"
        laws.equal("integral", what, log_sum, factors[:, 0].sum(-1), slack)
        laws.equal("mean", "latent_mean", np.einsum("es,esl->el", p, points), mean[:, 0])
        _check_draws(laws, p, points, draws, expert.num_latent_states is not None)
        checked += ["integral", "sample", "mean"] if draws.shape[-1] else ["integral"]
    elif draws.shape[-1]:
        std_err = draws.std(axis=1) / math.sqrt(n)
        laws.sampled("mean", "latent_mean", draws.mean(axis=1), mean[:, 0], std_err)
        checked += ["mean"]
    else:
        what = "log_joint of an expert without latents"
        laws.equal("integral", what, factors.sum(-1), said["log_joint"][..., 0], slack)
        checked += ["integral"]
    laws.sampled("gradient", "∂ Σ log_factors", found["score"], found["gradient"], found["std_err"])
    at_0, at_1 = found["factors_at_0"], found["factors_at_1"]
    laws.equal("temper", "log_factors under temper(params, 1)", found["factors"], at_1)
    laws.equal("temper", "log_factors under temper(params, 0)", at_0[:1] + 0 * at_0, at_0)
    return checked


def _check_draws(laws: _Laws, p: Any, points: Any, draws: Any, finite: bool) -> None:
    """Compare draws [E, n, L] with the probabilities p [E, S] of the points [E, S, L]."""
    n, size = draws.shape[1:]
    if finite:
        # Chernoff: P(a frequency as far out as q) <= exp(-n KL(q, p)) on either side.
        q = np.stack([_frequencies(laws, *pair) for pair in zip(points, draws, strict=True)])
        excess = n * _divergence(q, p) - math.log(2 * p.size / laws.level)
        laws.not_positive("sample", f"frequency of (event, state) in {n} draws", p, q, excess)
        return
    # The characteristic function at a few frequencies: bounded, so that its means are near normal.
    center = np.einsum("es,esl->el", p, points)[:, None]
    spread = np.sqrt(np.einsum("es,esl->el", p, (points - center) ** 2))[:, None]
    k = np.array([*itertools.product(range(3), repeat=size)][1:]).T
    angles = [((y - center) / spread) @ k for y in (points, draws)]
    on_points, on_draws = (np.concatenate([np.cos(y), np.sin(y)], axis=-1) for y in angles)
    expected = np.einsum("es,esk->ek", p, on_points)
    variance = np.einsum("es,esk->ek", p, (on_points - expected[:, None]) ** 2)
    what = "characteristic function"
    laws.sampled("sample", what, expected, on_draws.mean(axis=1), np.sqrt(variance / n))


def _say(expert: Expert, params: Params, beta: Array, key: Array, x: Event) -> dict[str, Any]:
    """Everything that an expert says about one event."""
    params = expert.temper(params, beta)
    z = expert.sample_latent(key, params, x)
    said = {
        "sample_latent": z,
        "log_factors": expert.log_factors(params, x),
        "latent_mean": expert.latent_mean(params, x),
        "log_joint": expert.log_joint(params, x, z),
    }
    if expert.is_opaque:
        return said
    field = expert.visible_field(params, z)
    return said | {
        "visible_field": field,
        "inner": expert.visible.inner(field, x),
        "latent_log_weight": expert.latent_log_weight(params, z),
    }


# Small functions that run a few times: their compilation is what takes the time.
_compile = functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": "0"}
)
_say_compiled = _compile(_say)


@_compile
def _evaluate(expert: Expert, params: Params, beta: Array, keys: Array, x: Event) -> dict[str, Any]:
    """All that is compared at one beta, for events x [E, ...] and keys [E, n], compiled once."""

    def log_factors(params: Params, beta: Array, x: Event) -> Array:
        return expert.log_factors(expert.temper(params, beta), x)

    def log_joint(params: Params, x: Event, z: Any) -> Array:
        return expert.log_joint(expert.temper(params, beta), x, z)

    def event(keys: Array, x: Event, other: Event) -> dict[str, Any]:
        said = jax.vmap(_say, in_axes=(None, None, None, 0, None))(expert, params, beta, keys, x)

        def gaps(z: Any, field: Any) -> dict[str, Array]:
            inner = expert.visible.inner
            joint_gap = log_joint(params, other, z) - log_joint(params, x, z)
            return {"joint_gap": joint_gap, "field_gap": inner(field, other) - inner(field, x)}

        def score(z: Any, log_weight: Array) -> tuple[Array, Array]:
            value, grad = jax.value_and_grad(log_joint)(params, x, z)
            return value + log_weight, _flat(grad)

        found = {
            "said": said,
            "factors": expert.log_factors(params, x),
            "factors_at_0": log_factors(params, 0 * beta, x),
            "factors_at_1": log_factors(params, jnp.ones_like(beta), x),
            "gradient": _flat(jax.grad(lambda p: jnp.sum(log_factors(p, beta, x)))(params)),
        }
        log_joint_at_x = functools.partial(log_joint, params, x)
        if not expert.is_opaque:
            found |= jax.vmap(gaps)(said["sample_latent"], said["visible_field"])
        posterior = _latent_points(expert, said["sample_latent"], log_joint_at_x)
        if posterior is None:
            _, scores = jax.vmap(score)(said["sample_latent"], jnp.zeros(len(keys)))
            return found | {"score": scores.mean(0), "std_err": scores.std(0) / len(keys) ** 0.5}
        table, scores = jax.vmap(score)(*posterior)
        table = jnp.where(jnp.isnan(table), -jnp.inf, table)
        p = jax.nn.softmax(table)[:, None]
        mean = jnp.sum(jnp.where(p > 0, p * scores, 0.0), axis=0)
        points = _flat_rows(posterior[0], table.shape)
        return found | {"points": points, "table": table, "score": mean, "std_err": 0 * mean}

    return jax.vmap(event)(keys, x, jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), x))


def _latent_points(expert: Expert, draws: Any, log_joint: Callable[[Any], Array]) -> Any:
    """Return all latent states, or a grid over the draws, with log weights; None if impossible."""
    count = expert.num_latent_states
    if expert.is_opaque or (count is not None and count > _MAX_STATES):
        return None
    if count is not None:
        return jax.vmap(expert.latent_state_at)(jnp.arange(count)), jnp.zeros(count)
    _, unflatten = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], draws))
    flat = jax.vmap(_flat)(draws)
    size = flat.shape[1]
    if size not in _NODES:
        return None
    # Latents that live above zero are integrated over their logarithm.
    below = jax.vmap(lambda z: log_joint(unflatten(z)))(-jnp.abs(flat[:8]))
    positive = jnp.all(flat > 0) & ~jnp.any(jnp.isfinite(below))
    # Gauss-Legendre panels between quantiles of the draws follow every scale of the posterior.
    q = jnp.quantile(jnp.where(positive, jnp.log(flat), flat), _FRACTIONS, axis=0)
    left = q[0] - _TAIL[::-1, None] * (q[1] - q[0])
    breaks = jnp.concatenate([left, q, q[-1] + _TAIL[:, None] * (q[-1] - q[-2])])
    # Densities with a kink have it at zero, as rectified units do: smooth on either side.
    breaks = jnp.sort(jnp.append(breaks, jnp.clip(0.0, breaks[:1], breaks[-1:]), axis=0), axis=0)
    node, weight = np.polynomial.legendre.leggauss(_NODES[size])
    center, half = (breaks[1:] + breaks[:-1]) / 2, (breaks[1:] - breaks[:-1]) / 2
    axes = (center[:, None] + half[:, None] * node[:, None]).reshape(-1, size).T
    weights = (half[:, None] * weight[:, None]).reshape(-1, size).T
    grid, weights = (
        jnp.stack(jnp.meshgrid(*v), axis=-1).reshape(-1, size) for v in (axes, weights)
    )
    points = jnp.where(positive, jnp.exp(grid), grid).astype(flat.dtype)
    log_weights = jnp.log(weights) + jnp.where(positive, grid, 0)
    log_weights = jnp.where(positive & (points == 0), -jnp.inf, log_weights)  # underflown
    return jax.vmap(unflatten)(points), jnp.sum(log_weights, axis=-1)


def _frequencies(laws: _Laws, states: Any, draws: Any) -> Any:
    index = {tuple(state): i for i, state in enumerate(states)}
    found = np.zeros(len(states))
    for state, count in zip(*np.unique(draws, axis=0, return_counts=True), strict=True):
        if tuple(state) not in index:
            laws.fail("sample", "a draw", "one of the latent states", state)
        found[index[tuple(state)]] = count / len(draws)
    return found


def _divergence(q: Any, p: Any) -> Any:
    """KL divergence of Bernoulli(q) from Bernoulli(p), 0 log 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        on, off = q * np.log(q / p), (1 - q) * np.log((1 - q) / np.maximum(1 - p, 0))
    return np.where(q > 0, on, 0.0) + np.where(q < 1, off, 0.0)


def _check_retrace(expert: Expert, params: Params, x: Event) -> None:
    num_traces = 0

    @functools.partial(jax.jit, static_argnums=0)
    def log_factors(expert: Expert, params: Params) -> Array:
        nonlocal num_traces
        num_traces += 1
        return jax.vmap(expert.log_factors, in_axes=(None, 0))(params, x)

    rebuilt = copy.deepcopy(expert)
    if rebuilt != expert or hash(rebuilt) != hash(expert):
        raise AssertionError(f"law 'retrace' fails: expected {expert}, found a copy that differs")
    log_factors.trace(expert, params)
    log_factors.trace(rebuilt, jax.tree.map(lambda leaf: 2 * leaf, params))
    if num_traces != 1:
        raise AssertionError(f"law 'retrace' fails: expected 1 trace, found {num_traces}: {expert}")


def _flat(tree: PyTree) -> Array:
    return ravel_pytree(tree)[0]


def _flat_rows(tree: PyTree, rows: tuple[int, ...] = ()) -> Any:
    leaves = [jnp.reshape(leaf, (*rows, -1)) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros((*rows, 0)), *leaves], axis=-1)
