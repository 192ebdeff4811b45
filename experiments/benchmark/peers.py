"""The same work by other libraries, those that are installed (`pip install poejax[bench]`)."""

from __future__ import annotations

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.neural_network import BernoulliRBM

from experiments.benchmark.timing import Contestant
from poejax.types import Params

RATE = 0.01


def sweeps(params: Params, x: np.ndarray, num_steps: int) -> dict[str, Contestant]:
    """Return block-Gibbs sweeps of the RBM from `x` [C, D], float32 all."""
    w, b, a = _arrays(params)
    found = {"scikit-learn": Contestant(_scikit_learn(w, b, a, x, num_steps), num_steps)}
    found["plain JAX loop"] = Contestant(_jax_sweeps(w, b, a, x, num_steps), num_steps)
    if importlib.util.find_spec("torch"):
        found["plain torch loop"] = Contestant(_torch_sweeps(w, b, a, x, num_steps), num_steps)
    if importlib.util.find_spec("rbms"):
        found["rbms (torch)"] = Contestant(_rbms_sweeps(w, b, a, x, num_steps), num_steps)
    # A Python object for every edge: beyond a few thousand they take minutes to start.
    for name in ("thrml", "hamon"):
        if importlib.util.find_spec(name) and w.size <= 2**13:
            found[name] = Contestant(_graph_sweeps(name, w, b, a, x, num_steps), num_steps)
    return found


def updates(
    params: Params, x: np.ndarray, data: np.ndarray, num_steps: int
) -> dict[str, Contestant]:
    """Return PCD-1 updates on batches `data` [B, D] with chains from `x` [C, D]."""
    w, b, a = _arrays(params)
    found = {"plain JAX loop": Contestant(_jax_updates(w, b, a, x, data, num_steps), num_steps)}
    if len(x) == len(data):  # its chains are as many as its rows
        found["scikit-learn"] = Contestant(_scikit_fit(w, b, a, x, data, num_steps), num_steps)
    if importlib.util.find_spec("torch"):
        run = _torch_updates(w, b, a, x, data, num_steps)
        found["plain torch loop"] = Contestant(run, num_steps)
    if importlib.util.find_spec("rbms"):
        run = _rbms_updates(w, b, a, x, data, num_steps)
        found["rbms (torch)"] = Contestant(run, num_steps)
    return found


