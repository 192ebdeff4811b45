"""The generator of discrete units' draws under dieharder, in every order that sampling reads it.

    python -m experiments.generator       # needs the command dieharder (Debian: apt install)

Words are drawn as chains draw them, from a key for every step and chain, and read across sites,
across chains, across steps, and as single bit planes: the highest bit of every word decides most
draws of binary units. Beside it a deliberately weak generator, one step of a linear congruence
seeded by the same keys, which has to fail.

dieharder calls a p-value below 0.000001 of a test failed, below 0.005 weak; of hundreds of p-values
a few are weak by chance. Writes results.json.

Source: Brown, Eddelbuettel & Bauer, dieharder: a random number test suite.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab import runs, tables
from poejax import _random

Mix = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """What is tested."""

    tests: tuple[int, ...] = (0, 4, 8, 10, 11, 12, 15, 100, 102, 203)
    """Numbers of dieharder's tests, see `dieharder -l`."""
    num_chains: int = 100  # Chains, of a key each.
    num_sites: int = 784  # Sites of an event.
    seed: int = 0  # Seed of the run's key.

    bounds: ClassVar = {"seed": 0, "tests": 0}


PRESETS = {"default": Config(), "smoke": Config(preset="smoke", tests=(8, 15, 100))}


def weak(site: jax.Array, k0: jax.Array, k1: jax.Array) -> jax.Array:
    """Return one step of a linear congruence: no generator."""
    return (site * jnp.uint32(1664525) + k0) * (k1 | jnp.uint32(1))


GENERATORS: dict[str, Mix] = {"words of poejax": _random.mix, "weak on purpose": weak}


def plane(bit: int, words: np.ndarray) -> np.ndarray:
    """Read one bit of every word, 32 of them as one."""
    return np.packbits((words >> np.uint32(bit) & 1).astype(np.uint8))


READINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "across sites": lambda words: words,
    "across chains": lambda words: words.transpose(0, 2, 1),
    "across steps": lambda words: words.transpose(1, 2, 0),
    "highest bits": functools.partial(plane, 31),
    "lowest bits": functools.partial(plane, 0),
}


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def drawn(mix: Mix, first: jax.Array | int, num_steps: int, config: Config) -> jax.Array:
    """Return words as chains draw them at steps from `first` on, [steps, chains, sites]."""

    def event(step: jax.Array, chain: jax.Array) -> jax.Array:
        key = _random.fold_in(_random.fold_in(jax.random.key(config.seed), step), chain)
        return mix(jnp.arange(config.num_sites, dtype=jnp.uint32), *_random.child(key))

    steps, chains = first + jnp.arange(num_steps), jnp.arange(config.num_chains)
    return jax.vmap(jax.vmap(event, (None, 0)), (0, None))(steps, chains)


def stream(
    mix: Mix, reading: Callable[[np.ndarray], np.ndarray], config: Config
) -> Iterator[bytes]:
    """Yield words without end, in the order of a reading."""
    for first in range(0, 2**31, 64):
        words = np.asarray(drawn(mix, first, 64, config))
        yield np.ascontiguousarray(reading(words)).tobytes()


def p_values(chunks: Iterator[bytes], test: int) -> list[tuple[str, str]]:
    """Return (test's name, assessment) for every p-value of one of dieharder's tests."""
    command = ["dieharder", "-g", "200", "-d", str(test), "-c", ",", "-D", "test_name"]
    command += ["-D", "pvalues", "-D", "assessment"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for chunk in chunks:
                process.stdin.write(chunk)
                if process.poll() is not None:
                    break
        except BrokenPipeError:
            pass  # it has seen enough
        lines = process.stdout.read().decode().splitlines()
    found = [line.split(",") for line in lines if line.count(",") >= 2]
    return [(name.strip(), assessment.strip()) for name, _, assessment, *_ in found]


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Run all tests on all streams; returns what results.json holds."""
    begin = time.perf_counter()
    if shutil.which("dieharder") is None:
        raise FileNotFoundError(
            "dieharder: expected the command, found none; apt install dieharder"
        )
    counts: dict[str, dict[str, dict[str, int]]] = {}
    failed: dict[str, dict[str, list[str]]] = {}
    total = len(GENERATORS) * len(READINGS) * len(config.tests)
    with runs.progress(total, "dieharder", "test") as bar:
        for generator, mix in GENERATORS.items():
            for name, reading in READINGS.items():
                found = []
                for test in config.tests:
                    found += p_values(stream(mix, reading, config), test)
                    bar.update()
                tally = collections.Counter(assessment for _, assessment in found)
                counts.setdefault(generator, {})[name] = dict(tally)
                bad = sorted({test for test, assessment in found if assessment == "FAILED"})
                failed.setdefault(generator, {})[name] = bad
    results = {"p_values": counts, "failed_tests": failed}
    return runs.write_results(workdir, config, results, begin, table)


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing table."""
    rows = [
        [
            *(generator, name),
            *(tally.get(word, 0) for word in ("PASSED", "WEAK", "FAILED")),
            len(results["failed_tests"][generator][name]),
        ]
        for generator, of in results["p_values"].items()
        for name, tally in of.items()
    ]
    caption = f"p-values of {len(results['config']['tests'])} of dieharder's tests"
    heads = ("", "read", "passed", "weak", "failed", "tests failed")
    return [tables.table(caption, heads, rows)]


main = runs.main_of(PRESETS, __doc__, "generator", train_and_evaluate, table)
