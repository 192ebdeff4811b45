"""Three families in one product: Student-t experts, a Gaussian and a small neural network.

    python -m experiments.three_families

Trains p(x) ∝ Π_j (α_j + (w_jᵀx)²)^(-ν_j) · N(x; μ, Λ⁻¹) · exp(-E_φ(x)) on points of the plane by
persistent contrastive divergence, with Hamiltonian Monte Carlo since the network is opaque. Then it
draws samples, and estimates log Z by annealing from the Gaussian expert, beside quadrature.

The energy is bounded, |E| <= B, and the Student-t factors are bounded above, so that the Gaussian
keeps the product proper, and the annealing weights have a finite variance.

Writes to the working directory: three_families.png, results.json.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy.stats import multivariate_normal

import poejax as pj
from experiments.lab import figures, runs, tables
from experiments.lab.plane import NUM_NODES, TARGETS, Target, nodes
from poejax import chains, plotting, training
from poejax.types import Array, Event, Params


@dataclasses.dataclass(frozen=True)
class Config(runs.Options):
    """Everything the run depends on."""

    target: str = "plus"  # Data set, of experiments.toy_targets.
    num_train: int = 2000  # Training rows.
    num_test: int = 20_000  # Held-out rows.
    num_student_t: int = 3  # Student-t experts.
    num_steps: int = 3000  # Adam updates.
    batch_size: int = 250  # Rows per update.
    learning_rate: float = 0.01  # Of Adam, lowered to zero along a cosine.
    num_chains: int = 250  # Persistent chains.
    step_size: float = 0.15
    """Of HMC while training and annealing, in units of x; samples are drawn with a tuned one."""
    num_leapfrog: int = 5  # Leapfrog steps of HMC.
    num_samples: int = 1000  # Chains that samples are drawn by, one each.
    sample_steps: int = 200  # HMC steps before a sample is taken.
    ais_steps: int = 200  # Temperatures of the annealing.
    ais_chains: int = 500  # Weights of each estimate.
    ais_runs: int = 5  # Independent estimates of log Z.
    seed: int = 0  # Of the whole run.

    bounds: ClassVar = {"seed": 0}


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        num_test=2000,
        num_student_t=2,
        num_steps=200,
        learning_rate=0.03,
        num_chains=100,
        num_samples=200,
        sample_steps=30,
        ais_steps=40,
        ais_chains=200,
        ais_runs=1,
    ),
}

_TITLES = {"student_t": "Student-t experts", "gaussian": "Gaussian", "neural": "network, -E"}
_WIDTH, _BOUND = 32, 5.0  # of the hidden layers; of the energy, in nats


def init_network(rng_key: Array) -> Params:
    """Draw a network of two hidden layers on the plane; its energy is zero at first."""
    keys = jax.random.split(rng_key, 2)
    return {
        "w1": jax.random.normal(keys[0], (2, _WIDTH)),
        "b1": jnp.zeros(_WIDTH),
        "w2": jax.random.normal(keys[1], (_WIDTH, _WIDTH)) / math.sqrt(_WIDTH),
        "b2": jnp.zeros(_WIDTH),
        "w3": jnp.zeros(_WIDTH),
    }


def energy(network: Params, x: Event) -> Array:
    """Return B tanh(w3ᵀ tanh(W2ᵀ tanh(W1ᵀ x + b1) + b2)), [], bounded whatever the weights."""
    hidden = jnp.tanh(x @ network["w1"] + network["b1"])
    hidden = jnp.tanh(hidden @ network["w2"] + network["b2"])
    return _BOUND * jnp.tanh(hidden @ network["w3"])


def build(num_student_t: int) -> pj.Product:
    """Return the product of three families over the plane."""
    visible = pj.units.Gaussian(2)
    return pj.product(
        visible,
        student_t=pj.experts.StudentT(visible, num_student_t, init_exponent=0.5),
        gaussian=pj.experts.Gaussian(visible, "full"),
        neural=pj.experts.Neural(visible, init_network, energy),
    )


def start(rng_key: Array, model: pj.Product, data: Event) -> Params:
    """Return parameters at which the Gaussian fits the data [N, 2] and the others hardly speak."""
    field = model.visible.fit_field(data, 0.0)
    shape = {name: field[name] for name in ("log_diagonal", "off_diagonal")}
    gaussian = {"mean": jnp.mean(data, axis=0), **shape}
    return model.init(rng_key) | {"gaussian": gaussian}


def gaussian_base(model: pj.Product, params: Params) -> pj.evidence.Base:
    """Return the product's own Gaussian expert, normalised: the others are bounded against it."""
    visible = model.visible
    gaussian = params["gaussian"]
    linear = model.experts["gaussian"].visible_field(gaussian, ())["linear"]
    shape = {name: gaussian[name] for name in ("log_diagonal", "off_diagonal")}
    field = {"linear": linear, **shape}
    return pj.evidence.Base(
        pj.product(visible, bias=pj.experts.Bias(visible)),
        {"bias": {"field": field}},
        visible.log_partition(visible.field(field)),
    )


