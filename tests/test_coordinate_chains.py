"""Draws, annealing and posteriors in coordinates, against float64 integrals, by standard errors."""

from __future__ import annotations

import functools
import importlib.util

import coordinate_cases as cases
import coordinate_formulas as formulas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from coordinate_cases import FAMILIES, PLANE

import poejax as pj
from poejax import estimators, evidence, exact, experts, inference, kernels, units

NUM_CHAINS = 4000
KEY = jax.random.key(0)
FAR = ((1013.0, 1e-2), (1e6, 1.0))
SMALL = ((0.0, 1e-6), (300.0, 1e6))
needs_blackjax = pytest.mark.skipif(
    importlib.util.find_spec("blackjax") is None, reason="needs blackjax"
)


def statistics(params, t):
    """Bounded functions of y, whose means have standard errors for heavy tails too, [N, S]."""
    y = formulas.to_y(params, t)
    squashed = np.tanh(0.7 * y)
    return np.column_stack([squashed, squashed[:, -2:] ** 2, squashed[:, -2] * squashed[:, -1]])


def largest_z(params, grid, t):
    """The largest |z| of the draws t against the grid's means, and its threshold."""
    values = statistics(params, t)
    expected = grid.mean(statistics(params, grid.t))
    varies = values.std(0) > 1e-6
    z = reference.mean_z_scores(values[:, varies], expected[varies])
    np.testing.assert_allclose(values[:, ~varies].mean(0), expected[~varies], atol=1e-4)
    return np.abs(z).max(), reference.z_threshold(z.size)


@functools.partial(jax.jit, static_argnums=0)
def sweep(kernel, rng_key, params, x, clamp):
    """Two steps of chains at the rows of x; every mean acceptance rate if there are any."""

    def chain(key, x):
        first, second = jax.random.split(key)
        state, _ = kernel.step(first, params, kernel.init(key, params, x, clamp))
        state, info = kernel.step(second, params, state)
        return state.x, getattr(info, "acceptance_rate", 1.0)

    return jax.vmap(chain)(jax.random.split(rng_key, NUM_CHAINS), x)


@functools.partial(jax.jit, static_argnums=0)
def exact_draws(model, params, rng_key):
    return jax.vmap(lambda key: exact.sample(key, model, params))(
        jax.random.split(rng_key, NUM_CHAINS)
    )


DRAWN = {
    "diag binary bank": SMALL,
    "diag mixture": FAR,
    "diag unigauss": FAR,
    "diag sum": SMALL,
    "full binary bank": FAR,
    "full linear bank": SMALL,
    "full joint mixture": FAR,
    "full student-t": FAR,
    "joint binary bank": FAR,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_exact_draws_and_a_sweep_from_them(name):
    model = FAMILIES[name]
    params = cases.placed(model, cases.draw_params(name), DRAWN[name])
    grid = formulas.grid(model, params)
    x = exact_draws(model, params, KEY)
    z, threshold = largest_z(params, grid, formulas.as_rows(model, x))
    assert z < threshold
    x, _ = sweep(kernels.block_gibbs(model), jax.random.key(1), params, x, None)
    z, threshold = largest_z(params, grid, formulas.as_rows(model, x))
    assert z < threshold
    # The same statistic sees draws of a scale that is off by a tenth.
    off = formulas.to_x(params, formulas.to_y(params, formulas.as_rows(model, x)) * 1.1)
    assert largest_z(params, grid, off)[0] > threshold


def kernel_of(name, model):
    return {"gibbs": kernels.block_gibbs, "hmc": by_hmc, "mala": by_mala}[name](model)


def by_hmc(model):
    return kernels.hmc(model, 0.4, num_leapfrog=3)


def by_mala(model):
    return kernels.mala(model, 0.3)


@needs_blackjax
@pytest.mark.parametrize(
    ("kernel", "name", "place"),
    [("hmc", "full student-t beside", FAR), ("mala", "diag neural", SMALL)],
)
def test_gradient_steps_are_in_coordinates(kernel, name, place):
    model = FAMILIES[name]
    params = cases.placed(model, cases.draw_params(name), place)
    grid = formulas.grid(model, params)
    t = grid.draw(np.random.default_rng(0), NUM_CHAINS)
    x, accepted = sweep(kernel_of(kernel, model), KEY, params, jnp.asarray(t, jnp.float32), None)
    z, threshold = largest_z(params, grid, formulas.as_rows(model, x))
    assert z < threshold
    # A step of that size in x would be refused, or move nothing.
    assert 0.4 < accepted.mean() < 0.999
    moved = np.abs(formulas.to_y(params, formulas.as_rows(model, x)) - formulas.to_y(params, t))
    assert 0.1 < np.median(moved) < 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "name", "place"),
    [
        ("gibbs", "full binary bank", FAR),
        ("gibbs", "full student-t beside", SMALL),
        ("gibbs", "joint binary bank", FAR),
        pytest.param("hmc", "full joint mixture", FAR, marks=needs_blackjax),
    ],
)
def test_clamped_chains_follow_the_conditional(kernel, name, place):
    model = FAMILIES[name]
    params = cases.placed(model, cases.draw_params(name), place)
    rng = np.random.default_rng(1)
    start = np.concatenate([np.ones(model.visible.num_linear - 2), [0.5, -1.0]])
    held = formulas.as_rows(model, formulas.as_event(model, formulas.to_x(params, start[None])))
    line = formulas.line(model, params, held[0])
    x = formulas.as_event(model, line.draw(rng, NUM_CHAINS))
    mask = jnp.array([False, True])
    if model.visible is cases.JOINT:
        mask = {"pixels": jnp.ones(2, bool), "real": mask}
    found, _ = sweep(kernel_of(kernel, model), KEY, params, jax.tree.map(jnp.asarray, x), mask)
    t = formulas.as_rows(model, found)
    np.testing.assert_array_equal(t[:, :-2], np.tile(held[:, :-2], (NUM_CHAINS, 1)))
    np.testing.assert_array_equal(t[:, -1], np.full(NUM_CHAINS, held[0, -1]))
    assert np.unique(t[:, -2]).size > NUM_CHAINS / 10
    z, threshold = largest_z(params, line, t)
    assert z < threshold


