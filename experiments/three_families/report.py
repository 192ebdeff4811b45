"""The picture of three families: data, samples, density and votes."""

from __future__ import annotations

import jax
import numpy as np
from matplotlib.figure import Figure

import poejax as pj
from experiments.lab import figures
from experiments.lab.plane import Target, nodes
from poejax.types import Array, Params

_TITLES = {"student_t": "Student-t experts", "gaussian": "Gaussian", "neural": "network, -E"}


def draw_votes(
    model: pj.Product, params: Params, log_z: Array, data: Array, samples: Array, target: Target
) -> Figure:
    """Draw data and samples [N, 2], the density, and what each of three experts votes for.

    Args:
      model: a product over the plane, with a log partition function of `log_z` at `params`.
      params: its parameters.
      log_z: in nats.
      data: training rows.
      samples: the model's.
      target: says what square to draw.
    """
    x, side = nodes(target), target.extent
    figure = Figure((10.2, 6.2), layout="constrained")
    axes = figure.subplots(2, 3)
    for panel, title, rows in ((axes[0, 0], "data", data), (axes[0, 1], "samples by HMC", samples)):
        panel.plot(*np.asarray(rows[:1000]).T, ".", ms=2.5, color="tab:blue", alpha=0.6)
        panel.set_title(f"{title}, {min(1000, len(rows))} rows")
    log_p = np.asarray(jax.vmap(model.log_density, in_axes=(None, 0))(params, x) - log_z)
    pictures = [("density of the product", axes[0, 2], np.exp(log_p), "magma")]
    for panel, (name, title) in zip(axes[1], _TITLES.items(), strict=True):
        factors = jax.vmap(model.experts[name].log_factors, in_axes=(None, 0))(params[name], x)
        votes = np.asarray(factors).sum(axis=1)
        pictures.append((f"log f: {title}", panel, votes - votes.max(), "viridis"))
    for title, panel, values, cmap in pictures:
        picture = figures.on_square(panel, values, side, cmap=cmap)
        figure.colorbar(picture, ax=panel, shrink=0.75)
        panel.set_title(title)
    ticks = np.linspace(-side, side, 5)
    for panel in axes.flat:
        panel.set(
            xlim=(-side, side), ylim=(-side, side), aspect="equal", xticks=ticks, yticks=ticks
        )
    figure.suptitle("log f in nats, less its largest value", fontsize=10)
    return figure
