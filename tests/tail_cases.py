"""Student-t banks of given directions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import poejax as pj
from poejax import experts, propriety, units

KEY = jax.random.key(0)
LINE, PLANE, SPACE = units.Gaussian(1), units.Gaussian(2), units.Gaussian(3)
DIAGONAL = units.GaussianDiag(3)


def heavy(directions, exponents):
    """Parameters of a Student-t bank whose directions are rows here."""
    w = jnp.asarray(directions, jnp.float32).T
    exponents = jnp.broadcast_to(jnp.asarray(exponents, jnp.float32), w.shape[1:])
    return {"w": w, "log_scale": jnp.zeros(w.shape[1]), "log_exponent": jnp.log(exponents)}


def student_t(visible, directions, exponents):
    model = pj.product(visible, heavy=experts.StudentT(visible, len(directions)))
    return model, {"heavy": heavy(directions, exponents)}


def verdict(model, params):
    return propriety.classify(model, params).verdict
