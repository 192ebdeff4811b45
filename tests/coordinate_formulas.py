"""NumPy float64 formulas for what every family over real units says, in any coordinates.

Events are rows of statistics t [N, M]: the columns of real units, after those of pixels if there
are any. Experts' parameters are about y, x = origin + scale y; everything else here is about x.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
from coordinate_cases import JOINT, coordinates
from scipy import special

from poejax import experts, units

LOG_2PI = np.log(2 * np.pi)


def f64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def affine(params):
    """Origin [D] and scale [D, D] of the real columns of params that may hold coordinates."""
    own = f64(params.get("coordinates", {}))
    own = own.get("real", own)
    if not own:
        return np.zeros(2), np.eye(2)
    return own["origin"], own["scale"] if own["scale"].ndim == 2 else np.diag(own["scale"])


def to_y(params, t):
    origin, scale = affine(params)
    real = np.linalg.solve(scale, (t[:, -2:] - origin).T).T
    return np.concatenate([t[:, :-2], real], axis=1)


def to_x(params, y):
    origin, scale = affine(params)
    return np.concatenate([y[:, :-2], origin + y[:, -2:] @ scale.T], axis=1)


def as_event(model, t, dtype=np.float32):
    """Rows of statistics as a batch of events; real columns in `dtype`."""
    if model.visible is JOINT:
        return {"pixels": t[:, :2].astype(np.float32), "real": t[:, 2:].astype(dtype)}
    return t.astype(dtype)


def as_rows(model, x):
    if model.visible is JOINT:
        x = np.concatenate([np.asarray(x["pixels"], float), np.asarray(x["real"], float)], axis=1)
    return np.asarray(x, np.float64)


def normal(rows, mean, t):
    """log N(t; mean, (rowsᵀrows)⁻¹)."""
    whitened = (t - mean) @ rows.T
    return np.linalg.slogdet(rows)[1] - 0.5 * (len(rows) * LOG_2PI + (whitened**2).sum(1))


def rows_of(p):
    """Square-root rows of a precision from free parameters of any form."""
    if "log_precision" in p:
        return np.diag(np.exp(0.5 * p["log_precision"]))
    rows = np.diag(np.exp(p["log_diagonal"]))
    rows[np.triu_indices(len(rows), 1)] = p["off_diagonal"]
    return rows


def bias(p, t):
    if "real" in p:
        return t[:, :2] @ p["pixels"] + bias(p["real"], t[:, 2:])
    rows = rows_of(p)
    mean = np.linalg.solve(rows, np.linalg.solve(rows.T, p["linear"]))
    return -0.5 * (((t - mean) @ rows.T) ** 2).sum(1)


def bank(hidden, field):
    if isinstance(hidden, units.Bernoulli):
        return np.logaddexp(0, field)
    whole = 0.5 * (field**2 + LOG_2PI)
    return whole if isinstance(hidden, units.StandardGaussian) else whole + special.log_ndtr(field)


def components(p, t):
    """log π_k N(t_m; ...) of mixtures with leaves [M, K, D / M], [N, M, K]."""
    t = t.reshape(len(t), len(p["mean"]), 1, -1)
    each = p["log_precision"] - LOG_2PI - np.exp(p["log_precision"]) * (t - p["mean"]) ** 2
    return special.log_softmax(p["logits"], axis=-1) + 0.5 * each.sum(-1)


def silent_and_speaks(p, t):
    each = p["log_precision"] - LOG_2PI
    each = each - np.exp(p["log_precision"]) * (t[:, None] - p["mean"]) ** 2
    return special.log_expit(-p["logit"]) + 0 * t[:, :1], special.log_expit(
        p["logit"]
    ) + 0.5 * each.sum(-1)


def log_factor(expert, p, t):
    """log f(t) of one expert, [N]."""
    if isinstance(expert, experts.Bias):
        return bias(p["field"], t)
    if isinstance(expert, experts.HiddenBank):
        return bank(expert.hidden, p["b"] + t @ p["w"]).sum(1)
    if isinstance(expert, experts.Gaussian):
        seen = t if expert.coordinate is None else t[:, [expert.coordinate]]
        return normal(rows_of(p), p["mean"], seen)
    if isinstance(expert, experts.GaussianMixture):
        return special.logsumexp(components(p, t), axis=-1).sum(-1)
    if isinstance(expert, experts.Unigauss):
        return np.logaddexp(*silent_and_speaks(p, t)).sum(-1)
    if isinstance(expert, experts.StudentT):
        y = t @ (p["w"] / np.linalg.norm(p["w"], axis=0))
        return -np.log(np.exp(p["log_scale"]) + y**2) @ np.exp(p["log_exponent"])
    if isinstance(expert, experts.Mixture):
        return special.logsumexp(choices(expert, p, t), axis=1)
    if isinstance(expert, experts.Power):
        return np.exp(p["log_weight"]) * log_factor(expert.expert, p["expert"], t)
    assert isinstance(expert, experts.Neural)
    return -np.cos(p["network"] * t).sum(1)


def choices(expert, p, t):
    votes = [log_factor(e, p["members"][name], t) for name, e in expert.items]
    return special.log_softmax(p["logits"]) + np.stack(votes, axis=1)


def log_density(model, params, t):
    """log density of x, [N]."""
    y, (_, scale) = to_y(params, t), affine(params)
    own = f64(params)
    total = sum(log_factor(expert, own[name], y) for name, expert in model.items)
    return total - np.linalg.slogdet(scale)[1]


def latent_mean(expert, p, y):
    """E[z | x] of an expert with finite or Gaussian latents, [N, ...]; None of others."""
    if isinstance(expert, experts.HiddenBank):
        field = p["b"] + y @ p["w"]
        if isinstance(expert.hidden, units.Bernoulli):
            return special.expit(field)
        ratio = np.exp(-0.5 * (field**2 + LOG_2PI) - special.log_ndtr(field))
        return field if isinstance(expert.hidden, units.StandardGaussian) else field + ratio
    if isinstance(expert, experts.GaussianMixture):
        return special.softmax(components(p, y), axis=-1)
    if isinstance(expert, experts.Unigauss):
        silent, speaks = silent_and_speaks(p, y)
        return special.expit(speaks - silent)
    if isinstance(expert, experts.Mixture):
        return special.softmax(choices(expert, p, y), axis=1)
    if isinstance(expert, experts.StudentT):  # of the log of the precisions
        rate = np.exp(p["log_scale"]) + (y @ (p["w"] / np.linalg.norm(p["w"], axis=0))) ** 2
        return special.digamma(np.exp(p["log_exponent"])) - np.log(rate)
    return None


def field(expert, p, z, size=2):
    """The linear part [N, M] and precision [N, M, M] that latents z [N, ...] add about y."""
    none = np.zeros(size), np.zeros((size, size))
    if isinstance(expert, experts.Bias):
        p = p["field"]
        if "real" not in p:
            return p["linear"], rows_of(p).T @ rows_of(p)
        linear, precision = np.concatenate([p["pixels"], p["real"]["linear"]]), none[1]
        precision[2:, 2:] = rows_of(p["real"]) ** 2
        return linear, precision
    if isinstance(expert, experts.HiddenBank):
        return z @ p["w"].T, none[1]
    if isinstance(expert, experts.Gaussian):
        rows = rows_of(p)
        if expert.coordinate is not None:
            rows = rows * np.eye(size)[[expert.coordinate]]
        return rows.T @ rows @ (p["mean"] * np.ones(size)), rows.T @ rows
    if isinstance(expert, (experts.GaussianMixture, experts.Unigauss)):
        precision = np.exp(p["log_precision"])
        if isinstance(expert, experts.Unigauss):
            z, precision, p = z[:, None], precision[None], {"mean": p["mean"][None]}
        linear = np.einsum("nmk,mkd->nmd", z, precision * p["mean"]).reshape(len(z), -1)
        each = np.einsum("nmk,mkd->nmd", z, precision).reshape(len(z), -1)
        return linear, each[:, :, None] * np.eye(size)
    if isinstance(expert, experts.StudentT):
        w = p["w"] / np.linalg.norm(p["w"], axis=0)
        return none[0], np.einsum("nj,dj,ej->nde", 2 * np.exp(z), w, w)
    if isinstance(expert, experts.Mixture):
        members = [field(e, p["members"][name], None) for name, e in expert.items]
        return tuple(
            np.einsum("nm,m...->n...", z, np.stack(parts)) for parts in zip(*members, strict=True)
        )
    assert isinstance(expert, experts.Power)
    weight = np.exp(p["log_weight"])
    return tuple(weight * part for part in field(expert.expert, p["expert"], None))


def visible_mean(model, params, z, t=None):
    """E[x | z], and given all of t but its next to last column if there is any, [N, M]."""
    own, (origin, scale) = f64(params), affine(params)
    size = model.visible.num_linear
    fields = [field(e, own[name], z[name], size) for name, e in model.items]
    linear, precision = (sum(parts) for parts in zip(*fields, strict=True))
    covariance = scale @ np.linalg.inv(precision[..., -2:, -2:]) @ scale.T
    mean = np.linalg.solve(precision[..., -2:, -2:], linear[..., -2:, None])[..., 0]
    mean = origin + mean @ scale.T
    if t is not None:
        slope = covariance[..., 0, 1] / covariance[..., 1, 1]
        free = mean[..., 0] + slope * (t[:, -1] - mean[..., 1])
        mean = np.stack([free, t[:, -1]], axis=-1)
    pixels = special.expit(linear[..., :-2]) if t is None else t[:, :-2]
    return np.concatenate([np.broadcast_to(pixels, (*mean.shape[:-1], size - 2)), mean], axis=-1)


# A grid, even in arcsinh: the trapezoidal rule on it is exact to float64 for all of these.


@dataclasses.dataclass(frozen=True)
class Grid:
    """Events about x [S, M], and log density plus log weight of each, [S]."""

    t: np.ndarray
    log_mass: np.ndarray

    def log_z(self):
        return special.logsumexp(self.log_mass)

    def probabilities(self):
        return np.exp(self.log_mass - self.log_z())

    def draw(self, rng, count):
        return self.t[rng.choice(len(self.t), count, p=self.probabilities())]

    def mean(self, values):
        return self.probabilities() @ values


def _axis(num=361, limit=9.0):
    v = np.linspace(-limit, limit, num)
    return np.sinh(v), np.log(np.cosh(v) * (v[1] - v[0]))


def line(model, params, t):
    """Grid over the next to last column, the others held at those of the row t."""
    origin, scale = affine(params)
    axis, log_step = _axis(2001)
    rows = np.tile(t, (len(axis), 1))
    rows[:, -2] = origin[0] + scale[0, 0] * axis
    return Grid(rows, log_density(model, params, rows) + log_step + np.log(scale[0, 0]))


def grid(model, params, place=None):
    """Grid about the place where params are, by their coordinates or as told."""
    frame = params if place is None else {"coordinates": coordinates(place, False)}
    axis, log_step = _axis()
    y = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    weight = np.add.outer(log_step, log_step).ravel() + np.linalg.slogdet(affine(frame)[1])[1]
    if model.visible is JOINT:
        states = np.array([*itertools.product([0.0, 1.0], repeat=2)])
        y = np.concatenate([np.repeat(states, len(y), axis=0), np.tile(y, (4, 1))], axis=1)
        weight = np.tile(weight, 4)
    t = to_x(frame, y)
    return Grid(t, log_density(model, params, t) + weight)
