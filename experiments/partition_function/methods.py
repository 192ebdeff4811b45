"""Ways to log Z at a given cost, counted in sweeps of one chain."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import poejax as pj
from experiments.lab import ising
from poejax.types import Array, Event, Params

_NUM_CHAINS = 100
_NUM_LADDERS = 20
_LEAST_SPARE = 256  # sweeps before those that are measured, of `tempering.sample`


class Target(NamedTuple):
    """A model of known log Z, and where paths to it start."""

    model: pj.Product
    params: Params
    base: pj.evidence.Base
    log_z: float


class Estimate(NamedTuple):
    """An interval for log Z, in nats, and what it cost."""

    log_z: float
    std_err: float
    low: float
    high: float
    sweeps: int


Method = Callable[[Array, Target, int], Estimate]
"""`(rng_key, target, sweeps) -> estimate`, at about so many sweeps."""


def two_modes(seed: int, num_visible: int = 16, num_hidden: int = 12) -> Target:
    """Return spins of two modes of unequal mass, which block Gibbs does not leave."""
    rng = np.random.default_rng(seed)
    visible, hidden = pj.units.Spin(num_visible), pj.units.Spin(num_hidden)
    bank = pj.experts.HiddenBank(visible, hidden)
    model = pj.product(visible, bias=pj.experts.Bias(visible), hidden=bank)
    side = np.sign(rng.normal(size=num_visible))
    w = 0.25 * np.outer(side, np.sign(rng.normal(size=num_hidden)))
    w += 0.02 * rng.normal(size=w.shape)
    params = {"bias": {"field": 0.03 * side}, "hidden": {"w": w, "b": np.zeros(num_hidden)}}
    params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params)
    return Target(model, params, ising.even_base(model), float(pj.exact.log_z(model, params)))


def random_rbm(seed: int, num_visible: int = 100, num_hidden: int = 16) -> Target:
    """Return an RBM of strong random weights."""
    model = pj.models.rbm(num_visible, num_hidden)
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "bias": {"field": jax.random.normal(keys[0], (num_visible,))},
        "hidden": {
            "w": jax.random.normal(keys[1], (num_visible, num_hidden)),
            "b": jax.random.normal(keys[2], (num_hidden,)),
        },
    }
    base = pj.evidence.base_rate(model, np.eye(num_visible))
    return Target(model, params, base, float(pj.exact.log_z(model, params)))


def critical_ising(size: int) -> Target:
    """Return the Ising model at its critical coupling."""
    model, params = ising.ising(size, ising.CRITICAL)
    return Target(model, params, ising.even_base(model), ising.log_z(size, ising.CRITICAL))


def annealed(rng_key: Array, target: Target, sweeps: int) -> Estimate:
    """AIS at equally spaced temperatures."""
    betas = pj.evidence.linear_betas(max(2, sweeps // _NUM_CHAINS))
    return _of(pj.evidence.ais(rng_key, *target[:3], betas, _NUM_CHAINS), sweeps)


def adaptive(rng_key: Array, target: Target, sweeps: int) -> Estimate:
    """AIS at temperatures placed by pilot runs, which count."""
    pilot_key, run_key = jax.random.split(rng_key)
    betas = _placed(pilot_key, target, sweeps)
    return _of(pj.evidence.ais(run_key, *target[:3], betas, _NUM_CHAINS), sweeps)


def resampled(rng_key: Array, target: Target, sweeps: int) -> Estimate:
    """SMC at the same temperatures."""
    pilot_key, run_key = jax.random.split(rng_key)
    betas = _placed(pilot_key, target, sweeps)
    return _of(pj.evidence.smc(run_key, *target[:3], betas, _NUM_CHAINS)[1], sweeps)


def exchanged(rng_key: Array, target: Target, sweeps: int) -> Estimate:
    """Replica exchange, with Bennett's ratio."""
    report, cost = _ladders(rng_key, target, sweeps, _NUM_LADDERS)[1:]
    return _of(report.log_z, cost)


def bracketed(rng_key: Array, target: Target, sweeps: int) -> Estimate:
    """Both sides by AIS, the upper one from samples of ladders, a third of the cost each."""
    keys = jax.random.split(rng_key, 3)
    x, _, cost = _ladders(keys[0], target, sweeps // 3, _NUM_CHAINS)
    betas = pj.evidence.linear_betas(max(2, sweeps // 3 // _NUM_CHAINS))
    lower = pj.evidence.ais(keys[1], *target[:3], betas, _NUM_CHAINS)
    upper = pj.evidence.reverse_ais(keys[2], *target[:3], betas, x)
    found = pj.evidence.bracket(lower, upper)
    cost += 2 * _NUM_CHAINS * len(betas)
    log_z, std_err, low, high = map(float, (found.log_z, found.std_err, found.low, found.high))
    return Estimate(log_z, std_err, low, high, cost)


METHODS: dict[str, Method] = {
    "AIS": annealed,
    "AIS, adaptive": adaptive,
    "SMC": resampled,
    "replica exchange": exchanged,
    "two-sided": bracketed,
}


def measured(rng_key: Array, target: Target, method: str, sweeps: int) -> dict[str, Any]:
    """Return errors and cost; the second run is timed, when nothing is left to compile."""
    with warnings.catch_warnings():  # small budgets are a part of the study
        warnings.simplefilter("ignore", UserWarning)
        METHODS[method](rng_key, target, sweeps)
        start = time.perf_counter()
        found = METHODS[method](rng_key, target, sweeps)
        seconds = time.perf_counter() - start
    return {
        "error": found.log_z - target.log_z,
        "std_err": found.std_err,
        "width": found.high - found.low,
        "covers": found.low <= target.log_z <= found.high,
        "sweeps": found.sweeps,
        "seconds": seconds,
    }


def _of(found: pj.evidence.LogZ, sweeps: int) -> Estimate:
    log_z, std_err, low, high = map(
        float, (found.log_z, found.std_err, found.ci_low, found.ci_high)
    )
    return Estimate(log_z, std_err, low, high, sweeps)


def _placed(rng_key: Array, target: Target, sweeps: int) -> Array:
    """Return temperatures for what pilot runs, a fifth of the sweeps, leave of them."""
    each = 3 * 5  # pilots, of five sweeps at every temperature
    steps = max(10, sweeps // _NUM_CHAINS // 5 // each)
    left = max(2, sweeps // _NUM_CHAINS - each * steps)
    return pj.evidence.adaptive_betas(
        rng_key, *target[:3], left, _NUM_CHAINS, pilot_steps=steps, num_pilots=3
    )


def _ladders(
    rng_key: Array, target: Target, sweeps: int, num_ladders: int
) -> tuple[Event, pj.tempering.Report, int]:
    """Run ladders of about so many sweeps in all; how many rungs they need is not known before."""
    rungs = max(4, round(0.6 * math.sqrt(target.model.visible.num_sites)) + 4)
    steps = sweeps // (num_ladders * rungs)
    steps = max(32, min(2 * steps // 3, steps - 2 * _LEAST_SPARE))
    x, report = pj.tempering.sample(rng_key, *target[:3], num_chains=num_ladders, num_steps=steps)
    spare = max(_LEAST_SPARE, steps // 4)
    return x, report, num_ladders * len(report.betas) * (steps + 2 * spare)
