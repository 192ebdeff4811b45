"""Curves and tables of the comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from experiments.lab import figures, tables

_COLORS = {
    "exact": "black",
    "CD-1": "tab:red",
    "CD-25": "tab:orange",
    "PCD": "tab:blue",
    "fast PCD": "deeppink",
    "tempered PCD": "tab:green",
    "PTT": "blueviolet",
    "Jarzynski": "saddlebrown",
}
_LEAST_GAP = 1e-3  # nats; below it float32 sums over states say little


def _arms(found: dict[str, Any]) -> dict[tuple[str, bool], list[dict[str, Any]]]:
    """Return the runs of all seeds by rule and whether it is centred."""
    arms: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for run in found["runs"]:
        arms.setdefault((run["rule"], run["centered"]), []).append(run)
    return arms


def figure(data: dict[str, dict[str, Any]]) -> Figure:
    """Draw means over seeds, by updates with a band of a standard deviation, and by time below."""
    drawn = Figure((2.6 * len(data) + 0.4, 6.0), dpi=150, layout="constrained")
    for number, found in enumerate(data.values()):
        by_updates = drawn.add_subplot(2, len(data), number + 1, title=found["title"])
        by_time = drawn.add_subplot(2, len(data), len(data) + number + 1, xscale="log")
        for axes, key in ((by_updates, "updates"), (by_time, "seconds")):
            _draw(axes, found, key)
            axes.set_xlabel(key)
            if number == 0 or found["ceiling"] is None:
                gap = "nats below the ceiling"
                axes.set_ylabel(gap if found["ceiling"] is not None else "log-likelihood, nats")
    names = [
        name for name in _COLORS if any(r["rule"] == name for f in data.values() for r in f["runs"])
    ]
    handles = [Line2D([], [], color=_COLORS[name], label=name) for name in names]
    handles += [Line2D([], [], color="0.4", ls="--", label="centred")]
    drawn.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    return drawn


def _draw(axes: Any, found: dict[str, Any], key: str) -> None:
    ceiling = found["ceiling"]
    for (rule, is_centered), group in _arms(found).items():
        at = np.mean([run[key] for run in group], axis=0)[1:]
        values = np.array([run["log_likelihood"] for run in group])[:, 1:]
        if ceiling is not None:
            values = np.maximum(ceiling - values, _LEAST_GAP)
        mean, sd = values.mean(axis=0), values.std(axis=0)
        style = {"color": _COLORS[rule], "ls": "--" if is_centered else "-"}
        axes.plot(at, mean, lw=1.4, **style)
        if key == "updates":  # the seeds' times differ
            axes.fill_between(at, mean - sd, mean + sd, color=_COLORS[rule], alpha=0.08, lw=0)
    if ceiling is not None:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    elif max(max(run["log_likelihood"]) for run in found["runs"]) > found["independent"]:
        # A rule that runs away would press all others into one line.
        axes.set_ylim(bottom=found["independent"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    figures.bare(axes)


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the closing tables, one for each data set."""
    return [_table(found, results["config"][name]) for name, found in results["data"].items()]


def _table(found: dict[str, Any], setting: dict[str, Any]) -> tables.Table:
    ceiling, rows = found["ceiling"], []
    first = found["runs"][0]
    digits = 3 if ceiling is not None else 2
    for (rule, is_centered), group in _arms(found).items():
        final = [run["log_likelihood"][-1] for run in group]
        best = [max(run["log_likelihood"]) for run in group]
        if ceiling is not None:
            final, best = ([ceiling - v for v in values] for values in (final, best))
        speed = [1e3 * run["seconds"][-1] / run["updates"][-1] for run in group]
        row = [rule + (", centred" if is_centered else "")]
        row += [tables.plus_minus(values, digits) for values in (final, best)]
        if "held_out" in first:
            row.append(tables.plus_minus([run["held_out"] for run in group]))
        if "ones" in first:
            row.append(tables.plus_minus([run["ones"] for run in group]))
            own = [run["ones_of_chains"] for run in group]
            row.append("" if own[0] is None else tables.plus_minus(own))
        rows.append([*row, tables.plus_minus(speed)])
    what = "log-likelihood" if ceiling is None else "gap to the ceiling"
    columns = ["rule", what, "best on the way"]
    columns += ["held out"] * ("held_out" in first)
    columns += ["ones: model", "ones: chains"] * ("ones" in first)
    about = f"{found['title']}: {found['rows'][0]} rows of {found['rows'][1]} bits, "
    about += f"{setting['num_hidden']} hidden units, {setting['num_steps']:,} updates at a rate of "
    about += f"{setting['learning_rate']:g}, lowered to zero, {setting['num_chains']} chains; "
    about += "nats per row, mean ± standard deviation over seeds"
    if ceiling is not None:
        about += f"; the ceiling is {ceiling:.4f}, the independent model {found['independent']:.4f}"
    else:
        about += f"; the independent model has {found['independent']:.2f}"
    if found["share_of_ones"] is not None:
        about += f"; of the rows {found['share_of_ones']:.2f} are ones"
    return tables.table(about, (*columns, "seconds per 1,000 updates"), rows)
