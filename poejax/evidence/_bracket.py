"""Forward and reverse annealing of one path, together: what log Z is, and whether to believe it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks, _meshes
from poejax import _weights as weights
from poejax._numerics import at_least_float32
from poejax._weights import LogZ
from poejax.tempering import bennett
from poejax.types import Array

_MAX_SCORE = 3.0
_MIN_OVERLAP = 0.2
_MARGIN = 2.24
"""Standard errors that 1.25 % of a normal law lie above: with 2.5 % at either end nothing would be
left for errors of the errors."""
_ROUNDING = 64  # last digits by which log_z may differ from the weights it was made of


class Bracket(NamedTuple):
    """A two-sided estimate of log Z, in nats.

    forward: the lower side: by `ais` E[log_z] is below log Z.
    reverse: the upper side: by `reverse_ais` E[log_z] is above log Z if its samples were exact,
      and approximately so if they came from long chains.
    log_z: by both, Bennett's acceptance ratio, [].
    std_err: standard error of log_z; it knows of no modes that the samples missed, [].
    low, high: an interval that misses log Z at most 5 % of the time given exact samples: from the
      lower end of `forward` to the upper one of `reverse`, stretched to hold log_z ± 2.24 std_err.
      Where a few weights decide a side, its end is log_z ± 2.24 std_err if the overlap is above 0.2
      and Markov's bound if not. Where the sides disagree it holds all of both intervals, which may
      be open, [].
    overlap: mean acceptance of Bennett's moves between the two sets of weights, in (0, 1], [].
    score: how far the weights are from belonging to one path and one model, in standard errors, [].
    """

    forward: LogZ
    reverse: LogZ
    log_z: Array
    std_err: Array
    low: Array
    high: Array
    overlap: Array
    score: Array

    @property
    def ess(self) -> Array:
        """The smaller of the two effective sample sizes, relative to their chains, in (0, 1]."""
        sides = [side.ess / side.log_weights.shape[-1] for side in (self.forward, self.reverse)]
        return jnp.minimum(*sides)

    @property
    def disagrees(self) -> Array:
        """Whether the sides are in the wrong order, or not of one model, beyond their errors."""
        return is_reversed(self.forward, self.reverse) | (jnp.abs(self.score) > _MAX_SCORE)

    @property
    def is_sound(self) -> Array:
        """Whether the sides agree, and meet."""
        return ~self.disagrees & (self.overlap > _MIN_OVERLAP)

    @property
    def verdict(self) -> str:
        """What to think of it, and what to do, in a sentence; of values that are not traced."""
        if not _checks.is_concrete(tuple(self)):
            raise TypeError("verdict: expected a bracket with values, got a traced one")
        low, high = float(self.low), float(self.high)
        interval = f"log Z = {float(self.log_z):.2f} in [{low:.2f}, {high:.2f}]"
        if bool(is_reversed(self.forward, self.reverse)):
            above = float(self.forward.log_z - self.reverse.log_z)
            return (
                f"the sides disagree: forward is above reverse by {above:.2g} nats, which samples "
                "of the model do not allow: take better samples for the reverse, from longer "
                f"chains or other starts, which miss no mode; {interval}"
            )
        lost = [
            f"{name} ({weights.describe(side)})"
            for name, side in (("forward", self.forward), ("reverse", self.reverse))
            if bool(weights.is_open(side))
        ]
        if lost and float(self.overlap) <= _MIN_OVERLAP:
            return f"a few weights decide {' and '.join(lost)}: take more temperatures; {interval}"
        if float(self.overlap) <= _MIN_OVERLAP:
            return (
                f"the sides hardly meet (overlap {float(self.overlap):.2g}): take more "
                f"temperatures; {interval}"
            )
        if abs(float(self.score)) > _MAX_SCORE:
            return (
                f"the sides disagree by {abs(float(self.score)):.1f} standard errors about the "
                "shape of their weights: both must walk the same temperatures from the same base, "
                "and the reverse needs better samples, from longer chains or other starts; "
                f"{interval}"
            )
        if lost:
            return (
                f"the sides meet, though a few weights decide {' and '.join(lost)}: more "
                f"temperatures would be safer; {interval}"
            )
        return f"the sides agree; {interval}"


def bracket(forward: LogZ, reverse: LogZ) -> Bracket:
    """Join forward and reverse annealing of one path into one two-sided estimate of log Z.

    The weights of the two walks are related by p_forward(log w) w = Z p_reverse(log w), which is
    Crooks' theorem, so that Bennett's ratio of both gives log Z at less error than either mean:
    Σ_forward σ(log w - c) = Σ_reverse σ(c - log w),  log Z = c + log(N_forward / N_reverse)
    with minus the log weights of the reverse in the second sum.

    Args:
      forward: of `ais`.
      reverse: of `reverse_ais`, same model, base, betas and kernel; from exact samples of the
        model the interval holds log Z at least 95 % of the time, from long chains approximately.
        A mode that samples and forward chains both miss is hidden from the whole report.

    Returns:
      Bracket; its `verdict` says what to do.

    Raises:
      TypeError: if one of them is no LogZ.
      ValueError: if they are two of the same direction, or swapped.

    Source: Grosse, Ancha & Roy (2016), Measuring the reliability of MCMC inference with
    bidirectional Monte Carlo; Crooks (1999); Bennett (1976).
    """
    for name, side, direction in (("forward", forward, 1), ("reverse", reverse, -1)):
        if not isinstance(side, LogZ):
            raise TypeError(
                f"{name}: expected a LogZ of evidence.ais, got {_checks.describe(side)}"
            )
        _require_direction(name, side, direction)
    up, down = at_least_float32(forward.log_weights), -at_least_float32(reverse.log_weights)
    joined = bennett(up, down)
    margin = _MARGIN * joined.std_err
    # Bennett's terms are bounded, so that heavy weights of one side do not spoil them where both
    # sides meet: there Markov's bound, 3.69 nats away, would be all that a noisy k̂ adds.
    meets = joined.overlap > _MIN_OVERLAP
    lowest, highest = (
        jnp.where(weights.is_open(side) & meets, joined.log_ratio, end)
        for side, end in ((forward, forward.ci_low), (reverse, reverse.ci_high))
    )
    low = jnp.minimum(lowest, joined.log_ratio - margin)
    high = jnp.maximum(highest, joined.log_ratio + margin)
    joint = Bracket(
        forward,
        reverse,
        joined.log_ratio,
        joined.std_err,
        low,
        high,
        joined.overlap,
        _score(up, down, joined.log_ratio),
    )
    bottom = jnp.minimum(jnp.minimum(forward.ci_low, reverse.ci_low), low)
    top = jnp.maximum(jnp.maximum(forward.ci_high, reverse.ci_high), high)
    return joint._replace(
        low=jnp.where(joint.disagrees, bottom, low),
        high=jnp.where(joint.disagrees, top, high),
    )


def is_reversed(forward: LogZ, reverse: LogZ) -> Array:
    """Whether forward is above reverse beyond their errors, [].

    Of degenerate weights the ends are those of Markov's inequality, which hold with 97.5 % each.
    """
    error = jnp.hypot(forward.std_err, reverse.std_err)
    apart = jnp.where(
        weights.is_open(forward) | weights.is_open(reverse),
        forward.ci_low > reverse.ci_high,
        forward.log_z - reverse.log_z > _MAX_SCORE * error,
    )
    # Of equal weights the errors are zero, and what differs is the last digit.
    return apart & (forward.log_z - reverse.log_z > _tolerance(forward) + _tolerance(reverse))


def _require_direction(name: str, side: LogZ, direction: int) -> None:
    """Raise where log_z is known to be the log mean weight of the other direction."""
    if not _checks.is_concrete(tuple(side)):
        return
    log_w = _meshes.to_host(side.log_weights, np.float64)
    if log_w.ndim != 1 or len(log_w) < 2:
        raise ValueError(
            f"{name}: expected log weights [n] of at least two chains, got shape {log_w.shape}; "
            "use jax.vmap for a batch"
        )
    log_mean = np.log(np.mean(np.exp(log_w - log_w.max()))) + log_w.max()
    if abs(float(side.log_z) - direction * log_mean) > float(_tolerance(side)):
        expected = "evidence.ais" if direction > 0 else "evidence.reverse_ais"
        raise ValueError(
            f"{name}: expected a LogZ of {expected}, whose log_z is "
            f"{'' if direction > 0 else 'minus '}the log of its mean weight, "
            f"{direction * log_mean:.6g}, got log_z = {float(side.log_z):.6g}"
        )


def _tolerance(side: LogZ) -> Array:
    eps = jnp.finfo(side.log_weights.dtype).eps
    return _ROUNDING * eps * (1 + jnp.max(jnp.abs(side.log_weights)))


@jax.jit
def _score(up: Array, down: Array, log_z: Array) -> Array:
    """Return the score of slope 1 in the logistic regression of direction on log weight, [].

    logit p(reverse | u) = slope (u - log Z) + log(N_reverse / N_forward) with slope 1, by Crooks'
    theorem; u less samples of another model, or a walk along other temperatures, bend it.

    Source: Shirts, Bair, Hooker & Pande (2003), for Bennett's ratio as that regression.
    """
    u = jnp.concatenate([up, down]) - log_z
    is_down = jnp.concatenate([jnp.zeros_like(up), jnp.ones_like(down)])
    logit = u + jnp.log(down.size / up.size)
    p = jax.nn.sigmoid(logit)
    weight = jax.nn.sigmoid(logit) * jax.nn.sigmoid(-logit)
    total = jnp.sum(weight)
    centre = jnp.sum(weight * u) / jnp.where(total > 0, total, 1.0)
    slope = jnp.sum((is_down - p) * (u - centre))
    spread = jnp.sum(weight * (u - centre) ** 2)
    # Without overlap there is nothing to compare.
    return jnp.where(spread > 0, slope / jnp.sqrt(jnp.where(spread > 0, spread, 1.0)), 0.0)
