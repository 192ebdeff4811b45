"""Whether a product can be normalised, told from how its experts grow and decay far out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from poejax import _checks
from poejax import tails as tails_of
from poejax._product import Product
from poejax._strength import PARALLEL, Undecided, null_space, weak_subspace
from poejax.tails import Reach, Tails
from poejax.types import Params

__all__ = [
    "Propriety",
    "classify",
    "require_proper",
    "sees",
    "total_tails",
    "uncovered",
]

_MARGIN = 1e-6  # quadratic growth must stay below decay by this fraction
_ASCENTS, _STARTS = 50, 16


class Propriety(NamedTuple):
    """Whether Z is finite: "proper", "improper" or "unknown", and why, in one sentence."""

    verdict: Literal["proper", "improper", "unknown"]
    reason: str


class _Improper(Exception):
    """Carries the reason."""


def require_proper(model: Product, params: Params) -> None:
    """Raise ValueError if parameters do not fit, or the product is known to have no finite Z.

    What every driver calls, once, before anything compiles. What cannot be known passes (see
    `classify`), and so do traced parameters.

    Args:
      model: the product.
      params: its parameters.

    Raises:
      ValueError: if `params` do not fit the model or are not finite, or the product is improper;
        names the experts and the subspace.
    """
    found = classify(model, params)
    if found.verdict == "improper":
        raise ValueError(f"params: expected a normalisable model, but {found.reason}")


def classify(model: Product, params: Params) -> Propriety:
    """Tell whether Z = ∫ h(x) Π_k f_k(x) dx is finite, on the host in double precision.

    Over finitely many events it always is. Over real units, with the quadratic decay Λ of the
    Gaussian factors, the quadratic growth G of Gaussian (or rectified) hidden units, and N the
    subspace in which Λ vanishes, it is if and only if

    - Λ - G is positive definite outside N and G vanishes in N;
    - no binary, spin or categorical hidden unit sees N, as each grows exponentially along its w;
    - 2 Σ{ν_j : w_j not orthogonal to L} > dim L for every subspace L ≠ 0 of N, over Student-t
      experts; single directions L are not enough.

    Over counts, whose base falls off as 1/x!, it is if and only if nothing grows like a square of
    them. Over both, each holds for itself.

    Args:
      model: the product; nested products are flattened.
      params: its parameters.

    Returns:
      Propriety. "unknown" if an expert does not state its tails (`Expert.tails`), values are traced
      or not finite, the question is within rounding, or only bounds on growth and decay are known.

    Raises:
      ValueError: if `params` do not fit the model.

    Source: Weinberg (1960), High-energy behavior in quantum field theory, for power counting over
    subspaces.
    """
    model.check_params(params)
    if model.visible.num_states is not None:
        return Propriety("proper", "finitely many events have a finite sum")
    experts, reason = _experts(model, params)
    reach = model.visible.reach()
    if reach is None or experts is None:
        return Propriety("unknown", reason)
    try:
        _check_counts(experts, reach.is_count)
        return _classify(experts, reach)
    except _Improper as error:
        return Propriety("improper", str(error))
    except Undecided as error:
        return Propriety("unknown", str(error))


def total_tails(model: Product, params: Params) -> Tails | None:
    """Return the tails of a product over its real units; None if unknown, traced or no such."""
    reach = model.visible.reach()
    if reach is None or not reach.is_real.any():
        return None
    experts, _ = _experts(model, params)
    return None if experts is None else _over_reals(experts, reach)[1]


def uncovered(tails: Tails) -> np.ndarray:
    """Return an orthonormal basis, as rows, of the subspace without quadratic decay."""
    rows, free = tails.decay, np.ones(tails.decay.shape[1], bool)
    # A row that sees one coordinate covers it, whatever its length; substitution leaves the others
    # with one coordinate less. So diagonal and triangular precisions take no rounding at all.
    while True:
        seen = rows[:, free] != 0
        single = seen[seen.sum(axis=1) == 1].any(axis=0)
        if not single.any():
            break
        free[np.flatnonzero(free)[single]] = False
    rows = rows[:, free]
    return null_space(rows[(rows != 0).any(axis=1)]) @ np.eye(free.size)[free]


def _experts(model: Product, params: Params) -> tuple[dict[str, Tails] | None, str]:
    """Return the tails of each expert, or None and why not."""
    if not _checks.is_concrete(params):
        return None, "the parameters are traced"
    if model.visible.reach() is None:
        return None, f"the tails of {model.visible} are not known here"
    with np.errstate(all="ignore"):  # what is not finite is told below
        named = [(name, expert.tails(own)) for name, expert, own in model.present(params)]
    silent = [name for name, tails in named if tails is None]
    if silent:
        return None, f"experts {silent} do not state their tails"
    experts = {name: tails for name, tails in named if tails is not None}
    if not all(np.isfinite(part).all() for tails in experts.values() for part in tails[:7]):
        return None, "the parameters are not finite"
    return experts, ""


def _over_reals(experts: dict[str, Tails], reach: Reach) -> tuple[dict[str, Tails], Tails]:
    """Return the tails over real coordinates, at fixed values of the others, and their total."""
    base = tails_of.bounded(len(reach.is_real))._replace(decay=reach.decay)
    restricted = {name: _restrict(t, reach.is_real) for name, t in (experts | {"": base}).items()}
    return restricted, tails_of.combine(list(restricted.values()))


def _check_counts(experts: dict[str, Tails], is_count: np.ndarray) -> None:
    """Raise if something grows like a square along counts, which are not negative."""
    growing = [
        name
        for name, tails in experts.items()
        if tails.square[:, is_count].any() or (tails.half_square[:, is_count] > 0).any()
    ]
    if growing:
        raise _Improper(
            f"experts {growing} grow like the square of counts, whose base measure 1/x! falls off "
            "more slowly"
        )


def _classify(experts: dict[str, Tails], reach: Reach) -> Propriety:
    experts, total = _over_reals(experts, reach)
    rest = uncovered(total)
    reason = _check_quadratic(experts, total, rest)
    if reason:
        return Propriety("unknown", reason)
    if not reach.is_real.any():
        return Propriety("proper", "counts fall off faster than the experts grow")
    if not rest.size:
        return Propriety("proper", "every direction has quadratic decay")
    growing = [name for name, tails in experts.items() if sees(tails.spread, rest).any()]
    if growing or sees(total.tilt[None], rest).any():
        raise _Improper(
            f"experts {growing or [*experts][:-1]} grow exponentially where no Gaussian "
            f"factor decays, along {_where(rest)}"
        )
    if not (total.exponent > 0).any():
        note = f" ({total.note})" if total.note else ""
        raise _Improper(f"no expert decays along {_where(rest)}{note}")
    weak = weak_subspace(total.power @ rest.T, 2 * total.exponent)
    if weak is not None:
        raise _Improper(_describe_power(experts, weak @ rest, total.note))
    return Propriety("proper", "the powers decay fast enough along every subspace")


def _check_quadratic(experts: dict[str, Tails], total: Tails, rest: np.ndarray) -> str:
    """Raise if quadratic growth wins somewhere; return "" if it nowhere does, or what is open."""
    growth = np.concatenate([total.square, total.half_square])
    if not growth.any():
        return ""
    names = [n for n, t in experts.items() if t.square.any() or t.half_square.any()]
    what = f"experts {names} grow like exp(½|Wᵀx|²)"
    if sees(growth, rest).any():
        raise _Improper(f"{what} where no Gaussian factor decays, along {_where(rest)}")
    white = _whiten(growth, total.decay, rest)
    if _is_below(white, 1 - _MARGIN):
        return ""
    square, half_square = np.split(white, [len(total.square)])
    is_above = not _is_below(square, 1 + _MARGIN) or (
        half_square.any() and _growth_found(square, half_square) > 1 + _MARGIN
    )
    if is_above and total.is_exact:
        raise _Improper(
            f"{what}, faster somewhere than the Gaussian factors decay: Λ - W Wᵀ must be positive "
            "definite"
        )
    return f"{what}, which the Gaussian factors may or may not outweigh"


def _is_below(rows: np.ndarray, bound: float) -> bool:
    """Whether |rows x|² < bound |x|² for all x ≠ 0."""
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    try:
        np.linalg.cholesky(bound * np.eye(len(gram)) - gram)
    except np.linalg.LinAlgError:
        return False
    return True


def _growth_found(square: np.ndarray, half_square: np.ndarray) -> float:
    """Return a lower bound of the largest growth |square x|² + |max(0, half_square x)|², |x| = 1.

    The growth is convex and homogeneous of degree 2, so that moving to the direction of its
    gradient never lowers it; started from all rows, continued from the best.
    """
    x, growth = np.concatenate([square, half_square]), np.zeros(0)
    x = x[(x != 0).any(axis=1)]
    for step in range(_ASCENTS):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        half = np.maximum(x @ half_square.T, 0.0)
        growth = ((x @ square.T) ** 2).sum(axis=1) + (half**2).sum(axis=1)
        if step == 0:
            best = np.argsort(-growth)[:_STARTS]
            x, half = x[best], half[best]
        x = (x @ square.T) @ square + half @ half_square
    return float(growth.max())


def _whiten(rows: np.ndarray, decay: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Return `rows` [S, D] in coordinates in which |decay x|² = |x|², outside `rest`."""
    if ((decay != 0).sum(axis=1) <= 1).all():
        precision = (decay**2).sum(axis=0)
        covered = precision > 0
        return rows[:, covered] / np.sqrt(precision[covered])
    outside = null_space(rest)
    _, lengths, axes = np.linalg.svd(decay @ outside.T, full_matrices=False)
    return (rows @ outside.T @ axes.T) / lengths