# Annealing.

BETAS = evidence.linear_betas(60)


def bases(model, params, x):
    """Every base that suits, {name: base}."""
    if "heavy" in model.experts:
        return {"student_t": evidence.student_t_base(model, params)}
    found = {
        "in coordinates": evidence.base_rate(model, x, params=params),
        "in x": evidence.base_rate(model, x),
    }
    if not isinstance(model.visible, units.Joint):
        found["gaussian"] = evidence.gaussian_base(model, x, 1.2, params=params)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("diag mixture", FAR),
        ("full binary bank", ((1e4, 1e-2), (1e6, 1e6))),
        ("joint binary bank", SMALL),
        ("full student-t", FAR),
    ],
)
def test_annealing_is_right_within_three_standard_errors(name, place):
    model = FAMILIES[name]
    params = cases.placed(model, cases.draw_params(name), place)
    grid = formulas.grid(model, params)
    truth, rng = grid.log_z(), np.random.default_rng(0)
    x = formulas.as_event(model, grid.draw(rng, 300))
    for i, (what, base) in enumerate(bases(model, params, x).items()):
        if what != "student_t":  # whose ridges run far out, where a grid does not resolve them
            around = None if "coordinates" in base.params else place
            integral = formulas.grid(base.model, base.params, around).log_z()
            assert float(base.log_z) == pytest.approx(integral, abs=1e-4), what
        forward = evidence.ais(jax.random.key(i), model, params, base, BETAS, 300)
        backward = evidence.reverse_ais(jax.random.key(i), model, params, base, BETAS, x)
        for found in (forward, backward):
            error = float(found.log_z) - truth
            assert abs(error) < 3 * float(found.std_err) < 0.2, (what, error, found.std_err)


@pytest.mark.slow
def test_annealing_far_from_zero_asks_for_coordinates():
    x = 1e4 + np.random.default_rng(0).normal(size=(200, 2))
    model = pj.product(PLANE, bias=experts.Bias(PLANE))
    start = model.init_from(KEY, x)
    field = PLANE.fit_field(x, 0.0)
    base = evidence.base_rate(model, x)
    with pytest.raises(ValueError, match=r"params\['bias'\].*start from model.init_from"):
        evidence.ais(KEY, model, {"bias": {"field": field}}, base, BETAS, 10)
    base = evidence.base_rate(model, x, params=start)
    found = evidence.ais(KEY, model, start, base, BETAS, 10)
    assert float(found.log_z) == pytest.approx(float(exact.log_z(model, start)), abs=0.05)


