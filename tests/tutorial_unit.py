"""A unit from outside the package: what a user writes for values that none of ours takes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from poejax import units


@dataclasses.dataclass(frozen=True)
class Geometric(units.VectorUnit):
    """`size` units in {0, ..., most}, p(x | field) ∝ exp(field x): waiting times, cut off."""

    most: int

    @property
    def num_values(self):
        return self.most + 1

    @property
    def num_states(self):
        return self.num_values**self.size

    @property
    def has_proper_base(self):
        return True

    def state_at(self, index):
        digits = index // self.num_values ** jnp.arange(self.size)
        return (digits % self.num_values).astype(float)

    def log_partitions(self, field):
        return jax.nn.logsumexp(self._logits(field), axis=1)

    def mean(self, field):
        return jax.nn.softmax(self._logits(field)) @ jnp.arange(self.num_values, dtype=float)

    def sample(self, rng_key, field):
        return jax.random.categorical(rng_key, self._logits(field)).astype(float)

    def fit_field(self, x, smoothing, weights=None):
        mean = (1 - smoothing) * jnp.average(x, 0, weights) + smoothing * self.most / 2
        return jnp.log(mean) - jnp.log1p(mean)

    def check(self, name, x):
        units.check_batch(name, x, self.event_shape, self)
        units.require_values(name, x, self._is_value, f"integers from 0 to {self.most}", self)

    def _logits(self, field):
        return field[:, None] * jnp.arange(self.num_values)

    def _is_value(self, v):
        return (v >= 0) & (v <= self.most) & (v == v.round())
