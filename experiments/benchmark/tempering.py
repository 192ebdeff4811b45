"""Sweeps of ladders of replicas, and round trips on them, beside hamon's on the same model.

Of the Ising model the limit and poejax multiply by a whole matrix, nearly all of it zeros, where
hamon holds the edges. hamon's parallel tempering has one ladder in a call: jax.vmap makes many.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import poejax as pj
from experiments.benchmark import limits
from experiments.benchmark.suites import Case, Sizes, steps_of
from experiments.benchmark.timing import Contestant
from experiments.lab import tables
from experiments.lab.ising import CRITICAL, ising
from poejax.types import Params

OURS, HAMON = "poejax", "hamon"


class Ladders(NamedTuple):
    """A model, and C ladders of K replicas at equally spaced temperatures."""

    name: str
    model: pj.Product
    params: Params
    size: Sizes  # its chains are all replicas
    num_ladders: int
    num_rungs: int
    base: Any = None

    @property
    def betas(self) -> np.ndarray:
        """Inverse temperatures of a ladder's rungs."""
        return np.linspace(0, 1, self.num_rungs)

    def __str__(self) -> str:
        return f"{self.name}, {self.num_ladders} ladders x {self.num_rungs} rungs"


def of_ising(side: int, num_ladders: int, num_rungs: int) -> Ladders:
    """Return ladders from β = 0 to an Ising model on a torus, as an RBM of its two colours."""
    model, params = ising(side, CRITICAL)
    half = side * side // 2
    size = Sizes(half, half, num_ladders * num_rungs)
    name = f"{side}x{side} Ising torus"
    return Ladders(name, model, params, size, num_ladders, num_rungs)


def of_rbm(num_visible: int, num_hidden: int, num_ladders: int, num_rungs: int) -> Ladders:
    """Return ladders from base rates to a random RBM."""
    model, key = pj.models.rbm(num_visible, num_hidden), jax.random.key(0)
    params = model.init(key)
    data = jax.random.bernoulli(key, 0.2, (100, num_visible)).astype(jnp.float32)
    size = Sizes(num_visible, num_hidden, num_ladders * num_rungs)
    base, name = pj.evidence.base_rate(model, data), f"RBM {num_visible}x{num_hidden}"
    return Ladders(name, model, params, size, num_ladders, num_rungs, base)


def case(ladders: Ladders) -> Case:
    """Return sweeps of all replicas with an exchange each, and the products of such a sweep."""
    bank = next(p for p in ladders.params.values() if "w" in p)
    x = jnp.zeros((ladders.size.chains, ladders.size.visible))
    num_steps = steps_of(ladders.size.flop)
    run, start = _ours(ladders)
    found: dict[str, Callable[[], Any]] = {
        "products alone": lambda: limits.sweeps(x, bank["w"], num_steps),
        OURS: lambda: run(jax.random.key(1), start, num_steps),
    }
    if _has_peer(ladders):
        peer = _hamon(ladders)
        found[HAMON] = lambda: peer(jax.random.key(1), num_steps)
    contestants = {name: Contestant(run, num_steps) for name, run in found.items()}
    return Case("tempering", str(ladders), contestants, ladders.size.flips)


