"""Posterior means by Gibbs chains: what the model and an observation together say about x."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _meshes, _random, chains, propriety
from poejax._numerics import add, at_least_float32
from poejax._product import Product, product, split_coordinates
from poejax.chains import ModelKernel
from poejax.experts import Bias
from poejax.inference._noise import Noise
from poejax.kernels._binding import bound_to
from poejax.types import Array, Event, Kernel, Params, PyTree


class Posterior(NamedTuple):
    """Monte Carlo estimates for a batch of observations.

    mean: E[x | observation], shaped as the batch; probabilities for binary units.
    std_err: its standard error, from the spread between independent chains.
    samples: the chains' last states, [N, num_chains, ...].
    """

    mean: Event
    std_err: Event
    samples: Event


def denoise(
    rng_key: Array,
    model: Product,
    params: Params,
    noisy: Event,
    noise: Noise,
    *,
    num_chains: int = 4,
    num_steps: int = 200,
    burn_in: int = 100,
    kernel: ModelKernel | None = None,
    batch_size: int = 256,
) -> Posterior:
    """Posterior mean of clean events given a batch of noisy ones.

    p(x | y) ∝ p(x) p(y | x): the noise process is one more expert, whose field depends on y.

    Under block Gibbs each step contributes E[x | z], which varies less than x itself. The chains
    of an event start at the noisy event. A noise of your own has the methods of `Noise` and is
    registered with JAX, e.g. by `jax.tree_util.register_dataclass`.

    Args:
      rng_key: one typed key; row n draws by fold_in(rng_key, n).
      model: the product, the prior of clean events.
      params: its parameters.
      noisy: batch of events [N, ...].
      noise: the process that made them, e.g. `BitFlips(0.1)` or `GaussianNoise(0.5)`.
      num_chains: independent chains per event, at least 2 for a standard error.
      num_steps: steps of each chain.
      burn_in: steps before averaging starts, less than `num_steps`.
      kernel: a kernel of `model`, whose settings serve the product of prior and noise;
        `block_gibbs(model)` when None.
      batch_size: events in flight at a time, which bounds memory.

    Returns:
      Posterior.

    Raises:
      ValueError: if `noisy` holds no events of the visible units, the noise is of another kind,
        prior and noise together are known to have no finite Z, or a count is out of range.
      TypeError: if `noise` is no noise.

    Source: Geman & Geman (1984) for posterior sampling of images; the product view, Hinton (2002).
    """
    _checks.model("model", model)
    noisy = _border.events("noisy", model.visible, noisy)
    if isinstance(noise, type) or not hasattr(noise, "field"):
        raise TypeError(f"noise: expected e.g. BitFlips(0.1) or GaussianNoise(0.5), got {noise!r}")
    if jax.tree_util.all_leaves([noise]):
        raise TypeError(
            "noise: expected an object registered with JAX, e.g. by "
            f"jax.tree_util.register_dataclass, got {noise!r}"
        )
    _check(rng_key, model, num_chains, num_steps, burn_in, batch_size, kernel)
    model.check_params(params)
    first = jax.tree.map(lambda leaf: leaf[0], noisy)
    posterior, given = _with_noise(model, params, noise, first)
    propriety.require_proper(posterior, given)
    return _denoise(
        rng_key, model, params, noisy, noise, num_chains, num_steps, burn_in,
        bound_to(posterior, kernel), batch_size,
    )  # fmt: skip


def inpaint(
    rng_key: Array,
    model: Product,
    params: Params,
    x: Event,
    observed: PyTree,
    *,
    num_chains: int = 4,
    num_steps: int = 200,
    burn_in: int = 100,
    kernel: ModelKernel | None = None,
    batch_size: int = 256,
) -> Posterior:
    """Posterior mean of a batch of events with missing sites, each row with a mask of its own.

    E[x | x_observed], by chains that hold the observed sites and start the others at random. Where
    p(x | x_observed) has no finite Z the chains diverge, which is seen only once they overflow.

    Args:
      rng_key: one typed key; row n draws by fold_in(rng_key, n).
      model: the product.
      params: its parameters.
      x: batch of events [N, ...]; what it holds at missing sites is not looked at.
      observed: boolean mask of the sites to keep, one for all rows [D] or one each [N, D]; a dict
        of masks for joint units.
      num_chains, num_steps, burn_in, kernel, batch_size: as for `denoise`.

    Returns:
      Posterior; at observed sites the mean is `x` and the standard error 0.

    Raises:
      ValueError: if `x` is no batch of events, an observed site holds no value of its unit, a mask
        does not fit, or the mean comes out infinite or NaN (not under an outer jit).
      TypeError: if a mask is not boolean.
    """
    _checks.model("model", model)
    x = _border.tree("x", x)
    num_rows = _checks.leading_axis("x", x)
    # Shapes first: where masks are applied, wrong ones would broadcast.
    check_shapes(model, "x", x)
    observed = per_row_masks(model, observed, num_rows)
    check_observed(model, "x", x, observed)
    x = fill(model, x, observed)
    _check(rng_key, model, num_chains, num_steps, burn_in, batch_size, kernel)
    model.check_params(params)
    posterior = _inpaint(
        rng_key, model, params, x, observed, num_chains, num_steps, burn_in,
        bound_to(model, kernel), batch_size,
    )  # fmt: skip
    try:
        _checks.finite("mean", posterior.mean)
    except ValueError:
        raise ValueError(
            "params: expected a finite posterior mean, got NaN or infinity; p(x | x_observed) has "
            "no finite Z, or the chains diverge"
        ) from None
    return posterior


def per_row_masks(model: Product, observed: PyTree, num_rows: int) -> PyTree:
    """Return masks with a leading row axis, checked against the model's visible units."""
    masks = jax.tree.map(jnp.asarray, _border.tree("observed", observed))
    if len(ranks := {jnp.ndim(mask) for mask in jax.tree.leaves(masks)}) > 1:
        raise ValueError(f"observed: expected masks all [D] or all [N, D], got ranks {ranks}")
    if all(jnp.ndim(mask) == 2 for mask in jax.tree.leaves(masks)):
        _checks.one_row_per_chain("observed", masks, num_rows)
        model.visible.check_mask("observed", jax.tree.map(lambda mask: mask[0], masks))
        return masks
    model.visible.check_mask("observed", masks)
    return jax.tree.map(lambda mask: jnp.broadcast_to(mask, (num_rows, *mask.shape)), masks)


