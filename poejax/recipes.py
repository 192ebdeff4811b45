"""Recipes: learning that holds up over the settings people try, built from the other rooms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from poejax import _border, _checks, evidence, exact, models, training
from poejax._product import Product, log_densities, product, split_coordinates
from poejax.estimators import centered, pcd
from poejax.experts import Bias
from poejax.types import Array, Estimator, Event, Params, PyTree, Weighted

__all__ = [
    "OPTIMIZERS",
    "GaussianFit",
    "Matrix",
    "are_repetitions",
    "bound_precision",
    "distinct",
    "fit_gaussian_rbm",
    "gaussian_rbm_log_z",
    "gaussian_rbm_optimizer",
    "gaussian_rbm_rule",
    "gaussian_start",
    "resampled",
    "spread_weights",
]

Matrix = npt.NDArray[np.float64]

OPTIMIZERS = ("adam", "sgd")

_MAX_EXACT = 16  # binary hidden units whose states are enumerated
_MAX_FULL = 200  # columns of a covariance
_HELD_OUT = 0.2  # of the distinct rows
_NUM_CHECKS = 10
_RISK = 0.03  # nats that one more far row may cost
_BETAS, _CHAINS = 1000, 200


class _Bound(NamedTuple):
    """State of the last step of `gaussian_rbm_optimizer`: upper bounds, [D]."""

    log_precision: Array


class GaussianFit(NamedTuple):
    """What `fit_gaussian_rbm` found.

    params: with coordinates: events and densities are in the user's units.
    state: the run, in coordinates, with the same parameters; its chains are those of the last step.
    gain: by how much the rows held out are likelier than under the start, a single Gaussian, in
      nats; 0 where the start was kept.
    """

    model: Product
    params: Params
    state: training.TrainState
    gain: float


@functools.lru_cache
def gaussian_rbm_optimizer(
    learning_rate: float, num_steps: int | None = None, method: str = "adam"
) -> optax.GradientTransformation:
    """Optimizer that does not diverge on a Gaussian RBM in coordinates of its data.

    Gradients are clipped to norm 1, weights decay, and log precisions stay below bounds if
    `bound_precision` sets some. Gradients in coordinates being small, plain gradient descent takes
    ten times the rate that is asked for.

    Args:
      learning_rate: of the first step, e.g. between 1e-3 and 1e-1.
      num_steps: steps in which the rate falls to zero, in a line; it stays as it is if None.
      method: "adam" or "sgd".

    Returns:
      The same object for the same arguments, so that nothing compiles anew.

    Raises:
      ValueError: if there is no such method.
    """
    if method not in OPTIMIZERS:
        raise ValueError(f"method: expected one of {', '.join(OPTIMIZERS)}, got {method!r}")
    rate = learning_rate * (10 if method == "sgd" else 1)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam() if method == "adam" else optax.identity(),
        optax.add_decayed_weights(1e-3, mask=training.weights_only),
        optax.scale_by_learning_rate(
            optax.linear_schedule(rate, 0.0 if num_steps else rate, num_steps or 1)
        ),
        optax.GradientTransformation(_unbounded, _stay_below),
    )


def bound_precision(opt_state: optax.OptState, y: Matrix) -> optax.OptState:
    """Bound the precisions by how far out rows in coordinates lie, [N, D].

    λ_i - 1 <= 2 ε N / max_n y_ni²: one more row in N, as far out in column i as the farthest, costs
    at most ε = 0.03 nats. What explains the bulk of heavy-tailed rows by a narrow Gaussian would
    lose more by the next far one than it gains.

    Returns:
      The state of `gaussian_rbm_optimizer` with bounds.
    """
    bound = _Bound(jnp.asarray(np.log1p(2 * _RISK * len(y) / (y**2).max(axis=0)), jnp.float32))
    return jax.tree.map(
        lambda node: bound if isinstance(node, _Bound) else node,
        opt_state,
        is_leaf=lambda node: isinstance(node, _Bound),
    )


def gaussian_start(
    rng_key: Array, model: Product, x: Matrix, weights: Any = None
) -> tuple[Params, PyTree]:
    """Start a Gaussian RBM as the single Gaussian of a batch `x` [N, D].

    Of full covariance where rows are more than twice as many as columns, columns are at most 200,
    and none depends linearly on others; of independent columns else.

    Args:
      rng_key: one typed key.
      model: from `models.gaussian_rbm`.
      x: batch of events [N, D], on the host.
      weights: those of the rows [N], 1 each when None.

    Returns:
      `(params, coordinates)`, apart; the parameters are about the data in coordinates.

    Raises:
      ValueError: as `model.init_from`.
    """
    share = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    num_rows = share.sum() ** 2 / (share**2).sum()
    full = 2 * x.shape[1] < num_rows and x.shape[1] <= _MAX_FULL and not _is_singular(x, share)
    data = x if weights is None else Weighted(x, weights)
    params, coordinates = split_coordinates(model.init_from(rng_key, data, full=full))
    none = params["hidden"] | {"w": jnp.zeros_like(params["hidden"]["w"])}
    return _add_weights(params | {"hidden": none}, params["hidden"]["w"]), coordinates


def spread_weights(rng_key: Array, params: Params) -> Params:
    """Return the start with weights N(0, 1 / max(D, H)) added, for learning to go on from.

    In coordinates the data have the covariance of the start, so that the gradient by small weights
    is of their third order, and plain gradient descent never leaves them.
    """
    shape = params["hidden"]["w"].shape
    return _add_weights(params, jax.random.normal(rng_key, shape) / max(shape) ** 0.5)


def fit_gaussian_rbm(
    rng_key: Array,
    x: Event,
    num_hidden: int,
    *,
    num_passes: int,
    weights: Any = None,
    optimizer: str = "adam",
    learning_rate: float = 0.1,
    batch_size: int = 10,
    num_chains: int = 100,
    num_gibbs_steps: int = 1,
    on_check: Callable[[int, float, float], None] | None = None,
) -> GaussianFit:
    """Learn a Gaussian RBM that explains a batch of rows no worse than one Gaussian does.

    It starts as the single Gaussian of all rows (see `gaussian_start`) and learns by centred
    persistent contrastive divergence from four fifths of the distinct ones. Ten times on the way
    the others judge the averaged parameters: those are kept whose mean gain in log-likelihood over
    the start is largest, less its standard error, or the start if that is positive for none. A run
    that diverges ends there. Precisions are bounded, see `bound_precision`.

    Args:
      rng_key: one typed key.
      x: batch of real events [N, D], on the host; they are standardized there, in float64.
      num_hidden: number H of hidden units. log Z is exact up to 16, by annealing beyond.
      num_passes: passes over the rows that are learned from.
      weights: of the rows [N], 1 each when None. In a pass row n occurs w_n times, rounded up or
        down at random once the weights, unless integers, are scaled to a mean of one.
      optimizer, learning_rate: see `gaussian_rbm_optimizer`.
      batch_size: rows per update.
      num_chains, num_gibbs_steps: see `estimators.pcd`.
      on_check: called with the number of passes, the mean gain and its standard error.

    Returns:
      GaussianFit. The same, bitwise, for rows in another order, or with weights for repetitions.

    Raises:
      ValueError: if `x` holds no real events, or a column is constant.
    """
    x = _border.array("x", x)
    # As many columns as a row has numbers: what is no batch is told of by the units' own check.
    model = models.gaussian_rbm(max(1, np.size(x[:1])), num_hidden)
    model.visible.check("x", x)
    rows, weights = distinct(x, weights)
    start_key, spread_key, train_key, z_key = jax.random.split(rng_key, 4)
    start, coordinates = gaussian_start(start_key, model, rows, weights)
    y = np.asarray(model.visible.standardize_rows(coordinates, rows))
    random = np.random.default_rng(np.asarray(jax.random.key_data(train_key)).tolist())
    held, learned = np.split(random.permutation(len(y)), [int(_HELD_OUT * len(y))])
    if not len(learned) or not len(held):
        held = learned = np.arange(len(y))

    epoch = resampled(random, weights[learned])
    size = min(batch_size, len(epoch))
    per_pass = len(epoch) // size
    tx = gaussian_rbm_optimizer(learning_rate, num_passes * per_pass, optimizer)
    rule = gaussian_rbm_rule(model, num_chains, num_gibbs_steps)
    run = training.Run(rule, tx, size, average=True)
    first = spread_weights(spread_key, start)
    seen = y[learned[epoch]]
    # A column that is rarely other than 0 may vary among all rows alone.
    state = run.init(train_key, seen if np.ptp(seen, axis=0).all() else y, first)
    state = state._replace(opt_state=bound_precision(state.opt_state, y))

    def densities(params: Params) -> tuple[Matrix, float]:
        log_z, error = gaussian_rbm_log_z(z_key, model, params)
        return np.asarray(log_densities(model, params, y[held]), float) - log_z, error

    origin, _ = densities(start)
    best, best_gain, best_score, done = start, 0.0, 0.0, 0
    for passes in np.unique(np.linspace(0, num_passes, _NUM_CHECKS + 1).round().astype(int))[1:]:
        epoch = resampled(random, weights[learned])
        steps = (int(passes) - done) * per_pass
        try:
            state, _ = run.steps(state, y[learned[epoch]], steps)
            found, error = densities(state.average)
        except (FloatingPointError, ValueError):  # of parameters too wild to train or to judge
            break
        done = int(passes)
        gain, spread = _mean_and_error(found - origin, weights[held])
        spread = float(np.hypot(spread, error))
        if on_check is not None:
            on_check(done, gain, spread)
        if (score := gain - spread) > best_score:
            best, best_gain, best_score = state.average, gain, score
    state = state._replace(params=best, average=best)
    return GaussianFit(model, best | {"coordinates": coordinates}, state, best_gain)


def gaussian_rbm_rule(model: Product, num_chains: int, num_steps: int = 1) -> Estimator:
    """Return the gradient that `fit_gaussian_rbm` learns by."""
    return centered(pcd(model, num_chains, num_steps=num_steps))


def gaussian_rbm_log_z(rng_key: Array, model: Product, params: Params) -> tuple[float, float]:
    """Return log Z of a Gaussian RBM and its standard error, 0 up to 16 hidden units.

    Beyond, by annealed importance sampling from a Gaussian as broad as the start, or as the model's
    own conditional if that is broader.
    """
    if model.experts["hidden"].num_factors <= _MAX_EXACT:
        return float(exact.log_z(model, params)), 0.0
    rest, _ = split_coordinates(params)
    own = rest["bias"]["field"]["log_precision"]
    field = {"linear": jnp.zeros_like(own), "log_precision": jnp.minimum(own, 0.0)}
    visible = model.visible
    bias = product(visible, bias=Bias(visible))
    base = evidence.Base(bias, {"bias": {"field": field}}, visible.log_mass(field))
    found = evidence.ais(rng_key, model, rest, base, evidence.linear_betas(_BETAS), _CHAINS)
    return float(found.log_z), float(found.std_err)


def distinct(x: Any, weights: Any = None) -> tuple[Matrix, Any]:
    """Return the distinct rows of a batch [N, D] in a fixed order, with the sum of their weights.

    Rows of weight 0 are left out.
    """
    w: Any = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    _checks.split_weights("x", Weighted(x, w))
    rows, index = np.unique(np.asarray(x, np.float64)[w > 0], axis=0, return_inverse=True)
    return rows, np.bincount(index.reshape(-1), w[w > 0])


def resampled(random: np.random.Generator | np.random.RandomState, weights: Matrix) -> np.ndarray:
    """Draw the rows of one pass, each as often as its weight says, rounded up or down at random.

    Systematic resampling: integer weights are met exactly; others are scaled to a mean of one, and
    so are integers that would make a pass more than a hundred times as long.

    Args:
      random: a generator of NumPy.
      weights: non-negative, [N].

    Returns:
      Indices of rows, in order, of a number that depends on `weights` alone.

    Source: Kitagawa (1996), Monte Carlo filter and smoother.
    """
    total, is_exact = weights.sum(), are_repetitions(weights)
    size = round(total) if is_exact else len(weights)
    edges = np.cumsum(weights) * (size / total)
    edges[-1] = size
    counts = np.diff(np.floor(edges + (0.0 if is_exact else random.uniform())), prepend=0.0)
    return np.repeat(np.arange(len(weights)), counts.astype(int))


def _unbounded(params: Params) -> _Bound:
    return _Bound(jnp.full_like(params["bias"]["field"]["log_precision"], jnp.inf))


def _stay_below(
    updates: Params, state: _Bound, params: Params | None = None
) -> tuple[Params, _Bound]:
    assert params is not None
    step, value = (tree["bias"]["field"]["log_precision"] for tree in (updates, params))
    field = {"log_precision": jnp.minimum(step, state.log_precision - value)}
    return updates | {"bias": {"field": updates["bias"]["field"] | field}}, state


def _add_weights(params: Params, w: Array) -> Params:
    # Hidden units without bias are on half of the time: their mean pull is taken off.
    bias = params["bias"]["field"]
    linear = bias["linear"] - 0.5 * w.sum(axis=1)
    hidden = params["hidden"] | {"w": params["hidden"]["w"] + w}
    return {"bias": {"field": bias | {"linear": linear}}, "hidden": hidden}


def are_repetitions(weights: Matrix) -> bool:
    """Whether weights are integers of a mean of at most 100, so that rows may be repeated."""
    whole = bool((weights == np.round(weights)).all())
    return whole and bool(weights.sum() <= 100 * len(weights))


def _is_singular(x: Matrix, weights: Matrix) -> bool:
    centred = x - np.average(x, axis=0, weights=weights)
    spread = np.sqrt(np.average(centred**2, axis=0, weights=weights))
    scaled = centred / np.where(spread > 0, spread, 1)
    correlation = (scaled * weights[:, None]).T @ scaled / weights.sum()
    return bool(np.linalg.eigvalsh(correlation)[0] < 1e-9)


def _mean_and_error(values: Matrix, weights: Matrix) -> tuple[float, float]:
    share = weights / weights.sum()
    mean = float(share @ values)
    # Inflated as the sample variance is; infinite of a single row.
    left = 1 - float(share @ share)
    error = float(np.sqrt(share**2 @ (values - mean) ** 2 / left)) if left > 0 else float("inf")
    return mean, error
