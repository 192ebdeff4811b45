"""The reproduction of Hinton (2002): its enumeration is exact, and its parts learn."""

from __future__ import annotations

import itertools
import json
import sys

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from experiments import hinton2002
from experiments.hinton2002 import cd_analysis, edges, grid

D, H = 4, 3
CONFIG = cd_analysis.Config(num_visible=D, num_hidden=H)


def network(seed: int, scale: float):
    return cd_analysis.draw_network(jax.random.key(seed), CONFIG, scale, scale, 3)


def enumerate_by_loops(params, data):
    """Return Q1, Q∞ and the latents' means at every visible state, float64, by loops."""
    a, b = (np.asarray(v, np.float64) for v in (params["bias"]["field"], params["hidden"]["b"]))
    w = np.asarray(params["hidden"]["w"], np.float64)
    xs = np.array(list(itertools.product([0, 1], repeat=D)), float)[:, ::-1]
    zs = np.array(list(itertools.product([0, 1], repeat=H)), float)
    joint = np.array([[np.exp(a @ x + b @ z + x @ w @ z) for z in zs] for x in xs])
    q1 = np.zeros(len(xs))
    for start, p in enumerate(np.asarray(data, np.float64)):
        for k in range(len(zs)):
            p_latent = joint[start, k] / joint[start].sum()
            q1 += p * p_latent * joint[:, k] / joint[:, k].sum()
    q = joint.sum(axis=1) / joint.sum()
    return xs, q1, q, joint @ zs / joint.sum(axis=1, keepdims=True)


@pytest.mark.slow
def test_enumeration_agrees_with_loops():
    with jax.enable_x64(True):
        params, data = network(seed=0, scale=1.5)
        _, log_q1, log_q = jax.jit(cd_analysis.log_distributions)(params, data)
        xs, q1, q, means = enumerate_by_loops(params, data)
        np.testing.assert_array_equal(xs, pj.units.Bernoulli(D).states())
        np.testing.assert_allclose(np.exp(log_q1), q1, rtol=1e-10)
        np.testing.assert_allclose(np.exp(log_q), q, rtol=1e-10)
        # The CD-1 update is the difference of two correlations (Hinton 2002, for RBMs).
        w = jax.jit(cd_analysis.cd_gradient)(params, data)["hidden"]["w"]
        np.testing.assert_allclose(w, xs.T @ ((q1 - np.asarray(data))[:, None] * means), rtol=1e-9)


@pytest.fixture(scope="module")
def estimates():
    """What the sampling estimator says, draw by draw, in one small network: [N, size]."""
    model = pj.models.rbm(D, H)
    params, data = network(seed=3, scale=1.5)
    counts = np.rint(3 * np.asarray(data)).astype(int)
    batch = jnp.repeat(model.visible.states(), counts, axis=0, total_repeat_length=3)
    estimator = pj.estimators.cd(model)

    def draw(key):
        return jax.flatten_util.ravel_pytree(estimator.grad(key, params, (), batch)[0])[0]

    keys = jax.random.split(jax.random.key(0), 5_000)
    return params, data, np.asarray(jax.jit(jax.vmap(draw))(keys), np.float64)


def worst_z(draws, expected):
    errors = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    return np.abs((draws.mean(axis=0) - expected) / errors).max()


@pytest.mark.slow
def test_cd_gradient_is_the_expectation_of_the_estimator(estimates):
    params, data, draws = estimates
    flat = lambda tree: np.asarray(jax.flatten_util.ravel_pytree(tree)[0])  # noqa: E731
    # Two-sided 1e-4 over 19 parameters by Bonferroni is |z| < 4.6.
    assert worst_z(draws, flat(jax.jit(cd_analysis.cd_gradient)(params, data))) < 4.6
    # The derivatives that CD-1 is not: of the whole objective and of the likelihood.
    for other in (cd_analysis.objective, cd_analysis.negative_log_likelihood):
        assert worst_z(draws, flat(jax.jit(jax.grad(other))(params, data))) > 10


