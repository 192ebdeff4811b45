"""Two facts about products of Gaussians, computed: what adding experts cannot do, and what it can.

A product of Gaussians is one Gaussian however many experts it has, so its KL divergence from a
density that is no Gaussian stops at moment matching, where mixtures go on. A product of univariate
*mixtures*, one per axis, is a mixture of K^D components.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import poejax as pj
from experiments.lab import runs
from poejax import training
from poejax.types import Array, Params

_NODES = np.linspace(-6.0, 6.0, 6001)  # of the quadrature, in double precision
_NUM_ROWS = 4000


def log_target(x: np.ndarray) -> np.ndarray:
    """Return the log density of a tilted double well, -x⁴/4 + x² + 0.3 x - log Z, at `x` [...]."""

    def log_density(x: np.ndarray) -> np.ndarray:
        return -(x**4) / 4 + x**2 + 0.3 * x

    return log_density(x) - np.log(np.trapezoid(np.exp(log_density(_NODES)), _NODES))


def kl(log_q: np.ndarray) -> float:
    """Return KL(p || q) in nats of a log density given on `_NODES`, by the trapezoid rule."""
    log_p = log_target(_NODES)
    return float(np.trapezoid(np.exp(log_p) * (log_p - log_q), _NODES))


def quantiles() -> Array:
    """Return the target's quantiles at (i + 1/2)/N, [N, 1]: a sample without sampling noise."""
    p = np.exp(log_target(_NODES))
    cdf = np.concatenate([[0.0], np.cumsum((p[1:] + p[:-1]) / 2 * np.diff(_NODES))])
    levels = (np.arange(_NUM_ROWS) + 0.5) / _NUM_ROWS
    return jnp.asarray(np.interp(levels, cdf / cdf[-1], _NODES)[:, None], jnp.float32)


def moment_matching_kl() -> float:
    """Return the smallest KL divergence of any Gaussian: that of the target's mean and variance."""
    p = np.exp(log_target(_NODES))
    mean = np.trapezoid(p * _NODES, _NODES)
    variance = np.trapezoid(p * (_NODES - mean) ** 2, _NODES)
    return kl(_log_normal(_NODES, mean, variance))


def mixture_kl(rng_key: Array, num_components: int, num_steps: int) -> float:
    """Return KL(p || q) of a mixture fitted by EM to the quantiles."""
    params, _ = pj.mixtures.fit_em(
        rng_key,
        quantiles(),
        num_components,
        covariance="diag",
        max_steps=num_steps,
        tol=0.0,
        num_restarts=8,
    )
    log_weights, means, covariances = (np.asarray(leaf, np.float64) for leaf in params)
    parts = log_weights[:, None] + _log_normal(_NODES, means[:, 0], covariances[:, 0])
    return kl(np.logaddexp.reduce(parts, axis=0))


def product_kl(rng_key: Array, num_experts: int, num_steps: int) -> float:
    """Return KL(p || q) of a product of Gaussian experts, all of whose parameters are optimised."""
    model = _gaussians(num_experts)
    params = _fit_gaussians(rng_key, model, quantiles(), num_steps)
    experts = [params[name] for name in model.experts]
    fused = pj.gaussians.product(
        jnp.stack([expert["mean"] for expert in experts]),
        jnp.exp(jnp.stack([expert["log_precision"] for expert in experts])),
    )
    mean, precision = np.float64(fused.mean[0]), np.float64(fused.precision[0])
    return kl(_log_normal(_NODES, mean, 1 / precision))


def study_kl(max_components: int, num_seeds: int, num_steps: int) -> dict[str, Any]:
    """Return KL(p || q_K) by family for K = 1, 2, ..., a list over seeds for every K."""
    curve: dict[str, Any] = {"k": list(range(1, max_components + 1)), "mixture": [], "product": []}
    with runs.progress(max_components, "KL against K", "K") as bar:
        for k in curve["k"]:
            keys = [jax.random.key(seed) for seed in range(num_seeds)]
            curve["mixture"].append([mixture_kl(key, k, num_steps) for key in keys])
            curve["product"].append([product_kl(key, k, num_steps) for key in keys])
            bar.update()
    return curve | {"moment_matching": moment_matching_kl()}