def train(config: Config, model: pj.Product, rng_key: Array, data: Event) -> Params:
    """Train by PCD with HMC on rows [N, 2]; returns the averaged parameters."""
    kernel = pj.kernels.hmc(model, config.step_size, config.num_leapfrog)
    estimator = pj.estimators.pcd(model, config.num_chains, kernel)
    tx = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.num_steps))
    run = training.Run(estimator, tx, config.batch_size, average=True, average_decay=0.99)
    start_key, run_key = jax.random.split(rng_key)
    state = run.init(run_key, data, start(start_key, model, data))
    return runs.train(run, state, data, config.num_steps).average


def draw_samples(
    config: Config, model: pj.Product, params: Params, rng_key: Array
) -> tuple[Array, float, float]:
    """Draw from random starts by HMC with a tuned step size.

    Returns:
      `(samples [num_samples, 2], step_size, acceptance)`.
    """
    keys = jax.random.split(rng_key, 3)
    kernel = pj.kernels.hmc(model, config.step_size, config.num_leapfrog)
    states = chains.init(keys[0], kernel, params, config.num_samples)
    kernel, states = pj.kernels.tune_step_size(keys[1], kernel, params, states)
    states, seen = chains.run(keys[2], kernel, params, states, config.sample_steps, _acceptance)
    return states.x, kernel.step_size, float(seen.mean.mean())


def _acceptance(params: Params, state: Any, info: Any) -> Array:
    del params, state
    return info.acceptance_rate


