"""How good is contrastive divergence? Exact answers for many small random RBMs (Hinton 2002).

The last part of `experiments.hinton2002`: everything is enumerated, nothing is sampled.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.lab import runs, tables
from experiments.lab.figures import bare
from poejax import plotting
from poejax.types import Array, Params
from poejax.units import Bernoulli


@dataclasses.dataclass(frozen=True)
class Config:
    """The random networks, and the step taken in each."""

    num_visible: int = 8  # Visible units.
    num_hidden: int = 4  # Hidden units.
    num_networks: int = 100_000  # Networks of the paper's setting, per seed.
    num_elsewhere: int = 20_000  # Networks of every other setting, per seed.
    num_training_vectors: int = 8
    """Uniform random training vectors of each network, with repetitions."""
    learning_rate: float = 0.01
    """Of the finite step along the expected CD-1 update; the derivatives need none."""
    chunk: int = 50  # Networks analysed at once, so few that they stay in cache.
    num_seeds: int = 3  # Seeds 0, 1, ... of every setting.


class Setting(NamedTuple):
    """Weights ~ N(0, scale²), biases too if `biases`, else 0; each net has its training vectors."""

    scale: float
    biases: bool
    num_training_vectors: int

    def __str__(self) -> str:
        biases = "weights and biases" if self.biases else "weights only"
        return f"SD {self.scale:g}, {biases}, {self.num_training_vectors} vectors"


class Analysis(NamedTuple):
    """What one CD-1 step does to one network, [] each (leading axis for many).

    objective_cosine, likelihood_cosine: cosine between the CD-1 update and the steepest descent of
      the CD objective, and the steepest ascent of the log-likelihood.
    modelled, unmodelled: the two parts of a finite step's improvement of the CD objective, nats.
    likelihood_gain: a finite step's change of the mean log-likelihood, nats per training vector.
    opposed: share of the parameters that the step moves against the objective's derivative.
    """

    objective_cosine: Array
    likelihood_cosine: Array
    modelled: Array
    unmodelled: Array
    likelihood_gain: Array
    opposed: Array


def log_distributions(params: Params, data: Array) -> tuple[Array, Array, Array]:
    """Return log f, log Q1 and log Q∞ of every visible state, [2^D] each, in `states()` order.

    With the table L(x, z) = aᵀx + bᵀz + xᵀWz over all pairs of states,
    log f(x) = logsumexp_z L(x, z);  Q∞(x) = f(x) / Σ f;
    Q1(x) = Σ_z p(x | z) Σ_x' p(z | x') Q0(x');
    p(z | x) = e^L / Σ_z e^L;  p(x | z) = e^L / Σ_x e^L.

    Args:
      params: of `pj.models.rbm(D, H)`.
      data: Q0, a probability for each visible state, [2^D].
    """
    w = params["hidden"]["w"]
    x, z = (Bernoulli(size).states().astype(w.dtype) for size in w.shape)
    table = (x @ params["bias"]["field"])[:, None] + z @ params["hidden"]["b"] + x @ w @ z.T
    log_f = jax.nn.logsumexp(table, axis=1)
    # In logarithms throughout: with weights of SD 20 most of these probabilities underflow.
    log_latents = jax.nn.logsumexp(table - log_f[:, None], axis=0, b=data[:, None])
    log_visible_given_latent = table - jax.nn.logsumexp(table, axis=0)
    log_q1 = jax.nn.logsumexp(log_visible_given_latent + log_latents, axis=1)
    return log_f, log_q1, log_f - jax.nn.logsumexp(log_f)


def negative_log_likelihood(params: Params, data: Array) -> Array:
    """Return -Σ_x Q0(x) log Q∞(x), which is Q0||Q∞ but for the entropy of the data."""
    return -data @ log_distributions(params, data)[2]


def divergence_of_q1(params: Params, data: Array) -> Array:
    """Return Q1||Q∞ = Σ_x Q1(x) [log Q1(x) - log Q∞(x)]."""
    _, log_q1, log_q = log_distributions(params, data)
    return jnp.exp(log_q1) @ (log_q1 - log_q)


def objective(params: Params, data: Array) -> Array:
    """Return the CD objective Q0||Q∞ - Q1||Q∞, but for the entropy of the data."""
    return negative_log_likelihood(params, data) - divergence_of_q1(params, data)


def cd_gradient(params: Params, data: Array) -> Params:
    """Return what CD-1 follows in expectation, -E_Q0[∂ log f] + E_Q1[∂ log f].

    The full derivative of the objective has one term more, which CD ignores:

    ∂(Q0||Q∞ - Q1||Q∞) = -E_Q0[∂ log f] + E_Q1[∂ log f] - Σ_x ∂Q1(x) [log Q1(x) - log Q∞(x)]

    ∂ log Z cancels, and Σ_x ∂Q1(x) = 0.
    """
    q1 = jax.lax.stop_gradient(jnp.exp(log_distributions(params, data)[1]))
    return jax.grad(lambda p: (q1 - data) @ log_distributions(p, data)[0])(params)


def analyse(params: Params, data: Array, learning_rate: Array | float) -> Analysis:
    """Compare the expected CD-1 step θ' = θ - γ g with what it ought to do.

    g: `cd_gradient`. Cosines are <g, ∂J> / |g||∂J| and <g, ∂NLL> / |g||∂NLL|, J the objective.
    A finite step improves J by the sum of a modelled part, in which Q1 stays as it was, and an
    unmodelled one (Q∞', Q1' are those after the step):

    modelled   = [Q0||Q∞ - Q1||Q∞] - [Q0||Q∞' - Q1||Q∞']
    unmodelled = Q1'||Q∞' - Q1||Q∞'

    Args:
      params: of `pj.models.rbm(D, H)`.
      data: Q0, [2^D].
      learning_rate: γ > 0.
    """
    update = cd_gradient(params, data)
    descent = [update, *(jax.grad(f)(params, data) for f in (objective, negative_log_likelihood))]
    g, of_objective, of_nll = (jax.flatten_util.ravel_pytree(tree)[0] for tree in descent)
    new = jax.tree.map(lambda leaf, step: leaf - learning_rate * step, params, update)
    gain = objective(params, data) - objective(new, data)
    _, log_q1, _ = log_distributions(params, data)
    _, _, log_q_new = log_distributions(new, data)
    held = jnp.exp(log_q1) @ (log_q1 - log_q_new)
    unmodelled = divergence_of_q1(new, data) - held
    return Analysis(
        _cosine(g, of_objective),
        _cosine(g, of_nll),
        gain - unmodelled,
        unmodelled,
        negative_log_likelihood(params, data) - negative_log_likelihood(new, data),
        jnp.mean(g * of_objective < 0),
    )


def _cosine(a: Array, b: Array) -> Array:
    return a @ b * jax.lax.rsqrt(a @ a) * jax.lax.rsqrt(b @ b)


def draw_network(
    rng_key: Array,
    config: Config,
    scale: Array | float,
    bias_scale: Array | float,
    num_training_vectors: int,
) -> tuple[Params, Array]:
    """Draw the parameters of one network and its data distribution Q0, [2^D]."""
    a_key, b_key, w_key, data_key = jax.random.split(rng_key, 4)
    shape = (config.num_visible, config.num_hidden)
    params = {
        "bias": {"field": bias_scale * jax.random.normal(a_key, shape[:1])},
        "hidden": {
            "w": scale * jax.random.normal(w_key, shape),
            "b": bias_scale * jax.random.normal(b_key, shape[1:]),
        },
    }
    num_states = 2**config.num_visible
    rows = jax.random.randint(data_key, (num_training_vectors,), 0, num_states)
    return params, jnp.bincount(rows, length=num_states) / num_training_vectors


@functools.partial(jax.jit, static_argnames=("config", "num_training_vectors"))
def _analyse_chunk(
    rng_key: Array, config: Config, scale: float, bias_scale: float, num_training_vectors: int
) -> Analysis:
    def one(key: Array) -> Analysis:
        params, data = draw_network(key, config, scale, bias_scale, num_training_vectors)
        return analyse(params, data, config.learning_rate)

    return jax.vmap(one)(jax.random.split(rng_key, config.chunk))


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a binomial rate (Wilson 1927), sensible at counts of 0 too."""
    found = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def summary(analysis: Analysis) -> dict[str, Any]:
    """Return counts, rates with intervals and cosines of many networks."""
    a = jax.tree.map(np.asarray, analysis)
    total = len(a.modelled)
    harmful = {
        "likelihood_falls": a.likelihood_cosine < 0,
        "objective_worsens": a.objective_cosine < 0,
        "likelihood_falls_after_step": a.likelihood_gain < 0,
        "objective_worsens_after_step": a.modelled + a.unmodelled < 0,
        "unmodelled_part_harms": a.unmodelled < 0,
    }
    result: dict[str, Any] = {"networks": total}
    for name, flags in harmful.items():
        count = int(flags.sum())
        result[name] = {
            "count": count,
            "per_thousand": 1e3 * count / total,
            "interval_per_thousand": [1e3 * end for end in wilson_interval(count, total)],
        }
    for name in ("objective_cosine", "likelihood_cosine"):
        values = getattr(a, name)
        result[name] = {"median": float(np.median(values)), "least": float(values.min())}
    result["parameters_opposed"] = float(a.opposed.mean())
    return result


def settings(config: Config) -> dict[Setting, int]:
    """Return the settings and how many networks each takes per seed; the paper's comes first."""
    n, few = config.num_training_vectors, config.num_elsewhere
    others = [Setting(scale, False, n) for scale in (0.1, 1.0, 5.0)]
    others += [Setting(20.0, True, n), Setting(20.0, False, 8 * n)]
    return {Setting(20.0, False, n): config.num_networks} | dict.fromkeys(others, few)


def run(config: Config, figures: Path) -> dict[str, Any]:
    """Analyse all settings, seed by seed; returns the numbers and draws the paper's setting."""
    results: dict[str, Any] = {}
    plan = settings(config)
    total = config.num_seeds * sum(plan.values())
    # Float64, in this block only: improvements are differences of numbers a billion times larger.
    with jax.enable_x64(True), runs.progress(total, "random RBMs", "net") as bar:
        for setting, count in plan.items():
            start = time.perf_counter()
            by_seed = [
                analyse_networks(jax.random.key(seed), config, setting, count, bar)
                for seed in range(config.num_seeds)
            ]
            results[str(setting)] = summary(_joined(by_seed)) | {
                "by_seed": [summary(analysis) for analysis in by_seed],
                "seconds": round(time.perf_counter() - start, 1),
            }
            if len(results) == 1:
                plotting.save(draw(by_seed[0], setting), figures / "cd_analysis.png")
    return results


def analyse_networks(
    rng_key: Array, config: Config, setting: Setting, num_networks: int, bar: Any
) -> Analysis:
    """Draw and analyse networks in chunks; leaves are [num_networks] and on the host.

    Raises:
      FloatingPointError: if any number is not finite.
    """
    bias_scale = setting.scale if setting.biases else 0.0
    parts = []
    for start in range(0, num_networks, config.chunk):
        key, num_vectors = jax.random.fold_in(rng_key, start), setting.num_training_vectors
        part = _analyse_chunk(key, config, setting.scale, bias_scale, num_vectors)
        wanted = min(config.chunk, num_networks - start)
        parts.append(jax.tree.map(lambda leaf, n=wanted: np.asarray(leaf)[:n], part))
        bar.update(wanted)
    whole = _joined(parts)
    if not all(np.isfinite(leaf).all() for leaf in whole):
        raise FloatingPointError(f"random RBMs: a result is not finite ({setting})")
    return whole


def _joined(parts: Sequence[Analysis]) -> Analysis:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def draw(analysis: Analysis, setting: Setting) -> Figure:
    """Draw the improvements of objective and likelihood, the ignored part, and the cosines."""
    a = analysis
    figure = Figure((10, 7.4), layout="constrained")
    panels = figure.subplots(2, 2)
    gains = {
        "improvement of the CD objective by one step (nats)": a.modelled + a.unmodelled,
        "gain in log-likelihood by one step (nats)": a.likelihood_gain,
    }
    for axes, (label, values) in zip(panels[0], gains.items(), strict=True):
        worse = int((values < 0).sum())
        axes.hist(values, 120, range=(min(0.0, values.min()), np.quantile(values, 0.999)))
        axes.set(xlabel=label, ylabel="networks", yscale="log")
        title = f"negative in {worse:,} of {len(values):,} (largest 0.1 % not shown)"
        axes.set_title(title, fontsize="medium")
    axes = panels[1, 0]
    x, y = a.modelled[:3000], a.unmodelled[:3000]
    axes.scatter(x, y, s=4, alpha=0.5, linewidths=0)
    low = 1.1 * float(np.min(y, initial=0)) - 0.02 * float(np.max(a.modelled))
    axes.plot([0, -low], [0, low], "k--", lw=1, label="below: the step does harm")
    axes.axhline(0, color="0.6", lw=0.8)
    axes.set(xlabel="modelled improvement (nats)", ylabel="unmodelled improvement (nats)")
    axes.set_ylim(low, None)
    axes.set_title(f"the ignored term, {len(x):,} networks", fontsize="medium")
    axes.legend(frameon=False, fontsize="small")
    axes = panels[1, 1]
    cosines = [a.objective_cosine, a.likelihood_cosine]
    names = ("steepest descent of the CD objective", "steepest ascent of the log-likelihood")
    for values, name in zip(cosines, names, strict=True):
        axes.hist(values, 80, range=(-1, 1), histtype="step", label=name)
    axes.axvline(0, color="k", lw=0.8, ls="--")
    axes.set(xlabel="cosine with the CD-1 step", ylabel="networks", yscale="log")
    axes.set_title("direction of the expected CD-1 step", fontsize="medium")
    axes.legend(edgecolor="none", framealpha=1, fontsize="small", loc="upper left")
    for axes in panels.flat:
        bare(axes)
    figure.suptitle(f"Random RBMs: {setting}")
    return figure


def table(results: dict[str, Any]) -> tables.Table:
    """Return the rates."""
    rows = {}
    for name, result in results.items():
        cells = []
        for key in ("likelihood_falls", "objective_worsens"):
            low, high = result[key]["interval_per_thousand"]
            cells.append(f"{result[key]['per_thousand']:.3f} [{low:.3f}, {high:.3f}]")
        rows[name] = (f"{result['networks']:,}", *cells)
    caption = "random RBMs, per 1000 [95 % interval], by the derivative's sign"
    heads = ("", "networks", "log-likelihood falls", "CD objective worsens")
    return tables.table(caption, heads, rows)