@pytest.mark.slow
def test_slopes_agree_with_small_steps():
    step = 1e-6
    with jax.enable_x64(True):
        for seed in range(3):
            params, data = network(seed, scale=3.0)
            a = jax.jit(cd_analysis.analyse)(params, data, step)
            update = jax.jit(cd_analysis.cd_gradient)(params, data)
            g = jax.flatten_util.ravel_pytree(update)[0]
            pairs = [
                (a.objective_cosine, a.modelled + a.unmodelled, cd_analysis.objective),
                (a.likelihood_cosine, a.likelihood_gain, cd_analysis.negative_log_likelihood),
            ]
            for cosine, gain, function in pairs:
                slope = jax.flatten_util.ravel_pytree(jax.jit(jax.grad(function))(params, data))[0]
                product = cosine * jnp.linalg.norm(g) * jnp.linalg.norm(slope)
                np.testing.assert_allclose(product, gain / step, rtol=1e-3)
            # What is modelled is |g|² to first order: the part of the derivative that CD follows.
            np.testing.assert_allclose(a.modelled / step, g @ g, rtol=1e-3)


def test_intervals_of_rates():
    low, high = cd_analysis.wilson_interval(2, 1000)
    # Wilson's equation (p̂ - p)² = z² p (1 - p) / n holds at both ends.
    for p in (low, high):
        assert (0.002 - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / 1000)
    assert low < 0.002 < high
    assert cd_analysis.wilson_interval(0, 50)[0] == 0.0
    assert cd_analysis.wilson_interval(50, 50)[1] == 1.0


def test_edges_are_found_edge_like():
    config = edges.Config(edge_width=0.05)
    key = jax.random.key(0)
    images = edges.draw_images(key, 200, config)
    assert 0 <= images.min() < 0.05
    assert 0.95 < images.max() <= 1
    assert np.median(edges.edge_likeness(images, config.side)) > 0.9
    noise = jax.random.normal(key, (200, 100))
    assert np.median(edges.edge_likeness(noise, config.side)) < 0.2


def test_cell_masses_of_known_densities():
    masses = grid.cell_masses(lambda x: jnp.log(1 / 25.0) + 0 * x[0])
    np.testing.assert_allclose(masses, 1 / 25, rtol=1e-5)
    points = grid.draw_points(jax.random.key(0), 2000, 0.1)
    assert grid.total_variation(points, masses) < 0.12
    assert grid.total_variation(points + 100, masses) == pytest.approx(1.0)


@pytest.mark.slow
def test_smoke_run_learns_and_writes_results(tmp_path):
    results = hinton2002.train_and_evaluate(hinton2002.PRESETS["smoke"], tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    grid = {name: by_seed[0] for name, by_seed in results["grid"]["models"].items()}
    assert len(grid) == 4
    ceiling = results["grid"]["ceiling"]
    cd, exact = grid["CD-1"], grid["CD-1, then exact"]
    # The exact gradient goes on from CD-1 and improves on it.
    assert cd["test_log_likelihood"] < exact["test_log_likelihood"] < ceiling
    assert all(0.6 < result["mass_on_grid"] < 1.001 for result in grid.values())
    before, after = (results["edges"][k][0] for k in ("before", "after"))
    assert after["unexplained_variance"] < 0.5 * before["unexplained_variance"]
    assert after["median_edge_likeness"] > 2 * before["median_edge_likeness"]
    by_setting = list(results["cd_analysis"].values())
    for setting in by_setting:
        # The step helps in most networks: the paper has 2 in 1,000 whose likelihood falls.
        assert setting["likelihood_falls"]["per_thousand"] < 20
        assert setting["objective_worsens"]["per_thousand"] < 20
        assert setting["objective_cosine"]["median"] > 0.5
    # With small weights one step of Gibbs is nearly equilibrium: CD-1 is then maximum likelihood.
    small = results["cd_analysis"]["SD 0.1, weights only, 8 vectors"]
    assert small["likelihood_cosine"]["least"] > 0.99
    assert by_setting[0]["likelihood_cosine"]["median"] < 0.95
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names >= {"cd_analysis.png", "grid-seed0.png", "edges-means-seed0.png"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--grid.num-experts", "0"], "grid.num_experts: expected above 0, got 0"),
        (["--edges.batch-size", "99999"], "edges.batch_size: expected at most"),
        (["--edges.min-contrast", "1"], "edges.min_contrast: expected below 1"),
    ],
)
def test_impossible_options_end_in_one_clear_message(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hinton2002", "--preset", "smoke", *args])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:  # the command line parser's own refusal
        hinton2002.main()
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
