"""The multimodal VAE: its bounds against quadrature, its baselines by enumeration, a small run."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from scipy import stats

from experiments import multimodal_vae
from experiments.lab.scoring import bernoulli_log_prob
from experiments.multimodal_vae import halves
from experiments.multimodal_vae.model import (
    BOTH,
    ONLY_A,
    ONLY_B,
    MultimodalVAE,
    draw,
    score,
)

GRID = np.linspace(-8, 8, 2001)
X = jnp.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


def small_model():
    """One latent dimension, and weights large enough that the views disagree."""
    model = MultimodalVAE(3, 5, 1, nnx.Rngs(0))
    graph, params = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda leaf: 2 * leaf, params))


def densities_on_the_grid(model, fusion, given):
    """log p(x_v | z) [Z, 2] and the density q(z | given) [Z], from the experts alone."""
    log_p = bernoulli_log_prob(jax.vmap(model.logits)(GRID[:, None].astype(np.float32)), X)
    experts = [view.expert(x) for view, x in zip(model.views, X, strict=True)]
    experts = [(float(m[0]), float(p[0])) for m, p in experts]

    def fused(chosen):
        precision = 1 + sum(p for _, p in chosen)
        mean = sum(m * p for m, p in chosen) / precision
        return stats.norm.pdf(GRID, mean, precision**-0.5)

    chosen = [expert for expert, keep in zip(experts, given, strict=True) if keep]
    q = fused(chosen) if fusion == "product" else np.mean([fused([e]) for e in chosen], axis=0)
    return np.asarray(log_p, float), q


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["product", "mixture"])
def test_bounds_against_quadrature(fusion):
    model, count = small_model(), 20_000
    step = GRID[1] - GRID[0]
    graph, params = nnx.split(model)

    @jax.jit
    def sampled(params):
        model = nnx.merge(graph, params)
        out = {}
        for given in (BOTH, ONLY_A, ONLY_B):
            z, log_ratio = draw(jax.random.key(0), model, fusion, X, given, count)
            out[given] = bernoulli_log_prob(jax.vmap(model.logits)(z), X), log_ratio
        return out, score(jax.random.key(1), model, fusion, X, count)

    draws, scores = jax.tree.map(lambda leaf: np.asarray(leaf, float), sampled(params))
    z_scores, without_the_ratio = [], []

    def z_score(found, values, expected):
        """Found minus expected, in standard errors of a mean of values like these."""
        return (found - expected) / (values.std() / np.sqrt(count))

    for name, given in {"ab": BOTH, "a": ONLY_A, "b": ONLY_B}.items():
        log_p, log_ratio = draws[given]
        log_w = log_p.sum(axis=1) + log_ratio
        on_grid, q = densities_on_the_grid(model, fusion, given)
        # E_q[p(a, b, z) / q(z)] = p(a, b), whatever q is.
        evidence = np.sum(stats.norm.pdf(GRID) * np.exp(on_grid.sum(axis=1))) * step
        z_scores.append(z_score(np.exp(scores[f"{name}_iwae"]), np.exp(log_w), evidence))
        plain = np.exp(log_p.sum(axis=1))
        without_the_ratio.append(z_score(plain.mean(), plain, evidence))
        terms = on_grid.sum(axis=1) + stats.norm.logpdf(GRID) - np.log(np.maximum(q, 1e-300))
        expected_elbo = np.sum(q * terms) * step
        z_scores.append(z_score(scores[f"{name}_elbo"], log_w, expected_elbo))
        assert expected_elbo < np.log(evidence)
        if given != BOTH:
            missing = given.index(False)
            predicted = np.sum(q * np.exp(on_grid[:, missing])) * step
            found = np.exp(scores[f"{name}_prediction"])
            z_scores.append(z_score(found, np.exp(log_p[:, missing]), predicted))
    assert np.abs(z_scores).max() < reference.z_threshold(len(z_scores))
    # The test has power.
    assert np.abs(without_the_ratio).min() > reference.z_threshold(len(z_scores))


def halves_of_bits():
    """Two views of two bits: 16 states as the test set, and something skewed to learn from."""
    states = (np.arange(16)[:, None] >> np.arange(4) & 1).reshape(16, 2, 2)
    rows = np.concatenate([states[:3], states[5:6].repeat(10, axis=0), states[10:]])
    train = jnp.asarray(255 * rows.astype(np.uint8))
    test = jnp.asarray(states, jnp.float32)
    return halves.Halves((2, 2), "left-right", train, test, test), states


@pytest.mark.slow
def test_the_baselines_are_normalised_and_consistent():
    data, states = halves_of_bits()
    mixture = halves.mixture_scores(jax.random.key(0), data, 3)
    for scores in (mixture, halves.mean_image_scores(data)):
        joint = np.exp(np.asarray(scores["ab_exact"], float))
        np.testing.assert_allclose(joint.sum(), 1, rtol=1e-5)
        code = states @ [1, 2]  # [16, 2]: the number of each view's state
        for v, name in enumerate("ab"):
            marginal = np.bincount(code[:, v], joint)
            expected = np.log(joint / marginal[code[:, v]])
            np.testing.assert_allclose(scores[f"{name}_prediction"], expected, atol=1e-5)
            # Bit by bit, the likelier value given the other view.
            table = np.zeros((4, 4))
            table[code[:, v], code[:, 1 - v]] = joint / marginal[code[:, v]]
            bits = np.arange(4)[:, None] >> np.arange(2) & 1
            guess = table @ bits > 0.5
            wrong = (guess[code[:, v]] != states[:, 1 - v]).mean(axis=1)
            np.testing.assert_allclose(scores[f"{name}_bit_error"], wrong, atol=1e-6)


@pytest.mark.parametrize("how", ["left-right", "top-bottom"])
def test_cutting_and_joining(how):
    images = np.arange(2 * 12).reshape(2, 12)
    views = halves.cut(images, (2, 6), how)
    first = [0, 1, 2, 6, 7, 8] if how == "left-right" else [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(views[0, 0], first)
    np.testing.assert_array_equal(halves.join(views, (2, 6), how), images)


@pytest.mark.slow
def test_smoke_run_learns_and_writes_everything(tmp_path):
    config = multimodal_vae.PRESETS["smoke"]
    results = multimodal_vae.train_and_evaluate(config, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["scores"] == results["scores"]
    chance = 64 * np.log(0.5)
    for name in multimodal_vae.RULES:
        (row,) = results["scores"][name]
        assert chance + 5 < row["ab_elbo"] < row["ab_iwae"] < 0, name
        assert row["a_elbo"] < row["a_iwae"], name
        assert chance / 2 < row["b_prediction"] < 0, name
        suffix = name.replace(", ", "_").replace(" ", "_").replace("-", "_")
        for kind in ("completions", "samples"):
            assert (tmp_path / "figures" / f"{kind}_{suffix}.png").stat().st_size > 5_000
    assert (tmp_path / "figures" / "curves.png").stat().st_size > 5_000
    (table,) = halves.table(results)
    assert [row[0] for row in table["rows"]] == list(results["scores"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num-latents", "0"], "num_latents: expected at least 1, got 0"),
        (["--learning-rate", "-1"], "learning_rate: expected > 0"),
        (["--batch-size", "5000"], "batch_size: expected at most 1297, got 5000"),
        (["--halves", "thirds"], "thirds"),
    ],
)
def test_impossible_options_end_in_one_clear_message(args, message, assert_refused):
    assert_refused(multimodal_vae.main, args, message)
