"""Learning p(y | x) of a joint model, and blends of learning rules."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from poejax import _checks, _meshes
from poejax._product import Product
from poejax.estimators._common import Rule, mean_of_rows, own_model
from poejax.inference._classify import class_log_probs
from poejax.types import Array, Estimator, Event, Params
from poejax.units.joint import label_unit


class ClassInfo(NamedTuple):
    """What a batch looked like: mean log p(y | x), in nats, and the error rate in [0, 1]."""

    class_log_prob: Array
    error_rate: Array


@dataclasses.dataclass(frozen=True)
class Discriminative(Rule):
    """Gradient of the mean of -log p(y | x). Build with `discriminative`."""

    label: str

    def grad(
        self, rng_key: Array, params: Params, state: tuple[()], batch: Event
    ) -> tuple[Params, tuple[()], ClassInfo]:
        """Compute the gradient for a batch, a dict of blocks [B, ...]; `rng_key` is not used."""
        del rng_key

        def loss(params: Params) -> tuple[Array, ClassInfo]:
            def one(x: Event) -> ClassInfo:
                y = jnp.asarray(x[self.label], jnp.result_type(float))[0]
                log_p = class_log_probs(self.model, params, x, self.label)
                wrong = jnp.argmax(log_p) != jnp.argmax(y)
                return ClassInfo(jnp.sum(y * log_p), wrong.astype(log_p.dtype))

            info = mean_of_rows(one, batch)
            return -info.class_log_prob, info

        params, batch = _meshes.alike(params, batch)
        grads, info = jax.grad(loss, has_aux=True)(params)
        return grads, state, info


@dataclasses.dataclass(frozen=True)
class Blend(Rule):
    """Weighted sum of the gradients of several estimators. Build with `blend`."""

    terms: tuple[tuple[str, Estimator, float], ...]

    def init(self, rng_key: Array, params: Params, data: Event) -> dict[str, Any]:
        """Return each estimator's state, by name."""
        keys = jax.random.split(rng_key, len(self.terms))
        return {
            name: estimator.init(key, params, data)
            for key, (name, estimator, _) in zip(keys, self.terms, strict=True)
        }

    def grad(
        self, rng_key: Array, params: Params, state: dict[str, Any], batch: Event
    ) -> tuple[Params, dict[str, Any], dict[str, Any]]:
        """Estimate the weighted gradient from a batch [B, ...]."""
        total = jax.tree.map(jnp.zeros_like, params)
        states, infos = {}, {}
        keys = jax.random.split(rng_key, len(self.terms))
        for key, (name, estimator, weight) in zip(keys, self.terms, strict=True):
            grads, states[name], infos[name] = estimator.grad(key, params, state[name], batch)
            total = jax.tree.map(lambda t, g, w=weight: t + w * g, total, grads)
        return total, states, infos


def discriminative(model: Product, label: str = "label") -> Discriminative:
    """Maximum conditional likelihood of a label given the other blocks, without sampling.

    grad = -E_data[∂ log p(y | x)], by `inference.class_log_probs`

    Args:
      model: a product over a Joint unit with a block `Categorical(1, C)`.
      label: name of that block.

    Raises:
      ValueError: if there is no such block.

    Source: Larochelle & Bengio (2008), Classification using discriminative restricted Boltzmann
    machines.
    """
    _checks.model("model", model)
    label_unit(model.visible, label)
    return Discriminative(model, label)


def blend(model: Product, **terms: tuple[Estimator, float]) -> Blend:
    """Add the gradients of several estimators, each with a weight.

    Hybrid learning of a classification RBM is discriminative plus a little generative:
    `blend(model, discriminative=(discriminative(model), 1.0), generative=(pcd(model, 100), 0.01))`.

    Args:
      model: the product that all of them train.
      **terms: `(estimator, weight)` by name.

    Returns:
      An estimator; its state and info are dicts by name.

    Raises:
      ValueError: if no term is given, one trains another model or has no finite weight.
      TypeError: if a term is no pair of an estimator and a weight.

    Source: Larochelle & Bengio (2008), the hybrid objective.
    """
    if not terms:
        raise ValueError("blend: expected at least one estimator, got none")
    for name, term in terms.items():
        if not (isinstance(term, tuple) and len(term) == 2):
            raise TypeError(f"{name}: expected (estimator, weight), got {term!r}")
        own_model(name, term[0], model)
        if not _checks.is_real(term[1]) or not math.isfinite(term[1]):
            raise ValueError(f"{name}: expected a finite weight, got {term[1]!r}")
    return Blend(model, tuple((n, estimator, float(w)) for n, (estimator, w) in terms.items()))