def sees(rows: np.ndarray, subspace: np.ndarray) -> np.ndarray:
    """Whether each of `rows` [S, D] has a part in the subspace, of an orthonormal basis, [S]."""
    part = np.linalg.norm(rows @ subspace.T, axis=1)
    return part > PARALLEL * np.linalg.norm(rows, axis=1)


def _restrict(tails: Tails, is_real: np.ndarray) -> Tails:
    """Return the tails over the real coordinates, at any fixed value of the discrete ones."""
    return tails._replace(
        decay=tails.decay[:, is_real],
        square=tails.square[:, is_real],
        half_square=tails.half_square[:, is_real],
        tilt=tails.tilt[is_real],
        spread=tails.spread[:, is_real],
        power=tails.power[:, is_real],
    )


def _where(subspace: np.ndarray) -> str:
    size = subspace.shape[1]
    if subspace.shape[0] == size:
        return f"all {size} dimensions"
    touched = np.flatnonzero((np.abs(subspace) > PARALLEL).any(axis=0)).tolist()
    return f"a {len(subspace)}-dimensional subspace of coordinates {_short(touched)}"


def _describe_power(experts: dict[str, Tails], weak: np.ndarray, note: str) -> str:
    slow, orthogonal, total = [], [], 0.0
    for name, tails in experts.items():
        seen = np.linalg.norm(tails.power @ weak.T, axis=1) > PARALLEL
        total += 2 * float(tails.exponent[seen].sum())
        if seen.any():
            slow.append(name)
        if len(seen) and not seen.all():
            orthogonal.append(f"{_short(np.flatnonzero(~seen).tolist())} of {name!r}")
    where = f"the {len(weak)}-dimensional subspace"
    if len(weak) == weak.shape[1]:
        where = f"all {len(weak)} dimensions"
    elif orthogonal:
        where += f" orthogonal to columns {', '.join(orthogonal)}"
        if any(tails.decay.any() for tails in experts.values()):
            where += " and to the Gaussian factors"
    if not slow:
        return f"no expert decays along {where}{f' ({note})' if note else ''}"
    return (
        f"experts {slow} decay too slowly along {where}: there twice the sum of exponents is "
        f"{total:.4g} and must exceed {len(weak)}"
    )


def _short(numbers: list[int]) -> str:
    if len(numbers) <= 8:
        return str(numbers)
    return f"[{', '.join(map(str, numbers[:7]))}, ... {len(numbers)} in all]"
