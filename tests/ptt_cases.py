"""A small model learned by parallel trajectory tempering, and where its runs start."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import poejax as pj
from poejax import datasets

KEY = jax.random.key(0)
BARS = jnp.asarray(datasets.bars_and_stripes(3), jnp.float32)
MODEL = pj.models.rbm(9, 6)
PTT = pj.estimators.ptt(MODEL, 20, num_thermal=5, thin=2)
START = MODEL.init_from(jax.random.key(1), BARS)
