"""What products of Student-t experts learn from patches of photographs, beside FastICA.

    python -m experiments.natural_images                  # two photographs of scikit-learn
    python -m experiments.natural_images --images DIR     # a folder of images
    python -m experiments.natural_images --wav FILE       # windows of a sound, speech say

Complete models are learned by the exact gradient, by CD-1 with block Gibbs and by CD-1 with
Hamiltonian Monte Carlo, seed by seed, twice overcomplete ones by both kinds of CD. Prints held-out
log-likelihoods, exact or by AIS, and how sparse and localised the filters are; writes config.json,
results.json and figures/ to the working directory.

2026-11-24, 2 CPU cores busy with other work, 7 minutes; held-out nats per patch (mean of 3 seeds,
each with photographs' tiles of its own; "minus FastICA" on the same patches, ± spread):

                             fitted    minus FastICA    kurtosis    share of pixels
    Gaussian                 -92.10   -54.25 ± 12.49           -                  -
    principal components     -48.30   -10.46 ±  3.60         7.6              0.401
    FastICA                  -37.84                0        17.5              0.157
    exact gradient           -34.21     3.63 ±  2.36        14.6              0.162
    CD-1, block Gibbs        -37.04     0.81 ±  1.67        15.0              0.180
    CD-1, HMC                -36.63     1.22 ±  1.42        17.2              0.165

"fitted": scales and exponents by maximum likelihood with the directions held, for all alike. Twice
overcomplete models, whose marginals are held at hand-set values and so are not comparable: -67.4
(AIS interval -67.8 to -67.1, ESS 27 of 100) by block Gibbs, -70.9 (-71.2 to -70.6, ESS 32) by HMC,
one seed. The filters are localised, oriented edges and gratings, as FastICA's are.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import poejax as pj
from experiments import filter_report, ica, patches, runs
from experiments.image_models import Judge, Learner, gibbs_speed


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything the study depends on, with its data."""

    preset: Literal["default", "smoke"] = "default"
    """Defaults of all other options."""
    images: Path | None = None
    """Folder of images; the two photographs of scikit-learn unless given."""
    wav: Path | None = None
    """Sound to take instead of images."""
    shrink: int = 2
    """Pixels (samples) averaged along each axis first, which removes most artefacts of JPEG."""
    side: int = 12
    """Side of a patch in pixels after shrinking."""
    window: int = 100
    """Samples of a window after shrinking (wav only)."""
    num_components: int = 64
    """Principal components kept by the whitening, the D of the models."""
    num_train: int = 40_000
    """Patches to learn from."""
    num_test: int = 10_000
    """Patches to judge by, from tiles of their own."""
    overcompleteness: int = 2
    """Experts per component in the overcomplete models; 1 leaves these out."""
    exponent: float = 1.5
    """Exponents of the experts, held by CD; where the exact gradient starts from."""
    wide_exponent: float = 1.0
    """Exponents of the experts of overcomplete models, held: more experts need less each."""
    scale: float = 0.1
    """Scales of the experts, held by CD; where the exact gradient starts from."""
    num_steps: int = 2_000
    """Updates."""
    batch_size: int = 200
    """Patches per update."""
    learning_rate: float = 0.01
    """Of Adam, lowered to zero along a cosine."""
    hmc_leapfrog: int = 10
    """Leapfrog steps per HMC step."""
    hmc_acceptance: float = 0.8
    """Acceptance that the HMC step size is tuned to, at each of `num_stages` times."""
    num_stages: int = 4
    """Stages of training."""
    marginal_steps: int = 500
    """Updates that fit scales and exponents to directions that are held."""
    marginal_rate: float = 0.05
    """Learning rate of those."""
    num_seeds: int = 3
    """Seeds 0, 1, ... of tiles, patches and learning; overcomplete models use seed 0 only."""
    ais_chains: int = 100
    """Annealed importance sampling runs."""
    ais_steps: int = 1_000
    """Temperatures between base and model."""
    workdir: Path | None = None
    """Where results go; runs/natural_images/PRESET unless given."""

    def __post_init__(self) -> None:
        """Refuse impossible values before any work is done."""
        if self.images is not None and self.wav is not None:
            raise ValueError("images, wav: expected one of them at most, got both")
        at_least_one = ("shrink", "num_components", "num_train", "num_test", "overcompleteness")
        for name in (*at_least_one, "hmc_leapfrog", "marginal_steps", "num_stages", "num_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("side", "window", "ais_chains", "ais_steps"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: expected at least 2, got {getattr(self, name)}")
        if not 1 <= self.batch_size <= self.num_train:
            raise ValueError(
                f"batch_size: expected 1 to num_train = {self.num_train}, got {self.batch_size}"
            )
        for name in ("exponent", "wide_exponent"):
            if not getattr(self, name) > 0.5:
                raise ValueError(
                    f"{name}: expected more than 0.5, or a complete product (as AIS starts from) "
                    f"is improper, got {getattr(self, name)}"
                )
        for name in ("learning_rate", "marginal_rate", "scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 < self.hmc_acceptance < 1:
            raise ValueError(
                f"hmc_acceptance: expected a number in (0, 1), got {self.hmc_acceptance}"
            )
        if self.num_steps < self.num_stages or self.num_steps % self.num_stages:
            raise ValueError(
                f"num_steps: expected a multiple of num_stages = {self.num_stages}, got "
                f"{self.num_steps}"
            )


PRESETS = {
    "default": Config(),
    "smoke": Config(
        preset="smoke",
        side=5,
        window=20,
        num_components=6,
        num_train=1_000,
        num_test=300,
        num_steps=40,
        batch_size=50,
        hmc_leapfrog=3,
        num_stages=1,
        marginal_steps=40,
        num_seeds=1,
        ais_chains=20,
        ais_steps=20,
    ),
}


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


RULES = {"exact": "exact gradient", "gibbs": "CD-1, block Gibbs", "hmc": "CD-1, HMC"}


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Learn, judge and draw; returns what results.json holds.

    Raises:
      FileNotFoundError: if there are no data.
      ValueError: if `workdir` holds a study with another config, or the data do not fit the config.
      FloatingPointError: if a rule diverges.
    """
    # Before the folder is made: data that cannot be read should leave nothing behind.
    data = load(config, seed=0)
    white = ica.whitening(data.train, config.num_components)
    runs.open_workdir(workdir, config, resume=None, unchecked=("workdir",))
    size, learner, judge = (
        config.num_components,
        Learner(config),
        Judge(config, data.shape),
    )
    results: dict[str, Any] = {"source": data.source, "variance_kept": white.kept}
    wide = ("gibbs", "hmc") if config.overcompleteness > 1 else ()
    with runs.progress(6 * config.num_seeds + len(wide), "training", "model") as bar:

        def score(params: Any) -> float:
            model = learner.model(size)
            log_z = pj.exact.log_z(model, params)
            return float(pj.evidence.log_likelihood(model, params, z_test, log_z).mean)

        def done(name: str, row: dict[str, Any]) -> None:
            bar.update()
            bar.set_postfix(
                {name: f"{row.get('fitted', row.get('as_trained')):.2f}"}, refresh=False
            )

        for seed in range(config.num_seeds):
            if seed:
                data = load(config, seed)
                white = ica.whitening(data.train, size)
            z, z_test = (jnp.asarray(white(x), jnp.float32) for x in (data.train, data.test))
            judge.add_gaussian(z_test)
            for name, basis in BASES.items():
                start = time.perf_counter()
                w = basis(z, seed)
                row = judge.add_filters(name, w, white, z_test, time.perf_counter() - start)
                row["fitted"] = score(learner.fit_marginals(w, z, seed))
                done(name, row)
            for rule, name in RULES.items():
                start = time.perf_counter()
                params = learner.fit(rule, size, z, seed)
                w = ica.directions(params)
                row = judge.add_filters(name, w, white, z_test, time.perf_counter() - start)
                row["as_trained"] = row["fitted"] = score(params)
                if rule != "exact":
                    row["fitted"] = score(learner.fit_marginals(w, z, seed))
                else:
                    row |= quantiles(params)
                done(name, row)
            if seed:
                continue
            for rule in wide:
                name = f"{RULES[rule]}, {config.overcompleteness}x"
                start, count = time.perf_counter(), config.overcompleteness * size
                params = learner.fit(rule, count, z, seed)
                w = ica.directions(params)
                row = judge.add_filters(name, w, white, z_test, time.perf_counter() - start)
                found = judge.anneal(learner.model(count), params, z_test)
                row["as_trained"], row["ess"] = float(found.mean), float(found.ess)
                row["interval"] = [float(found.ci_low), float(found.ci_high)]
                done(name, row)
            results["gibbs_chain_steps_per_second"] = {
                str(n): round(gibbs_speed(learner.model(n), learner.random(n, seed), z))
                for n in sorted({size, config.overcompleteness * size})
            }
    results |= {"models": judge.models, "machine": runs.machine()}
    runs.write_json(workdir / "results.json", results)
    folder = workdir / "figures"
    filter_report.draw(folder, judge.filters, judge.measures, data.shape, data.source)
    return results


def quantiles(params: pj.types.Params) -> dict[str, list[float]]:
    """Return the smallest, median and largest scale and exponent."""
    leaves = {"scales": "log_scale", "exponents": "log_exponent"}
    return {
        key: [float(q) for q in np.quantile(np.exp(params["student"][leaf]), (0, 0.5, 1))]
        for key, leaf in leaves.items()
    }


def _random(z: jax.Array, seed: int) -> np.ndarray:
    size = z.shape[1]
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def _principal(z: jax.Array, seed: int) -> np.ndarray:
    del seed
    return np.eye(z.shape[1])


def _fastica(z: jax.Array, seed: int) -> np.ndarray:
    return ica.fastica(np.asarray(z), seed, max_iter=200)


# Orthonormal bases of the whitened space whose Student-t marginals are fitted.
BASES = {"random basis": _random, "principal components": _principal, "FastICA": _fastica}


@runs.command
def main() -> int:
    """Run from the command line; returns the exit status."""
    config = runs.parse(PRESETS, __doc__ or "")
    workdir = config.workdir or Path("runs") / "natural_images" / config.preset
    results = train_and_evaluate(config, workdir)
    print(f"\n{results['source']}; whitened by {config.num_components} principal components")
    print(filter_report.table(results["models"]))
    for name, rows in results["models"].items():
        if "ess" in rows[0]:
            low, high = rows[0]["interval"]
            print(
                f"{name}: log Z by AIS, 95 % interval of the likelihood {low:.2f} to {high:.2f}, "
                f"ESS {rows[0]['ess']:.0f} of {config.ais_chains}"
            )
    speeds = results["gibbs_chain_steps_per_second"]
    print("block Gibbs: " + ", ".join(f"{v} chain-steps/s, {k} experts" for k, v in speeds.items()))
    print(f"{results['machine']}; figures and numbers: {workdir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
