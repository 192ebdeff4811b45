"""What a history of chains says about their mixing; blackjax has most of the estimators."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _meshes
from poejax.kernels._hamiltonian import import_blackjax
from poejax.types import Array

_PIECE = 2**21  # numbers that the estimators, which hold a dozen copies, see at once


class Health(NamedTuple):
    """How well chains have mixed, for every entry [...] of values [num_steps, num_chains, ...].

    r_hat: rank-normalised split R-hat, the larger one of values and folded values; 1 at best.
    nested_r_hat: R-hat between superchains, for many short chains; 1 at best.
    ess_bulk: effective number of draws, of all chains together, about the centre.
    ess_tail: the same about the quantiles at 5 and 95 %, the smaller one.
    autocorrelation_time: steps that are worth one independent draw, integrated over all lags.

    An entry that is the same in all draws has R-hats of 1, as no chain differs from another,
    effective sizes of 0 and an autocorrelation time of infinity, as it says nothing of mixing.
    Where every chain stands still, but not all at the same value, R-hat is infinite.
    """

    r_hat: Array
    nested_r_hat: Array
    ess_bulk: Array
    ess_tail: Array
    autocorrelation_time: Array


def health(values: Any, num_superchains: int | None = None) -> Health:
    """Diagnose chains by a history of what they went through.

    R̂² = ((n-1)/n W + B) / W over the halves of chains, n steps each: W is the mean of their
    variances, B the variance of their means, of ranks as normal scores.
    nR̂² = 1 + B/W over superchains of M chains each: W is the mean of what the variance within a
    superchain is, between its chains and within them, B the variance of the superchains' means.
    ESS = T C / τ,  τ = 1 + 2 Σ_t ρ_t: autocorrelations ρ_t about the mean of all chains, up to
    where pairs of them cease to be positive.

    Args:
      values: of any real dtype, [T, C, ...], as `chains.History` gives them: T >= 4 steps of C
        chains. Looked at on the host in their own precision, so that they may lie far from zero.
        Of an odd number of steps the last is left out.
      num_superchains: K >= 2, a divisor of C: chains 0 to C/K - 1 are the first superchain, and so
        on. Those of one are to start at the same point, of different ones at overdispersed points,
        or nested R-hat sees nothing. When None the least divisor >= √C. One chain is taken as two
        superchains, its halves.

    Returns:
      Health, [...] each; `has_mixed` sums it up.

    Raises:
      ValueError: if values are NaN or infinite, there are too few steps or no chain, or
        `num_superchains` does not divide the chains.
      TypeError: if they are traced or no real numbers; within compiled code use OnlineHealth.
      ImportError: if blackjax is not installed: pip install 'poejax[sampling]'.

    Source: Vehtari et al. (2021), Rank-normalization, folding, and localization: an improved R-hat,
    for all but nested R-hat: Margossian et al. (2024), Nested R-hat, section 2.
    """
    x = _on_host(values)
    num_steps, num_chains, *shape = x.shape
    num_superchains = superchains(num_chains, num_superchains)
    library = import_blackjax("diagnostics.health needs").diagnostics
    x = x.reshape(num_steps, num_chains, -1)
    size = max(1, min(x.shape[2], _PIECE // (num_steps * num_chains)))
    pieces = [
        _of_piece(library, x[..., i : i + size], size, num_superchains)
        for i in range(0, x.shape[2], size)
    ]
    fields = (np.concatenate(f).reshape(shape) for f in zip(*pieces, strict=True))
    return Health(*(jnp.asarray(f, jnp.result_type(float)) for f in fields))


def has_mixed(found: Any, max_r_hat: float = 1.1, min_ess: float = 50.0) -> bool:
    """Whether chains have forgotten where they started, as far as they themselves can tell.

    R̂ <= max_r_hat, nR̂ <= max_r_hat and ESS >= min_ess in every entry that is not constant; and
    there is such an entry.

    A chain of T steps with autocorrelation time τ has R̂² ≈ 1 + 2τ/T, and a mode that chains do not
    leave has a τ of the order of T. So T is to be 10 to 20 times τ, and 40 times where the largest
    of hundreds of noisy R̂ of few chains counts; shorter runs are not found to have mixed. To quote
    a mean or quantile ask for more: 1.01 and 400. No figure of the chains tells of a mode that none
    of them has been to: start them far apart.

    Args:
      found: of `health`, or the result of `OnlineHealth`.
      max_r_hat: largest R̂ and nR̂.
      min_ess: least effective number of draws, of all chains together; of `Health` in the bulk.

    Returns:
      The verdict.

    Source: the thresholds of Gelman & Rubin (1992), and of Vehtari et al. (2021) as stricter ones.
    """
    if not hasattr(found, "r_hat") or not hasattr(found, "nested_r_hat"):
        raise TypeError(
            f"found: expected what health or OnlineHealth returns, got {_checks.describe(found)}"
        )
    leaves = [jax.tree.leaves(f) for f in (found.r_hat, found.nested_r_hat, found[2])]
    r_hat, nested, ess = (
        np.concatenate([np.ravel(_meshes.to_host(leaf)) for leaf in own]) for own in leaves
    )
    moves = (ess > 0) | (r_hat != 1)
    good = (r_hat <= max_r_hat) & (nested <= max_r_hat) & (ess >= min_ess)
    return bool(moves.any() and good[moves].all())


def superchains(num_chains: int, num_superchains: int | None) -> int:
    """Return the number of superchains, the least divisor >= √C of the chains when None."""
    if num_superchains is None:
        least = math.isqrt(num_chains - 1) + 1
        return next(k for k in range(least, num_chains + 1) if num_chains % k == 0)
    num_superchains = _checks.positive_int("num_superchains", num_superchains)
    if num_superchains < 2 or num_chains % num_superchains:
        raise ValueError(
            f"num_superchains: expected a divisor >= 2 of the {num_chains} chains, got "
            f"{num_superchains}"
        )
    return num_superchains


def _on_host(values: Any) -> np.ndarray:
    if _border.is_abstract(values):
        raise TypeError(
            "values: expected an array that the host can look at, got a traced one; within "
            "compiled code use diagnostics.OnlineHealth"
        )
    values = _border.array("values", values)
    if np.ndim(values) < 2 or 0 in np.shape(values):
        raise ValueError(
            f"values: expected shape [num_steps, num_chains, ...], got {np.shape(values)}"
        )
    if np.shape(values)[0] < 4:
        raise ValueError(f"values: expected at least 4 steps, got {np.shape(values)[0]}")
    x = _meshes.to_host(values).astype(np.float64)
    if not (finite := np.isfinite(x)).all():
        step, chain, *entry = np.argwhere(~finite)[0].tolist()
        where = f", entry {entry}" if entry else ""
        raise ValueError(
            f"values: expected finite values, got {x[(step, chain, *entry)]} in step {step}, "
            f"chain {chain}{where}"
        )
    return x[: len(x) // 2 * 2]


def _of_piece(
    library: Any, x: np.ndarray, size: int, num_superchains: int
) -> tuple[np.ndarray, ...]:
    """Return the fields of Health, [S] each, of values [T, C, S] of which S <= size."""
    num_sites, num_draws = x.shape[2], x.shape[0] * x.shape[1]
    low, middle, high = np.quantile(x, (0.05, 0.5, 0.95), axis=(0, 1))
    # Before anything narrows. About the median, lest a far outlier take the digits of the rest.
    y = x - middle
    y = y / np.maximum(np.abs(y).max(axis=(0, 1)), np.finfo(float).tiny)
    # `ess_tail` of blackjax takes x >= q for the upper tail, which is all draws if half of them
    # are the largest value, as of bits; ArviZ takes x <= q for both, and leaves out what is always
    # true. Where no value comes twice the two agree.
    tails = np.stack([x <= low, x <= high])
    padding = [(0, 0), (0, 0), (0, size - num_sites)]  # one program for all pieces
    y_padded = np.pad(y, padding).astype(jax.dtypes.canonicalize_dtype(np.float64))
    with jax.debug_nans(False):  # of what is constant
        found = _estimates(library, y_padded, np.pad(tails, [(0, 0), *padding]))
    r_hat, of_values, ess_bulk, *ess_tails = (np.asarray(f, np.float64)[:num_sites] for f in found)
    # Two values about a median half-way fold into one. Their ranks are as good as themselves.
    r_hat = np.where(np.isnan(r_hat), of_values, r_hat)
    still = (x == x[0]).all(axis=0)
    constant = (x == x[0, 0]).all(axis=(0, 1))
    r_hat = np.where(still.all(axis=0), np.inf, r_hat)
    always = tails.all(axis=(1, 2))
    ess_tail = np.where(always, num_draws, np.stack(ess_tails)).min(axis=0)
    nested = _nested_r_hat(y, num_superchains)
    r_hat, nested = np.where(constant, 1.0, r_hat), np.where(constant, 1.0, nested)
    ess_bulk, ess_tail = np.where(constant, 0.0, ess_bulk), np.where(constant, 0.0, ess_tail)
    with np.errstate(divide="ignore"):
        return r_hat, nested, ess_bulk, ess_tail, num_draws / ess_bulk


@functools.partial(jax.jit, static_argnums=0)
def _estimates(library: Any, y: Array, tails: Array) -> tuple[Array, ...]:
    found = (
        library.rhat(y, chain_axis=1, sample_axis=0),
        library.potential_scale_reduction(_halves(y)),
        library.ess_bulk(y, chain_axis=1, sample_axis=0),
        *(library.effective_sample_size(_halves(tail).astype(y.dtype)) for tail in tails),
    )
    # The library drops axes of length one.
    return tuple(f.reshape(y.shape[2]) for f in found)


def _halves(x: Any) -> Any:
    """Return the halves of chains [T, C, S] as chains of their own, [2 C, T / 2, S]."""
    num_steps, num_chains, num_sites = x.shape
    x = x.reshape(2, num_steps // 2, num_chains, num_sites).swapaxes(1, 2)
    return x.reshape(2 * num_chains, num_steps // 2, num_sites)


def _nested_r_hat(y: np.ndarray, num_superchains: int) -> np.ndarray:
    """Return nested R-hat of values [T, C, S], [S]; see `health`."""
    if y.shape[1] == 1:
        y, num_superchains = _halves(y).swapaxes(0, 1), 2
    still = (y == y[0]).all(axis=0)
    within = np.where(still, 0.0, y.var(axis=0, ddof=1)).mean(axis=0)
    means = np.where(still, y[0], y.mean(axis=0)).reshape(num_superchains, -1, y.shape[2])
    if means.shape[1] > 1:
        within = within + means.var(axis=1, ddof=1).mean(axis=0)
    between = means.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(1 + between / within)
