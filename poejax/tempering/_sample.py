"""Samples and log Z of a model whose chains stick, by replica exchange from a proper base."""

from __future__ import annotations

import math
import operator
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _random, chains
from poejax._bases import Base
from poejax._paths import check_betas, check_path, log_z_at_start, path_of, require_resolution
from poejax._product import Product, split_coordinates
from poejax._weights import LogZ, effective_size, student_t
from poejax.chains import ModelKernel
from poejax.kernels._binding import bound_to
from poejax.tempering import _measure as measure
from poejax.tempering._ladder import Ladder, Replicas
from poejax.tempering._tuning import tune
from poejax.types import Array, Event, Kernel, Params

_LEAST_ACCEPTANCE = 0.02
_LEAST_SPARE = 256


class Report(NamedTuple):
    """What a run of ladders saw of itself, after burn-in.

    betas: inverse temperatures of the rungs, from base to model, [K].
    acceptance: mean acceptance probability of exchanges between neighbours, [K - 1].
    round_trips: how many times a replica went from the base to the model and back, [C]. In
      num_steps sweeps about num_steps / (2 + 2 Σ_k r_k / (1 - r_k)), r = 1 - acceptance, if
      replicas forget where they came from between two exchanges; fewer where chains stick.
    barrier: Λ = Σ_k r_k, []; the round trips of ever finer ladders tend to num_steps / (2 + 2 Λ).
    flow: of the replicas on each rung, the share that was last at the base and not at the model,
      [K]; a line from 1 to 0 where they travel freely, a step where they do not pass.
    log_z: the model's log Z by Bennett's ratio along the ladder, with the standard error from the
      C ladders as independent replicas and the interval from Student's t with C - 1 degrees of
      freedom; `log_weights` hold each ladder's own estimate of log Z.
    """

    betas: Array
    acceptance: Array
    round_trips: Array
    barrier: Array
    flow: Array
    log_z: LogZ


def sample(
    rng_key: Array,
    model: Product,
    params: Params,
    base: Base,
    *,
    num_chains: int,
    num_steps: int,
    betas: Array | None = None,
    kernel: ModelKernel | None = None,
    x: Event | None = None,
) -> tuple[Event, Report]:
    """Draw samples and estimate log Z by replica exchange, many ladders at once.

    f_k(x) = base(x)^(1-β_k) temper(model, β_k)(x), k = 1..K, β_1 = 0, β_K = 1,
    x_k ↔ x_(k+1) with probability min(1, f_k(x_(k+1)) f_(k+1)(x_k) / (f_k(x_k) f_(k+1)(x_(k+1))))

    Every sweep exchanges every second pair of neighbours, the others at the next sweep, and moves
    each replica by the kernel. Configurations of the base, where chains mix, so reach the model.

    Args:
      rng_key: one typed key.
      model: the product.
      params: its parameters.
      base: a proper base: `evidence.base_rate`, `gaussian_base`, or `student_t_base` for heavy
        tails.
      num_chains: number C of independent ladders, at least 2; ten or more for a narrow interval.
      num_steps: sweeps of every replica that are measured, at least 4. Before these come a quarter
        as many, or 256 if that is more, to place the rungs, and as many again for burn-in.
      betas: inverse temperatures from 0 to 1, not decreasing, [K]; placed at equal rejection rates
        when None, as many as the barrier asks for.
      kernel: a kernel of `model`, whose settings serve all along the path; `block_gibbs(model)`
        when None.
      x: events to start all rungs from, [C, ...]; draws of the base when None.

    Returns:
      `(x, report)`: one sample of the model from each ladder, [C, ...], and a Report.

    Raises:
      ValueError: if params, base and model do not fit, the model is known to be improper, `betas`
        is no path from 0 to 1, or None under an outer `jit`.

    Warns:
      UserWarning: if neighbours hardly ever exchange, or log Z drifts from the first half of the
        run to the second: its interval is then open.

    Source: Geyer (1991); Okabe et al. (2001); Syed, Bouchard-Côté, Deligiannidis & Doucet (2022);
    Bennett (1976).
    """
    _checks.rng_key("rng_key", rng_key)
    _check_steps(num_steps)
    check_path(model, params, base, kernel, num_chains)
    if betas is not None:
        betas = jnp.asarray(betas)
        check_betas(betas)
    elif not _checks.is_concrete(rng_key, params, base):
        raise ValueError("betas: expected to be given under an outer jit, got None")
    params, coordinates = split_coordinates(params)
    base = base.within(coordinates)

    def at(betas: Any) -> Ladder:
        return Ladder(model, params, base, jnp.asarray(betas))

    start_key, tune_key, rest_key = (_random.fold_in(rng_key, i) for i in range(3))
    y = _starts(start_key, model, base, coordinates, x, num_chains)
    path_kernel = bound_to(path_of(model, base), kernel)
    spare = _spare(num_steps)
    if betas is None:
        ladder, replicas = tune(tune_key, at, y, spare, path_kernel)
    else:
        ladder = at(betas)
        replicas = measure.begin(tune_key, ladder, measure.on_all(y, len(betas)), path_kernel)
    first = jax.tree.map(lambda leaf: leaf[0], y)
    start = log_z_at_start(path_of(model, base), params, base, first)
    return _measured(rest_key, ladder, replicas, start, num_steps, path_kernel, coordinates)


