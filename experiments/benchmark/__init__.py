"""Speed of every driver, as a fraction of its own limit and beside other libraries.

    python -m experiments.benchmark                          # all suites, ten minutes
    python -m experiments.benchmark --suite gibbs

A driver's limit is what it must do and nothing else: its matrix products (or QR decompositions),
timed alone in the same rounds, in float32; of rows read out of a file it is the same run on rows in
memory.
Rounds are interleaved and ratios are medians of those of a round, as machines change their pace;
times are medians, with the range of the middle half; first calls (compilation and all else that is
done once) are timed apart. Peers are those that are installed, in float32: scikit-learn, a plain
loop in torch and in JAX, rbms; thrml and hamon at the smallest size alone, as they hold a Python
object for every edge; hamon's parallel tempering, of one ladder, under jax.vmap.

Suite `scale` has the cost against chains, visible and hidden units, and strong and weak scaling
over virtual devices, each number of them in a process of its own; `tempering` has sweeps of ladders
of replicas at fixed temperatures, and the round trips they make.

Writes results.json, fractions.png and, of the suite `scale`, scale.png with log-log slopes and
devices.png with the efficiency.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmark import scaling, suites, tempering
from experiments.benchmark.suites import Case, Sizes
from experiments.benchmark.timing import Timing, timed
from experiments.lab import figures, runs, tables
from poejax import plotting

Suite = Literal["gibbs", "train", "ais", "exact", "continuous", "tempering", "scale", "all"]
_OURS = "poejax"


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """What is timed, and how often."""

    suite: Suite = "all"  # The suite to run.
    num_visible: int = 784  # Visible units of the middle size.
    num_hidden: int = 500  # Hidden units of the middle size.
    num_chains: tuple[int, ...] = (100, 1_000, 10_000)  # Chains at the middle size.
    num_rows: int = 20_000  # Rows of a file, beside those in memory.
    num_ladders: tuple[int, int] = (20, 10)  # Ladders of replicas, of an Ising model and the RBM.
    num_rungs: tuple[int, int] = (20, 10)  # Replicas on each of them.
    ising_size: int = 32  # Squares along a side of the Ising model's torus, even.
    num_sweeps: int = 1_000  # Sweeps in which round trips are counted.
    num_devices: tuple[int, ...] = (1, 2, 4, 8)  # Virtual devices, 1 first.
    shared_chains: int = 1_000  # Chains that all devices share.
    chains_per_device: int = 250  # Chains on each where their number grows with the devices.
    other_sizes: bool = True  # Whether to time 64x64, 784x4096 and 4096x4096 too.
    num_rounds: int = 7  # Interleaved timings of each contestant.
    pause: float = 0.2  # Seconds of rest before each.

    bounds: ClassVar = {"pause": 0.0, "num_ladders": 2, "num_rungs": 2, "ising_size": 2}

    def check(self) -> None:
        """Refuse what cannot be shared out."""
        self.expect(self.ising_size % 2 == 0, "ising_size", "an even number")
        self.expect(self.num_devices[0] == 1, "num_devices", "1 first")
        self.expect(
            all(self.shared_chains % count == 0 for count in self.num_devices),
            "shared_chains",
            f"a multiple of num_devices = {self.num_devices}",
        )


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        num_visible=20,
        num_hidden=8,
        num_chains=(100,),
        num_rows=500,
        num_ladders=(3, 2),
        num_rungs=(4, 3),
        ising_size=4,
        num_sweeps=100,
        num_devices=(1, 2),
        shared_chains=16,
        chains_per_device=8,
        other_sizes=False,
        num_rounds=1,
        pause=0.01,
    ),
}


def cases(config: Config) -> dict[str, list[Case]]:
    """Return what is to be timed, by suite."""
    d, h, chains = config.num_visible, config.num_hidden, config.num_chains
    others = [Sizes(64, 64, 100), Sizes(784, 4096, 100), Sizes(4096, 4096, 100)]
    others = others if config.other_sizes else []
    first = chains[0]
    makers: dict[str, Any] = {
        "gibbs": lambda: [suites.gibbs(s, True) for s in [Sizes(d, h, c) for c in chains] + others],
        "train": lambda: [
            *(suites.train(Sizes(d, h, c), True) for c in (first, 5 * first)),
            suites.stream(Sizes(d, h, first), config.num_rows),
        ],
        "ais": lambda: [suites.ais(Sizes(d, h, c)) for c in (first, 5 * first)],
        "exact": lambda: [suites.exact(d, n) for n in (8, 12)],
        "continuous": lambda: [*suites.continuous(min(d, 64), first)],
        "tempering": lambda: [tempering.case(ladders) for ladders in tempered(config)],
        "scale": lambda: [suites.scale([s for row in grown(config).values() for s in row])],
    }
    wanted = makers if config.suite == "all" else [config.suite]
    return {name: makers[name]() for name in wanted}


def tempered(config: Config) -> list[tempering.Ladders]:
    """Return the ladders of an Ising model, and those of the RBM."""
    of_ising, of_rbm = zip(config.num_ladders, config.num_rungs, strict=True)
    return [
        tempering.of_ising(config.ising_size, *of_ising),
        tempering.of_rbm(config.num_visible, config.num_hidden, *of_rbm),
    ]


def grown(config: Config) -> dict[str, list[Sizes]]:
    """Return growing sizes, by what grows."""
    d, h, chains = config.num_visible, config.num_hidden, 5 * config.num_chains[0]
    return {
        "chains": [Sizes(d, h, chains * 2**k) for k in range(4)],
        "visible units": [Sizes(d * 2**k, h, chains) for k in range(4)],
        "hidden units": [Sizes(d, h * 2**k, chains) for k in range(4)],
    }


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Time all contestants; returns what results.json holds."""
    begin, rows = time.perf_counter(), []
    found = cases(config)
    total = sum(len(c.contestants) for row in found.values() for c in row) * config.num_rounds
    with runs.progress(total, "timing", "timing") as bar:
        for suite, row in found.items():
            for case in row:
                bar.set_postfix_str(f"{suite} {case.size}", refresh=False)
                timings = timed(case.contestants, config.num_rounds, config.pause, bar.update)
                rows += _rows(suite, case, timings)
    results: dict[str, Any] = {"rows": rows}
    if "tempering" in found:
        results["round_trips"] = tempering.round_trips(tempered(config)[0], config.num_sweeps)
    if "scale" in found:
        results["slopes"] = slopes(config, rows)
        plotting.save(scale_figure(results["slopes"]), workdir / "figures" / "scale.png")
        results["devices"] = over_devices(config)
        drawn = scaling.figure(results["devices"]["rows"])
        plotting.save(drawn, workdir / "figures" / "devices.png")
    plotting.save(fractions_figure(rows), workdir / "figures" / "fractions.png")
    return runs.write_results(workdir, config, results, begin, table)