def sample_check(
    model: pj.Product, params: Params, log_z: Array, samples: Array, target: Target
) -> dict[str, float]:
    """Compare E|x| of the samples with that of the normalised density, summed over a square."""
    wide = dataclasses.replace(target, extent=2 * target.extent)
    x = nodes(wide)
    log_p = jax.vmap(model.log_density, in_axes=(None, 0))(params, x) - log_z
    p = np.exp(np.asarray(log_p, np.float64)) * (2 * wide.extent / NUM_NODES) ** 2
    of_nodes, of_samples = (np.linalg.norm(np.asarray(v, np.float64), axis=1) for v in (x, samples))
    return {
        "mass_on_square": float(p.sum()),
        "mean_radius": float(np.sum(p * of_nodes)),
        "mean_radius_of_samples": float(of_samples.mean()),
        "mean_radius_std_err": tables.std_err(of_samples),
    }


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train, sample, estimate and draw; returns the numbers that results.json holds.

    Raises:
      ValueError: if there is no such data set, or an option is out of range.
    """
    if config.target not in TARGETS:
        raise ValueError(f"target: expected one of {list(TARGETS)}, got {config.target!r}")
    config.expect(config.num_steps % 10 == 0, "num_steps", "a multiple of 10")
    begin = time.perf_counter()
    target, model = TARGETS[config.target], build(config.num_student_t)
    keys = jax.random.split(jax.random.key(config.seed), 5)
    data = target.sample(keys[0], config.num_train)
    test = target.sample(keys[1], config.num_test)
    params = train(config, model, keys[2], data)
    samples, step_size, acceptance = draw_samples(config, model, params, keys[3])

    quadrature = pj.exact.quadrature(model, params)
    exact = pj.evidence.log_likelihood(model, params, test, quadrature.log_z)
    base = gaussian_base(model, params)
    betas = pj.evidence.linear_betas(config.ais_steps)
    kernel = pj.kernels.hmc(model, config.step_size, config.num_leapfrog)
    estimates = []
    for run in range(config.ais_runs):
        run_key = jax.random.fold_in(keys[4], run)
        found = pj.evidence.ais(run_key, model, params, base, betas, config.ais_chains, kernel)
        likelihood = pj.evidence.log_likelihood(model, params, test, found)
        estimates.append(
            {
                "log_z": float(found.log_z),
                "std_err": float(found.std_err),
                "interval": [float(found.ci_low), float(found.ci_high)],
                "ess": float(found.ess),
                "log_likelihood_interval": [float(likelihood.ci_low), float(likelihood.ci_high)],
            }
        )
    results = {
        "log_z_quadrature": float(quadrature.log_z),
        "log_z_quadrature_error": float(quadrature.error),
        "ais": estimates,
        "test_log_likelihood": float(exact.mean),
        "gaussian_log_likelihood": _best_gaussian(data, test),
        "true_log_likelihood": float(jnp.mean(jax.vmap(target.log_prob)(test))),
        "samples": sample_check(model, params, quadrature.log_z, samples, target)
        | {"step_size": step_size, "acceptance": acceptance},
    }
    figure = draw_votes(model, params, quadrature.log_z, data, samples, target)
    plotting.save(figure, workdir / "three_families.png")
    return runs.write_results(workdir, config, results, begin, table)


def _best_gaussian(data: Event, test: Event) -> float:
    """Return the held-out log-likelihood of the one Gaussian of the data's moments."""
    one = multivariate_normal(np.mean(data, axis=0), np.cov(data, rowvar=False, ddof=0))
    return float(one.logpdf(np.asarray(test)).mean())


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
    ends, ticks = (-side, side), np.linspace(-side, side, 5)
    for panel in axes.flat:
        panel.set(xlim=ends, ylim=ends, aspect="equal", xticks=ticks, yticks=ticks)
    figure.suptitle("log f in nats, less its largest value", fontsize=10)
    return figure


def table(results: dict[str, Any]) -> list[tables.Table]:
    """Return the results as tables."""
    samples, truth = results["samples"], results["log_z_quadrature"]
    rows = [("quadrature", f"{truth:.4f}", f"error about {results['log_z_quadrature_error']:.0e}")]
    for run, found in enumerate(results["ais"]):
        low, high = found["interval"]
        z = (found["log_z"] - truth) / found["std_err"]
        about = f"[{low:.4f}, {high:.4f}], z = {z:+.2f}, ESS {found['ess']:.0f}"
        rows.append((f"AIS, run {run}", f"{found['log_z']:.4f}", about))
    log_z = tables.table("log Z, nats", ("by", "log Z", ""), rows)
    low, high = results["ais"][0]["log_likelihood_interval"]
    by_name = {
        "one Gaussian": (results["gaussian_log_likelihood"],),
        f"three families (with AIS [{low:.4f}, {high:.4f}])": (results["test_log_likelihood"],),
        "true density": (results["true_log_likelihood"],),
    }
    caption = (
        f"held-out log-likelihood, nats per point; E|x| {samples['mean_radius']:.4f} of the "
        f"density, {samples['mean_radius_of_samples']:.4f} ± {samples['mean_radius_std_err']:.4f} "
        f"of the samples (HMC step {samples['step_size']:g}, acceptance "
        f"{samples['acceptance']:.2f})"
    )
    return [log_z, tables.table(caption, ("", "nats"), by_name, ".4f")]


main = runs.main_of(PRESETS, __doc__, "three_families", train_and_evaluate, table)
