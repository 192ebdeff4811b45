"""NumPy float64 reference for bank models, written from the energy; imports nothing from poejax.

    -E(x, z) = beta [aᵀt(x) - ½ Σ_i (precision_i x_i² + a_i² / precision_i) + bᵀs(z) + t(x)ᵀ W s(z)]
               - ½ Σ_real z_j²

with i over real visible units, whose bias is a Gaussian measured from its mode.
A side (visible or hidden) is a tuple of blocks; an event is its flat statistic vector, one-hot
units written out. Discrete sides are enumerated. Real units are enumerated too, on a uniform grid
whose log spacing is the log weight of a state: for Gaussians the trapezoidal rule converges like
exp(-2π² sd²/h²), so that a spacing of half a standard deviation is exact in float64. Rectified
units end at zero, where that rule would fail: they have Gauss-Legendre nodes and weights instead.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from statistics import NormalDist

import numpy as np
from scipy import special, stats

MAX_COUNT = 200  # the mass beyond is below 1e-12 at rates up to 100
REAL_KINDS = ("gaussian_diag", "standard_gaussian", "relu")


@dataclasses.dataclass(frozen=True)
class Block:
    """`size` units of a kind; `num_classes` of binomial ones is one more than their trials."""

    kind: str
    size: int
    num_classes: int = 2

    @property
    def width(self):
        return self.size * self.num_classes if self.kind == "categorical" else self.size


def is_real(side):
    return any(block.kind in REAL_KINDS for block in side)


def width(side):
    return sum(block.width for block in side)


def real_sites(side):
    """Boolean mask over the statistic vector: which entries are real-valued units."""
    return np.concatenate([np.full(block.width, block.kind in REAL_KINDS) for block in side])


def unit_states(block, limit=32.0, spacing=0.4):
    """Return one unit's states [K, width of a unit] and log weights [K]."""
    if block.kind == "bernoulli":
        return np.array([[0.0], [1.0]]), np.zeros(2)
    if block.kind == "spin":
        return np.array([[-1.0], [1.0]]), np.zeros(2)
    if block.kind == "categorical":
        return np.eye(block.num_classes), np.zeros(block.num_classes)
    if block.kind == "binomial":
        k, n = np.arange(block.num_classes), block.num_classes - 1
        return k[:, None] * 1.0, np.log([math.comb(n, i) for i in k])
    if block.kind == "poisson":
        k = np.arange(MAX_COUNT + 1)
        return k[:, None] * 1.0, -special.gammaln(k + 1)
    if block.kind == "relu":
        node, weight = np.polynomial.legendre.leggauss(96)
        return limit / 2 * (node[:, None] + 1), np.log(limit / 2 * weight)
    grid = np.arange(-limit, limit + spacing / 2, spacing)
    return grid[:, None], np.full(len(grid), math.log(spacing))


@functools.cache
def events(side):
    """Return all events of a side as statistics [S, width] and their log weights [S]."""
    units = [unit_states(block) for block in side for _ in range(block.size)]
    statistics, log_weights = [], []
    for choice in itertools.product(*(range(len(states)) for states, _ in units)):
        statistics.append(np.concatenate([u[0][k] for u, k in zip(units, choice, strict=True)]))
        log_weights.append(sum(u[1][k] for u, k in zip(units, choice, strict=True)))
    return np.array(statistics), np.array(log_weights)


def log_sum_exp(values, axis):
    top = np.max(values, axis=axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.sum(np.exp(values - top), axis=axis))


