"""Langevin and Hamiltonian Monte Carlo, for real visible units; blackjax takes the steps."""

from __future__ import annotations

import abc
import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from poejax import _checks, _meshes
from poejax._product import Product, split_coordinates
from poejax.kernels._base import EventKernel
from poejax.types import Array, ChainState, Event, HMCInfo, MetropolisInfo, Params, PyTree
from poejax.units import Unit


@dataclasses.dataclass(frozen=True)
class GradientKernel(EventKernel, abc.ABC):
    """What MALA and HMC share: a step size, and clamping by conditioning."""

    step_size: float

    def init(self, rng_key: Array, params: Params, x: Event, clamp: PyTree = None) -> ChainState:
        """Return the state of a chain at `x`, in float32 or wider."""
        state = super().init(rng_key, params, x, clamp)
        # One dtype for all blocks, and none in which a small step would round to no step.
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(state.x))
        return ChainState(_cast(state.x, dtype), clamp)

    def step(self, rng_key: Array, params: Params, state: ChainState) -> tuple[ChainState, Any]:
        """Propose a move of the sites that are not clamped, and accept or reject it."""
        return self.step_by(rng_key, params, state, self.step_size)

    @abc.abstractmethod
    def step_by(
        self, rng_key: Array, params: Params, state: ChainState, step_size: Array | float
    ) -> tuple[ChainState, Any]:
        """Take a step of another size, which may be traced: a new one compiles nothing."""

    def log_density(self, params: Params, state: ChainState) -> Callable[[Event], Array]:
        """Return the log density as a function of the position, constant in the clamped sites.

        Those then feel no force. They drift as free particles, which adds the same to both sides
        of the acceptance ratio, and are put back after the step.
        """
        model = self.model
        rest, _ = split_coordinates(params)

        def log_density(y: Event) -> Array:
            if state.clamp is not None:
                _, y = model.standardize(params, _hold(state, model.restore(params, y)))
            return model.log_density(rest, y)

        return log_density

    def position(self, params: Params, state: ChainState) -> Event:
        """Return the event in the parameters' coordinates, in which the steps are taken."""
        return _cast(self.model.standardize(params, state.x)[1], _dtype(state))

    def moved(self, params: Params, state: ChainState, position: Event) -> ChainState:
        """Return the state at a position."""
        x = _cast(self.model.restore(params, position), _dtype(state))
        return ChainState(_hold(state, x), state.clamp)


@dataclasses.dataclass(frozen=True)
class MALA(GradientKernel):
    """Metropolis-adjusted Langevin steps. Build with `mala`."""

    def step_by(
        self, rng_key: Array, params: Params, state: ChainState, step_size: Array | float
    ) -> tuple[ChainState, MetropolisInfo]:
        blackjax = import_blackjax()
        rng_key, params, state = _meshes.alike(rng_key, params, state)
        log_density = self.log_density(params, state)
        # blackjax draws this noise in the default dtype, which is wider than the chain's where
        # float32 chains run under x64; a chain keeps the dtype it started in.
        position = _cast(self.position(params, state), jnp.result_type(float))
        start = blackjax.mala.init(position, log_density)
        step_size = jnp.asarray(step_size, jnp.result_type(float))
        end, info = blackjax.mala.build_kernel()(rng_key, start, log_density, step_size)
        end_state = self.moved(params, state, end.position)
        return end_state, MetropolisInfo(info.acceptance_rate, info.is_accepted)


@dataclasses.dataclass(frozen=True)
class HMC(GradientKernel):
    """Hamiltonian trajectories of a fixed number of leapfrog steps. Build with `hmc`.

    inverse_mass: its diagonal, in the order in which JAX flattens an event; 1 when None.
    """

    num_leapfrog: int
    jitter: float
    inverse_mass: tuple[float, ...] | None

    def step_by(
        self, rng_key: Array, params: Params, state: ChainState, step_size: Array | float
    ) -> tuple[ChainState, HMCInfo]:
        blackjax = import_blackjax()
        rng_key, params, state = _meshes.alike(rng_key, params, state)
        jitter_key, step_key = jax.random.split(rng_key)
        log_density, dtype = self.log_density(params, state), _dtype(state)
        start = blackjax.hmc.init(self.position(params, state), log_density)
        scale = jax.random.uniform(jitter_key, (), dtype, 1 - self.jitter, 1 + self.jitter)
        step_size = jnp.asarray(step_size, dtype) * scale
        end, info = blackjax.hmc.build_kernel()(
            step_key, start, log_density, step_size, self._metric(dtype), self.num_leapfrog
        )
        info = HMCInfo(info.acceptance_rate, info.is_accepted, info.is_divergent)
        return self.moved(params, state, end.position), info

    def _metric(self, dtype: Any) -> Any:
        metrics = import_blackjax().mcmc.metrics
        size = self.model.visible.num_linear
        inverse_mass = jnp.asarray(self.inverse_mass or (1.0,) * size, dtype)

        def kinetic_energy(momentum: Event, position: Event | None = None) -> Array:
            # A sum, not a dot, whose operands accelerators would round.
            flat, _ = ravel_pytree(momentum)
            return 0.5 * jnp.sum(inverse_mass * flat**2)

        return metrics.gaussian_euclidean(inverse_mass)._replace(kinetic_energy=kinetic_energy)


