"""The laws of a learning rule: a gradient for the parameters, a state that goes through a scan."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _checks, exact
from poejax._product import Product
from poejax.testing._laws import Laws, check_retrace, flat, noisy, rounding, rows_of
from poejax.types import Array, Estimator, Params, PyTree, Weighted

_ROWS = 12


def check_estimator(
    estimator: Estimator,
    params: Params | None = None,
    *,
    rng_key: Array,
    model: Product | None = None,
    data: PyTree | None = None,
    is_gradient: bool = False,
    takes_weights: bool = True,
    num_draws: int = 512,
    burn_in: int = 20,
    level: float = 1e-5,
    tolerance: float | None = None,
) -> tuple[str, ...]:
    """Check a rule for gradients of a small model against the laws of all of them.

    "structure": the gradient is a tree like the params, shapes and dtypes included, and finite
    "state":     the new state is like the old one, so that updates can be scanned
    "loss":      where the info has a `loss`, the gradient is that of this loss
    "descent":   in the mean over keys, a step against it raises the exact log-likelihood
    "gradient":  if `is_gradient`, that mean is the exact gradient
    "weights":   rows of weight 2 count twice, rows of weight 0 not at all, in the mean over keys
    "jit", "vmap", "scan": compiled = eager, batched = one by one, scanned = update by update
    "retrace":   an equal rule, and other params, compile nothing new

    "descent" and "gradient" are of rules without a loss, for models that `exact.log_z` knows. Means
    are of independent runs of `burn_in` updates at the same params, after which chains of a small
    model have forgotten their start.

    Args:
      estimator: a rule for `model`.
      params: the model's; drawn by `model.init`, with normal noise, when None.
      rng_key: one typed key; the verdict is a function of it.
      model: what it learns; `estimator.model` when None.
      data: batch of rows; twelve random events of the visible units when None.
      is_gradient: whether it promises the gradient of the negative log-likelihood, unbiased.
      takes_weights: whether batches may be `Weighted`.
      num_draws: independent runs.
      burn_in: updates before the one that counts.
      level: probability, per law, that a right rule fails by chance.
      tolerance: rounding allowed, relative to the largest term; 256 units in the last place if
        None.

    Returns:
      The names of the laws that were checked.

    Raises:
      AssertionError: at the first law that fails, with its name, expected and found values.
    """
    _checks.rng_key("rng_key", rng_key)
    _checks.positive_int("num_draws", num_draws)
    found = getattr(estimator, "model", None) if model is None else model
    _checks.model("model", found)
    model = cast(Product, found)
    init_key, noise_key, data_key, run_key = jax.random.split(rng_key, 4)
    if params is None:
        params = noisy(noise_key, model.init(init_key), 0.5)
    if data is None:
        data = jax.vmap(model.visible.random_event)(jax.random.split(data_key, _ROWS))
    laws = Laws(estimator, "estimator", "", tolerance or 4 * rounding(params), level)
    keys = jax.random.split(run_key, num_draws)
    try:
        checked = _check_contract(laws, params, keys[0], data)
        draws = functools.partial(_draws, estimator, params, keys, burn_in=burn_in)
        if "loss" not in checked:
            checked += _check_likelihood(laws, model, params, data, draws(data), is_gradient)
        if takes_weights:
            count = jax.tree.leaves(data)[0].shape[0]
            weights = np.arange(count) % 3
            rows = Weighted(data, jnp.asarray(weights, jnp.result_type(float)))
            try:
                weighted = draws(rows)
            except Exception as error:
                message = f"law 'weights' fails: expected {estimator} to take Weighted rows, found "
                raise AssertionError(f"{message}{error}; or say takes_weights=False") from error
            repeated = draws(rows_of(data, np.repeat(np.arange(count), weights)))
            _check_means(laws, "weights", "mean over keys", repeated, weighted)
            checked += ["weights"]
    except jax.errors.JAXTypeError as error:
        what = f"law 'jit' fails: expected {estimator} to compile, found {error}"
        raise AssertionError(what) from error
    return ("structure", "state", *checked, "jit", "vmap", "scan", "retrace")


def _loss(estimator: Estimator, params: Params, key: Array, state: PyTree, batch: PyTree) -> Array:
    return estimator.grad(key, params, state, batch)[2].loss


def _grad(estimator: Estimator, params: Params, key: Array, state: PyTree, batch: PyTree) -> Any:
    return estimator.grad(key, params, state, batch)


@functools.partial(jax.jit, static_argnames=("estimator", "burn_in"))
def _draws(estimator: Estimator, params: Params, keys: Array, batch: PyTree, burn_in: int) -> Array:
    """Gradients of independent runs, [K, P]."""

    def run(key: Array) -> Array:
        init_key, run_key = jax.random.split(key)
        state = estimator.init(init_key, params, batch)

        def update(state: PyTree, index: Array) -> tuple[PyTree, None]:
            return estimator.grad(jax.random.fold_in(run_key, index), params, state, batch)[1], None

        state, _ = jax.lax.scan(update, state, jnp.arange(burn_in))
        last_key = jax.random.fold_in(run_key, burn_in)
        return flat(estimator.grad(last_key, params, state, batch)[0])

    return jax.lax.map(run, keys, batch_size=64)


def _check_contract(laws: Laws, params: Params, key: Array, data: PyTree) -> list[str]:
    """Check a few updates at the same params, and that they do not depend on how they are run."""
    estimator: Estimator = laws.subject
    init_key, run_key = jax.random.split(key)
    state = start = estimator.init(init_key, params, data)
    check_retrace("estimator", estimator, _grad, params, run_key, state, data)
    compiled = jax.jit(_grad, static_argnums=0)
    for index in range(3):
        step_key = jax.random.fold_in(run_key, index)
        found = compiled(estimator, params, step_key, state, data)
        grads, after, info = found
        laws.alike("structure", "gradient", params, grads)
        laws.require(
            "structure", "whether it is finite", True, bool(jnp.isfinite(flat(grads)).all())
        )
        laws.alike("state", "the next state", state, after)
        if index == 0:
            laws.trees(
                "jit",
                "gradient, state, info",
                _grad(estimator, params, step_key, state, data),
                found,
            )
            # Beside a row of other params and another key.
            others = jax.tree.map(lambda leaf: jnp.stack([0.5 * leaf, leaf]), params)
            keys = jnp.stack([init_key, step_key])
            states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
            batched = jax.vmap(_grad, (None, 0, 0, 0, None))(estimator, others, keys, states, data)
            laws.trees("vmap", "gradient, state, info", found, rows_of(batched, 1))
            if hasattr(info, "loss"):
                of_loss = jax.grad(_loss, argnums=1)(estimator, params, step_key, state, data)
                laws.trees("loss", "gradient", of_loss, grads)
        state = after

    def update(state: PyTree, index: Array) -> tuple[PyTree, None]:
        return _grad(estimator, params, jax.random.fold_in(run_key, index), state, data)[1], None

    scanned, _ = jax.lax.scan(update, start, jnp.arange(3))
    laws.trees("scan", "state after 3 updates", state, scanned)
    return ["loss"] if hasattr(info, "loss") else []


def _check_likelihood(
    laws: Laws, model: Product, params: Params, data: PyTree, draws: Array, is_gradient: bool
) -> list[str]:
    """Compare gradients [K, P] with that of the exact negative log-likelihood."""

    def nll(params: Params) -> Array:
        density = jax.vmap(model.log_density, (None, 0))(params, data)
        return exact.log_z(model, params) - jnp.mean(density)

    truth = np.asarray(flat(jax.jit(jax.grad(nll))(params)), float)
    found = np.asarray(draws, float)
    if is_gradient:
        _check_means(laws, "gradient", "mean over keys", truth[None], found)
    along = found @ truth
    low = along.mean() - 4 * along.std() / len(along) ** 0.5
    if not low > 0:
        laws.fail("descent", "inner product with the exact gradient", "> 0", f"{along.mean():.4g}")
    return ["descent", "gradient"] if is_gradient else ["descent"]


def _check_means(laws: Laws, law: str, what: str, expected: Any, found: Any) -> None:
    """Compare means of independent draws [K, P], of which one row may be exact."""
    pair = [np.asarray(v, float) for v in (expected, found)]
    variance = sum(v.var(axis=0) / len(v) for v in pair)
    laws.sampled(law, what, pair[0].mean(axis=0), pair[1].mean(axis=0), np.sqrt(variance))