def over_devices(config: Config) -> dict[str, Any]:
    """Time the middle size over virtual devices."""
    own = (config.shared_chains, config.chains_per_device)
    job = scaling.Job(config.num_visible, config.num_hidden, *own)
    total = len(config.num_devices) * config.num_rounds
    with runs.progress(total, "devices", "process") as bar:
        return scaling.measured(job, config.num_devices, config.num_rounds, bar.update)


def _rows(suite: str, case: Case, timings: dict[str, Timing]) -> list[dict[str, Any]]:
    limit = next(iter(timings.values()))
    ours = next((t for name, t in timings.items() if name.startswith(_OURS)), limit)
    return [
        {
            "suite": suite,
            "size": case.size,
            "name": name,
            "ms": 1e3 * found.median,
            "ms_range": [1e3 * float(q) for q in np.quantile(found.seconds, [0.25, 0.75])],
            "of_limit": found.ratio(limit),
            "times_ours": 1 / found.ratio(ours),
            "flips_per_ns": 1e-9 * case.flips_per_step / found.median,
            "first_call_s": found.compile_seconds,
            "first_call_mib": found.peak_mib,
        }
        for name, found in timings.items()
    ]


def slopes(config: Config, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return cost against size, in units of the first, and its log-log slope, by what grows."""
    cost = {r["name"]: 1 / r["of_limit"] for r in rows if r["suite"] == "scale"}
    found = {}
    for k, (name, sizes) in enumerate(grown(config).items()):
        own = [(size.chains, size.visible, size.hidden)[k] for size in sizes]
        costs = [cost[str(size)] for size in sizes]
        slope = np.polyfit(np.log(own), np.log(costs), 1)[0]
        found[name] = {"sizes": own, "costs": costs, "slope": float(slope)}
    return found


def fractions_figure(rows: list[dict[str, Any]]) -> Figure:
    """Draw every driver's and peer's speed as a fraction of the limit of its case."""
    others = ("products alone", "bits alone")
    shown = [r for r in rows if r["suite"] != "scale" and not r["name"].startswith(others)]
    figure = Figure((8, 0.19 * len(shown) + 1), dpi=130, layout="tight")
    most = max([1.0, *(r["of_limit"] for r in shown)])
    words = "speed, fraction of the limit in float32"
    axes = figure.add_subplot(xlabel=words, xlim=(0, 1.05 * most))
    colours = ["C0" if r["name"].startswith(_OURS) else "0.65" for r in shown]
    axes.barh(range(len(shown)), [r["of_limit"] for r in shown], color=colours, height=0.75)
    labels = [f"{r['suite']} {r['size']}: {r['name']}" for r in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.axvline(1, color="0.3", lw=0.8)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    figures.bare(axes)
    return figure


def scale_figure(found: dict[str, dict[str, Any]]) -> Figure:
    """Draw cost of a sweep against what grows, with its slope."""
    figure = Figure((9, 2.8), dpi=130, layout="tight")
    for k, (name, of) in enumerate(found.items()):
        axes = figure.add_subplot(1, len(found), k + 1, xlabel=name, xscale="log", yscale="log")
        axes.plot(of["sizes"], of["costs"], "o-", label=f"slope {of['slope']:.2f}")
        line = np.asarray(of["sizes"]) / of["sizes"][-1] * of["costs"][-1]
        axes.plot(of["sizes"], line, "--", color="0.6", lw=0.8, label="linear")
        axes.set_xticks(of["sizes"], [f"{v:,}" for v in of["sizes"]], fontsize=7)
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
        figures.bare(axes)
    figure.axes[0].set_ylabel("cost of a sweep")
    return figure


def summary(results: dict[str, Any]) -> tables.Table:
    """Return poejax's drivers alone: their speed, and how many times as long peers take."""
    peers = ("scikit-learn", "plain torch loop", "rbms (torch)")
    cells: dict[str, list[str]] = {}
    shown = [r for r in results["rows"] if r["suite"] in ("gibbs", "train", "ais")]
    for r in shown:
        if r["name"].startswith(_OURS):
            kind = r["name"].removeprefix(_OURS).strip(", ") or "Gibbs sweep"
            others = {
                o["name"]: o for o in shown if (o["suite"], o["size"]) == (r["suite"], r["size"])
            }
            times = [
                others[p]["times_ours"] / r["times_ours"] if p in others else None for p in peers
            ]
            cells[f"{kind}, {r['size']}"] = [
                *(f"{r['ms']:.3g}", f"{r['of_limit']:.2f}"),
                *("" if t is None else f"{t:.1f}" for t in times),
            ]
    heads = ("", "ms", "of its float32 products alone", *(f"{p}, times that" for p in peers))
    caption = "a step of all chains, batches of 100 rows, in float32 but where it says otherwise"
    return tables.table(caption, heads, cells)


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return a summary, and a table for each suite and size."""
    columns = {
        "": "{name}",
        "ms": "{ms:.3g}",
        "middle half": "{ms_range[0]:.3g} to {ms_range[1]:.3g}",
        "of the limit": "{of_limit:.2f}",
        "times poejax": "{times_ours:.2f}",
        "flips/ns": "{flips_per_ns:.3f}",
        "first call, s": "{first_call_s:.1f}",
        "MiB": "{first_call_mib:.0f}",
    }
    found = [short] if (short := summary(results))["rows"] else []
    for suite in dict.fromkeys(r["suite"] for r in results["rows"] if r["suite"] != "scale"):
        own = [r for r in results["rows"] if r["suite"] == suite]
        for size in dict.fromkeys(r["size"] for r in own):
            caption = f"{suite}, {size}: a step, median of {results['config']['num_rounds']} rounds"
            found.append(tables.of_records(caption, columns, [r for r in own if r["size"] == size]))
    if "round_trips" in results:
        found.append(tempering.table(results["round_trips"]))
    if "devices" in results:
        found.append(scaling.table(results["devices"]))
    if "slopes" in results:
        rows = {n: [of["slope"], *of["costs"]] for n, of in results["slopes"].items()}
        heads = ("", "log-log slope", "x1", "x2", "x4", "x8")
        found.append(tables.table("cost of a sweep against what grows", heads, rows, ".2f"))
    return found


main = runs.main_of(PRESETS, __doc__, "benchmark", train_and_evaluate, table)
