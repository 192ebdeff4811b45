"""The one gradient rule that all sampling estimators share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from poejax import _checks, _meshes, _random, chains
from poejax._numerics import always, relative_weights
from poejax._product import Product
from poejax.experts._forms import Bank
from poejax.kernels import block_gibbs
from poejax.types import Array, EstimatorInfo, Event, Kernel, Params, PyTree, Weighted

T = TypeVar("T", bound=PyTree)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What an estimator is whose rows are events of its model, and that carries nothing along."""

    model: Product

    @property
    def check_data(self) -> Callable[[str, Any], None] | None:
        """None: the rows are events."""
        return None

    def init(self, rng_key: Array, params: Params, data: Event) -> Any:
        """Return the empty state."""
        del rng_key, params, data
        return ()


def mean_log_density(model: Product, params: Params, x: Event) -> Array:
    """Return the mean unnormalised log density of a batch, which may be Weighted."""
    return mean_of_rows(lambda event: model.log_density(params, event), x)


def mean_of_rows(fn: Callable[..., PyTree], batch: Any, *others: PyTree) -> PyTree:
    """Return the mean over a batch, which may be Weighted, of `fn` of a row (and of `others`)."""
    x, weights = (batch.x, batch.weights) if isinstance(batch, Weighted) else (batch, None)
    values = jax.vmap(fn)(x, *others)
    if weights is None:
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), values)
    weights = relative_weights(weights)
    total = jnp.sum(weights)
    share = weights / jnp.where(total > 0, total, 1)  # a batch may be of rows of weight 0
    return jax.tree.map(lambda leaf: jnp.tensordot(share.astype(leaf.dtype), leaf, 1), values)


def banks_of(model: Product) -> dict[str, Bank]:
    """Return the hidden banks that a product multiplies itself, by name."""
    return {name: e.bank for name, e in model.items if e.bank is not None}


def mean_statistics(model: Product, params: Params, x: Event) -> tuple[Array, dict[str, Array]]:
    """Return E_data[t(x)], [M], and of every bank E_data[E[t(z) | x]], {name: [N]}, of a batch."""

    def means(x: Event) -> tuple[Array, dict[str, Array]]:
        _, y = model.standardize(params, x)
        banks = banks_of(model).items()
        hidden = {name: bank.features(params[name], y) for name, bank in banks}
        return model.visible.linear_statistic(y), hidden

    return mean_of_rows(means, x)


def with_rows(batch: Any, x: Event) -> Any:
    """Return `x` as what stands in for the rows of a batch, with its weights if it has some."""
    return batch._replace(x=x) if isinstance(batch, Weighted) else x


def own_kernel(model: Product, kernel: Kernel | None) -> Kernel:
    """Return `kernel` if it samples `model`, block Gibbs if it is None."""
    _checks.model("model", model)
    if kernel is None:
        return block_gibbs(model)
    _checks.kernel("kernel", kernel)
    if (found := getattr(kernel, "model", model)) != model:
        raise ValueError(f"kernel: expected one of {model}, got one of {found}")
    return kernel


def own_model(name: str, estimator: Any, model: Product | None = None) -> Product:
    """Return the model of an estimator for complete events, which `model` may name again."""
    _checks.estimator(name, estimator)
    if _checks.own_rows(estimator) is not None:
        raise ValueError(
            f"{name}: expected an estimator for complete events; put `imputed` outside"
        )
    found = _checks.learned_model(estimator)
    wanted = found if model is None else model
    if wanted is None:
        raise ValueError(f"{name}: expected an estimator of a model, got one that names none")
    _checks.model("model", wanted)
    if found is not None and found != wanted:
        raise ValueError(f"{name}: expected an estimator of {wanted}, got one of {found}")
    return wanted


def advance(rng_key: Array, kernel: Kernel, params: Params, states: Any, num_steps: int) -> Any:
    """Return the states of a batch of chains after `num_steps` steps."""

    def body(states: Any, index: Array) -> tuple[Any, None]:
        key = _random.fold_in(rng_key, index)
        return chains.step_all(key, kernel, params, states)[0], None

    states = _meshes.settled(lambda s: body(s, jnp.zeros((), int))[0], states)
    return _written(rng_key, jax.lax.scan(body, states, jnp.arange(num_steps))[0], states)


def _written(rng_key: Array, drawn: T, before: T) -> T:
    """Return `drawn`, made once: XLA would draw the chains anew for every sum over them.

    Under vmap over keys its condition becomes a selection, which is right but fuses.
    """

    def by_condition(drawn: T) -> T:
        holds = always(jax.random.key_data(rng_key))
        kept: T = jax.lax.cond(holds, lambda s: s, lambda _: before, drawn)
        return kept

    def by_barriers(drawn: T) -> T:
        # One for each: what is common to all devices must not vary for what is not.
        kept: T = jax.tree.map(jax.lax.optimization_barrier, drawn)
        return kept

    written: T = jax.lax.platform_dependent(drawn, cpu=by_condition, default=by_barriers)
    return written


def surrogate(model: Product, params: Params, x_data: Event, x_model: Event) -> Array:
    """Loss whose gradient, under exact samples `x_model`, is that of the negative log-likelihood.

    -mean log_density(params, x_data) + mean log_density(params, x_model), x_model held fixed

    Differentiable in `x_data` too, so that it trains whatever network computed them. Its value is
    no likelihood.

    Args:
      model: the product.
      params: its parameters.
      x_data: batch of events [N, ...], which may be Weighted.
      x_model: batch of samples of the model [M, ...], e.g. the states of persistent chains.

    Returns:
      [].

    Source: Hinton (2002), section 3.
    """
    fantasy = mean_log_density(model, params, jax.lax.stop_gradient(x_model))
    return fantasy - mean_log_density(model, params, x_data)


def contrast(
    model: Product, params: Params, x_data: Event, x_model: Event
) -> tuple[Params, EstimatorInfo]:
    """Gradient of `surrogate` by the parameters, with both mean densities."""

    def loss(params: Params) -> tuple[Array, EstimatorInfo]:
        data = mean_log_density(model, params, x_data)
        fantasy = mean_log_density(model, params, x_model)
        return fantasy - data, EstimatorInfo(data, fantasy)

    params, x_data, x_model = _meshes.alike(params, x_data, x_model)
    return jax.grad(loss, has_aux=True)(params)