def fill(model: Product, x: Event, observed: PyTree) -> Event:
    """Return the batch with an arbitrary but valid value at missing sites, NaN or not before."""
    blank = model.visible.random_event(jax.random.key(0))

    def one(mask: PyTree, x: Event) -> Event:
        return model.visible.select(mask, x, blank)

    return jax.vmap(one)(observed, x)


def check_shapes(model: Product, name: str, x: Event) -> None:
    """Raise unless the batch `x` has the shape of events, whatever it holds."""
    model.visible.check(name, jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, float), x))


def check_observed(model: Product, name: str, x: Event, observed: PyTree) -> None:
    """Raise unless what `x` holds at observed sites, in its own precision, are values of them."""
    if not _checks.is_concrete(x, observed):
        return

    def complete(x: Array, mask: Array, blank: Array) -> np.ndarray:
        # With what the site holds in another row: of real units too it is a likely value.
        values, seen = _meshes.to_host(x), _meshes.to_host(mask)
        first = values[seen.argmax(axis=0), np.arange(seen.shape[1])]
        missing = np.where(_expand(np.any(seen, axis=0), first), first, np.asarray(blank))
        return np.where(_expand(seen, values), values, missing.astype(values.dtype))

    blank = model.visible.random_event(jax.random.key(0))
    model.visible.check(name, jax.tree.map(complete, x, observed, blank))


def _expand(mask: Any, x: np.ndarray) -> np.ndarray:
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


@functools.partial(
    jax.jit,
    static_argnames=("model", "num_chains", "num_steps", "burn_in", "kernel", "batch_size"),
)
def _denoise(
    rng_key: Array,
    model: Product,
    params: Params,
    noisy: Event,
    noise: Noise,
    num_chains: int,
    num_steps: int,
    burn_in: int,
    kernel: Kernel,
    batch_size: int,
) -> Posterior:
    def one(arguments: tuple[Array, Event]) -> Posterior:
        key, y = arguments
        posterior, given = _with_noise(model, params, noise, y)
        keys = chains.chain_keys(_random.fold_in(key, 0), num_chains)
        states = jax.vmap(kernel.init, in_axes=(0, None, None))(keys, given, y)
        return _average(key, kernel, posterior, given, states, num_steps, burn_in)

    return _map_rows(one, rng_key, noisy, batch_size)


