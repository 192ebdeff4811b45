"""Toy densities: the targets are what they say, and products and mixtures differ as claimed."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import toy_densities
from experiments.lab.plane import TARGETS
from experiments.toy_densities import report, theory

MAX_Z = 4.0  # two-sided 6e-5 per comparison


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_samples_of_a_target_follow_its_density(name):
    target, num_rows = TARGETS[name], 20_000
    x = target.sample(jax.random.key(0), num_rows)
    nodes = report.nodes(target)
    cell = (2 * target.extent / report.NUM_NODES) ** 2
    p = np.exp(np.asarray(jax.vmap(target.log_prob)(nodes), np.float64)) * cell

    def bumps(x):
        # Bounded, and nothing outside of the square: tails need no quadrature.
        inside = (jnp.abs(x) < target.extent).all(axis=1)
        centres = jnp.array([[0.3, 0.2], [1.6, 0.0], [0.1, 2.0], [2.0, 1.7], [-1.0, 1.7]])
        near = jnp.exp(-jnp.sum((x[:, None] - centres) ** 2, axis=-1) / 0.2)
        return np.asarray(jnp.where(inside[:, None], near, 0.0), np.float64)

    seen, expected = bumps(x), p @ bumps(nodes)
    z = (seen.mean(axis=0) - expected) / (seen.std(axis=0) / np.sqrt(num_rows))
    assert np.abs(z).max() < MAX_Z
    shifted = bumps(x + 0.05)
    z = (shifted.mean(axis=0) - expected) / (shifted.std(axis=0) / np.sqrt(num_rows))
    assert np.abs(z).max() > MAX_Z  # a target that is off by 0.05 is seen


@pytest.mark.slow
def test_products_beat_mixtures_on_a_grid_of_clusters(tmp_path):
    results = toy_densities.train_and_evaluate(toy_densities.PRESETS["smoke"], tmp_path)
    rows = {row["family"]: row for row in results["densities"]}
    truth, mixture, product = (rows[k] for k in ("truth", "mixture", "axis_mixtures"))
    assert product["num_free"] <= mixture["num_free"]
    for a, b, c in zip(*(row["log_likelihood"] for row in (mixture, product, truth)), strict=True):
        assert a + 0.1 < b < c
    assert np.mean(product["mass_outside"]) < np.mean(mixture["mass_outside"])
    np.testing.assert_allclose(truth["mass_outside"], 0.01, atol=0.006)  # 4 sd of the quantile

    curve = results["kl_against_k"]
    mixtures, products = np.array(curve["mixture"]), np.array(curve["product"])
    best = curve["moment_matching"]
    np.testing.assert_allclose(mixtures[0], best, rtol=1e-4)
    assert (mixtures[1:].max(axis=1) < 0.5 * mixtures[:-1].min(axis=1)).all()
    assert ((best - 1e-6 < products) & (products < best + 2e-3)).all()

    for name in ("densities", "kl_against_k", "expansion"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert (tmp_path / "results.json").exists()
    assert any("axis_mixtures" in row for row in report.table(results)[0]["rows"])


def test_expansion_of_a_product_is_the_product():
    expansion = theory.expand_product()
    assert expansion.expanded.means.shape == (9, 2)
    assert expansion.summary()["product_free_parameters"] == 16
    assert expansion.summary()["mixture_free_parameters"] == 44
    assert expansion.product_density.max() > 0.1
    assert expansion.max_difference < 1e-6
    swapped = expansion._replace(mixture_density=expansion.mixture_density.T)
    assert swapped.max_difference > 0.01


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--targets", "moons"], "targets: expected names of"),
        (["--families", "mixture", "copula"], "families: expected names of"),
    ],
)
def test_impossible_options_end_in_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", "--workdir", str(tmp_path / "run"), *args])
    assert toy_densities.main() == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())
