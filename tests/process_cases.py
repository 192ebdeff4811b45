"""What each process of tests/test_processes.py does: `process_cases.py PORT ID FOLDER`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import poejax as pj
from experiments.lab import devices
from poejax import _meshes, checkpoint, estimators, evidence, training

MODEL = pj.models.rbm(16, 8)
KERNEL = pj.kernels.block_gibbs(MODEL)
PLANE = pj.units.GaussianDiag(4)
REALS = pj.product(PLANE, gaussian=pj.experts.Gaussian(PLANE))
RUN = training.Run(
    estimators.centered(estimators.pcd(MODEL, 32)),
    optax.sgd(0.05, momentum=0.9),
    batch_size=8,
    average=True,
)


class Learned(NamedTuple):
    """What does not depend on where it is computed: draws bitwise, the rest to rounding."""

    draws: Any
    state: training.TrainState
    chains: Any
    log_weights: Any


def key() -> Any:
    """Return the key of all; none is made before the processes are connected."""
    return jax.random.key(0)


def rows() -> np.ndarray:
    """Return bits [32, 16]."""
    return np.asarray(jax.random.bernoulli(key(), 0.3, (32, 16)), np.float32)


def learn(mesh: Any) -> Learned:
    """Sample, train and anneal, over a mesh or on one device."""
    x = rows()
    state = devices.place(RUN.init(key(), x), mesh)
    params = MODEL.init(key())
    chains = devices.place(pj.chains.init(key(), KERNEL, params, 32), mesh)
    chains, _ = pj.chains.run(key(), KERNEL, devices.place(params, mesh), chains, 5)
    state, _ = RUN.steps(state, x, 3)
    base, betas = evidence.base_rate(MODEL, x), evidence.linear_betas(10)
    annealing = devices.place(evidence.ais_init(key(), MODEL, params, base, betas, 16), mesh)
    annealing = evidence.ais_steps(annealing, MODEL, params, base, betas, 10)
    return Learned(chains.x, state, annealing.chains.x, annealing.log_weights)


def look(mesh: Any) -> dict[str, Any]:
    """Do all that looks at values on the host, with arrays that are spread over the mesh."""

    def spread(x: Any) -> Any:
        return devices.place(pj.types.ChainState(x), mesh).x

    x, params = spread(rows()), MODEL.init(key())
    reals = jax.random.normal(key(), (32, 4))
    y, mask = spread(reals), spread(np.arange(16) < np.full((32, 1), 4))
    wide = devices.place(params, mesh)
    weighted = pj.types.Weighted(x, spread(np.ones(32, np.float32)))
    counts = {"num_steps": 3, "burn_in": 1}
    noise = pj.inference.BitFlips(0.1)
    return {
        "log_likelihood": evidence.log_likelihood(MODEL, wide, x, 1.0).mean,
        "rank": pj.inference.rank(MODEL, params, x).order,
        "base_rate": evidence.base_rate(MODEL, x).params,
        "gaussian_base": evidence.gaussian_base(REALS, y).params,
        "init_from": REALS.init_from(key(), y),
        "fit_em": pj.mixtures.fit_em(key(), y, 2)[0].means,
        "training.init": RUN.init(key(), x, params=wide).params,
        "weighted": RUN.init(key(), weighted).params,
        "chains.init": pj.chains.init(key(), KERNEL, wide, 32, x=x, clamp=mask).x,
        "proper": pj.exact.log_z(REALS, jax.tree.map(spread, REALS.init(key()))),
        "denoise": pj.inference.denoise(key(), MODEL, params, x, noise, **counts).mean,
        "inpaint": pj.inference.inpaint(key(), MODEL, params, x, mask, **counts).mean,
    }


def main(port: str, process_id: int, folder: Path) -> None:
    """Compute all of it in one of two processes and leave what process 0 sees in `folder`."""
    devices.connect(f"127.0.0.1:{port}", 2, process_id)
    mesh = devices.make_mesh(None, 2)
    assert mesh is not None
    assert mesh.shape == {"data": 2, "model": 2}
    learned = learn(mesh)
    assert not learned.state.params["hidden"]["w"].is_fully_replicated
    checkpoint.save(folder / "run", learned.state)
    again = checkpoint.restore(folder / "run", learned.state)
    assert again.params["hidden"]["w"].sharding == learned.state.params["hidden"]["w"].sharding
    with warnings.catch_warnings(record=True) as said:
        checkpoint.save_params(folder / "alone", {"w": np.ones(3)})
    assert len(said) == process_id
    seen = jax.tree.map(_meshes.to_host, (learned._replace(state=None), look(mesh)))
    if process_id == 0:
        np.savez(folder / "seen.npz", *jax.tree.leaves(seen))
    devices.agree(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