@functools.partial(
    jax.jit,
    static_argnames=("model", "num_chains", "num_steps", "burn_in", "kernel", "batch_size"),
)
def _inpaint(
    rng_key: Array,
    model: Product,
    params: Params,
    x: Event,
    observed: PyTree,
    num_chains: int,
    num_steps: int,
    burn_in: int,
    kernel: Kernel,
    batch_size: int,
) -> Posterior:
    def one(arguments: tuple[Array, tuple[Event, PyTree]]) -> Posterior:
        key, (x, mask) = arguments
        keys = chains.chain_keys(_random.fold_in(key, 0), num_chains)

        def start(key: Array) -> PyTree:
            at_random = model.init_visible(_random.fold_in(key, 1), params)
            return kernel.init(key, params, model.visible.select(mask, x, at_random), mask)

        return _average(key, kernel, model, params, jax.vmap(start)(keys), num_steps, burn_in)

    return _map_rows(one, rng_key, (x, observed), batch_size)


def _with_noise(model: Product, params: Params, noise: Noise, y: Event) -> tuple[Product, Params]:
    """Return prior times noise, p(x) p(y | x) as a function of x, and its parameters."""
    posterior = product(model.visible, prior=model, noise=Bias(model.visible))
    prior, coordinates = split_coordinates(params)
    field = model.visible.move_field(noise.field(model.visible, y), coordinates)
    given = {"prior": prior, "noise": {"field": field}}
    return posterior, given | ({"coordinates": coordinates} if coordinates else {})


def _average(
    rng_key: Array,
    kernel: Kernel,
    model: Product,
    params: Params,
    states: PyTree,
    num_steps: int,
    burn_in: int,
) -> Posterior:
    """Run the chains of one event and average what each says of x after `burn_in`."""

    better = getattr(kernel, "conditional_mean", None)

    def conditional_mean(state: PyTree, info: PyTree) -> Event:
        return state.x if better is None else better(params, state, info)

    def take(states: PyTree, index: Array) -> tuple[PyTree, Event]:
        key = _random.fold_in(rng_key, 1 + index)
        states, info = chains.step_all(key, kernel, params, states)
        mean = jax.vmap(conditional_mean)(states, info)
        return states, jax.tree.map(at_least_float32, mean)

    def step(carry: Any, index: Array) -> tuple[Any, None]:
        (states, means, rests), count = carry, index - burn_in + 1
        states, new = take(states, index)
        # A running mean: a sum of many terms would lose digits, and move what is held.
        # Never divided by 0: where's other branch would make gradients NaN.
        step = jnp.maximum(count, 1).astype(jnp.result_type(float))

        def one(mean: Array, rest: Array, v: Array) -> tuple[Array, Array]:
            return add(mean, rest, jnp.where(count > 0, ((v - mean) - rest) / step, 0.0))

        pairs = jax.tree.map(one, means, rests, new)
        means, rests = jax.tree.transpose(jax.tree.structure(means), None, pairs)
        return (states, means, rests), None

    _, shapes = jax.eval_shape(take, states, jnp.zeros((), int))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    start = _meshes.settled(lambda c: step(c, jnp.zeros((), int))[0], (states, zeros, zeros))
    (states, means, _), _ = jax.lax.scan(step, start, jnp.arange(num_steps))
    # About the first chain, so that chains that agree have their value and an error of 0 exactly.
    shifted = jax.tree.map(lambda m: m - m[0], means)
    mean = jax.tree.map(lambda m, s: m[0] + jnp.mean(s, axis=0), means, shifted)
    std_err = jax.tree.map(lambda s: jnp.std(s, axis=0, ddof=1) / s.shape[0] ** 0.5, shifted)
    return Posterior(mean, std_err, states.x)


def _map_rows(
    one: Callable[[tuple[Array, PyTree]], Posterior], rng_key: Array, rows: PyTree, batch_size: int
) -> Posterior:
    num_rows = _checks.leading_axis("rows", rows)
    keys = chains.chain_keys(rng_key, num_rows)
    return jax.lax.map(one, (keys, rows), batch_size=min(batch_size, num_rows))


def _check(
    rng_key: Array,
    model: Product,
    num_chains: int,
    num_steps: int,
    burn_in: int,
    batch_size: int,
    kernel: ModelKernel | None,
) -> None:
    _checks.kernel_of("kernel", kernel, model)
    _checks.rng_key("rng_key", rng_key)
    if _checks.positive_int("num_chains", num_chains) < 2:
        raise ValueError("num_chains: expected at least 2 for a standard error, got 1")
    _checks.positive_int("num_steps", num_steps)
    if not isinstance(burn_in, (int, np.integer)) or not 0 <= burn_in < num_steps:
        raise ValueError(f"burn_in: expected an integer, 0 to {num_steps - 1}, got {burn_in!r}")
    _checks.positive_int("batch_size", batch_size)