def mala(model: Product, step_size: float) -> MALA:
    """Metropolis-adjusted Langevin algorithm: one gradient step with noise, then accept or reject.

    x' = x + ε ∇log f(x) + √(2ε) ξ, ξ ~ N(0, I), f = exp(log_density);
    accepted with probability min(1, f(x') q(x | x') / (f(x) q(x' | x)))

    Needs the density only, so it samples opaque experts too. The acceptance makes it exact at any
    step size; its info holds acceptance_rate and is_accepted. Reversible in x.

    Args:
      model: a product over real visible units (GaussianDiag, Gaussian, or a Joint of those).
      step_size: ε > 0, in squared units of x, or of the parameters' coordinates if they hold any,
        in which steps are taken; `tune_step_size` finds one. Acceptance near 0.57 is
        best in many dimensions.

    Returns:
      A kernel for one chain; `chains.run` runs many.

    Raises:
      ValueError: if units are not real or `step_size` is not positive.
      ImportError: if blackjax is not installed: pip install 'poejax[sampling]'.

    Source: Roberts & Tweedie (1996); the rate: Roberts & Rosenthal (1998).
    """
    _check_real("mala", model)
    import_blackjax()
    return MALA(model, _positive("step_size", step_size))


def hmc(
    model: Product,
    step_size: float,
    num_leapfrog: int = 10,
    jitter: float = 0.2,
    inverse_mass: PyTree = None,
) -> HMC:
    """Hamiltonian Monte Carlo: follow the gradient with momentum, then accept or reject.

    H(x, p) = -log f(x) + ½ pᵀM⁻¹p, f = exp(log_density), p ~ N(0, M) anew at every step;
    the end of `num_leapfrog` leapfrog steps of size ε u, u ~ U[1 - jitter, 1 + jitter], is
    accepted with probability min(1, exp(-ΔH))

    Needs the density only, so it samples opaque experts too. The acceptance makes it exact at any
    step size; its info holds acceptance_rate, is_accepted and is_divergent. Reversible in x.

    Args:
      model: a product over real visible units (GaussianDiag, Gaussian, or a Joint of those).
      step_size: ε > 0, in units of x (over √inverse_mass), or of the parameters' coordinates if
        they hold any, in which steps are taken; `tune_step_size` finds one. Acceptance near 0.65
        is best in many dimensions.
      num_leapfrog: gradients per step, at least 1.
      jitter: in [0, 1). Without it a trajectory as long as a period of the motion comes back to
        where it began, every time.
      inverse_mass: diagonal of M⁻¹, an array (a dict for joint blocks) shaped as an event, of
        positive numbers such as each site's variance; 1 when None. It is part of the kernel, so
        another one compiles anew.

    Returns:
      A kernel for one chain; `chains.run` runs many.

    Raises:
      ValueError: if units are not real or an argument is out of range.
      ImportError: if blackjax is not installed: pip install 'poejax[sampling]'.

    Source: Duane et al. (1987); Neal (2011), MCMC using Hamiltonian dynamics. The rate: Beskos et
    al. (2013).
    """
    _check_real("hmc", model)
    import_blackjax()
    return HMC(
        model,
        _positive("step_size", step_size),
        _checks.positive_int("num_leapfrog", num_leapfrog),
        _checks.fraction("jitter", jitter),
        None if inverse_mass is None else _diagonal(model.visible, inverse_mass),
    )


def import_blackjax(
    users: str = "kernels.mala, kernels.hmc and kernels.tune_step_size need",
) -> Any:
    """Return the blackjax package, or say how to install it."""
    try:
        return importlib.import_module("blackjax")
    except ImportError as error:
        raise ImportError(
            f"{users} the blackjax package: pip install 'poejax[sampling]'"
        ) from error


def _hold(state: ChainState, x: Event) -> Event:
    return x if state.clamp is None else jax.tree.map(jnp.where, state.clamp, state.x, x)


def _cast(x: Event, dtype: Any) -> Event:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), x)


def _dtype(state: ChainState) -> Any:
    return jnp.result_type(*jax.tree.leaves(state.x))


def _check_real(name: str, model: Product) -> None:
    _checks.model("model", model)
    if not model.visible.is_real:
        raise ValueError(
            f"{name}: expected real visible units (GaussianDiag, Gaussian or a Joint of those), "
            f"got {model.visible}; for discrete units use kernels.gibbs_with_gradients"
        )


def _positive(name: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number fixed at compile time, got {value!r}") from None
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a positive finite number, got {value}")
    return number


def _diagonal(visible: Unit, inverse_mass: PyTree) -> tuple[float, ...]:
    inverse_mass = jax.tree.map(
        np.asarray, inverse_mass, is_leaf=lambda leaf: not isinstance(leaf, dict)
    )
    visible.check("inverse_mass", jax.tree.map(lambda leaf: leaf[None], inverse_mass))
    # As `ravel_pytree` orders them, which is the order of blackjax's momenta.
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(inverse_mass)])
    if not (flat > 0).all():
        raise ValueError(f"inverse_mass: expected positive numbers, got {flat.min():g}")
    return tuple(flat.tolist())