def test_coordinates_of_another_place_are_refused():
    model = FAMILIES["full binary bank"]
    here, there = (
        cases.placed(model, cases.draw_params("full binary bank"), place) for place in (FAR, SMALL)
    )
    x = formulas.grid(model, here).draw(np.random.default_rng(0), 50)
    base = evidence.base_rate(model, x.astype(np.float32), params=here)
    with pytest.raises(ValueError, match="base: expected the coordinates of params, got others"):
        evidence.ais(KEY, model, there, base, BETAS, 4)
    heavy = FAMILIES["full student-t"]
    base = evidence.student_t_base(heavy, cases.draw_params("full student-t"))
    params = cases.placed(heavy, cases.draw_params("full student-t"), FAR)
    with pytest.raises(ValueError, match="base: expected one in the coordinates of params"):
        evidence.ais(KEY, heavy, params, base, BETAS, 4)


# What a model is for.


def gaussian_in_x(params):
    """Mean and covariance in x of one Gaussian about y, float64."""
    own, (origin, scale) = formulas.f64(params["one"]), formulas.affine(params)
    rows = formulas.rows_of(own)
    return origin + scale @ own["mean"], scale @ np.linalg.inv(rows.T @ rows) @ scale.T


@pytest.mark.parametrize("full", [False, True])
def test_noise_is_in_the_units_of_x(full):
    model = pj.product(PLANE, one=experts.Gaussian(PLANE, "full"))
    own = {"one": cases.draw_params("full student-t beside")["broad"]}
    for mean, scale in ((0.0, 1e-6), (300.0, 1e-2), (1013.0, 1e-2), (1e4, 1e-2), (1e6, 1e6)):
        params = cases.placed(model, own, ((mean, scale), (mean, scale)), full)
        centre, covariance = gaussian_in_x(params)
        rng = np.random.default_rng(0)
        noisy = (centre + 1.5 * scale * rng.normal(size=(6, 2))).astype(np.float32)
        sigma = 0.5 * scale
        found = inference.denoise(
            KEY, model, params, noisy, inference.GaussianNoise(sigma),
            num_chains=2, num_steps=2, burn_in=1,
        )  # fmt: skip
        gain = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(2))
        expected = centre + (noisy - centre) @ gain.T
        # Neither the observation nor the answer has more digits than a float32.
        rounding = 2 * float(np.finfo(np.float32).eps) * mean / scale
        np.testing.assert_allclose(
            np.asarray(found.mean, float) / scale, expected / scale, rtol=0, atol=1e-4 + rounding
        )


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_what_is_missing_follows_from_what_is_there(full):
    name = "full joint mixture"
    model = FAMILIES[name]
    params = cases.placed(model, cases.draw_params(name), ((300.0, 1.0), (1e6, 1.0)), full)
    y = np.array([[0.5, -1.0], [2.0, 1.0]])
    x = formulas.as_event(model, formulas.to_x(params, y))
    damaged = np.stack([np.full(2, np.nan, np.float32), x[:, 1]], axis=1)
    found = inference.inpaint(
        KEY, model, params, damaged, jnp.array([False, True]), num_chains=32, num_steps=120,
        burn_in=20,
    )  # fmt: skip
    lines = [formulas.line(model, params, row) for row in x.astype(float)]
    expected = np.array([line.mean(line.t[:, 0]) for line in lines])
    width = formulas.affine(params)[1][0, 0]
    t, limit = reference.largest_t(
        (np.asarray(found.mean, float)[:, 0] - expected) / width,
        np.maximum(found.std_err[:, 0] / width, 1e-2 / 32),
        0.0,
        32,
    )
    assert t < limit
    np.testing.assert_array_equal(found.mean[:, 1], x[:, 1])


def test_score_matching_gradients_are_those_in_coordinates():
    visible = cases.DIAGONAL
    model = pj.product(visible, one=experts.Gaussian(visible))
    own = cases.draw_params("diag gaussian")["one"]
    estimator = estimators.score_matching(model)
    gradient = jax.jit(lambda p, x: estimator.grad(KEY, p, (), x)[0])
    rng = np.random.default_rng(0)
    for place in cases.PLACES:
        params = cases.placed(model, {"one": own}, place)
        x = formulas.to_x(params, rng.normal(size=(64, 2))).astype(np.float32)
        y, p = formulas.to_y(params, x.astype(float)), formulas.f64(own)
        precision, residual = np.exp(p["log_precision"]), y - p["mean"]
        grads = gradient(params, x)
        np.testing.assert_allclose(
            grads["one"]["mean"], -(precision**2) * residual.mean(0), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            grads["one"]["log_precision"],
            precision**2 * (residual**2).mean(0) - precision,
            rtol=1e-4,
            atol=1e-5,
        )
        for leaf in jax.tree.leaves(grads.get("coordinates", {})):
            assert not np.any(leaf)
