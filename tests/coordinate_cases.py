"""Every family over real units, and the places where their events may lie."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import poejax as pj
from poejax import experts, units

DIAGONAL, PLANE = units.GaussianDiag(2), units.Gaussian(2)
JOINT = units.Joint(pixels=units.Bernoulli(2), real=units.GaussianDiag(2))

MEANS, SCALES = (0.0, 300.0, 1013.0, 1e4, 1e6), (1e-6, 1e-2, 1.0, 1e6)
COLUMNS = [(m, s) for m, s in itertools.product(MEANS, SCALES) if m <= 1e6 * s]  # float32's digits
# The two columns of an event differ in mean and in size.
PLACES = [(one, COLUMNS[(i + 5) % len(COLUMNS)]) for i, one in enumerate(COLUMNS)]
CORRELATED = np.array([[1.0, 0.0], [0.6, 0.8]])


def wave(phi, x):
    return jnp.sum(jnp.cos(phi * x))


def frequencies(rng_key):
    return jax.random.normal(rng_key, (2,))


def _families():
    """Return {name: product}; names start with the visible units."""
    found = {}
    for name, v in {"diag": DIAGONAL, "full": PLANE, "joint": JOINT}.items():
        bias = experts.Bias(v)
        found[f"{name} binary bank"] = {
            "bias": bias,
            "bank": experts.HiddenBank(v, units.Bernoulli(3)),
        }
        if v is JOINT:
            continue
        kind = "full" if v is PLANE else "diag"
        broad = experts.Gaussian(v, kind)
        narrow = experts.Gaussian(v)
        found |= {
            f"{name} linear bank": {
                "bias": bias,
                "bank": experts.HiddenBank(v, units.StandardGaussian(2)),
            },
            f"{name} rectified bank": {
                "bias": bias,
                "bank": experts.HiddenBank(v, units.ReLU(2)),
            },
            f"{name} gaussian": {
                "one": broad,
                "first": experts.Gaussian(v, coordinate=0),
                "second": experts.Gaussian(v, coordinate=1),
            },
            f"{name} mixture": {"mix": experts.GaussianMixture(v, 2), "bias": bias},
            f"{name} joint mixture": {"mix": experts.GaussianMixture(v, 3, joint=True)},
            f"{name} unigauss": {"broad": broad, "uni": experts.Unigauss(v, 2)},
            f"{name} sum": {"sum": experts.mixture(v, narrow=narrow, other=broad), "bias": bias},
            f"{name} power": {"power": experts.Power(v, broad), "bias": bias},
            f"{name} neural": {"bias": bias, "net": experts.Neural(v, frequencies, wave)},
        }
    found["full student-t"] = {"heavy": experts.StudentT(PLANE, 2)}
    found["full student-t beside"] = {
        "heavy": experts.StudentT(PLANE, 3),
        "broad": experts.Gaussian(PLANE, "full"),
    }
    return {
        name: pj.product(next(iter(parts.values())).visible, **parts)
        for name, parts in found.items()
    }


FAMILIES = _families()


def is_full(model):
    return model.visible is PLANE


@functools.cache
def draw_params(name, dtype="float32"):
    """Parameters about y of that dtype, all of scale one."""
    model = FAMILIES[name]
    rng = np.random.default_rng(list(FAMILIES).index(name))
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def leaf(path, shape):
        last = path[-1].key if hasattr(path[-1], "key") else ""
        value = 0.4 * rng.normal(size=shape.shape)
        if last == "w" and "bank" in name:
            value *= 0.6  # so that banks grow more slowly than the bias falls
        if last == "log_exponent":
            value = np.log(2.0) + 0.2 * value  # variances are finite
        return jnp.asarray(value, dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def coordinates(place, full, dtype="float32"):
    """{"origin", "scale"} of a pair of columns ((mean, scale), (mean, scale))."""
    origin, scale = (np.array(v) for v in zip(*place, strict=True))
    scale = scale[:, None] * CORRELATED if full else scale
    return {"origin": jnp.asarray(origin, dtype), "scale": jnp.asarray(scale, dtype)}


def placed(model, params, place, full=None, dtype="float32"):
    """The same parameters in coordinates at a place, full ones for full units unless told."""
    found = coordinates(place, is_full(model) if full is None else full, dtype)
    return params | {"coordinates": {"real": found} if model.visible is JOINT else found}
