"""Pictures: what is drawn is what was given, in its place and on one scale; no global state."""

from __future__ import annotations

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from poejax import datasets, plotting

GAP = plotting._GAP


def picture(figure: Figure) -> np.ndarray:
    """The mosaic as it was handed to matplotlib, RGB."""
    return np.asarray(figure.axes[0].images[0].get_array())


def tile(figure: Figure, shape: tuple[int, int], zoom: int, row: int, column: int) -> np.ndarray:
    """One image out of a mosaic without wide gaps, one RGB value per pixel."""
    top, left = (i * (s * zoom + GAP) + GAP for i, s in zip((row, column), shape, strict=True))
    block = picture(figure)[top : top + shape[0] * zoom, left : left + shape[1] * zoom]
    pixels = block[::zoom, ::zoom]
    np.testing.assert_array_equal(block, pixels.repeat(zoom, 0).repeat(zoom, 1))
    return pixels


# Widths 3 and 4 too: a colour map must not take such images for RGB or RGBA.
@pytest.mark.parametrize(
    ("shape", "zoom"), [((3, 3), 25), ((4, 4), 19), ((2, 5), 15), ((28, 28), 3)]
)
def test_grid_puts_every_pixel_in_its_place(shape, zoom):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, shape[0] * shape[1]), np.uint8)
    figure = plotting.grid(images, shape, num_columns=2, title="heading")
    for k, image in enumerate(images):
        found = tile(figure, shape, zoom, k // 2, k % 2)
        expected = np.broadcast_to(image.reshape(*shape, 1) / 255, (*shape, 3))
        np.testing.assert_allclose(found, expected, atol=1 / 255)
    empty = tile(figure, shape, zoom, 2, 1)
    np.testing.assert_array_equal(empty, np.ones((*shape, 3)))
    assert figure.axes[0].get_title() == "heading"


@pytest.mark.parametrize(
    ("images", "ends"),
    [
        (np.array([[0, 1, 1, 0]], np.uint8), (0, 1)),
        (np.array([[0, 255, 51, 0]], np.uint8), (0, 1)),
        (np.array([[True, False, True, True]]), (0, 1)),
        (np.array([[0.2, 0.4, 0.4, 0.4]]), (0, 1)),
        (jnp.array([[0.25, 0.5, 0.5, 1]], jnp.bfloat16), (0, 1)),
        (np.array([[-2.0, 0.0, 1.0, 2.0]]), (-2, 2)),
        (np.array([[3.0, 4.0, 5.0, np.inf]]), (3, 5)),
    ],
)
def test_grey_scale_is_fixed_for_intensities_and_the_range_of_other_data(images, ends):
    values = np.asarray(images).astype(float)
    if values.max() == 255:
        values = values / 255
    found = tile(plotting.grid(images, (2, 2)), (2, 2), 38, 0, 0)[..., 0].ravel()
    finite = np.isfinite(values[0])
    expected = (values[0] - ends[0]) / (ends[1] - ends[0])
    np.testing.assert_allclose(found[finite], expected[finite], atol=1 / 255)


def test_values_that_are_not_finite_stand_out():
    images = np.array([[0.0, np.nan, np.inf, 1.0]])
    for symmetric in (False, True):
        found = tile(plotting.grid(images, (2, 2), symmetric=symmetric), (2, 2), 38, 0, 0)
        magenta = (found == (1, 0, 1)).all(-1).ravel()
        assert magenta.tolist() == [False, True, True, False]
    nothing = np.full((1, 4), np.nan)
    plotting.grid(nothing, (2, 2))
    plotting.grid(nothing, (2, 2), symmetric=True)


def test_filters_share_one_symmetric_scale_with_a_colour_bar():
    w = np.zeros((4, 3))
    w[:, 0], w[:, 1] = [1, -1, 0, 0.5], [-2, 2, 0, 1]
    figure = plotting.filters(w, (2, 2), clip_quantile=1.0)
    first, second, third = (tile(figure, (2, 2), 38, k // 2, k % 2) for k in range(3))
    # Filter 0 is half of filter 1 with the sign turned: a joint scale shows both.
    assert second[0, 1, 0] > second[0, 1, 2]
    assert second[0, 0, 2] > second[0, 0, 0]
    np.testing.assert_array_equal(first[0, 0], second[1, 1])
    np.testing.assert_array_equal(third, np.broadcast_to(third[0, 0], third.shape))
    np.testing.assert_array_equal(third[0, 0], first[1, 0])
    assert third.min() > 0.95
    assert colour_bar_ends(figure) == (-2, 2)
    assert "3 of 3" in figure.axes[0].get_title()


def colour_bar_ends(figure: Figure) -> tuple[float, float]:
    (bar,) = figure.axes[0].child_axes
    low, high = bar.get_ylim()
    return round(low, 6), round(high, 6)


def test_filters_show_the_first_ones_and_clip_a_few_large_weights():
    rng = np.random.default_rng(1)
    w = rng.uniform(-1, 1, (64, 150))
    w[0, 0] = 100.0
    figure = plotting.filters(w, (8, 8))
    assert "100 of 150" in figure.axes[0].get_title()
    assert picture(figure).shape[:2] == (10 * (8 * 9 + GAP) + GAP,) * 2
    assert colour_bar_ends(figure)[1] < 1
    assert colour_bar_ends(plotting.filters(w, (8, 8), clip_quantile=1.0)) == (-100, 100)
    assert (
        picture(plotting.filters(w, (8, 8), num_filters=7, num_columns=7)).shape[0]
        == 8 * 9 + 2 * GAP
    )
    plotting.filters(np.zeros((4, 2)), (2, 2))


def test_samples_beside_shows_equally_many_on_one_scale():
    real, samples = np.full((9, 4), 2.0), np.full((4, 4), -2.0)
    figure = plotting.samples_beside(real, samples, (2, 2), labels=("left", "right"), title="both")
    side = 2 * (2 * 38 + GAP) + GAP
    assert picture(figure).shape[:2] == (side, 2 * side + 2 * plotting._WIDE_GAP)
    np.testing.assert_array_equal(tile(figure, (2, 2), 38, 0, 0), np.ones((2, 2, 3)))
    np.testing.assert_array_equal(picture(figure)[GAP + 1, -GAP - 1], np.zeros(3))
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["left", "right"]


def test_reconstructions_stand_below_their_originals():
    levels = np.linspace(0, 1, 5)[:, None]
    originals, damaged, restored = (
        np.repeat(v, 4, axis=1) for v in (levels, levels / 2, levels / 4)
    )
    figure = plotting.reconstructions(originals, restored, (2, 2), num_columns=3, damaged=damaged)
    axes = figure.axes[0]
    places = dict(zip(axes.get_yticks(), axes.get_yticklabels(), strict=True))
    assert [label.get_text() for label in places.values()] == [
        "original",
        "given",
        "reconstruction",
    ] * 2
    step = 2 * 38 + GAP
    for k, y in enumerate(places):
        block, row = divmod(k, 3)
        shown = originals[block * 3 : block * 3 + 3, 0] / (1, 2, 4)[row]
        found = [
            picture(figure)[int(y), GAP + step * column + 1, 0] for column in range(len(shown))
        ]
        np.testing.assert_allclose(found, shown, atol=1 / 255)
    pairs = plotting.reconstructions(originals, restored, (2, 2), labels=("x", "mean of x given z"))
    labels = [label.get_text() for label in pairs.axes[0].get_yticklabels()]
    assert labels == ["x", "mean of x given z"]


def test_wrong_shapes_are_named():
    good, flat = np.zeros((3, 6)), np.zeros(6)
    for images in (flat, np.zeros((0, 6)), np.zeros((3, 5)), np.zeros((3, 2, 3))):
        with pytest.raises(ValueError, match=r"images: expected \[N, 2 \* 3\], got \("):
            plotting.grid(images, (2, 3))
    with pytest.raises(ValueError, match="samples: expected"):
        plotting.samples_beside(good, flat, (2, 3))
    with pytest.raises(ValueError, match=r"equal N for each row, got .*\[3, 2\]"):
        plotting.reconstructions(good, good[:2], (2, 3))
    with pytest.raises(ValueError, match="one label"):
        plotting.reconstructions(good, good, (2, 3), labels=["one"])


RECORDS = [
    {"step": 20, "epoch": 2, "loss": 2.0, "note": "text"},
    {"step": 10, "epoch": 1, "loss": 3.0, "test_ll": np.float32(-90.0)},
    {"step": 30, "epoch": 3, "loss": float("nan"), "test_ll": None},
    {"loss": 9.0},
]


def test_learning_curves_draw_each_quantity_where_it_was_logged():
    figure = plotting.learning_curves(RECORDS, {"nats": ["loss", "test_ll"], "rate": ["absent"]})
    first, second = figure.axes
    loss, test_ll = first.lines
    np.testing.assert_array_equal(loss.get_xdata(), [10, 20, 30])
    np.testing.assert_array_equal(loss.get_ydata(), [3, 2, np.nan])
    np.testing.assert_array_equal(test_ll.get_xdata(), [10])
    assert (first.get_xlabel(), first.get_ylabel()) == ("step", "nats")
    assert [t.get_text() for t in first.get_legend().get_texts()] == [
        "loss (1 not finite)",
        "test_ll",
    ]
    assert [t.get_text() for t in second.get_legend().get_texts()] == ["absent (missing)"]


def test_learning_curves_by_default_draw_all_numbers_against_the_step():
    figure = plotting.learning_curves(RECORDS, title="run")
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "test_ll"]
    by_epoch = plotting.learning_curves(RECORDS, x="epoch")
    assert by_epoch.axes[0].get_xlabel() == "epoch"
    np.testing.assert_array_equal(by_epoch.axes[0].lines[0].get_xdata(), [1, 2, 3])
    assert plotting.learning_curves([{"epoch": 1, "a": 1.0}]).axes[0].get_xlabel() == "epoch"
    for nothing in ([], [{"step": 1}], [{"loss": 1.0}]):
        with pytest.raises(ValueError, match="records: expected"):
            plotting.learning_curves(nothing)


def test_save_writes_the_same_bytes_and_makes_the_folder(tmp_path):
    images = datasets.digits().test.images[:6]
    written = [
        plotting.save(plotting.grid(images, (8, 8), title="digits"), tmp_path / name / "a.png")
        for name in ("one/deep", "two")
    ]
    first, second = (path.read_bytes() for path in written)
    assert first == second
    assert first.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"ends in \.png"):
        plotting.save(plotting.grid(images, (8, 8)), tmp_path / "a.pdf")


def test_every_kind_of_figure_can_be_written(tmp_path):
    images = datasets.digits().test.images[:12]
    figures = [
        plotting.filters(images.T / 255 - 0.5, (8, 8)),
        plotting.samples_beside(images, images[::-1], (8, 8)),
        plotting.reconstructions(images, images, (8, 8)),
        plotting.learning_curves(RECORDS, {"nats": ["loss"], "none": ["absent"]}),
    ]
    for k, figure in enumerate(figures):
        assert plotting.save(figure, tmp_path / f"{k}.png").stat().st_size > 1000


def test_pyplot_is_never_imported():
    code = "import sys, poejax.plotting; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_marginals_have_a_bar_per_value_or_bins_that_hold_everything():
    rng = np.random.default_rng(0)
    x = np.stack([rng.integers(0, 3, 200), rng.standard_normal(200)], axis=1)
    y = np.stack([np.full(50, 2), np.full(50, 1e6)], axis=1)
    bars, steps = plotting.marginals(
        x, y, names=["few", "a name that is longer than its panel"]
    ).axes
    heights = np.reshape([bar.get_height() for bar in bars.patches], (2, 3))
    np.testing.assert_allclose(heights[0], np.bincount(x[:, 0].astype(int)) / 200)
    np.testing.assert_allclose(heights[1], [0, 0, 1])
    assert [tick.get_text() for tick in bars.get_xticklabels()] == ["0", "1", "2"]
    data, samples = (patch.get_data() for patch in steps.patches)
    assert data.values.sum() == pytest.approx(1)
    assert data.edges[0] == x[:, 1].min()
    # What lies beyond the data is counted at their end.
    np.testing.assert_allclose(samples.values, np.eye(len(samples.values))[-1])
    assert steps.get_title() == "a name that is longer th"
    assert len(plotting.marginals(np.ones((3, 40)), np.ones((2, 40)), num_shown=5).axes) == 5


def test_moments_are_those_of_numpy_and_say_nothing_of_what_is_standardised():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((90, 4)) + np.arange(4), rng.standard_normal((50, 4))
    panels = {axes.get_title(): axes.lines[1].get_xydata() for axes in plotting.moments(x, y).axes}
    assert list(panels) == ["mean", "variance", "correlation"]
    np.testing.assert_allclose(panels["mean"], np.stack([x.mean(0), y.mean(0)], 1))
    np.testing.assert_allclose(panels["variance"], np.stack([x.var(0), y.var(0)], 1))
    pairs = np.triu_indices(4, 1)
    both = [np.corrcoef(v, rowvar=False)[pairs] for v in (x, y)]
    np.testing.assert_allclose(panels["correlation"], np.stack(both, 1))
    standardised = (x - x.mean(0)) / x.std(0)
    (only,) = plotting.moments(standardised, y).axes
    assert only.get_title() == "correlation"
    with pytest.raises(
        ValueError, match=r"expected \[N, D\] and \[M, D\], got \[\(90, 4\), \(50, 3\)"
    ):
        plotting.moments(x, y[:, :3])


def test_save_knows_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    plotting.save(plotting.grid(np.eye(4), (2, 2)), "~/pictures/eye.png")
    assert [p.name for p in tmp_path.iterdir()] == ["pictures"]


def test_marginals_of_bits_beside_means_lose_nothing():
    rng = np.random.default_rng(0)
    bits, means = rng.integers(0, 2, (200, 1)), rng.random((300, 1))
    names = np.array(["height"])
    axes = plotting.marginals(bits, means, names=names).axes[0]
    assert axes.get_title() == "height"
    for stairs in axes.patches:
        values, _, _ = stairs.get_data()
        assert values.sum() == pytest.approx(1)
    assert len(axes.patches) == 2


def test_learning_curves_take_numbers_of_jax():
    records = [{"step": i, "loss": jnp.float32(i), "rate": np.asarray(0.5)} for i in range(3)]
    figure = plotting.learning_curves(records)
    assert {axes.get_ylabel() for axes in figure.axes} == {"loss", "rate"}