@dataclasses.dataclass(frozen=True)
class Machine:
    """A bank over visible units with a bias; `precision` is zero except at real visible units."""

    visible: tuple
    hidden: tuple
    a: np.ndarray
    precision: np.ndarray
    b: np.ndarray
    w: np.ndarray
    beta: float = 1.0

    def minus_energy(self, t, s):
        """-E of every pair of a visible event t [n, M] and a hidden event s [m, N], [n, m]."""
        is_real = self.precision > 0
        peak = 0.5 * np.sum(self.a[is_real] ** 2 / self.precision[is_real])
        visible = t @ self.a - 0.5 * (t**2) @ self.precision - peak
        hidden = s @ self.b
        coupling = t @ self.w @ s.T
        base = -0.5 * (s**2) @ real_sites(self.hidden)
        return self.beta * (visible[:, None] + hidden[None, :] + coupling) + base[None, :]

    def joint_table(self):
        """log of the unnormalised joint of all events, quadrature weights included, [Sx, Sz]."""
        t, t_weight = events(self.visible)
        s, s_weight = events(self.hidden)
        return self.minus_energy(t, s) + t_weight[:, None] + s_weight[None, :]

    def log_density(self, t):
        """log Σ_z exp(-E(x, z)) of events t [n, M], [n]."""
        s, s_weight = events(self.hidden)
        return log_sum_exp(self.minus_energy(t, s) + s_weight, axis=1)

    def log_z(self):
        return log_sum_exp(self.joint_table().reshape(-1), axis=0)

    def log_prob(self, t):
        return self.log_density(t) - self.log_z()

    def probabilities(self):
        """p(x) of all visible events, [Sx]."""
        table = self.joint_table()
        return np.exp(log_sum_exp(table, axis=1) - log_sum_exp(table.reshape(-1), axis=0))

    def posterior(self, t):
        """p(z | x) of all hidden events given t [n, M], [n, Sz]."""
        s, s_weight = events(self.hidden)
        logits = self.minus_energy(t, s) + s_weight
        return np.exp(logits - log_sum_exp(logits, axis=1)[:, None])

    def likelihood(self, s):
        """p(x | z) of all visible events given s [m, N], [m, Sx]."""
        t, t_weight = events(self.visible)
        logits = self.minus_energy(t, s).T + t_weight
        return np.exp(logits - log_sum_exp(logits, axis=1)[:, None])

    def hidden_mean(self, t):
        """E[s(z) | x], [n, N]."""
        return self.posterior(t) @ events(self.hidden)[0]

    def visible_mean(self, s):
        """E[t(x) | z], [m, M]."""
        return self.likelihood(s) @ events(self.visible)[0]

    def gradient(self, t):
        """Gradient of the mean log-likelihood of events t [n, M]: data minus model expectation.

        Keys a, log_precision, b, w.
        """
        s, _ = events(self.hidden)
        x, _ = events(self.visible)
        table = self.joint_table()
        joint = np.exp(table - log_sum_exp(table.reshape(-1), axis=0))
        data = self._expectations(t, s, self.posterior(t) / len(t))
        model = self._expectations(x, s, joint)
        return {name: data[name] - model[name] for name in data}

    def _expectations(self, t, s, weights):
        """E[d(-E)/d parameter] under the joint weights [n, m] of the pairs (t, s)."""
        visible, hidden = weights.sum(axis=1), weights.sum(axis=0)
        return {
            "a": self.beta * visible @ t,
            "log_precision": -0.5 * self.beta * self.precision * (visible @ t**2),
            "b": self.beta * hidden @ s,
            "w": self.beta * np.einsum("nm,ni,mj->ij", weights, t, s),
        }

    def gibbs_matrix(self, clamp=None):
        """T[x, x'] of one sweep, Σ_z p(z | x) p(x' | z); `clamp` marks statistics held at x."""
        t, _ = events(self.visible)
        s, _ = events(self.hidden)
        up, down = self.posterior(t), self.likelihood(s)
        if clamp is None:
            return up @ down
        # Given z the units are independent: condition p(x' | z) on agreement with x.
        matrix = np.zeros((len(t), len(t)))
        for i in range(len(t)):
            agree = np.all(t[:, clamp] == t[i, clamp], axis=1)
            kept = down * agree
            matrix[i] = up[i] @ (kept / kept.sum(axis=1, keepdims=True))
        return matrix


def random_machine(rng, visible, hidden, scale=1.0, beta=1.0):
    """Draw a machine with normal parameters; precisions near one at the real visible units."""
    size, num_hidden = width(visible), width(hidden)
    # Real hidden units add WWᵀ to the log density: couplings that leave its grid would not be seen.
    w_scale = 0.5 * scale if is_real(visible) or is_real(hidden) else scale
    return Machine(
        visible,
        hidden,
        a=scale * rng.normal(size=size),
        precision=real_sites(visible) * np.exp(0.3 * rng.normal(size=size)),
        b=scale * rng.normal(size=num_hidden),
        w=w_scale * rng.normal(size=(size, num_hidden)),
        beta=beta,
    )


def random_events(rng, side, count):
    """Draw events, uniform (discrete) or standard normal (real units), [count, width]."""
    columns = []
    for block in side:
        for _ in range(block.size):
            if block.kind in REAL_KINDS:
                drawn = rng.normal(size=(count, 1))
                columns.append(np.abs(drawn) if block.kind == "relu" else drawn)
            else:
                states, _ = unit_states(block)
                columns.append(states[rng.integers(len(states), size=count)])
    return np.concatenate(columns, axis=1)


def z_threshold(num_tests, level=1e-4):
    """|z| that `num_tests` standard normal scores exceed with probability `level` (Bonferroni)."""
    return NormalDist().inv_cdf(1 - level / (2 * num_tests))


def count_z_scores(counts, probabilities):
    """Binomial z-scores of state counts; states expected fewer than ten times are pooled."""
    counts, probabilities = np.asarray(counts, float), np.asarray(probabilities, float)
    total = counts.sum()
    rare = probabilities * total < 10
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        probabilities = np.append(probabilities[~rare], probabilities[rare].sum())
    keep = probabilities * total >= 10  # a pool that is still rare says nothing
    p = probabilities[keep]
    return (counts[keep] - total * p) / np.sqrt(total * p * (1 - p))


def mean_z_scores(samples, mean):
    """z-scores of sample means against exact means, from the samples' own standard errors."""
    samples = np.asarray(samples, float)
    std_err = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    return (samples.mean(axis=0) - mean) / std_err


def largest_t(mean, std_err, expected, num_chains):
    """The largest |t| of estimates from chains, and what it stays below with probability 0.999."""
    t = np.abs(np.asarray(mean) - expected) / np.maximum(np.asarray(std_err), 1e-7)
    return t.max(), stats.t.isf(0.5e-3 / t.size, num_chains - 1)
