"""Strong and weak scaling over virtual devices, whose number is fixed when a process starts.

One process for each number of devices, all alive together and timed in turn, so that rounds are
interleaved here too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure

import poejax as pj
from experiments.benchmark import peers
from experiments.benchmark.suites import Sizes, steps_of
from experiments.benchmark.timing import Contestant, run_once, seconds_of
from experiments.lab import devices, figures, tables
from poejax import training

_ROOT = Path(__file__).parents[2]
_CHILD = "import sys; from experiments.benchmark import scaling; scaling.serve(*sys.argv[1:])"
_FLAG = "--xla_force_host_platform_device_count"
_LEAST_STEPS = 10  # a call's own overhead is not what is asked for
_ROWS = 5  # chains for each row of a batch


class Job(NamedTuple):
    """What every number of devices does: `shared` chains in all, and `own` chains on each."""

    num_visible: int
    num_hidden: int
    shared: int
    own: int

    def sizes(self, num_devices: int) -> dict[str, Sizes]:
        """Return the RBM and its chains, by what is asked."""
        chains = {"strong": self.shared, "weak": self.own * num_devices}
        return {name: Sizes(self.num_visible, self.num_hidden, c) for name, c in chains.items()}


def contestants(job: Job, num_devices: int) -> dict[str, Contestant]:
    """Return sweeps and PCD updates of chains shared over `num_devices` devices."""
    if jax.device_count() != num_devices:
        raise RuntimeError(f"expected {num_devices} devices, found {jax.device_count()}")
    mesh, found = devices.make_mesh(num_devices, 1), {}
    for name, size in job.sizes(num_devices).items():
        found[f"{name}, Gibbs sweep"] = _sweeps(size, mesh)
        found[f"{name}, PCD update"] = _updates(size, mesh)
    return found


def _sweeps(size: Sizes, mesh: Any) -> Contestant:
    model, key = pj.models.rbm(size.visible, size.hidden), jax.random.key(0)
    kernel, params = pj.kernels.block_gibbs(model), model.init(key)
    chains = pj.chains.init(key, kernel, params, size.chains)
    params, chains = devices.place((params, chains), mesh)
    num_steps = steps_of(size.flop, _LEAST_STEPS)
    return Contestant(lambda: pj.chains.run(key, kernel, params, chains, num_steps), num_steps)


def _updates(size: Sizes, mesh: Any) -> Contestant:
    model, batch = pj.models.rbm(size.visible, size.hidden), max(1, size.chains // _ROWS)
    data = jax.random.bernoulli(jax.random.key(2), 0.2, (batch, size.visible)).astype(jnp.float32)
    run = training.Run(
        pj.estimators.pcd(model, size.chains),
        optax.sgd(peers.RATE),
        batch,
        preprocess=devices.spread(lambda _, rows: rows, mesh),
    )
    state, data = devices.place((run.init(jax.random.key(3), data), data), mesh)
    num_steps = steps_of(2 * size.flop + size.flop / _ROWS, _LEAST_STEPS)
    return Contestant(lambda: run.steps(state, data, num_steps), num_steps)


def serve(job: str, num_devices: str) -> None:
    """Say that all is compiled, then time every contestant once for each line of input."""
    found = contestants(Job(*json.loads(job)), int(num_devices))
    for run, _ in found.values():
        run_once(run)
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        times = {name: seconds_of(run) / steps for name, (run, steps) in found.items()}
        print(json.dumps(times), flush=True)


def measured(
    job: Job, counts: Sequence[int], num_rounds: int, tick: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """Time all contestants in every round, on 1 device and on the others in turn.

    Args:
      job: what is done.
      counts: numbers of devices, the first 1.
      num_rounds: timings of each.
      tick: called after every process's turn.

    Returns:
      Number of CPU cores, and a row for each contestant and number of devices: seconds a step,
      the median over rounds; `efficiency`, work in a second relative to one device's, the median
      of rounds' ratios.

    Raises:
      RuntimeError: if a process ends early.
    """
    with ExitStack() as stack:
        children = {count: stack.enter_context(_started(job, count)) for count in counts}
        try:
            for child in children.values():
                _line(child)
            seconds: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
            for _ in range(num_rounds):
                for count, child in children.items():
                    print(file=_pipe(child.stdin), flush=True)
                    seconds[count].append(_line(child))
                    tick()
        except BaseException:
            for child in children.values():
                child.kill()
            raise
    return {"cores": os.cpu_count(), "rows": list(_rows(job, seconds))}


def _rows(job: Job, seconds: dict[int, list[dict[str, float]]]) -> Iterator[dict[str, Any]]:
    alone = seconds[1]
    for name in alone[0]:
        for count, rounds in seconds.items():
            scaling, what = name.split(", ")
            chains = job.sizes(count)[scaling].chains
            work = chains / job.sizes(1)[scaling].chains
            ratios = [work * a[name] / r[name] for a, r in zip(alone, rounds, strict=True)]
            yield {
                "scaling": scaling,
                "what": what,
                "devices": count,
                "chains": chains,
                "ms": 1e3 * statistics.median(r[name] for r in rounds),
                "efficiency": statistics.median(ratios),
            }


def _started(job: Job, count: int) -> subprocess.Popen[str]:
    given = os.environ.get("XLA_FLAGS", "").split()
    flags = " ".join([*(f for f in given if not f.startswith(_FLAG)), f"{_FLAG}={count}"])
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(job), str(count)],
        cwd=_ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(child: subprocess.Popen[str]) -> dict[str, float]:
    line = _pipe(child.stdout).readline()
    if not line:
        raise RuntimeError(f"scaling: a process of virtual devices ended with {child.wait()}")
    found: dict[str, float] = json.loads(line)
    return found


def _pipe(stream: Any) -> Any:
    assert stream is not None  # all children have pipes
    return stream


def table(found: dict[str, Any]) -> tables.Table:
    """Return time and efficiency, a row for each contestant and number of devices."""
    columns = {
        "": "{scaling}, {what}",
        "devices": "{devices}",
        "chains": "{chains:,}",
        "ms": "{ms:.3g}",
        "efficiency": "{efficiency:.2f}",
    }
    caption = (
        f"chains shared over virtual devices, all on the same {found['cores']} cores: what is seen "
        "is overhead and no speed-up; efficiency is work in a second relative to one device's"
    )
    return tables.of_records(caption, columns, found["rows"])


def figure(rows: Iterable[dict[str, Any]]) -> Figure:
    """Draw efficiency against the number of devices."""
    rows, drawn = list(rows), Figure((7, 2.8), dpi=130, layout="tight")
    most = 1.1 * max(r["efficiency"] for r in rows)
    for k, (scaling, words) in enumerate(
        {"strong": "as many chains in all", "weak": "as many chains on each"}.items()
    ):
        own = [r for r in rows if r["scaling"] == scaling]
        axes = drawn.add_subplot(1, 2, k + 1, title=words, xlabel="virtual devices", xscale="log")
        for what in dict.fromkeys(r["what"] for r in own):
            of = [r for r in own if r["what"] == what]
            axes.plot([r["devices"] for r in of], [r["efficiency"] for r in of], "o-", label=what)
        counts = sorted({r["devices"] for r in own})
        axes.axhline(1, color="0.6", ls="--", lw=0.8)
        axes.set_xticks(counts, counts)
        axes.set_ylim(0, most)
        axes.minorticks_off()
        figures.bare(axes)
    drawn.axes[0].set_ylabel("work in a second, of one device's")
    drawn.axes[0].legend(frameon=False, fontsize=8)
    return drawn
