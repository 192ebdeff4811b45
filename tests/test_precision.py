"""compute_dtype reaches the factors of matrix products, and nothing else."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import poejax as pj
from poejax import units
from poejax.experts import HiddenBank

VISIBLE = pj.units.Bernoulli(16)
LOW = pj.experts.HiddenBank(VISIBLE, pj.units.Bernoulli(8), compute_dtype="bfloat16")


def lowered(expert, platform):
    params, x = expert.init(jax.random.key(0)), VISIBLE.random_event(jax.random.key(1))

    def loss(params):
        return expert.log_factors(params, x).sum()

    traced = jax.jit(jax.grad(loss)).trace(params)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("platform", "low"), [("cuda", True), ("tpu", True), ("cpu", False)])
def test_accelerators_are_asked_for_an_algorithm(platform, low):
    # Unmeasured on a device: what is checked is what XLA is asked for. A CPU follows none; see
    # test_rounded_products.
    assert ("lhs_precision_type = bf16" in lowered(LOW, platform)) == low
    full = pj.experts.HiddenBank(VISIBLE, pj.units.Bernoulli(8))
    assert "bf16" not in lowered(full, platform)


def test_nothing_but_the_products_is_rounded():
    text = lowered(LOW, "cuda")
    lines = [line for line in text.splitlines() if "bf16" in line]
    assert lines
    assert all("dot_general" in line for line in lines)


REAL = pj.units.GaussianDiag(2)


@pytest.mark.parametrize(
    ("visible", "hidden", "words"),
    [
        (REAL, VISIBLE, "visible units GaussianDiag"),
        (VISIBLE, pj.units.StandardGaussian(2), "hidden units StandardGaussian"),
        (VISIBLE, pj.units.ReLU(2), "hidden units ReLU"),
        (pj.units.Poisson(2), VISIBLE, "visible units Poisson"),
        (pj.units.Binomial(2, 300), VISIBLE, "visible units Binomial"),
        (pj.units.Joint(a=VISIBLE, b=REAL), VISIBLE, "visible units Joint"),
    ],
)
def test_values_that_bfloat16_does_not_hold_are_refused(visible, hidden, words):
    with pytest.raises(ValueError, match=f"compute_dtype: expected None, .* {words}"):
        HiddenBank(visible, hidden, compute_dtype="bfloat16")


@pytest.mark.parametrize(
    "visible",
    [
        VISIBLE,
        pj.units.Spin(4),
        pj.units.Binomial(2, 256),
        pj.units.Joint(a=pj.units.Bernoulli(2), b=pj.units.Categorical(1, 10)),
    ],
)
def test_densities_ratios_and_couplings_have_the_same_weights(visible):
    bank = HiddenBank(visible, pj.units.Spin(5), init_scale=3.0, compute_dtype="bfloat16")
    full = HiddenBank(visible, pj.units.Spin(5))
    params = bank.init(jax.random.key(0))
    rounded = params | {"w": params["w"].astype(jnp.bfloat16).astype(jnp.float32)}
    assert np.abs(rounded["w"] - params["w"]).max() > 1e-3
    x = visible.random_event(jax.random.key(1))
    for name in ("log_factors", "log_product", "latent_mean"):
        found, expected = getattr(bank, name)(params, x), getattr(full, name)(rounded, x)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
    for found, expected in zip(bank.coupling(params), full.coupling(rounded), strict=True):
        np.testing.assert_array_equal(found, expected)
    if visible is VISIBLE:
        sites, values = jnp.arange(16), 1 - x[:, None]
        found, expected = (
            b.log_ratios(p, x, sites, values) for b, p in ((bank, params), (full, rounded))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_compute_dtype_is_refused():
    with pytest.raises(ValueError, match="compute_dtype: expected None or 'bfloat16', got 'int8'"):
        pj.experts.HiddenBank(VISIBLE, pj.units.Bernoulli(8), compute_dtype="int8")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_densities_of_low_precision_parameters_are_summed_in_float32(dtype):
    model = pj.models.rbm(784, 20)
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = jax.eval_shape(model.init, keys[0])
    drawn = jax.tree.map(lambda s: jax.random.normal(keys[1], s.shape), shapes)
    low = jax.tree.map(lambda leaf: leaf.astype(dtype), drawn)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    x = jax.random.bernoulli(keys[2], 0.3, (784,))
    found = model.log_density(low, x.astype(dtype))
    assert found.dtype == jnp.float32
    assert abs(float(found) - float(model.log_density(wide, x.astype(float)))) < 1e-3


def test_rare_events_are_not_drawn_in_the_compute_dtype():
    # Drawn in bfloat16, p = 0.001 would come up as 0.0078.
    p, draws = 1e-3, 2**20
    bank = HiddenBank(units.Bernoulli(1), units.Bernoulli(1), compute_dtype="bfloat16")
    logit = math.log(p / (1 - p))
    params = {"w": jnp.full((1, 1), -7.0), "b": jnp.array([logit + 7.0])}
    keys = jax.random.split(jax.random.key(11), draws)
    x = jnp.ones(1, jnp.bfloat16)
    z = jax.jit(jax.vmap(bank.sample_latent, in_axes=(0, None, None)))(keys, params, x)
    score = (np.asarray(z, float).mean() - p) / math.sqrt(p * (1 - p) / draws)
    assert abs(score) < reference.z_threshold(1)


def test_a_low_compute_dtype_only_rounds_the_factors_of_the_products():
    # With weights that bfloat16 holds exactly, nothing else may differ from the float32 bank.
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.integers(-64, 64, size=(40, 30)) / 32, jnp.float32)
    params = {"w": w, "b": jnp.asarray(rng.normal(size=30), jnp.float32)}
    low, full = (
        HiddenBank(units.Bernoulli(40), units.Bernoulli(30), compute_dtype=dtype)
        for dtype in ("bfloat16", None)
    )
    x = jnp.asarray(rng.integers(0, 2, size=40), jnp.float32)
    z = jnp.asarray(rng.integers(0, 2, size=30), jnp.float32)
    for found, expected in (
        (low.log_factors(params, x), full.log_factors(params, x)),
        (low.latent_mean(params, x), full.latent_mean(params, x)),
        (low.visible_field(params, z), full.visible_field(params, z)),
        (low.log_joint(params, x, z), full.log_joint(params, x, z)),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("of_rows", ["fields", "jacobian"])
def test_bfloat16_parameters_and_data_in_a_program_that_turns_the_result(of_rows):
    bank = pj.experts.HiddenBank(VISIBLE, pj.units.Bernoulli(8))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), bank.init(jax.random.key(0)))
    x = jax.random.bernoulli(jax.random.key(1), 0.4, (5, 16)).astype(jnp.bfloat16)
    w = np.asarray(params["w"], np.float64)
    if of_rows == "fields":
        found = jax.jit(lambda x: jax.vmap(bank.latent_field, (None, 0))(params, x).T)(x)
        expected = (np.asarray(x, np.float64) @ w).T
    else:
        one = jax.jacfwd(lambda v: bank.latent_field(params, v))
        found, expected = jax.jit(jax.vmap(one))(x), np.broadcast_to(w.T, (5, 8, 16))
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=1e-5, atol=1e-6)
