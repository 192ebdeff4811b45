"""What is timed beside what: poejax's drivers, the limits of each, and peers."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import poejax as pj
from experiments.benchmark import limits, peers
from experiments.benchmark.timing import Contestant
from poejax import streams, training

BATCH = 100
_LOW = "bfloat16"
_WORK = 1.5e10  # floating-point operations of one timing, some tenths of a second


class Case(NamedTuple):
    """One size of one suite; the first contestant is the limit that others are measured by."""

    suite: str
    size: str
    contestants: dict[str, Contestant]
    flips_per_step: int  # sites drawn


class Sizes(NamedTuple):
    """Visible units, hidden units and chains."""

    visible: int
    hidden: int
    chains: int

    def __str__(self) -> str:
        return f"{self.visible}x{self.hidden}, {self.chains:,} chains"

    @property
    def flips(self) -> int:
        """Sites of all chains."""
        return self.chains * (self.visible + self.hidden)

    @property
    def flop(self) -> float:
        """Operations of the two products of a sweep of all chains."""
        return 4.0 * self.chains * self.visible * self.hidden


def steps_of(flop: float, least: int = 3, most: int = 400) -> int:
    """Return how many steps of so many operations are one timing."""
    return int(np.clip(_WORK / flop, least, most))


def _low(size: Sizes) -> pj.Product:
    return pj.models.rbm(size.visible, size.hidden, compute_dtype=_LOW)


def _rbm(size: Sizes) -> tuple[Any, Any, Any, Any]:
    model, key = pj.models.rbm(size.visible, size.hidden), jax.random.key(0)
    params = model.init(key)
    kernel = pj.kernels.block_gibbs(model)
    return model, params, kernel, pj.chains.init(key, kernel, params, size.chains)


def gibbs(size: Sizes, with_peers: bool) -> Case:
    """Return block-Gibbs sweeps of an RBM."""
    _, params, kernel, chains = _rbm(size)
    low = pj.kernels.block_gibbs(_low(size))
    x, w, key = chains.x, params["hidden"]["w"], jax.random.key(1)
    num_steps = steps_of(size.flop)
    h = jnp.zeros((size.chains, size.hidden))
    found = {
        "products alone": lambda: limits.sweeps(x, w, num_steps),
        "bits alone": lambda: limits.bits(x, h, num_steps),
        "poejax": lambda: pj.chains.run(key, kernel, params, chains, num_steps),
        f"products alone, {_LOW}": lambda: limits.sweeps(x, w, num_steps, low=True),
        f"poejax, Gibbs in {_LOW}": lambda: pj.chains.run(key, low, params, chains, num_steps),
    }
    contestants = {name: Contestant(run, num_steps) for name, run in found.items()}
    if with_peers:
        contestants |= peers.sweeps(params, np.asarray(x), num_steps)
    return Case("gibbs", str(size), contestants, size.flips)


def train(size: Sizes, with_peers: bool) -> Case:
    """Return updates of an RBM by SGD, batches of 100."""
    model, params, _, chains = _rbm(size)
    data = jax.random.bernoulli(jax.random.key(2), 0.2, (BATCH, size.visible)).astype(jnp.float32)
    flop = 2.0 * size.visible * size.hidden * (4 * size.chains + 2 * BATCH)
    num_steps, tx = steps_of(flop), optax.sgd(peers.RATE)
    alone = {
        f"products alone{of}": functools.partial(
            limits.updates, chains.x, data, params["hidden"]["w"], num_steps, low
        )
        for of, low in (("", False), (f", {_LOW}", True))
    }
    contestants = {name: Contestant(run, num_steps) for name, run in alone.items()}
    rules: dict[str, Any] = {
        "poejax, PCD-1": pj.estimators.pcd(model, size.chains),
        f"poejax, PCD-1 in {_LOW}": pj.estimators.pcd(_low(size), size.chains),
    }
    if size.chains == BATCH:
        rules["poejax, CD-1"] = pj.estimators.cd(model)
        rules["poejax, PCD-1 centred"] = pj.estimators.centered(pj.estimators.pcd(model, BATCH))
    for name, rule in rules.items():
        run = training.Run(rule, tx, BATCH)
        state = run.init(jax.random.key(3), data, params)

        def learn(run: training.Run = run, state: Any = state, steps: int = num_steps) -> Any:
            return run.steps(state, data, steps)

        contestants[name] = Contestant(learn, num_steps)
        if name == "poejax, PCD-1":
            once = functools.partial(learn, steps=1)
            contestants["poejax, one step a call"] = Contestant(once, 1)
    if with_peers:
        found = peers.updates(params, np.asarray(chains.x), np.asarray(data), num_steps)
        contestants |= found
    return Case("train", str(size), contestants, size.flips)


def stream(size: Sizes, num_rows: int) -> Case:
    """Return updates as `train` has them, on rows in memory and on those of a file."""
    model, params, _, _ = _rbm(size)
    bits = jax.random.bernoulli(jax.random.key(2), 0.2, (num_rows, size.visible))
    data = bits.astype(jnp.float32)
    with tempfile.TemporaryFile() as file:  # which is gone once nothing maps it
        mapped = np.memmap(file, np.float32, "w+", shape=data.shape)
    mapped[:] = data
    run = training.Run(pj.estimators.pcd(model, size.chains), optax.sgd(peers.RATE), BATCH)
    state = run.init(jax.random.key(3), data, params)
    sources = {"poejax, rows in memory": data, "poejax, rows of a file": streams.Rows(mapped)}
    num_steps = 2 * num_rows // BATCH
    contestants = {
        name: Contestant(functools.partial(run.steps, state, source, num_steps), num_steps)
        for name, source in sources.items()
    }
    return Case("train", f"{size}, {num_rows:,} rows", contestants, size.flips)


def ais(size: Sizes) -> Case:
    """Return steps of annealed importance sampling, forwards and back."""
    model, params, _, chains = _rbm(size)
    base = pj.evidence.base_rate(model, chains.x)
    num_steps = steps_of(size.flop)
    betas, key = pj.evidence.linear_betas(num_steps), jax.random.key(1)
    starts = {
        "poejax, forward": pj.evidence.ais_init(key, model, params, base, betas, size.chains),
        "poejax, reverse": pj.evidence.ais_init(
            key, model, params, base, betas, size.chains, chains.x
        ),
    }
    w = params["hidden"]["w"]
    contestants = {
        "products alone": Contestant(lambda: limits.sweeps(chains.x, w, num_steps), num_steps)
    }
    for name, start in starts.items():

        def anneal(start: Any = start) -> Any:
            return pj.evidence.ais_steps(start, model, params, base, betas, num_steps)

        contestants[name] = Contestant(anneal, num_steps)
    return Case("ais", str(size), contestants, size.flips)


def exact(num_visible: int, num_hidden: int) -> Case:
    """Return the sum over all hidden states of an RBM."""
    model, key = pj.models.rbm(num_visible, num_hidden), jax.random.key(0)
    params = model.init(key)
    log_z = jax.jit(lambda params: pj.exact.log_z(model, params))
    w = params["hidden"]["w"]
    contestants = {
        "products alone": Contestant(lambda: limits.enumeration(w, num_hidden, 3), 4),
        "poejax, log Z": Contestant(lambda: log_z(params), 1),
        "poejax, its gradient": Contestant(lambda: jax.grad(log_z)(params), 1),
    }
    return Case("exact", f"{num_visible}x{num_hidden}", contestants, 0)


def continuous(size: int, num_chains: int) -> Iterator[Case]:
    """Yield samplers of real visible units: Gaussian RBM, Student-t Gibbs, HMC."""
    key, num_steps = jax.random.key(0), 20
    visible = pj.units.Gaussian(size)
    rbm = pj.models.gaussian_rbm(size, size)
    heavy = pj.product(visible, heavy=pj.experts.StudentT(visible, size))
    for name, model, kernel in (
        ("Gaussian RBM, Gibbs", rbm, pj.kernels.block_gibbs(rbm)),
        ("Student-t, Gibbs", heavy, pj.kernels.block_gibbs(heavy)),
        ("Student-t, HMC of 10 steps", heavy, pj.kernels.hmc(heavy, 0.1, 10)),
    ):
        params = model.init(key)
        chains = pj.chains.init(key, kernel, params, num_chains)
        x = chains.x
        w = jax.random.normal(key, (size, size))
        if name.endswith("Gibbs") and model is heavy:
            # A square root of each chain's precision: a row for each expert.
            rows = jnp.broadcast_to(w, (num_chains, size, size))
            alone = functools.partial(limits.triangles, rows, num_steps)
        else:
            # A gradient is two products, as a sweep.
            count = num_steps * (10 if model is heavy else 1)
            alone = functools.partial(limits.sweeps, x, 0.1 * w, count)

        def sample(kernel: Any = kernel, params: Any = params, chains: Any = chains) -> Any:
            return pj.chains.run(key, kernel, params, chains, num_steps)

        contestants = {
            "products alone": Contestant(alone, num_steps),
            "poejax": Contestant(sample, num_steps),
        }
        yield Case("continuous", f"{name}, {size}, {num_chains:,} chains", contestants, 0)


def scale(sizes: list[Sizes]) -> Case:
    """Return sweeps of every size, in the same rounds."""
    found = {str(size): gibbs(size, False).contestants["poejax"] for size in sizes}
    return Case("scale", f"{len(found)} sizes", found, 0)