def round_trips(ladders: Ladders, num_sweeps: int) -> list[dict[str, Any]]:
    """Count round trips of the replicas on every ladder, after as many sweeps of burn-in."""
    run, start = _ours(ladders)
    state, _ = run(jax.random.key(2), start, num_sweeps)
    later, seen = run(jax.random.key(3), state, num_sweeps, _exchanges)
    trips = later.replicas.num_trips - state.replicas.num_trips
    found = {OURS: (trips, *seen.mean)}
    if _has_peer(ladders):
        peer, key = _hamon(ladders), jax.random.key(2)
        # Its keys are a chain of splits: the shorter run is the beginning of the longer one.
        before, after = peer(key, num_sweeps), peer(key, 2 * num_sweeps)
        found[HAMON] = jax.tree.map(jnp.subtract, after[1], before[1])
    rows = []
    for name, (trips, *exchanges) in found.items():
        accepted, tried = (np.asarray(v, float).sum(axis=0) for v in exchanges)
        per_1000 = 1e3 * np.asarray(trips).sum(axis=1) / num_sweeps
        rows.append(
            {
                "ladders": str(ladders),
                "name": name,
                "sweeps": num_sweeps,
                "per_1000": float(per_1000.mean()),
                "std_err": tables.std_err(per_1000),
                "least_acceptance": float((accepted / tried).min()),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> tables.Table:
    """Return round trips and how often the pair of rungs that is worst exchanges."""
    columns = {
        "": "{name}",
        "per 1,000 sweeps": "{per_1000:.2f} ± {std_err:.2f}",
        "least acceptance": "{least_acceptance:.2f}",
    }
    caption = (
        f"round trips, {rows[0]['ladders']} at equal steps of β from 0 to 1, {rows[0]['sweeps']:,} "
        "sweeps after as many of burn-in; poejax exchanges with one colour summed out, hamon by "
        "the energy of both; hamon has one ladder in a call, jax.vmap makes many of it"
    )
    return tables.of_records(caption, columns, rows)


def _exchanges(params: Params, state: Any, info: Any) -> tuple[jax.Array, jax.Array]:
    return info.is_accepted, info.is_tried


def _ours(ladders: Ladders) -> tuple[Callable[..., Any], Any]:
    """Return `(key, states, num_sweeps, observe=None) -> (states, observed)`, and its start."""
    kernel = pj.tempering.replica_exchange(ladders.model, ladders.betas.tolist(), ladders.base)
    start = pj.chains.init(jax.random.key(0), kernel, ladders.params, ladders.num_ladders)

    def run(key: jax.Array, states: Any, num_sweeps: int, observe: Any = None) -> Any:
        return pj.chains.run(key, kernel, ladders.params, states, num_sweeps, observe)

    return run, start


def _has_peer(ladders: Ladders) -> bool:
    # A Python object for every edge, of which a whole RBM has too many.
    return bool(importlib.util.find_spec(HAMON)) and ladders.base is None


def _hamon(ladders: Ladders) -> Callable[..., Any]:
    """Return `(key, num_sweeps) -> (states, (trips [C, K], accepted, tried [C, K - 1]))`."""
    # By name, as it need not be installed where types are checked.
    hamon, models = (importlib.import_module(f"{HAMON}{of}") for of in ("", ".models.ising"))
    (bank,) = ladders.params.values()
    w = np.asarray(bank["w"])
    colours = [[hamon.SpinNode() for _ in range(n)] for n in w.shape]
    rows, columns = np.nonzero(w)
    edges = [(colours[0][i], colours[1][j]) for i, j in zip(rows, columns, strict=True)]
    nodes, couplings = colours[0] + colours[1], jnp.asarray(w[rows, columns])
    model = models.IsingEBM(nodes, edges, jnp.zeros(len(nodes)), couplings, jnp.asarray(1.0))
    blocks = [hamon.Block(colours[1]), hamon.Block(colours[0])]
    program = models.IsingSamplingProgram(model, blocks, [])
    betas = jnp.asarray(ladders.betas)
    starts = [jnp.zeros((ladders.num_rungs, len(block.nodes)), bool) for block in blocks]

    def one(key: jax.Array, num_sweeps: int) -> Any:
        states, stats = hamon.nrpt(key, model, program, starts, [], num_sweeps, 1, betas)
        trips = stats["index_state"]["round_trips"]
        return states, (trips, stats["accepted"], stats["attempted"])

    @functools.partial(jax.jit, static_argnums=1)
    def run(key: jax.Array, num_sweeps: int) -> Any:
        keys = jax.random.split(key, ladders.num_ladders)
        return jax.vmap(lambda key: one(key, num_sweeps))(keys)

    return run
