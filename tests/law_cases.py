"""What the laws are tested on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from poejax import units
from poejax.experts import Expert, HiddenBank


def random_params(expert, seed=0):
    """Parameters of scale one: no term of the laws can hide in rounding."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(expert.init, jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


@dataclasses.dataclass(frozen=True)
class HeavyTail(Expert):
    """-nu log(alpha + x²): u ~ Gamma(nu, rate alpha + x²) adds the precision 2u."""

    num_factors = 1
    num_latent_states = None

    def init(self, rng_key):
        return {"alpha": jnp.ones(1), "nu": jnp.ones(1)}

    def rate(self, params, x):
        return params["alpha"] + x**2

    def shape(self, params):
        return params["nu"] * params.get("beta", 1.0)

    def log_factors(self, params, x):
        return -self.shape(params) * jnp.log(self.rate(params, x))

    def latent_log_weight(self, params, z):
        nu = self.shape(params)
        return jnp.sum((nu - 1) * jnp.log(z) - params["alpha"] * z - jax.lax.lgamma(nu))

    def sample_latent(self, rng_key, params, x):
        return jax.random.gamma(rng_key, self.shape(params)) / self.rate(params, x)

    def latent_mean(self, params, x):
        return self.shape(params) / self.rate(params, x)

    def visible_field(self, params, z):
        return {"linear": jnp.zeros(1), "precision": 2 * z}

    def temper(self, params, beta):
        return params | {"beta": jnp.asarray(beta)}


@dataclasses.dataclass(frozen=True)
class Kinked(Expert):
    """One latent of density exp(wᵀx z - z²/2 - c|z|): two ReLU units back to back."""

    num_factors = 1
    num_latent_states = None

    def init(self, rng_key):
        return {"w": jnp.ones(self.visible.num_linear), "c": jnp.ones(())}

    def sides(self, params, x):
        pull, c = params["w"] @ self.visible.linear_statistic(x), params["c"]
        return params.get("beta", 1.0) * jnp.stack([pull - c, -pull - c])

    def log_factors(self, params, x):
        half = units.ReLU(2)
        return jnp.logaddexp(*half.log_partitions(self.sides(params, x)))[None]

    def latent_log_weight(self, params, z):
        return -0.5 * z**2 - params.get("beta", 1.0) * params["c"] * jnp.abs(z)

    def up(self, field):
        return jax.nn.softmax(units.ReLU(2).log_partitions(field))[0]

    def sample_latent(self, rng_key, params, x):
        side_key, key = jax.random.split(rng_key)
        field = self.sides(params, x)
        up, down = units.ReLU(2).sample(key, field)
        return jnp.where(jax.random.bernoulli(side_key, self.up(field)), up, -down)

    def latent_mean(self, params, x):
        field = self.sides(params, x)
        up, down = units.ReLU(2).mean(field)
        return self.up(field) * up - (1 - self.up(field)) * down

    def visible_field(self, params, z):
        return self.visible.linear_field(params.get("beta", 1.0) * params["w"] * z)

    def temper(self, params, beta):
        return params | {"beta": jnp.asarray(beta)}


class WrongSignOfTheField(HiddenBank):
    def visible_field(self, params, z):
        return -super().visible_field(params, z)
