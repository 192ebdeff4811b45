"""Products of experts on the plane with 27 to 30 free parameters each, and where to start them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

import poejax as pj
from poejax.types import Array, Event, Params


@dataclasses.dataclass(frozen=True)
class Family:
    """A product of experts and how it is learned.

    start: `(rng_key, data) -> params`, near the data.
    num_free: parameters that count: a softmax has one less than logits, a direction one less than
      coordinates.
    persistent: learned by PCD with block Gibbs instead of the exact gradient.
    """

    title: str
    model: pj.Product
    start: Callable[[Array, Event], Params]
    num_free: int
    persistent: bool = False


_PLANE, _DIAGONAL = pj.units.Gaussian(2), pj.units.GaussianDiag(2)


def _gaussians(num_experts: int = 6) -> Family:
    expert = pj.experts.Gaussian(_PLANE, "full")
    model = pj.product(_PLANE, **{f"gaussian_{k}": expert for k in range(num_experts)})

    def start(rng_key: Array, data: Event) -> Params:
        del data
        return model.init(rng_key)

    return Family("product of\nGaussians", model, start, 5 * num_experts)


def _axis_mixtures(num_components: int = 5) -> Family:
    model = pj.product(_DIAGONAL, mixture=pj.experts.GaussianMixture(_DIAGONAL, num_components))

    def start(rng_key: Array, data: Event) -> Params:
        # One quantile from each K-th of every coordinate's, and a K-th of the spread.
        jitter = jax.random.uniform(rng_key, (2, num_components))
        levels = (jnp.arange(num_components) + jitter) / num_components
        mean = jax.vmap(jnp.quantile)(data.T, levels)[:, :, None]
        log_precision = -jnp.log(data.var(axis=0)) + 2 * jnp.log(num_components)
        scale = jnp.broadcast_to(log_precision[:, None, None], mean.shape)
        logits = jnp.zeros((2, num_components))
        return {"mixture": {"logits": logits, "mean": mean, "log_precision": scale}}

    return Family("product of one\nmixture per axis", model, start, 2 * (3 * num_components - 1))


def _joint_mixtures(num_experts: int = 2, num_components: int = 3) -> Family:
    expert = pj.experts.GaussianMixture(_DIAGONAL, num_components, joint=True)
    names = [f"mixture_{m}" for m in range(num_experts)]
    model = pj.product(_DIAGONAL, **dict.fromkeys(names, expert))

    def start(rng_key: Array, data: Event) -> Params:
        rows = jax.random.choice(rng_key, data, (num_experts, 1, num_components), replace=False)
        scale = jnp.broadcast_to(-jnp.log(data.var(axis=0)), rows.shape)
        logits = jnp.zeros((1, num_components))
        return {
            name: {"logits": logits, "mean": rows[m], "log_precision": scale[m]}
            for m, name in enumerate(names)
        }

    num_free = num_experts * (5 * num_components - 1)
    return Family("product of\njoint mixtures", model, start, num_free)


def _unigauss(num_experts: int = 5) -> Family:
    model = pj.product(
        _DIAGONAL,
        broad=pj.experts.Gaussian(_DIAGONAL),
        unigauss=pj.experts.Unigauss(_DIAGONAL, num_experts, uniform_density=0.05),
    )

    def start(rng_key: Array, data: Event) -> Params:
        mean = jax.random.choice(rng_key, data, (num_experts,), replace=False)
        log_precision = -jnp.log(data.var(axis=0))
        return {
            "broad": {"mean": data.mean(axis=0), "log_precision": log_precision - jnp.log(2.0)},
            "unigauss": {
                "logit": jnp.zeros(num_experts),
                "mean": mean,
                "log_precision": jnp.broadcast_to(log_precision + jnp.log(4.0), mean.shape),
            },
        }

    return Family("product of unigauss\nand a Gaussian", model, start, 5 * num_experts + 4)


def _student_t(num_experts: int = 9) -> Family:
    expert = pj.experts.StudentT(_PLANE, num_experts)
    model = pj.product(_PLANE, student_t=expert)

    def start(rng_key: Array, data: Event) -> Params:
        params = model.init(rng_key)
        log_scale = jnp.full(num_experts, jnp.log(jnp.mean(data**2)))
        return {"student_t": params["student_t"] | {"log_scale": log_scale}}

    return Family("product of\nStudent-t", model, start, 3 * num_experts, persistent=True)


FAMILIES = {
    "gaussians": _gaussians(),
    "axis_mixtures": _axis_mixtures(),
    "joint_mixtures": _joint_mixtures(),
    "unigauss": _unigauss(),
    "student_t": _student_t(),
}
