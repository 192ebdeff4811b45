"""The log-likelihood of data from both sides, in one call."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _meshes, _random, chains, exact
from poejax import _weights as weights
from poejax._bases import Base, base_rate, student_t_base
from poejax._paths import is_light
from poejax._product import Product
from poejax._weights import LogZ
from poejax.chains import ModelKernel
from poejax.evidence._annealing import ais_init, ais_steps, estimate_of
from poejax.evidence._bracket import Bracket, bracket
from poejax.evidence._likelihood import LogLikelihood, log_likelihood
from poejax.evidence._schedule import adaptive_betas
from poejax.kernels._binding import bound_to
from poejax.types import Array, Event, Kernel, Params

_PIECES = 20

Stage = Literal["sampling", "forward", "reverse"]


class Progress(NamedTuple):
    """How far `test_log_likelihood` is, after each piece of its three stages.

    stage: "sampling" (sweeps), then "forward" and "reverse" (temperatures).
    step: sweeps or temperatures done.
    num_steps: those of the whole stage.
    ess: effective sample size of the weights so far, in [1, num_chains]; NaN while sampling.
    """

    stage: Stage
    step: int
    num_steps: int
    ess: float


Callback = Callable[[Progress], object]
Place = Callable[[Any], Any]


class TwoSided(NamedTuple):
    """Mean log-likelihood of a batch, nats per example, from both sides.

    mean: at the point estimate of log Z, [].
    low, high: the interval of log Z passed on, at least 95 % given exact samples; equal to `mean`
      where log Z is exact, [].
    values: each example's, at the point estimate of log Z, [N].
    example_std_err: standard error of `mean` by the choice of the examples, which the interval does
      not cover; NaN of one, [].
    log_z: the point estimate, or the exact value, [].
    ess: the smaller effective sample size of the two directions, NaN if exact, [].
    pareto_k: the larger k̂ of the two directions, NaN if exact or of fewer than 25 chains, [].
    bracket: what is known of log Z, both directions with it; None if exact.
    """

    mean: Array
    low: Array
    high: Array
    values: Array
    example_std_err: Array
    log_z: Array
    ess: Array
    pareto_k: Array
    bracket: Bracket | None

    @property
    def is_exact(self) -> bool:
        """Whether log Z was summed or integrated, not estimated."""
        return self.bracket is None

    @property
    def forward(self) -> LogLikelihood:
        """By `ais` alone, which tends to be too high; the exact one where log Z is exact."""
        return self._by(None if self.bracket is None else self.bracket.forward)

    @property
    def reverse(self) -> LogLikelihood:
        """By `reverse_ais` alone, which tends to be too low; the exact one where log Z is exact."""
        return self._by(None if self.bracket is None else self.bracket.reverse)

    @property
    def verdict(self) -> str:
        """What was found, and what to do, in a sentence."""
        mean, low, high = (float(v) for v in (self.mean, self.low, self.high))
        found = f"log-likelihood {mean:.2f}"
        if self.bracket is None:
            return f"{found} nats per example; log Z is exact"
        return f"{found} in [{low:.2f}, {high:.2f}] nats per example; {self.bracket.verdict}"

    def _by(self, side: LogZ | None) -> LogLikelihood:
        if side is None:
            return LogLikelihood(self.mean, self.mean, self.mean, self.ess, self.values)
        density = self.mean + self.log_z
        low, high = density - side.ci_high, density - side.ci_low
        values = self.values + self.log_z - side.log_z
        return LogLikelihood(density - side.log_z, low, high, side.ess, values)


def test_log_likelihood(
    rng_key: Array,
    model: Product,
    params: Params,
    x: Event,
    *,
    data: Event | None = None,
    base: Base | None = None,
    betas: Array | int = 1000,
    num_chains: int = 100,
    kernel: ModelKernel | None = None,
    starts: Event | None = None,
    num_sweeps: int = 1000,
    max_states: int = 2**20,
    callback: Callback | None = None,
    every: int | None = None,
    place: Place | None = None,
) -> TwoSided:
    """Bound the mean log-likelihood of a batch of examples `x` [N, ...] from both sides.

    mean log p(x) = mean log f(x) - log Z,  log Z by `bracket` of `ais` and `reverse_ais`

    Where `exact.log_z` takes at most `max_states` terms, that is the answer. Else the reverse walks
    start from samples of the model: chains of `num_sweeps` sweeps from rows of `starts`, or of the
    data. Unless those are exact samples the upper end of log Z, which is the lower end of the
    likelihood, is approximate: chains that have not reached the model's distribution, or all miss
    a mode of it, shift it without a sign. Give persistent chains of the training as `starts`, or
    exact samples and num_sweeps=0, and see the report's `verdict`.

    Args:
      rng_key: one typed key.
      model: the product.
      params: its parameters.
      x: the examples, [N, ...].
      data: rows to fit the base to, and to start chains from, e.g. the training data; `x` when
        None.
      base: where annealing starts; `base_rate` of the data when None, or `student_t_base` where its
        tails would be lighter than the model's.
      betas: inverse temperatures from 0 to 1, [T + 1]; or a number T of them, to be placed by
        `adaptive_betas`.
      num_chains: annealed chains in each direction.
      kernel: as for `ais`; it samples too.
      starts: events where the chains that sample the model start, [M, ...]; taken in random order,
        in turn if they are fewer than chains.
      num_sweeps: steps of these chains; 0 takes `starts` for samples of the model.
      max_states: terms that an exact sum may have; 0 estimates in any case.
      callback: called with a Progress after every piece of a stage, e.g. to draw a bar.
      every: sweeps or temperatures of a piece, a twentieth of the stage when None; the result does
        not depend on it.
      place: given the state of chains, returns it as it is to run, e.g. sharded over devices.

    Returns:
      TwoSided.

    Raises:
      ValueError: as `ais`, `base_rate` and `log_likelihood`, or if `starts` hold no events.

    Warns:
      UserWarning: if the sides disagree or hardly meet, with the verdict; or if the base is too
        light.

    Source: Burda, Grosse & Salakhutdinov (2015), Accurate and conservative estimates of MRF
    log-likelihood using reverse annealing.
    """
    _checks.rng_key("rng_key", rng_key)
    _checks.model("model", model)
    for name, function in (("callback", callback), ("place", place)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: expected a function, got {_checks.describe(function)}")
    for name, count in (("num_sweeps", num_sweeps), ("max_states", max_states)):
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise ValueError(f"{name}: expected an integer of at least 0, got {count!r}")
    if every is not None:
        _checks.positive_int("every", every)
    if num_sweeps == 0 and starts is None:
        raise ValueError("num_sweeps: expected at least 1 from data, which are no samples, got 0")
    x = _border.events("x", model.visible, x)
    log_z = _exact(model, params, max_states)
    if log_z is not None:
        return _report(model, params, x, log_z)
    data = x if data is None else _border.events("data", model.visible, data)
    starts = data if starts is None else _border.events("starts", model.visible, starts)
    base = _base_for(model, params, data) if base is None else base
    num_starts = _checks.leading_axis("starts", starts)
    if num_sweeps == 0 and num_starts < num_chains:
        raise ValueError(
            f"starts: expected at least num_chains = {num_chains} samples where num_sweeps is 0, "
            f"as copies are not independent, got {num_starts}"
        )
    keys = jax.random.split(rng_key, 5)
    if isinstance(betas, int | np.integer):
        betas = adaptive_betas(keys[0], model, params, base, betas, num_chains, kernel)
    # Before the chains run: what is wrong with the arguments is said at once.
    forward = ais_init(keys[1], model, params, base, betas, num_chains, kernel=kernel)
    stages = _Stages(model, params, kernel, callback, every, place or (lambda state: state))
    samples = stages.sample(keys[2], keys[3], starts, num_chains, num_sweeps)
    above = stages.anneal("forward", forward, base, betas)
    backward = ais_init(keys[4], model, params, base, betas, num_chains, samples, kernel)
    below = stages.anneal("reverse", backward, base, betas)
    both = bracket(above, below)
    if not bool(both.is_sound):
        warnings.warn(f"test_log_likelihood: {both.verdict}", UserWarning, stacklevel=2)
    return _report(model, params, x, both)


# For pytest, which would collect it for its name.
test_log_likelihood.__test__ = False  # type: ignore[attr-defined]


class _Stages(NamedTuple):
    """What all stages of a run share."""

    model: Product
    params: Params
    kernel: ModelKernel | None
    callback: Callback | None
    every: int | None
    place: Place

    def tell(self, stage: Stage, step: int, num_steps: int, log_weights: Array | None) -> None:
        if self.callback is not None:
            ess = np.nan if log_weights is None else float(weights.summarize(log_weights).ess)
            self.callback(Progress(stage, step, num_steps, ess))

    def piece(self, num_steps: int) -> int:
        return -(-num_steps // _PIECES) if self.every is None else self.every

    def sample(
        self, choice_key: Array, rng_key: Array, starts: Event, num_chains: int, num_sweeps: int
    ) -> Event:
        """Run chains from random rows of `starts`; returns where they are."""
        num_rows = _checks.leading_axis("starts", starts)
        order = jax.random.permutation(choice_key, num_rows)[jnp.arange(num_chains) % num_rows]
        rows = np.asarray(order)
        x = jax.tree.map(lambda leaf: leaf[rows], starts)
        if num_sweeps == 0:
            return x
        kernel: Any = bound_to(self.model, self.kernel)
        states = self.place(chains.init(rng_key, kernel, self.params, num_chains, x=x))
        for start in range(0, num_sweeps, self.piece(num_sweeps)):
            stop = min(start + self.piece(num_sweeps), num_sweeps)
            states = _sweeps(rng_key, kernel, self.params, states, start, stop)
            self.tell("sampling", stop, num_sweeps, None)
        return states.x

    def anneal(self, stage: Stage, state: Any, base: Base, betas: Array) -> LogZ:
        """Walk all temperatures."""
        num_steps = jnp.shape(betas)[0] - 1
        state = self.place(state)
        for start in range(0, num_steps, self.piece(num_steps)):
            piece = self.piece(num_steps)
            state = ais_steps(state, self.model, self.params, base, betas, piece, self.kernel)
            self.tell(stage, min(start + piece, num_steps), num_steps, state.log_weights)
        return estimate_of(state)


@functools.partial(jax.jit, static_argnames="kernel")
def _sweeps(
    rng_key: Array, kernel: Kernel, params: Params, states: Any, start: int, stop: int
) -> Any:
    """Take the steps from number `start` up to `stop`; other numbers compile nothing."""

    def step(index: Array, states: Any) -> Any:
        return chains.step_all(_random.fold_in(rng_key, index), kernel, params, states)[0]

    states = _meshes.settled(lambda s: step(jnp.zeros((), int), s), states)
    return jax.lax.fori_loop(start, stop, step, states)


def _exact(model: Product, params: Params, max_states: int) -> Array | None:
    """Return log Z where it is cheap, else None; improper parameters raise later, as estimates."""
    if max_states == 0:
        return None
    try:
        name = exact.method(model, max_states)
    except ValueError:
        return None
    if name != "quadrature":
        return exact.log_z(model, params, max_states)
    try:
        return exact.log_z(model, params, max_states)
    except ValueError:  # it did not converge
        return None


def _base_for(model: Product, params: Params, data: Event) -> Base:
    base = base_rate(model, data, params=params if "coordinates" in params else None)
    if not is_light(model, params, base):
        return base
    try:
        return student_t_base(model, params)
    except ValueError:  # too few directions; annealing warns
        return base


def _report(model: Product, params: Params, x: Event, log_z: Bracket | Array) -> TwoSided:
    found = log_likelihood(model, params, x, log_z)
    n = found.values.shape[0]
    unknown: Any = np.asarray(np.nan, found.values.dtype)
    error = jnp.std(found.values, ddof=1) / jnp.sqrt(n) if n > 1 else unknown
    if isinstance(log_z, Bracket):
        ends = (log_z.forward.pareto_k, log_z.reverse.pareto_k)
        k = unknown if np.isnan(ends[0]) else jnp.maximum(*ends)
        point, joint = log_z.log_z, log_z
    else:
        k, point, joint = unknown, log_z, None
    return TwoSided(
        found.mean, found.ci_low, found.ci_high, found.values, error, point, found.ess, k, joint
    )
