"""The applications: their measures against references, and small runs of each."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score

import poejax as pj
from experiments import denoising, parts, per_class, ranking
from experiments.lab import damage, encoders, logistic, rbm_recipe, runs, scoring, tables
from poejax import datasets

APPLICATIONS = {
    "ranking": ranking,
    "denoising": denoising,
    "parts": parts,
    "per_class": per_class,
}


def test_auroc_is_the_area_with_ties_counting_half():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 40), rng.integers(-1, 5, 70)
    area = scoring.auroc(x, y)
    expected = roc_auc_score([1] * 40 + [0] * 70, np.concatenate([x, y]))
    assert area.value == pytest.approx(expected, abs=1e-12)
    assert area.outliers.mean() == pytest.approx(expected, abs=1e-12)
    for bad in (([1.0], y, False), (x, y, True), ([np.nan, 1.0], y, False)):
        with pytest.raises(ValueError, match="inliers, outliers"):
            scoring.auroc(*bad)


@pytest.mark.parametrize("paired", [False, True])
def test_auroc_standard_errors_are_the_spread_of_repeated_experiments(paired):
    rng = np.random.default_rng(1)
    repeats, areas = 600, []
    for _ in range(repeats):
        x = rng.normal(size=60)
        # A damaged copy scores lower than its original by much the same amount.
        y = x - 0.5 + 0.5 * rng.normal(size=60) if paired else rng.normal(-0.7, 1.5, size=90)
        areas.append(scoring.auroc(x, y, paired))
    ratio = np.var([a.value for a in areas], ddof=1) * (repeats - 1)
    low, high = stats.chi2.interval(0.999, repeats - 1)
    assert low < ratio / np.mean([a.std_err**2 for a in areas]) < high
    # Mutation: pairs taken for independent examples, and the other way round.
    wrong = [a._replace(paired=True, outliers=np.resize(a.outliers, 60)) for a in areas]
    if paired:
        wrong = [a._replace(paired=False) for a in areas]
    assert not low < ratio / np.mean([a.std_err**2 for a in wrong]) < high


def test_differences_and_means_of_areas_are_of_the_same_examples():
    rng = np.random.default_rng(2)
    x, y = rng.normal(1, 1, 50), rng.normal(0, 1, 50)
    a = scoring.auroc(x, y)
    b = scoring.auroc(x + 0.01 * rng.normal(size=50), y)
    assert a.minus(b).value == pytest.approx(a.value - b.value, abs=1e-12)
    assert a.minus(b).std_err < 0.2 * a.std_err
    mean = scoring.AUROC.mean([a, b])
    assert mean.value == pytest.approx((a.value + b.value) / 2, abs=1e-12)
    assert mean.std_err == pytest.approx(a.std_err, rel=0.1)


def test_mixture_takes_the_size_that_suits_rows_it_has_not_seen():
    rng = np.random.default_rng(3)
    centres = np.repeat(np.eye(3), 4, axis=1)
    x = np.abs(centres[np.arange(120) % 3] - (rng.random((120, 12)) < 0.1)).astype(np.float32)
    fitted = scoring.fit_mixture(jax.random.key(0), x, x, (1, 3), (0.1, 1.0))
    assert fitted.num_components == 3
    assert len(fitted.held_out) == 4
    best = max(fitted.held_out.values())
    assert fitted.held_out[3, fitted.smoothing] == best > fitted.held_out[1, 0.1] + 1
    total = jax.nn.logsumexp(
        scoring.mixture_log_probs(fitted.params, pj.units.Bernoulli(12).states())
    )
    assert float(total) == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
def test_recipe_learns_bars_and_stripes_and_lowers_its_rate():
    recipe = rbm_recipe.Recipe(num_hidden=12, num_steps=4_000, batch_size=32, weight_decay=0)
    x = jnp.asarray(datasets.bars_and_stripes(4), jnp.float32)
    model, params = recipe.fit(jax.random.key(0), x, rbm_recipe.as_bits, None)
    log_z = pj.exact.log_z(model, params)
    found = float(pj.evidence.log_likelihood(model, params, x, log_z).mean)
    base_rates = 16 * np.log(0.5)
    assert base_rates + 4 < found < -3.3791
    gradient = {"hidden": {"w": jnp.ones(())}, "bias": {"field": jnp.ones(())}}
    tx = rbm_recipe.optimizer(0.1, 0.5, 10)
    state, steps = tx.init(gradient), []
    for _ in range(11):
        update, state = tx.update(gradient, state, gradient)
        steps.append((float(update["bias"]["field"]), float(update["hidden"]["w"])))
    np.testing.assert_allclose(steps[:3], [[-0.1, -0.15]] * 3, rtol=1e-6)
    np.testing.assert_allclose(steps[-1], [-0.002, -0.003], rtol=1e-5)
    assert all(a < b for (a, _), (b, _) in itertools.pairwise(steps[3:]))


def test_locality_measures():
    w = np.zeros((20, 3))
    w[[0, 1, 5, 6], 0] = 2.0, -2.0, 2.0, 2.0  # a 2x2 patch of 4x5 pixels
    w[:, 1] = 0.3
    w[7, 2] = -1.0
    np.testing.assert_allclose(encoders.participation_ratio(w), [4 / 20, 1, 1 / 20])
    np.testing.assert_allclose(encoders.participation_ratio(-5 * w), [4 / 20, 1, 1 / 20])
    expected = [np.sqrt(0.5), np.sqrt((16 - 1) / 12 + (25 - 1) / 12), 0]
    np.testing.assert_allclose(encoders.radius(w, (4, 5)), expected, atol=1e-7)


def test_triangle_features_are_those_of_the_paper():
    rng = np.random.default_rng(4)
    x, centroids = rng.random((7, 5)), rng.random((4, 5))
    d = np.array([[np.linalg.norm(a - c) for c in centroids] for a in x])
    expected = np.maximum(0, d.mean(axis=1, keepdims=True) - d)
    np.testing.assert_allclose(encoders.triangle(jnp.asarray(centroids), x), expected, atol=1e-5)


def test_median_filter_is_scipys():
    images = np.random.default_rng(5).integers(0, 2, (3, 30)).astype(np.float32)
    found = denoising.median_filter(images, (5, 6))
    expected = ndimage.median_filter(images.reshape(3, 5, 6), size=(1, 3, 3), mode="constant")
    np.testing.assert_array_equal(found, expected.reshape(3, 30))


@pytest.mark.parametrize(("shape", "side"), [((8, 8), 4), ((28, 28), 9), ((6, 10), 1)])
def test_blocks_are_whole_squares_in_many_places(shape, side):
    masks = damage.block_masks(np.random.default_rng(6), 200, shape, side)
    assert (masks.sum(axis=1) == side**2).all()
    images = masks.reshape(-1, *shape)
    assert (images.any(axis=1).sum(axis=1) == side).all()
    assert (images.any(axis=2).sum(axis=1) == side).all()
    assert len(np.unique(masks, axis=0)) > 5
    with pytest.raises(ValueError, match="block: expected a side of 1 to"):
        damage.require_block(min(shape) // 2 + 1, shape)


def check_files(workdir, results, figures):
    for name in figures:
        assert (workdir / "figures" / f"{name}.png").stat().st_size > 5_000, name
    written = json.loads((workdir / "results.json").read_text())
    # The spread of a single seed is NaN, which JSON does not know.
    assert written == json.loads(json.dumps(results).replace("NaN", "null"))


@pytest.mark.slow
def test_ranking_small(tmp_path):
    config = ranking.PRESETS["smoke"]
    results = ranking.train_and_evaluate(config, tmp_path)
    check_files(tmp_path, results, ("ranking", "sets", "auroc"))
    area = results["auroc"]
    for scorer in ("RBM", "Bernoulli mixture"):
        # Better than chance by far; and damage is the plainer the more there is of it.
        assert area["other digits"][scorer]["mean"] > 0.9
        flipped = [area[f"{rate} % of bits flipped"][scorer]["mean"] for rate in (5, 10)]
        assert 0.7 < flipped[0] < flipped[1]
    lead = area["other digits"]["RBM less mixture"]["mean"]
    means = [area["other digits"][s]["mean"] for s in ("RBM", "Bernoulli mixture")]
    assert lead == pytest.approx(means[0] - means[1], abs=1e-9)
    assert "RBM less mixture" in tables.text(ranking.table(results))


def test_ranking_sets_hold_what_they_say():
    config = ranking.PRESETS["smoke"]
    data = datasets.load("digits")
    inliers, others = ranking.select(data.train, config)
    pixels = inliers.sum(axis=1)
    assert pixels.min() >= config.min_pixels
    assert pixels.max() <= config.max_pixels
    assert len(others) == (data.train.labels != config.digit).sum()
    sets = ranking.outlier_sets(0, inliers, others, data.shape, config)
    for rate in (0.05, 0.1):
        flipped, paired = sets[f"{100 * rate:g} % of bits flipped"]
        count = np.abs(flipped - inliers).sum()
        assert abs(count - rate * inliers.size) < 4 * np.sqrt(rate * (1 - rate) * inliers.size)
        assert paired
    erased, _ = sets["3x3 block erased"]
    assert (erased <= inliers).all()
    assert erased.sum() < inliers.sum()
    ink = sets["other digits, as much ink"][0].sum(axis=1)
    assert config.min_pixels <= ink.min() <= ink.max() <= config.max_pixels


@pytest.mark.slow
def test_denoising_small_posterior_mean_beats_the_mean_field_everywhere(tmp_path):
    results = denoising.train_and_evaluate(denoising.PRESETS["smoke"], tmp_path)
    check_files(tmp_path, results, ("5-percent-flips", "20-percent-flips", "3x3-erased", "scores"))
    for name, scores in results["scores"].items():
        for measure in ("bit_error_rate", "squared_error"):
            lead = scores[f"lead_over_mean_field_{measure}"]
            assert lead["mean"] > 3 * lead["std_err"] > 0, (name, measure)
        best = max(denoising.METHODS, key=lambda method: scores[method]["psnr"])
        assert best == "posterior mean", name
    noisy = results["scores"]["10 % flips"]["input"]
    pixels = 250 * 64 * 2
    assert abs(noisy["bit_error_rate"] - 0.1) < 4 * np.sqrt(0.09 / pixels)
    # Of bits, squared error and error rate are the same.
    for rate, psnr in zip(noisy["bit_error_rate_per_seed"], noisy["psnr_per_seed"], strict=True):
        assert psnr == pytest.approx(-10 * np.log10(rate), abs=1e-4)


@pytest.mark.slow
def test_parts_small(tmp_path):
    config = parts.PRESETS["smoke"]
    results = parts.train_and_evaluate(config, tmp_path)
    check_files(tmp_path, results, ("filters", "centroids", "few_labels"))
    for name, by_count in results["test_error"].items():
        # Five classes: chance is 0.8.
        few, many = (by_count[str(count)]["mean"] for count in config.labels_per_class)
        assert many < few < 0.6, name
    all_pixels = results["test_error"]["pixels"]["20"]["all"]
    assert all_pixels[0] == all_pixels[1]
    assert (
        results["test_error"]["RBM"]["20"]["all"][0] != results["test_error"]["RBM"]["20"]["all"][1]
    )
    for figures in results["locality"]["participation_ratio"].values():
        assert 1 / 64 < figures["mean"] < 1
    rows = logistic.labelled_rows(np.arange(200) % 5 + 5, (5, 20), 2)
    assert [len(draws[0]) for draws in rows] == [25, 100]
    assert set(rows[0][0]) < set(rows[1][0])
    assert len(set(rows[1][0])) == 100


@pytest.mark.slow
def test_per_class_small(tmp_path):
    results = per_class.train_and_evaluate(per_class.PRESETS["smoke"], tmp_path)
    check_files(tmp_path, results, ("mistakes", "errors"))
    for name, figures in results["test_error"].items():
        assert 0 < figures["mean"] < 0.2, name
    digits = per_class.Digits(datasets.load("digits"))
    assert len({rows.shape for rows in digits.padded}) == 1
    for own, padded in zip(digits.own, digits.padded, strict=True):
        np.testing.assert_array_equal(padded[: len(own)], own)
        assert len(padded) < 2 * len(own)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("ranking", ["--num-seeds", "0"], "num_seeds: expected at least 1, got 0"),
        ("ranking", ["--min-pixels", "60", "--max-pixels", "64"], "min_pixels, max_pixels"),
        ("denoising", ["--noise-rates", "0.1", "0.7"], "noise_rates: expected some in (0, 0.5)"),
        ("denoising", ["--num-images", "251"], "num_images: expected at most 250, got 251"),
        ("denoising", ["--block", "5"], "block: expected a side of 1 to 4, got 5"),
        ("denoising", ["--noise-rates", "0.1", "0.1"], "noise_rates: expected different ones"),
        ("ranking", ["--digit", "12"], "digit: expected 0 to 9, got 12"),
        ("ranking", ["--block", "5"], "block: expected a side of 1 to 4, got 5"),
        ("denoising", ["--burn-in", "60"], "burn_in: expected 0 to 59, got 60"),
        ("parts", ["--labels-per-class", "1"], "labels_per_class: expected at least num_folds"),
        ("parts", ["--labels-per-class", "900"], "labels_per_class: expected at most"),
        ("per_class", ["--rbm.learning-rate", "-1"], "learning_rate"),
        ("per_class", ["--rbm.batch-size", "5000"], "batch_size: expected at most"),
    ],
)
def test_impossible_options_end_in_one_clear_message(name, args, message, assert_refused):
    assert_refused(APPLICATIONS[name].main, args, message)


@pytest.mark.slow
def test_command_line_runs_and_prints_its_table(tmp_path, monkeypatch, capsys):
    small = dataclasses.replace(
        ranking.PRESETS["smoke"], num_seeds=1, mixture_sizes=(2,), workdir=tmp_path / "run"
    )
    monkeypatch.setitem(ranking.PRESETS, "smoke", small)
    monkeypatch.setattr(sys, "argv", ["ranking", "--preset", "smoke"])
    assert ranking.main() == 0
    assert "AUROC (± standard error)" in capsys.readouterr().out
    assert (tmp_path / "run" / "results.json").is_file()
    # Studies that can be resumed are not mixed with others, nor overwritten by them.
    with pytest.raises(FileExistsError, match="holds results of something else"):
        runs.open_workdir(tmp_path / "run", small, resume=True, unchecked=())
    (tmp_path / "run" / "config.json").write_text("{}")
    assert ranking.main() == 1
    assert "holds a run that can be resumed" in capsys.readouterr().err