class Expansion(NamedTuple):
    """A product of one univariate mixture per axis, and the mixture it is.

    params: of `GaussianMixture(visible, K)`: logits [2, K], mean and log_precision [2, K, 1].
    expanded: the K^2 components.
    x: nodes of a square, [N, N, 2]; product_density and mixture_density are the two there, [N, N].
    """

    params: Params
    expanded: pj.gaussians.ExpandedMixture
    x: np.ndarray
    product_density: np.ndarray
    mixture_density: np.ndarray

    @property
    def max_difference(self) -> float:
        """Largest difference of the two densities on the square."""
        return float(np.abs(self.product_density - self.mixture_density).max())

    def summary(self) -> dict[str, Any]:
        """Return counts and the difference, for results.json."""
        num_axes, k = self.params["logits"].shape
        size = k**num_axes
        return {
            "univariate_components": num_axes * k,
            "product_free_parameters": num_axes * (3 * k - 1),
            "expanded_components": size,
            "mixture_free_parameters": size * (1 + 2 * num_axes) - 1,
            "max_density": float(self.product_density.max()),
            "max_abs_difference": self.max_difference,
        }


def expand_product() -> Expansion:
    """Expand a product of two univariate mixtures with K = 3, and evaluate both on a square."""
    log_weights = jnp.log(jnp.array([[0.3, 0.45, 0.25], [0.25, 0.35, 0.4]]))
    means = jnp.array([[-2.0, 0.1, 1.8], [-1.7, 0.2, 2.1]])
    scales = jnp.array([[0.3, 0.5, 0.25], [0.45, 0.25, 0.35]])
    precisions = 1 / scales**2
    params = {
        "logits": log_weights,
        "mean": means[:, :, None],
        "log_precision": jnp.log(precisions)[:, :, None],
    }
    expanded = pj.gaussians.expand_axis_aligned(log_weights, means, precisions)
    visible = pj.units.GaussianDiag(2)
    model = pj.product(visible, mixture=pj.experts.GaussianMixture(visible, 3))
    log_z = pj.exact.log_z(model, {"mixture": params})
    axis = np.linspace(-3.4, 3.4, 200, dtype=np.float32)
    x = np.stack(np.meshgrid(axis, axis), axis=-1)

    def as_product(x: Array) -> Array:
        return jnp.exp(model.log_density({"mixture": params}, x) - log_z)

    def as_mixture(x: Array) -> Array:
        log_probs = jax.vmap(pj.gaussians.log_prob, in_axes=(0, 0, None))(
            expanded.means, expanded.precisions, x
        )
        return jnp.exp(jax.nn.logsumexp(expanded.log_weights + log_probs))

    densities = [jax.vmap(jax.vmap(f))(jnp.asarray(x)) for f in (as_product, as_mixture)]
    return Expansion(params, expanded, x, *(np.asarray(p, np.float64) for p in densities))


def _gaussians(num_experts: int) -> pj.Product:
    visible = pj.units.GaussianDiag(1)
    expert = pj.experts.Gaussian(visible)
    return pj.product(visible, **{f"gaussian_{k}": expert for k in range(num_experts)})


@functools.partial(jax.jit, static_argnames=("model", "num_steps"))
def _fit_gaussians(rng_key: Array, model: pj.Product, x: Array, num_steps: int) -> Params:
    estimator = pj.estimators.exact(model)
    tx = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    run = training.Run(estimator, tx, len(x))
    return run.steps(run.init(rng_key, x), x, num_steps)[0].params


def _log_normal(x: np.ndarray, mean: Any, variance: Any) -> np.ndarray:
    """Return log N(x; mean, variance) for x [N] and one Gaussian, [N], or K of them, [K, N]."""
    mean, variance = np.asarray(mean)[..., None], np.asarray(variance)[..., None]
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))
