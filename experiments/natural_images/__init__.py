"""What products of Student-t experts learn from patches of photographs, beside FastICA.

    python -m experiments.natural_images                  # two photographs of scikit-learn
    python -m experiments.natural_images --images DIR     # a folder of images
    python -m experiments.natural_images --wav FILE       # windows of a sound, speech say

Complete models are learned by the exact gradient, by CD-1 with block Gibbs and by CD-1 with
Hamiltonian Monte Carlo, seed by seed, twice overcomplete ones by both kinds of CD. Prints held-out
log-likelihoods, exact or by AIS, and how sparse and localised the filters are; writes config.json,
results.json and figures/ to the working directory.

"fitted": scales and exponents by maximum likelihood with the directions held, for all alike. Twice
overcomplete models, whose marginals are held at hand-set values, are not comparable.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import poejax as pj
from experiments.lab import ica, runs
from experiments.lab.scoring import exact_log_likelihood
from experiments.natural_images import patches, report
from experiments.natural_images.models import PRESETS, Config, Judge, Learner, gibbs_speed


def load(config: Config, seed: int) -> patches.Patches:
    """Read the pictures or the sound, and cut training and test patches.

    Raises:
      FileNotFoundError: if there is nothing to read.
      ValueError: if what is there cannot be read or is too small.
    """
    shape = (config.side, config.side)
    if config.wav is not None:
        pictures, shape = patches.read_wav(config.wav), (1, config.window)
        source = config.wav.name
    elif config.images is not None:
        pictures, source = patches.read_folder(config.images), config.images.name
    else:
        pictures, source = patches.sample_photographs(), "two photographs"
    pictures = [patches.shrink(picture, config.shrink) for picture in pictures]
    return patches.cut(pictures, shape, config.num_train, config.num_test, seed, source)


BASES = ("random basis", "principal components", "FastICA")  # whose marginals are fitted
RULES = {"exact gradient": "exact", "CD-1, block Gibbs": "gibbs", "CD-1, HMC": "hmc"}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Learn, judge and draw; returns what results.json holds.

    Raises:
      FileNotFoundError: if there are no data.
      ValueError: if `workdir` holds a study with another config, or the data do not fit the config.
    """
    # Before the folder is made: data that cannot be read should leave nothing behind.
    data = load(config, seed=0)
    white = ica.whitening(data.train, config.num_components)
    runs.open_workdir(workdir, config, resume=None, unchecked=("workdir",))
    size, learner, judge = config.num_components, Learner(config), Judge(config, data.shape)
    results: dict[str, Any] = {"source": data.source, "variance_kept": white.kept}
    wide = ("CD-1, block Gibbs", "CD-1, HMC") if config.overcompleteness > 1 else ()
    with runs.progress(6 * config.num_seeds + len(wide), "training", "model") as bar:

        def score(params: Any) -> float:
            return exact_log_likelihood(learner.model(size), params, z_test)

        def learned(name: str, rule: str, num_experts: int) -> tuple[dict[str, Any], Any]:
            start, params = time.perf_counter(), learner.fit(rule, num_experts, z, seed)
            w, seconds = ica.directions(params), time.perf_counter() - start
            return judge.add_filters(name, w, white, z_test, seconds), params

        def done(name: str, value: float) -> None:
            bar.update()
            bar.set_postfix({name: f"{value:.2f}"}, refresh=False)

        for seed in range(config.num_seeds):
            if seed:
                data = load(config, seed)
                white = ica.whitening(data.train, size)
            z, z_test = (jnp.asarray(white(x), jnp.float32) for x in (data.train, data.test))
            judge.add_gaussian(z_test)
            for name in BASES:
                start, w = time.perf_counter(), basis(name, z, seed)
                row = judge.add_filters(name, w, white, z_test, time.perf_counter() - start)
                row["fitted"] = score(learner.fit_marginals(w, z, seed))
                done(name, row["fitted"])
            for name, rule in RULES.items():
                row, params = learned(name, rule, size)
                row["as_trained"] = row["fitted"] = score(params)
                if rule == "exact":
                    row |= quantiles(params)
                else:
                    w = ica.directions(params)
                    row["fitted"] = score(learner.fit_marginals(w, z, seed))
                done(name, row["fitted"])
            if seed:
                continue
            count = config.overcompleteness * size
            for rule in wide:
                name = f"{rule}, {config.overcompleteness}x"
                row, params = learned(name, RULES[rule], count)
                found = judge.anneal(learner.model(count), params, z_test)
                row["as_trained"], row["ess"] = float(found.mean), float(found.ess)
                row["interval"] = [float(found.ci_low), float(found.ci_high)]
                done(name, row["as_trained"])
            results["gibbs_chain_steps_per_second"] = {
                str(n): round(gibbs_speed(learner.model(n), learner.random(n, seed), z))
                for n in sorted({size, count})
            }
    results |= {"models": judge.models, "machine": runs.machine(), "ais_chains": config.ais_chains}
    results["tables"] = report.table(results)
    runs.write_json(workdir / "results.json", results)
    report.draw(workdir / "figures", judge.filters, judge.measures, data)
    return results


def quantiles(params: pj.types.Params) -> dict[str, list[float]]:
    """Return the smallest, median and largest scale and exponent."""
    leaves = {"scales": "log_scale", "exponents": "log_exponent"}
    return {
        key: [float(q) for q in np.quantile(np.exp(params["student"][leaf]), (0, 0.5, 1))]
        for key, leaf in leaves.items()
    }


def basis(name: str, z: jax.Array, seed: int) -> np.ndarray:
    """Return an orthonormal basis of the whitened space, [D, D]."""
    size = z.shape[1]
    if name == "random basis":
        return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    if name == "principal components":
        return np.eye(size)
    return ica.fastica(np.asarray(z), seed, max_iter=200)


main = runs.main_of(
    PRESETS, __doc__, "natural_images", train_and_evaluate, report.table, resumes=True
)