def _arrays(params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hidden = params["hidden"]
    return np.array(hidden["w"]), np.array(hidden["b"]), np.array(params["bias"]["field"])


def _estimator(w: np.ndarray, b: np.ndarray, a: np.ndarray, x: np.ndarray) -> BernoulliRBM:
    rbm = BernoulliRBM(w.shape[1], learning_rate=RATE, random_state=0)
    rbm.partial_fit(x[:2])
    # Its rows are hidden units.
    rbm.components_, rbm.intercept_hidden_, rbm.intercept_visible_ = w.T.copy("F"), b, a
    return rbm


def _scikit_learn(w: Any, b: Any, a: Any, x: np.ndarray, num_steps: int) -> Any:
    rbm = _estimator(w, b, a, x)

    def run() -> None:
        v = x
        for _ in range(num_steps):
            v = rbm.gibbs(v).astype(np.float32)

    return run


def _scikit_fit(w: Any, b: Any, a: Any, x: Any, data: np.ndarray, num_steps: int) -> Any:
    rbm = _estimator(w, b, a, x)
    rbm.h_samples_ = np.zeros((len(x), w.shape[1]), np.float32)

    def run() -> None:
        for _ in range(num_steps):
            rbm._fit(data, rbm.random_state_)

    return run


def _draw(key: jax.Array, odds: jax.Array) -> jax.Array:
    return jax.random.bernoulli(key, jax.nn.sigmoid(odds)).astype(odds.dtype)


def _jax_sweep(key: jax.Array, w: Any, b: Any, a: Any, x: Any) -> jax.Array:
    hidden_key, visible_key = jax.random.split(key)
    return _draw(visible_key, _draw(hidden_key, x @ w + b) @ w.T + a)


def _jax_sweeps(w: Any, b: Any, a: Any, x: Any, num_steps: int) -> Any:
    @jax.jit
    def chain(x: jax.Array, w: jax.Array, b: jax.Array, a: jax.Array) -> jax.Array:
        def body(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            return _jax_sweep(key, w, b, a, x), None

        return jax.lax.scan(body, x, jax.random.split(jax.random.key(0), num_steps))[0]

    arguments = tuple(map(jnp.asarray, (x, w, b, a)))
    return lambda: chain(*arguments)


def _jax_updates(w: Any, b: Any, a: Any, x: Any, data: Any, num_steps: int) -> Any:
    @jax.jit
    def learn(w: Any, b: Any, a: Any, x: Any, data: Any) -> Any:
        def body(carry: Any, key: jax.Array) -> tuple[Any, None]:
            w, b, a, x = carry
            x = _jax_sweep(key, w, b, a, x)
            up, down = jax.nn.sigmoid(data @ w + b), jax.nn.sigmoid(x @ w + b)
            w = w + RATE * (data.T @ up / len(data) - x.T @ down / len(x))
            b = b + RATE * (up.mean(0) - down.mean(0))
            return (w, b, a + RATE * (data.mean(0) - x.mean(0)), x), None

        keys = jax.random.split(jax.random.key(0), num_steps)
        return jax.lax.scan(body, (w, b, a, x), keys)[0]

    arguments = tuple(map(jnp.asarray, (w, b, a, x, data)))
    return lambda: learn(*arguments)


def _torch_sweep(w: Any, b: Any, a: Any, x: Any) -> Any:
    h = b.addmm(x, w).sigmoid().bernoulli()
    return a.addmm(h, w.T).sigmoid().bernoulli()


def _torch_sweeps(w: Any, b: Any, a: Any, x: Any, num_steps: int) -> Any:
    import torch

    w, b, a, start = (torch.from_numpy(v) for v in (w, b, a, np.array(x, np.float32)))

    @torch.inference_mode()
    def run() -> None:
        x = start
        for _ in range(num_steps):
            x = _torch_sweep(w, b, a, x)

    return run


def _torch_updates(w: Any, b: Any, a: Any, x: Any, data: Any, num_steps: int) -> Any:
    import torch

    w, b, a, start, data = (torch.from_numpy(np.array(v, np.float32)) for v in (w, b, a, x, data))

    @torch.inference_mode()
    def run() -> None:
        x = start
        for _ in range(num_steps):
            x = _torch_sweep(w, b, a, x)
            up, down = (torch.sigmoid(torch.addmm(b, v, w)) for v in (data, x))
            w.addmm_(data.T, up, alpha=RATE / len(data)).addmm_(x.T, down, alpha=-RATE / len(x))
            b.add_(up.mean(0) - down.mean(0), alpha=RATE)
            a.add_(data.mean(0) - x.mean(0), alpha=RATE)

    return run


def _rbms(w: Any, b: Any, a: Any, x: Any) -> tuple[Any, Any]:
    import torch
    from rbms.bernoulli_bernoulli.classes import BBRBM

    rbm = BBRBM(*(torch.from_numpy(v) for v in (w, a, b)))
    return rbm, rbm.init_chains(len(x), start_v=torch.from_numpy(np.array(x, np.float32)))


def _rbms_sweeps(w: Any, b: Any, a: Any, x: Any, num_steps: int) -> Any:
    rbm, chains = _rbms(w, b, a, x)
    return lambda: rbm.sample_state(chains, num_steps)["visible"].sum()


def _rbms_updates(w: Any, b: Any, a: Any, x: Any, data: Any, num_steps: int) -> Any:
    import torch
    from rbms.training.pcd import fit_batch_pcd

    rbm, chains = _rbms(w, b, a, x)
    batch = (torch.from_numpy(np.array(data, np.float32)), torch.ones(len(data), 1))
    tx = torch.optim.SGD(rbm.parameters(), lr=RATE, maximize=True)
    rbm.init_grad()

    def run() -> None:
        nonlocal chains
        for _ in range(num_steps):
            tx.zero_grad(set_to_none=False)
            chains, _ = fit_batch_pcd(batch, chains, rbm, 1, 1.0, centered=False)
            tx.step()

    return run


def _graph_sweeps(name: str, w: Any, b: Any, a: Any, x: Any, num_steps: int) -> Any:
    import importlib

    peer, ising = importlib.import_module(name), importlib.import_module(f"{name}.models.ising")
    visible, hidden = ([peer.SpinNode() for _ in range(n)] for n in w.shape)
    nodes = visible + hidden
    edges = [(v, h) for v in visible for h in hidden]
    # x = (1 + s) / 2 turns bits into spins.
    biases = jnp.concatenate([a / 2 + w.sum(1) / 4, b / 2 + w.sum(0) / 4])
    model = ising.IsingEBM(nodes, edges, biases, jnp.asarray(w).ravel() / 4, jnp.asarray(1.0))
    blocks = [peer.Block(hidden), peer.Block(visible)]
    program = ising.IsingSamplingProgram(model, blocks, [])
    schedule = peer.SamplingSchedule(num_steps, 1, 1)
    starts = [jnp.zeros((len(x), w.shape[1]), bool), jnp.asarray(x, bool)]

    def one(key: jax.Array, start: list[jax.Array]) -> Any:
        return peer.sample_states(key, program, schedule, start, [], [blocks[1]])

    run = jax.jit(jax.vmap(one))
    keys = jax.random.split(jax.random.key(0), len(x))
    return lambda: run(keys, starts)