def sample_trajectory(
    rng_key: Array,
    model: Product,
    trajectory: Params,
    base: Base,
    *,
    num_chains: int,
    num_steps: int,
    kernel: ModelKernel | None = None,
    x: Event | None = None,
) -> tuple[Event, Report]:
    """Draw samples and estimate log Z along the checkpoints of a training run.

    As `sample`, with the parameters of ever later checkpoints in place of temperatures: where a
    model learns one mode after the other, its own past passes through no first-order transition,
    as temperatures may.

    Args:
      rng_key: one typed key.
      model: the product.
      trajectory: parameters of M >= 1 checkpoints in order, each leaf [M, ...] (coordinates of
        real units aside, which all share), or a list of them; samples and log Z are those of the
        last.
      base: a proper base near the first checkpoint, e.g. `evidence.base_rate(model, data)`.
      num_chains: number C of independent ladders of M + 1 replicas, at least 2.
      num_steps: sweeps that are measured; a quarter as many, at least 256, come before.
      kernel: a kernel of `model`; `block_gibbs(model)` when None.
      x: events to start all rungs from, [C, ...]; draws of the base when None.

    Returns:
      `(x, report)`, as `sample`; `report.betas` are 0 for the base and 1 for the checkpoints.

    Raises:
      ValueError: as `sample`, or if the leaves of `trajectory` do not lead with one number M.

    Warns:
      UserWarning: as `sample`.

    Source: Béreux, Decelle, Furtlehner, Rosset & Seoane (2024), Fast training and sampling of
    restricted Boltzmann machines.
    """
    _checks.rng_key("rng_key", rng_key)
    _check_steps(num_steps)
    if isinstance(trajectory, list | tuple) and trajectory:  # coordinates are the same in all
        shared = {name: trajectory[-1][name] for name in trajectory[-1].keys() & {"coordinates"}}
        learned = [split_coordinates(params)[0] for params in trajectory]
        trajectory = jax.tree.map(lambda *v: jnp.stack(v), *learned) | shared
    checkpoints, coordinates = split_coordinates(trajectory)
    size = _checks.leading_axis("trajectory", checkpoints)
    rest = {"coordinates": coordinates} if coordinates else {}
    for number in range(size) if _checks.is_concrete(trajectory) else (0,):
        one = jax.tree.map(operator.itemgetter(number), checkpoints)
        check_path(model, one | rest, base, kernel, num_chains)
    base = base.within(coordinates)
    start_key, init_key, rest_key = (_random.fold_in(rng_key, i) for i in range(3))
    y = _starts(start_key, model, base, coordinates, x, num_chains)
    path_kernel = bound_to(path_of(model, base), kernel)
    ladder = Ladder(model, checkpoints, base, None)
    replicas = measure.begin(init_key, ladder, measure.on_all(y, ladder.num_rungs), path_kernel)
    first, oldest = (jax.tree.map(operator.itemgetter(0), tree) for tree in (y, checkpoints))
    start = log_z_at_start(path_of(model, base), oldest, base, first)
    return _measured(rest_key, ladder, replicas, start, num_steps, path_kernel, coordinates)


def _check_steps(num_steps: int) -> None:
    if _checks.positive_int("num_steps", num_steps) < 4:
        raise ValueError(
            "num_steps: expected at least 4, a turn of every pair of rungs in either half, got "
            f"{num_steps}"
        )


def _starts(
    rng_key: Array, model: Product, base: Base, coordinates: Any, x: Event | None, num_chains: int
) -> Event:
    if x is None:
        return jax.vmap(base.sample)(chains.chain_keys(rng_key, num_chains))
    x = _border.events("x", model.visible, x)
    _checks.one_row_per_chain("x", x, num_chains)
    return model.visible.standardize_rows(coordinates, x)


