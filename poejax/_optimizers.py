"""What an optax optimizer gets from training, and which ones need more than that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from poejax import _checks
from poejax.types import Array, Params, PyTree

LossFn = Callable[[Params], Array]


def check(tx: Any) -> None:
    """Raise TypeError unless `tx` is an optimizer of optax."""
    if isinstance(tx, type) or not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(
            f"tx: expected an optimizer such as optax.adam(1e-3), got {_checks.describe(tx)}"
        )


def check_state(
    tx: optax.GradientTransformation, params: Params, opt_state: optax.OptState
) -> None:
    """Raise ValueError unless `opt_state` is of `tx` and of parameters like these."""
    expected = jax.eval_shape(tx.init, params)
    wanted, found = (
        (str(jax.tree.structure(tree)), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (expected, opt_state)
    )
    if wanted != found:
        raise ValueError(
            "tx: expected the optimizer that training.init was given, got one whose state is not "
            "like state.opt_state"
        )


def check_needs(
    tx: optax.GradientTransformation, params: Params, opt_state: optax.OptState, step: Any
) -> None:
    """Raise TypeError if `tx` needs more to update parameters than `step()`, a step, gives it.

    Most optimizers need gradients and parameters only; those that fail with these are tried with
    the step itself, which knows whether the estimator has a loss.
    """
    try:
        jax.eval_shape(tx.update, params, opt_state, params)
    except Exception:
        try:
            jax.eval_shape(step)
        except Exception as error:
            reason = str(error).split("\n")[0]
            raise TypeError(
                "tx: expected an optimizer that updates by gradients and parameters, or by the "
                "value, grad and value_fn that estimators of a loss give, such as "
                f"pseudo_likelihood; got one that fails on a step: {reason}"
            ) from error


def update(
    tx: optax.GradientTransformation,
    grads: Params,
    opt_state: optax.OptState,
    params: Params,
    info: PyTree,
    loss_fn: LossFn,
    share: Array | None = None,
) -> tuple[Params, optax.OptState]:
    """Return optax's updates; the loss goes with the gradients where an estimator states one.

    `share` is what the gradients were multiplied by.
    """
    if not hasattr(info, "loss"):
        return tx.update(grads, opt_state, params)
    tx = optax.with_extra_args_support(tx)
    value = info.loss if share is None else share * info.loss

    def value_fn(params: Params) -> Array:
        return loss_fn(params) if share is None else share * loss_fn(params)

    return tx.update(grads, opt_state, params, value=value, grad=grads, value_fn=value_fn)
