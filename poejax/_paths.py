"""The path from a base to a model, its temperatures, and what can be known to go wrong on it."""

from __future__ import annotations

import math
import warnings

import jax.numpy as jnp
import numpy as np

from poejax import _checks, _meshes, propriety
from poejax._bases import Base
from poejax._product import Product, product, split_coordinates
from poejax._weights import LogZ
from poejax.chains import ModelKernel
from poejax.types import Array, Event, Params

RESOLUTION = 0.1
"""Nats to which the dtype has to resolve what is estimated."""


def linear_betas(num_steps: int) -> Array:
    """Return `num_steps` + 1 equally spaced inverse temperatures from 0 to 1."""
    return jnp.linspace(0.0, 1.0, _checks.positive_int("num_steps", num_steps) + 1)


def salakhutdinov_murray_betas() -> Array:
    """Return the 14,501 inverse temperatures 0:1e-3:0.5, 0.5:1e-4:0.9, 0.9:1e-5:1.

    Source: Salakhutdinov & Murray (2008), section 5.
    """
    pieces = [np.linspace(0, 0.5, 501)[:-1], np.linspace(0.5, 0.9, 4001)[:-1]]
    return jnp.asarray(np.concatenate([*pieces, np.linspace(0.9, 1.0, 10_001)]))


def path_of(model: Product, base: Base) -> Product:
    """Return base times model, both without coordinates."""
    return product(model.visible, base=base.model, target=model)


def path_params(path: Product, params: Params, base: Base, beta: Array) -> Params:
    """Return its parameters at `beta`: 0 is the base, 1 the model."""
    base_model, model = path.experts["base"], path.experts["target"]
    return {
        "base": base_model.temper(base.params, 1 - beta),
        "target": model.temper(params, beta),
    }


def log_z_at_start(path: Product, params: Params, base: Base, x: Event) -> Array:
    """Return log Z of the path at beta = 0, [], given any event `x`; params without coordinates.

    Tempering to β = 0 leaves constants: the model's at the start (H log 2 for binary hidden units)
    multiply the base's Z, the base's at the end would multiply the model's.
    """
    model = path.experts["target"]
    left_at_start = jnp.sum(model.log_factors(model.temper(params, 0.0), x))
    left_at_end = jnp.sum(base.model.log_factors(base.model.temper(base.params, 0.0), x))
    return base.log_z + left_at_start - left_at_end


def check_path(
    model: Product,
    params: Params,
    base: Base,
    kernel: ModelKernel | None,
    num_chains: int,
    stacklevel: int = 4,
) -> bool:
    """Raise unless chains can be annealed from base to model; warn of light tails, and say so."""
    if _checks.positive_int("num_chains", num_chains) < 2:
        raise ValueError("num_chains: expected at least 2 for a standard error, got 1")
    _checks.model("model", model)
    if not isinstance(base, Base):
        raise TypeError(
            "base: expected a base such as evidence.base_rate(model, data), got "
            f"{_checks.describe(base)}"
        )
    if base.model.visible != model.visible:
        raise ValueError(f"base: expected units {model.visible}, got {base.model.visible}")
    propriety.require_proper(model, params)
    require_reach(model, params)
    _checks.kernel_of("kernel", kernel, model, alone=True)
    if found := is_light(model, params, base):
        warnings.warn(
            "base: its Gaussian tails are lighter than the model's, which decays only as a power "
            "in some direction: the weights have infinite variance and the error bar lies; take "
            "evidence.student_t_base",
            UserWarning,
            stacklevel=stacklevel,
        )
    return found


def is_light(model: Product, params: Params, base: Base) -> bool:
    """Whether the weights are known to have infinite variance."""
    ours = propriety.total_tails(model, params)
    theirs = propriety.total_tails(base.model, base.params)
    if ours is None or theirs is None:
        return False
    return bool(propriety.sees(theirs.decay, propriety.uncovered(ours)).any())


def require_reach(model: Product, params: Params) -> None:
    """Raise where natural parameters about zero keep no digits of a Gaussian far from it."""
    if model.visible.num_states is not None or not _checks.is_concrete(params):
        return
    for name, expert, own in model.present(split_coordinates(params)[0]):
        depth = float(expert.depth(own))
        if depth * float(jnp.finfo(jnp.result_type(float)).eps) > RESOLUTION:
            raise ValueError(
                f"params['{name}']: expected a mean near the origin of coordinates, got one "
                f"{math.sqrt(2 * depth):.3g} standard deviations away, where natural parameters "
                "keep too few digits to anneal by; start from model.init_from(...), whose "
                "parameters hold coordinates near the data, or set jax_enable_x64"
            )


def check_betas(betas: Array) -> None:
    """Raise unless the temperatures rise from 0 to 1."""
    if np.ndim(betas) != 1 or np.shape(betas)[0] < 2:
        raise ValueError(f"betas: expected shape (T + 1,), T >= 1, got {np.shape(betas)}")
    if _checks.is_concrete(betas):
        values = _meshes.to_host(betas)
        if values[0] != 0 or values[-1] != 1 or not np.all(np.diff(values) >= 0):
            raise ValueError(
                f"betas: expected to rise from 0 to 1, got {values[0]} ... {values[-1]}"
                f"{'' if np.all(np.diff(values) >= 0) else ', not monotone'}"
            )


def require_resolution(caller: str, found: LogZ) -> None:
    """Raise where the dtype of log Z keeps too few digits of it."""
    if abs(float(found.log_z)) * float(jnp.finfo(found.log_z.dtype).eps) > RESOLUTION:
        raise ValueError(
            f"{caller}: expected a log Z that {found.log_z.dtype} resolves to {RESOLUTION} nats, "
            f"got {float(found.log_z):.3g}; set jax_enable_x64"
        )
