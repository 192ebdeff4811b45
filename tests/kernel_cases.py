"""An opaque expert, and models of the plane with exact samples, for gradient kernels."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import poejax as pj
from poejax import experts, units


@dataclasses.dataclass(frozen=True)
class Energy(experts.Expert):
    """An opaque expert: v·tanh(Wᵀt(x)) - ½ |t(x)|², of which only the density is known."""

    num_factors = 1
    num_latent_states = None
    is_opaque = True

    def init(self, rng_key):
        w = jax.random.normal(rng_key, (self.visible.num_linear, 4))
        return {"w": w, "v": jnp.ones(4)}

    def log_factors(self, params, x):
        t = self.visible.linear_statistic(x)
        value = jnp.tanh(t @ params["w"]) @ params["v"] - 0.5 * jnp.sum(t**2)
        return params.get("beta", 1.0) * value[None]

    def visible_field(self, params, z):
        raise TypeError("no field is known")

    def temper(self, params, beta):
        return params | {"beta": jnp.asarray(beta)}


def bank(visible, hidden):
    parts = {"bias": experts.Bias(visible), "hidden": experts.HiddenBank(visible, hidden)}
    return pj.product(visible, **parts)


def opaque(visible):
    return pj.product(visible, energy=Energy(visible))


NUM_CHAINS = 20_000
PLANE = units.Gaussian(2)
W = np.array([[0.8, 0.6], [-0.28, 0.96]])  # rows: unit vectors, not orthogonal
BLOCKS = units.Joint(late=units.GaussianDiag(1), early=units.Gaussian(1))
MIXED = units.Joint(pixels=units.Bernoulli(2), label=units.Categorical(1, 3))


@functools.partial(jax.jit, static_argnames="kernel")
def step_all(kernel, rng_key, params, states):
    return jax.vmap(kernel.step, (0, None, 0))(
        jax.random.split(rng_key, len(jax.tree.leaves(states.x)[0])), params, states
    )


class Case:
    """A model of the plane with exact samples, and a map to independent uniforms."""

    def __init__(self, name, beta):
        self.beta = beta
        build = {"gaussian": self._gaussian, "student": self._student, "mixture": self._mixture}
        self.model, params, self.draw, self.uniforms = build[name]()
        self.params = self.model.temper(jax.tree.map(jnp.asarray, params), beta)

    def _gaussian(self):
        mean, log_diagonal, off = np.array([0.5, -1.0]), np.array([0.2, -0.3]), 0.6
        rows = np.sqrt(self.beta) * np.array([[np.exp(0.2), off], [0, np.exp(-0.3)]])
        params = {"mean": mean, "log_diagonal": log_diagonal, "off_diagonal": np.array([off])}
        return (
            pj.product(PLANE, one=experts.Gaussian(PLANE, "full")),
            {"one": params},
            lambda rng: mean + rng.normal(size=(NUM_CHAINS, 2)) @ np.linalg.inv(rows).T,
            lambda x: stats.norm.cdf((x - mean) @ rows.T),
        )

    def _student(self):
        # (α + y²)^(-ν) is a t density of 2ν - 1 degrees of freedom.
        df, scale = 2 * self.beta * 2.5 - 1, np.array([1.0, 1.5])
        scale_of_t = np.sqrt(scale / df)
        params = {"w": W.T, "log_scale": np.log(scale), "log_exponent": np.log([2.5, 2.5])}
        return (
            pj.product(PLANE, bank=experts.StudentT(PLANE, 2)),
            {"bank": params},
            lambda rng: scale_of_t * rng.standard_t(df, size=(NUM_CHAINS, 2)) @ np.linalg.inv(W).T,
            lambda x: stats.t.cdf(x @ W.T / scale_of_t, df),
        )

    def _mixture(self):
        visible = units.GaussianDiag(2)
        log_pi = np.log([0.4, 0.6])
        mean, precision = np.array([[-1.0, 0.5], [1.2, -0.3]]), np.array([[1.0, 2.0], [1.5, 0.7]])
        # (π N)^β is a Gaussian of precision βλ with the weight π^β Π λ^((β - 1)/2).
        weight = np.exp(self.beta * log_pi + 0.5 * (self.beta - 1) * np.log(precision).sum(axis=1))
        weight, std = weight / weight.sum(), 1 / np.sqrt(self.beta * precision)

        def draw(rng):
            k = rng.choice(2, NUM_CHAINS, p=weight)
            return mean[k] + std[k] * rng.normal(size=(NUM_CHAINS, 2))

        def uniforms(x):
            # The first coordinate's marginal, and the second's conditional given the first.
            z = (x[:, None] - mean) / std
            cdf = stats.norm.cdf(z)
            given = weight * stats.norm.pdf(z[..., 0]) / std[:, 0]
            given /= given.sum(axis=1, keepdims=True)
            return np.stack([cdf[..., 0] @ weight, (given * cdf[..., 1]).sum(axis=1)], axis=1)

        params = {
            "logits": log_pi[None],
            "mean": mean[None],
            "log_precision": np.log(precision)[None],
        }
        return (
            pj.product(visible, mix=experts.GaussianMixture(visible, 2, joint=True)),
            {"mix": params},
            draw,
            uniforms,
        )
