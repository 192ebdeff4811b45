"""A run on rows in memory, beside which those on rows from elsewhere are held."""

from __future__ import annotations

import h5py
import jax
import numpy as np
import optax

import poejax as pj
from poejax import estimators, training

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NUM, BATCH, STEPS = 203, 10, 45  # more than two epochs of 20 steps
BITS = (RNG.random((NUM, 9)) < 0.4).astype(np.float32)
GREY = RNG.integers(0, 256, (NUM, 9)).astype(np.uint8)
WEIGHTS = RNG.random(NUM)
MODEL = pj.models.rbm(9, 6)
TX = optax.adam(0.05)
RUN = training.Run(estimators.centered(estimators.pcd(MODEL, 20)), TX, BATCH, average=True)
START = RUN.init(KEY, BITS)
END = RUN.steps(START, BITS, STEPS)


def saved(folder, array, name="x.npy"):
    np.save(folder / name, array)
    return folder / name


def h5(folder, array):
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"] = array
    return h5py.File(folder / "x.h5")["x"]