def _spare(num_steps: int) -> int:
    return max(_LEAST_SPARE, num_steps // 4)


def _measured(
    rng_key: Array,
    ladder: Ladder,
    replicas: Replicas,
    start: Array,
    num_steps: int,
    kernel: Kernel,
    coordinates: Any,
) -> tuple[Event, Report]:
    """Let ladders burn in, then measure; `start` is log Z on the first rung."""
    burn_key, run_key = _random.split(rng_key)
    centres = jnp.zeros(ladder.num_rungs - 1)
    spare = _spare(num_steps)
    for part, length in enumerate((spare // 4, spare // 4, spare - 2 * (spare // 4))):
        key = _random.fold_in(burn_key, part)
        replicas, means = measure.run(key, ladder, replicas, length, centres, kernel)
        centres = _centres(means, centres)
    trips = jnp.sum(replicas.num_trips, axis=1)
    replicas, means = measure.run(run_key, ladder, replicas, num_steps, centres, kernel)
    betas = ladder.betas
    if betas is None:
        betas = jnp.minimum(jnp.arange(ladder.num_rungs), 1).astype(start.dtype)
    trips = jnp.sum(replicas.num_trips, axis=1) - trips
    moved = drift(means)
    report = _report(betas, means, centres, start, trips, moved)
    y = measure.top(replicas)
    if _checks.is_concrete(report):
        _checks.finite("tempering: a normalisable model with finite parameters: ", (y, means))
        require_resolution("tempering", report.log_z)
        _warn(report, float(moved))
    return jax.vmap(lambda y: ladder.model.visible.restore(coordinates, y))(y), report


def _centres(means: measure.Means, centres: Array) -> Array:
    """Return better guesses of log Z_(k+1) - log Z_k: Bennett's, or, too far off, the middle."""
    up, down, rises, falls = (
        jnp.mean(v, axis=(0, 1)) for v in (means.up, means.down, means.rises, means.falls)
    )
    near = jnp.minimum(rises, falls) > 1e-3
    bennett = centres + jnp.log(jnp.where(near, rises, 1)) - jnp.log(jnp.where(near, falls, 1))
    return jnp.where(near, bennett, (up + down) / 2)


def _report(
    betas: Array,
    means: measure.Means,
    centres: Array,
    start: Array,
    trips: Array,
    moved: Array,
) -> Report:
    acceptance = jnp.mean(means.acceptance, axis=(0, 1))
    rises, falls = jnp.mean(means.rises, axis=1), jnp.mean(means.falls, axis=1)
    # Of rungs that see nothing of each other the middle stands in; the interval is open.
    middle = jnp.mean(means.up + means.down, axis=(0, 1)) / 2
    log_ratios = _log_ratio(rises, falls, centres, middle)
    log_z = start + jnp.sum(log_ratios)
    own = _influence(rises, falls)
    num_chains = len(own)
    std_err = jnp.std(own, ddof=1) / math.sqrt(num_chains)
    wide = student_t(num_chains - 1, 0.05) * std_err
    is_open = (jnp.min(acceptance) < _LEAST_ACCEPTANCE) | (
        jnp.abs(moved) > _largest_drift(num_chains)
    )
    wide = jnp.where(is_open, jnp.inf, wide)
    ess = effective_size(own)
    unknown: Any = np.asarray(np.nan, log_z.dtype)
    found = LogZ(log_z, std_err, ess, log_z - wide, log_z + wide, log_z + own, unknown)
    flow = jnp.sum(means.upwards, axis=(0, 1)) / jnp.maximum(
        jnp.sum(means.labelled, axis=(0, 1)), 1e-30
    )
    return Report(betas, acceptance, trips, jnp.sum(1 - acceptance), flow, found)


def _influence(rises: Array, falls: Array) -> Array:
    """Return by how much each ladder's own log Z is off the mean, [C], from its [C, K - 1]."""

    def relative(v: Array) -> Array:
        mean = jnp.mean(v, axis=0)
        return jnp.where(mean > 0, v / jnp.where(mean > 0, mean, 1), 1)

    return jnp.sum(relative(rises) - relative(falls), axis=1)


def _log_ratio(rises: Array, falls: Array, centres: Array | float, middle: Array) -> Array:
    """Return log Z_(k+1) - log Z_k by Bennett's ratio, `middle` where a mean is 0, [..., K - 1]."""
    rise, fall = jnp.mean(rises, axis=0), jnp.mean(falls, axis=0)
    known = jnp.minimum(rise, fall) > 0
    ratio = jnp.log(jnp.where(known, rise, 1)) - jnp.log(jnp.where(known, fall, 1))
    return jnp.where(known, centres + ratio, middle)


def drift(means: measure.Means) -> Array:
    """Return log Z of the second half of the run less that of the first, in standard errors, []."""
    log_z = _log_ratio(means.rises, means.falls, 0.0, jnp.zeros(()))
    gap = jnp.sum(log_z[1] - log_z[0])
    own = [_influence(means.rises[:, half], means.falls[:, half]) for half in (0, 1)]
    std_err = jnp.std(own[1] - own[0], ddof=1) / math.sqrt(len(own[0]))
    return jnp.where(std_err > 0, gap / jnp.where(std_err > 0, std_err, 1), 0)


def _largest_drift(num_chains: int) -> float:
    """Return what one run in 10,000 at equilibrium exceeds."""
    return student_t(num_chains - 1, 1e-4)


def _warn(report: Report, moved: float) -> None:
    worst = int(jnp.argmin(report.acceptance))
    if float(report.acceptance[worst]) < _LEAST_ACCEPTANCE:
        warnings.warn(
            f"tempering: rungs {worst} and {worst + 1} (betas {float(report.betas[worst]):.4g} and "
            f"{float(report.betas[worst + 1]):.4g}) exchange with probability "
            f"{float(report.acceptance[worst]):.2g}: log Z is not known across them; take more "
            "rungs, or betas=None",
            UserWarning,
            stacklevel=5,
        )
    if abs(moved) > _largest_drift(len(report.log_z.log_weights)):
        warnings.warn(
            f"tempering: log Z moved by {moved:.2g} standard errors between the two "
            "halves of the run: the ladders are not yet at equilibrium; take more num_steps",
            UserWarning,
            stacklevel=5,
        )
