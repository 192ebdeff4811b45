"""Independent components: distances, data, and both studies in small."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from scipy.io import wavfile

import poejax as pj
from experiments import natural_images, source_recovery
from experiments.lab import ica
from experiments.natural_images import patches, report

SMALL = source_recovery.PRESETS["smoke"]


def test_amari_distance_knows_order_sign_and_scale_only():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 4))
    shuffled = np.diag([2.0, -1.0, 0.1, 5.0])[[2, 0, 3, 1]] @ np.linalg.inv(mixing)
    assert ica.amari_distance(shuffled, mixing) < 1e-12
    assert ica.amari_distance(np.ones((4, 4)), np.eye(4)) == pytest.approx(1.0)
    # By hand: rows leave 0.5 and 0.25, columns 0.25 and 0.5, out of 2 * 2 * 1.
    product = np.array([[1.0, -0.5], [0.25, 1.0]])
    assert ica.amari_distance(product, np.eye(2)) == pytest.approx(1.5 / 4)
    with pytest.raises(ValueError, match=r"two D x D matrices.*got shapes \(2, 2\) and \(3, 3\)"):
        ica.amari_distance(np.eye(2), np.eye(3))


def test_whitening_is_white_and_goes_back():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 6)) + 3
    white = ica.whitening(x, 4)
    np.testing.assert_allclose(np.cov(white(x), rowvar=False, ddof=0), np.eye(4), atol=1e-8)
    np.testing.assert_allclose(white.mean + white(x) @ white.backward, x, atol=1e-8)
    assert white.kept == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"num_components: expected 1 to 4.*got 5"):
        ica.whitening(x, 5)


@pytest.mark.slow
def test_every_rule_recovers_three_sources(tmp_path):
    results = source_recovery.train_and_evaluate(SMALL, tmp_path)
    for source in source_recovery.SOURCES:
        table = results[source]
        before = table["whitening only"]["amari"][0]
        assert before > 0.2
        for name in ("FastICA", "exact gradient", "CD-1, block Gibbs", "CD-1, HMC"):
            assert table[name]["amari"][0] < 0.05, (source, name)
        assert table["score matching"]["amari"][0] < 0.05, source
        start, *_, end = table["exact gradient"]["curves"][0]
        assert end < 0.2 * start
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["laplace"] == results["laplace"]
    assert (tmp_path / "recovery.png").stat().st_size > 20_000
    assert [len(t["rows"]) for t in source_recovery.table(results)] == [6, 6]
    with pytest.raises(ValueError, match="degrees=5"):
        source_recovery.train_and_evaluate(dataclasses.replace(SMALL, degrees=5.0), tmp_path)


def test_gaussian_sources_are_not_recovered():
    # What has no answer must not get one: the measure and the rule can fail.
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(3, 3))
    x = rng.normal(size=(SMALL.num_samples, 3)) @ mixing.T
    white = ica.whitening(x)
    model = ica.student_t_product(3, 3, SMALL.exponent, scale=1.0)
    curve, _ = source_recovery._learn(
        SMALL,
        pj.estimators.exact(model),
        ica.optimizer(SMALL.learning_rate, SMALL.num_steps, frozen=("log_exponent",)),
        white(x),
        0,
        lambda w: ica.amari_distance(w.T @ white.forward.T, mixing),
    )
    assert curve[-1] > 0.1


def test_splits_share_no_sample():
    picture = np.arange(40.0 * 60).reshape(40, 60) ** 2
    data = patches.cut([picture], (3, 3), 500, 200, seed=0, source="squares")
    assert data.train.shape == (500, 9)
    assert data.test.shape == (200, 9)
    np.testing.assert_allclose(data.train.mean(axis=1), 0, atol=1e-6)

    def pixels(rows):
        # (n + 1)² - n² = 2 n + 1 tells which pixel a patch begins with.
        first = np.rint((rows[:, 1] - rows[:, 0] - 1) / 2).astype(int)
        offsets = (np.arange(3)[:, None] * 60 + np.arange(3)).ravel()
        return set((first[:, None] + offsets).ravel().tolist())

    train, test = pixels(data.train), pixels(data.test)
    assert not train & test
    assert len(train) > 1000
    assert len(test) > 200
    with pytest.raises(ValueError, match="at least two tiles of 48 x 48"):
        patches.cut([picture], (12, 12), 10, 10, seed=0, source="squares")


def test_wav_is_read_as_windows(tmp_path):
    rng = np.random.default_rng(0)
    samples = np.rint(3000 * rng.laplace(size=(4000, 2))).astype(np.int16)
    path = tmp_path / "noise.wav"
    wavfile.write(path, 8000, samples)
    (sound,) = patches.read_wav(path)
    np.testing.assert_allclose(sound[0], samples.astype(float).mean(axis=1))
    config = dataclasses.replace(natural_images.PRESETS["smoke"], wav=path, shrink=2)
    data = natural_images.load(config, seed=0)
    assert data.shape == (1, 20)
    assert data.train.shape == (1000, 20)
    windows = np.lib.stride_tricks.sliding_window_view(patches.shrink(sound, 2)[0], 20)
    windows = windows - windows.mean(axis=1, keepdims=True)
    assert np.abs(windows - data.test[0]).max(axis=1).min() < 1e-9
    figure = report.draw_filters(data.test[:5].T, data.shape, "noise")
    assert len(figure.axes) == 5


def test_folder_is_read_in_order_and_in_grey(tmp_path):
    from PIL import Image

    colours = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), np.uint8)
    for name, image in zip("ab", colours, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    images = patches.read_folder(tmp_path)
    np.testing.assert_allclose(images, colours @ np.array([0.299, 0.587, 0.114]))
    config = dataclasses.replace(natural_images.PRESETS["smoke"], images=tmp_path)
    assert natural_images.load(config, seed=0).train.shape == (1000, 25)
    small = patches.shrink(images[0], 3)
    assert small.shape == (16, 23)
    assert small[2, 5] == pytest.approx(images[0][6:9, 15:18].mean())


def test_measures_tell_points_from_waves():
    points = np.eye(64)[:, :3]
    x = np.arange(8)
    waves = np.stack([np.tile(np.cos(np.pi * k * x / 4), (8, 1)).ravel() for k in (1, 2)], axis=1)
    responses = np.random.default_rng(0).normal(size=(20_000, 3))
    of_points = report.measures(points, (8, 8), responses)
    np.testing.assert_allclose(of_points["spatial"], 1 / 64)
    np.testing.assert_allclose(of_points["spectral"], 1.0)
    # The kurtosis of N normal draws has standard error √(24 / N).
    assert np.all(np.abs(of_points["kurtosis"]) < 4 * np.sqrt(24 / 20_000))
    of_waves = report.measures(waves, (8, 8), responses[:, :2])
    np.testing.assert_allclose(of_waves["spectral"], 2 / 64)
    assert np.all(of_waves["spatial"] > 0.4)


@pytest.mark.slow
def test_natural_images_small(tmp_path):
    results = natural_images.train_and_evaluate(natural_images.PRESETS["smoke"], tmp_path)
    models = results["models"]
    gaussian = models["Gaussian"][0]["fitted"]
    for name in ("FastICA", "exact gradient", "CD-1, block Gibbs", "CD-1, HMC"):
        (row,) = models[name]
        assert row["fitted"] > gaussian + 0.5, name
        assert row["kurtosis"] > 1, name
    for rule in ("block Gibbs", "HMC"):
        (row,) = models[f"CD-1, {rule}"]
        assert row["fitted"] > row["as_trained"], rule
        (row,) = models[f"CD-1, {rule}, 2x"]
        low, high = row["interval"]
        assert low < row["as_trained"] < high
        assert 1 < row["ess"] <= natural_images.PRESETS["smoke"].ais_chains
        assert (tmp_path / "figures" / "filters_cd_1__hmc__2x.png").stat().st_size > 5_000
    assert (tmp_path / "figures" / "measures.png").stat().st_size > 20_000
    (table,) = report.table(results)
    assert [row[0] for row in table["rows"]] == list(models)


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        (natural_images, ["--wav", "no.wav"], "wav: expected a file, got no.wav"),
        (natural_images, ["--wav", "fake.wav"], "wav: fake.wav is no WAV file"),
        (natural_images, ["--images", "none"], "images: expected a folder, got none"),
        (natural_images, ["--images", "empty"], "found none"),
        (natural_images, ["--images", "fake"], "fake.png is no image that Pillow can read"),
        (natural_images, ["--images", "a", "--wav", "b"], "expected one of them at most, got both"),
        (natural_images, ["--num-components", "25"], "num_components: expected 1 to 24"),
        (
            natural_images,
            ["--wide-exponent", "0.5"],
            "wide_exponent: expected more than 0.5",
        ),
        (source_recovery, ["--degrees", "2"], "degrees: expected more than 2"),
        (source_recovery, ["--num-sources", "1"], "num_sources: expected at least 2, got 1"),
        (source_recovery, ["--num-steps", "5"], "num_steps: expected a multiple of num_reports"),
    ],
)
def test_impossible_options_end_in_one_clear_message(
    module, args, message, tmp_path, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "fake.png").write_text("no image")
    (tmp_path / "fake.wav").write_text("no sound")
    monkeypatch.setattr(sys, "argv", ["experiment", "--preset", "smoke", *args])
    monkeypatch.chdir(tmp_path)
    try:
        status = module.main()
    except SystemExit as exit:  # the command line parser's own refusals
        status = exit.code
    assert status not in (0, None)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_optimizer_holds_what_it_should():
    model = ica.student_t_product(3, 3, 1.5, 1.0)
    params = model.init(jax.random.key(0))
    tx = ica.optimizer(0.1, 10, frozen=("log_exponent",))
    grads = jax.tree.map(jax.numpy.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert not np.any(updates["student"]["log_exponent"])
    assert np.all(updates["student"]["w"] != 0)
    assert np.all(updates["student"]["log_scale"] != 0)
