"""Densities as scores: AUROC, likelihoods from both sides, and mixtures to compare them with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import poejax as pj
from experiments.lab import runs
from poejax import mixtures
from poejax.mixtures import BernoulliMixtureParams
from poejax.types import Array, Params

Floats = npt.NDArray[np.float64]


class AUROC(NamedTuple):
    """Probability that an inlier scores above an outlier, ties counting ½, by example.

    inliers: for each inlier, the share of outliers below it, [M].
    outliers: for each outlier, the share of inliers above it, [N].
    paired: whether outlier i was made from inlier i, so that they are one draw.

    The mean over seeds of a score's AUROC is that of the averaged shares (`mean`); the difference
    of two scores on the same examples, that of the differences (`minus`). Standard errors hold
    for the models as they are: what varies is the test examples.
    """

    inliers: Floats
    outliers: Floats
    paired: bool

    @property
    def value(self) -> float:
        """Mann-Whitney estimate of the area."""
        return float(self.inliers.mean())

    @property
    def std_err(self) -> float:
        """Standard error, √(var(inliers)/M + var(outliers)/N), or √(var(inliers + outliers)/M)."""
        if self.paired:
            return float(np.sqrt((self.inliers + self.outliers).var(ddof=1) / len(self.inliers)))
        parts = [v.var(ddof=1) / len(v) for v in (self.inliers, self.outliers)]
        return float(np.sqrt(sum(parts)))

    def minus(self, other: AUROC) -> AUROC:
        """Return the difference to another score's area on the same examples."""
        return AUROC(self.inliers - other.inliers, self.outliers - other.outliers, self.paired)

    @staticmethod
    def mean(areas: Sequence[AUROC]) -> AUROC:
        """Return the mean over scores of the same examples."""
        inliers, outliers = (np.mean(v, axis=0) for v in list(zip(*areas, strict=True))[:2])
        return AUROC(inliers, outliers, areas[0].paired)


def auroc(inliers: npt.ArrayLike, outliers: npt.ArrayLike, paired: bool = False) -> AUROC:
    """Area under the ROC curve of scores that should be high for inliers [M], low for outliers [N].

    Raises:
      ValueError: if there are fewer than two of either, a score is NaN, or pairs do not match.

    Source: DeLong, DeLong & Clarke-Pearson (1988); for paired examples Obuchowski (1997).
    """
    x, y = (np.asarray(v, np.float64) for v in (inliers, outliers))
    if x.ndim != 1 or y.ndim != 1 or min(len(x), len(y)) < 2 or (paired and len(x) != len(y)):
        raise ValueError(
            f"inliers, outliers: expected [M], [N] of 2 or more, got {x.shape, y.shape}"
        )
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("inliers, outliers: expected numbers, got NaN")

    def share_below(values: Floats, others: Floats) -> Floats:
        ordered = np.sort(others)
        sides = [np.searchsorted(ordered, values, side) for side in ("left", "right")]
        return (sides[0] + sides[1]) / (2 * len(others))

    return AUROC(share_below(x, y), 1 - share_below(y, x), paired)


def exact_log_likelihood(model: pj.Product, params: Params, x: Any) -> float:
    """Return the mean log-likelihood of rows [N, ...] with the exact log Z, nats per row."""
    log_z = pj.exact.log_z(model, params)
    return float(pj.evidence.log_likelihood(model, params, x, log_z).mean)


_STAGES = {
    "sampling": ("sampling", "sweep"),
    "forward": ("AIS", "beta"),
    "reverse": ("reverse AIS", "beta"),
}


def two_sided(
    rng_key: Array, model: pj.Product, params: Params, x: Any, **options: Any
) -> pj.evidence.TwoSided:
    """Score rows from both sides, beside a progress bar a stage; see `test_log_likelihood`."""
    bars: dict[str, Any] = {}

    def show(now: pj.evidence.Progress) -> None:
        if now.stage not in bars:
            for bar in bars.values():
                bar.close()
            bars[now.stage] = runs.progress(now.num_steps, *_STAGES[now.stage])
        bars[now.stage].update(now.step - bars[now.stage].n)
        if not np.isnan(now.ess):
            bars[now.stage].set_postfix({"ess": f"{now.ess:.1f}"}, refresh=False)

    try:
        return pj.evidence.test_log_likelihood(rng_key, model, params, x, callback=show, **options)
    finally:
        for bar in bars.values():
            bar.close()


class Selected(NamedTuple):
    """A mixture of Bernoullis, and how its size and smoothing were chosen.

    held_out: log-likelihood of the held-out rows, nats per example, by (components, smoothing).
    """

    params: BernoulliMixtureParams
    num_components: int
    smoothing: float
    held_out: dict[tuple[int, float], float]


def fit_mixture(
    rng_key: Array,
    choosing: Any,
    x: Any,
    sizes: Sequence[int],
    smoothings: Sequence[float] = (0.1, 1.0),
) -> Selected:
    """Fit a mixture to bits [N, D] by EM with the options that suit rows it has not seen.

    Of all pairs the one is taken whose fit to a random 80 % of the rows `choosing` [M, D] gives the
    others the highest log-likelihood; the mixture returned is fitted to `x` with it.
    """
    order_key, fit_key = jax.random.split(rng_key)
    order = np.asarray(jax.random.permutation(order_key, len(choosing)))
    cut = max(1, round(0.2 * len(choosing)))
    held_out, rest = choosing[order[:cut]], choosing[order[cut:]]

    def fit(rows: Any, size: int, smoothing: float) -> BernoulliMixtureParams:
        options: dict[str, Any] = {"smoothing": smoothing, "max_steps": 60, "tol": 1e-3}
        return mixtures.fit_em_bernoulli(fit_key, rows, size, **options)[0]

    scores = {
        (size, smoothing): float(mixture_log_probs(fit(rest, size, smoothing), held_out).mean())
        for size in sizes
        for smoothing in smoothings
    }
    size, smoothing = max(scores, key=lambda option: scores[option])
    return Selected(fit(x, size, smoothing), size, smoothing, scores)


@jax.jit
def mixture_log_probs(params: Any, x: Array) -> Array:
    """Return log p(x) of a batch [N, D] under a mixture of any kind, in nats, [N]."""
    return jax.vmap(functools.partial(mixtures.log_prob, params))(x)


def bernoulli_log_prob(logits: Array, x: Array) -> Array:
    """Return log p(x) of bits under independent logits, summed over the last axis."""
    return jnp.sum(x * logits - jax.nn.softplus(logits), axis=-1)


def log_mean_exp(values: Array) -> Array:
    """Return log mean exp of values [S]."""
    return jax.nn.logsumexp(values) - jnp.log(values.shape[0])
