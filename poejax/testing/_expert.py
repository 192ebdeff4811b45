"""The laws that tie an expert's density, latents, sampler and field together, for any expert."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks
from poejax.experts import Expert
from poejax.testing._laws import (
    Laws,
    check_retrace,
    compile_once,
    flat,
    flat_rows,
    noisy,
    rounding,
)
from poejax.testing._points import MAX_STATES, grid
from poejax.types import Array, Event, Params


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

    "integral": ∫ exp log_joint(x, z) dz = exp Σ_k log_factors(x)_k, with num_factors terms, whose
                sum is log_product(x)
    "field":    log_joint(x, z) - log_joint(x', z) = <visible_field(z), t(x) - t(x')>, and
                log_joint(x, z) = <visible_field(z), t(x)> + latent_log_weight(z)
    "sample":   sample_latent draws from exp(log_joint(x, z) - Σ_k log_factors(x)_k)
    "mean":     latent_mean is the mean of that distribution
    "gradient": ∂ Σ_k log_factors(x)_k = E[∂ log_joint(x, z) | x], for derivatives by the params
    "jit", "vmap": compiled = eager, and batched = one by one, to rounding
    "temper":   temper(params, 1) changes no factor; under temper(params, 0) none depends on x;
                log_change between two temperatures is the change of Σ_k log_factors(x)_k
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
        start = expert.init(jax.random.fold_in(rng_key, 0))
        params = noisy(jax.random.fold_in(rng_key, 1), start)
    if tolerance is None:
        tolerance = rounding(params)
    event_key, draw_key = jax.random.split(rng_key)
    x = jax.vmap(expert.visible.random_event)(jax.random.split(event_key, num_events))
    keys = jax.random.split(draw_key, (num_events, num_samples))
    checked = ["retrace"]
    try:
        check_retrace("expert", expert, _log_factors, params, x)
        # A low default precision of the matrix products would be mistaken for a broken law.
        with jax.default_matmul_precision("highest"):
            for beta in betas:
                where = f" at beta={float(beta):g}"
                laws = Laws(expert, "expert", where, tolerance, level)
                checked += _check_at(laws, float(beta), params, keys, x)
    except jax.errors.JAXTypeError as error:
        what = f"law 'jit' fails: expected {expert} to compile, found {error}"
        raise AssertionError(what) from error
    return tuple(dict.fromkeys(checked))


def _check_at(laws: Laws, at: float, params: Params, keys: Array, x: Event) -> list[str]:
    """Check all laws but "retrace" at one inverse temperature."""
    expert, beta = laws.subject, jnp.asarray(at, jnp.result_type(float))
    found = jax.device_get(_evaluate(expert, params, beta, keys, x))
    said = {name: flat_rows(value, keys.shape) for name, value in found["said"].items()}
    for i in range(2):
        arguments = (params, beta, keys[i, 0], jax.tree.map(lambda leaf, i=i: leaf[i], x))
        compiled = _say_compiled(expert, *arguments)
        for name, eager in _say(expert, *arguments).items():
            laws.equal("jit", name, flat_rows(eager), flat_rows(compiled[name]))
            laws.equal("vmap", name, flat_rows(eager), said[name][i, 0])
    factors, draws, mean = (said[k] for k in ("log_factors", "sample_latent", "latent_mean"))
    slack = laws.tolerance * np.max(np.abs(said["log_joint"]))
    laws.equal("integral", "number of factors", expert.num_factors, factors.shape[-1])
    laws.equal("integral", "log_product", factors.sum(-1), said["log_product"][..., 0], slack)
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
        if expert.num_latent_states is not None:
            laws.frequencies("sample", p, points, draws)
        elif draws.shape[-1]:
            laws.waves("sample", p, points, draws)
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
    change = factors[:, 0].sum(-1) - found["factors"].sum(-1)
    laws.equal("temper", "log_change", change, found["change"], slack)
    laws.equal("temper", "log_factors under temper(params, 1)", found["factors"], at_1)
    laws.equal("temper", "log_factors under temper(params, 0)", at_0[:1] + 0 * at_0, at_0)
    return checked


def _say(expert: Expert, params: Params, beta: Array, key: Array, x: Event) -> dict[str, Any]:
    """Everything that an expert says about one event."""
    params = expert.temper(params, beta)
    z = expert.sample_latent(key, params, x)
    said = {
        "sample_latent": z,
        "log_factors": expert.log_factors(params, x),
        "log_product": expert.log_product(params, x),
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


_say_compiled = compile_once(_say)


@compile_once
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
            return value + log_weight, flat(grad)

        found = {
            "said": said,
            "factors": expert.log_factors(params, x),
            "factors_at_0": log_factors(params, 0 * beta, x),
            "change": expert.log_change(params, expert.temper(params, beta), x),
            "factors_at_1": log_factors(params, jnp.ones_like(beta), x),
            "gradient": flat(jax.grad(lambda p: jnp.sum(log_factors(p, beta, x)))(params)),
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
        points = flat_rows(posterior[0], table.shape)
        return found | {"points": points, "table": table, "score": mean, "std_err": 0 * mean}

    return jax.vmap(event)(keys, x, jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), x))


def _latent_points(expert: Expert, draws: Any, log_joint: Callable[[Any], Array]) -> Any:
    """Return all latent states, or a grid over the draws, with log weights; None if impossible."""
    count = expert.num_latent_states
    if expert.is_opaque or (count is not None and count > MAX_STATES):
        return None
    if count is not None:
        return jax.vmap(expert.latent_state_at)(jnp.arange(count)), jnp.zeros(count)
    return grid(draws, log_joint)


def _log_factors(expert: Expert, params: Params, x: Event) -> Array:
    return jax.vmap(expert.log_factors, in_axes=(None, 0))(params, x)
