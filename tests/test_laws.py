"""Every expert obeys the laws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_cases import HeavyTail, Kinked, WrongSignOfTheField, random_params

import poejax as pj
from poejax import units
from poejax.experts import (
    Bias,
    Gaussian,
    GaussianMixture,
    HiddenBank,
    Neural,
    Power,
    StudentT,
    Unigauss,
    mixture,
)
from poejax.testing import check_expert

MIXED = units.Joint(pixels=units.Bernoulli(3), label=units.Categorical(1, 3))
VISIBLE = {
    "bernoulli": units.Bernoulli(3),
    "spin": units.Spin(3),
    "categorical": units.Categorical(2, 3),
    "gaussian": units.GaussianDiag(3),
    "joint": MIXED,
    "binomial": units.Binomial(2, 3),
    "poisson": units.Poisson(2),
}
HIDDEN = {
    "bernoulli": units.Bernoulli(3),
    "spin": units.Spin(3),
    "categorical": units.Categorical(2, 3),
    "gaussian": units.StandardGaussian(2),
    "relu": units.ReLU(2),
    "joint": MIXED,
    "binomial": units.Binomial(2, 3),
}
REALS = units.GaussianDiag(2)
ALWAYS = {"retrace", "field", "gradient", "jit", "vmap", "temper"}
OPAQUE = ALWAYS - {"field"} | {"integral"}
ENUMERATED = ALWAYS | {"integral", "sample", "mean"}


def nested():
    visible = units.Bernoulli(3)
    inner = pj.product(
        visible, bias=Bias(visible), bank=HiddenBank(visible, units.StandardGaussian(1))
    )
    return pj.product(visible, inner=inner, bias=Bias(visible))


def wave(params, x):
    return jnp.sum(params["a"] * jnp.sin(x + params["b"])) + params["b"] ** 2


def neural(visible):
    return Neural(visible, lambda rng_key: {"a": jnp.ones(()), "b": jnp.zeros(())}, wave)


def algebra():
    """Powers and sums of experts, alone and inside products."""
    plane, binary = units.Gaussian(2), units.Bernoulli(3)
    heavy = pj.product(plane, heavy=StudentT(plane, 1), broad=Gaussian(plane))
    bank = HiddenBank(binary, units.Bernoulli(2))
    pair = mixture(binary, bank=bank, bias=Bias(binary))
    yield "power-gaussian", Power(plane, Gaussian(plane, "full")), ALWAYS | {"integral"}
    yield "power-student-t", Power(plane, StudentT(plane, 2)), ENUMERATED
    yield "power-product", Power(plane, heavy), ENUMERATED
    yield "mixture-of-banks", pair, ENUMERATED
    yield "mixture-of-products", mixture(plane, a=heavy, b=Gaussian(plane)), ALWAYS | {"mean"}
    yield (
        "mixture-of-diagonals",
        mixture(REALS, a=Gaussian(REALS), b=Unigauss(REALS, 2)),
        ENUMERATED,
    )
    yield "mixture-in-product", pj.product(binary, pair=pair, bank=bank), ENUMERATED
    joint = mixture(MIXED, a=HiddenBank(MIXED, units.Spin(2)), b=Bias(MIXED))
    yield "mixture-joint-units", joint, ENUMERATED


def opaque():
    plane, binary = units.Gaussian(2), units.Bernoulli(3)
    bank = HiddenBank(binary, units.Bernoulli(2))
    yield "neural", neural(plane)
    yield "signed-power", Power(plane, Gaussian(plane), signed=True)
    yield "power-of-a-bank", Power(binary, bank)
    yield "opaque-mixture", mixture(binary, bank=bank, neural=neural(binary))
    yield "opaque-product", pj.product(binary, bias=Bias(binary), neural=neural(binary))


def masked():
    """Products with the experts that are left out."""
    plane, binary = units.Gaussian(2), units.Bernoulli(3)
    banks = {
        "a": HiddenBank(binary, units.Bernoulli(2)),
        "b": HiddenBank(binary, units.Spin(2)),
        "inner": pj.product(binary, bias=Bias(binary)),
    }
    yield "banks", pj.product(binary, **banks), ("b", "inner"), ENUMERATED
    heavy = {"heavy": StudentT(plane, 2), "mixture": GaussianMixture(plane, 2)}
    rest = {"broad": Gaussian(plane, "full"), "unigauss": Unigauss(plane, 2)}
    left_out = ("heavy", "broad", "unigauss")
    yield "reals", pj.product(plane, **heavy, **rest), left_out, ALWAYS | {"mean"}
    some = {"neural": neural(plane), "broad": Gaussian(plane)}
    yield "opaque", pj.product(plane, **some), ("neural",), OPAQUE


def table():
    for name, visible in VISIBLE.items():
        yield f"bias-{name}", Bias(visible), ALWAYS | {"integral"}
        for other, hidden in HIDDEN.items():
            yield f"{name}-{other}", HiddenBank(visible, hidden), ENUMERATED
    yield "one-gaussian-nested", nested(), ENUMERATED
    visible = units.Bernoulli(3)
    product = pj.product(
        visible,
        inner=pj.product(visible, spins=HiddenBank(visible, units.Spin(3)), bias=Bias(visible)),
        bank=HiddenBank(visible, units.Bernoulli(3)),
    )
    yield "nested", product, ENUMERATED
    plane = units.Gaussian(2)
    yield "bias-full", Bias(plane), ALWAYS | {"integral"}
    yield "full-bernoulli", HiddenBank(plane, units.Bernoulli(3)), ENUMERATED
    for name, real in (("diagonal", units.GaussianDiag(2)), ("full", plane)):
        yield f"gaussian-{name}", Gaussian(real), ALWAYS | {"integral"}
        yield f"gaussian-one-{name}", Gaussian(real, coordinate=1), ALWAYS | {"integral"}
        yield f"mixture-{name}", GaussianMixture(real, 3), ENUMERATED
        yield f"unigauss-{name}", Unigauss(real, 3), ENUMERATED
    yield "gaussian-correlated", Gaussian(plane, "full"), ALWAYS | {"integral"}
    yield "mixture-joint", GaussianMixture(units.GaussianDiag(2), 3, joint=True), ENUMERATED
    yield "student-t", StudentT(plane, 2), ENUMERATED
    yield "many-student-t", StudentT(plane, 4), ALWAYS | {"mean"}
    yield from algebra()
    # Three real latents are beyond the grid: what the Monte Carlo laws can see is checked.
    yield "many-real", HiddenBank(visible, units.StandardGaussian(3)), ALWAYS | {"mean"}


def rows():
    """All of them; pairs of unlike units are slow, and the like ones say nearly as much."""
    for name, *row in table():
        visible, _, hidden = name.partition("-")
        is_unlike = visible != hidden and visible in VISIBLE and hidden in HIDDEN
        yield pytest.param(*row, id=name, marks=[pytest.mark.slow] if is_unlike else [])


@pytest.mark.parametrize(("expert", "laws"), rows())
def test_laws(expert, laws):
    checked = check_expert(expert, random_params(expert), rng_key=jax.random.key(1))
    assert set(checked) == laws
    assert len(checked) == len(laws)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expert"), [*opaque()], ids=lambda v: v if type(v) is str else "")
def test_laws_of_opaque_experts(name, expert):
    assert expert.is_opaque
    assert set(check_expert(expert, random_params(expert), rng_key=jax.random.key(1))) == OPAQUE


def test_an_opaque_product_keeps_the_latents_that_it_knows():
    binary = units.Bernoulli(3)
    bank = HiddenBank(binary, units.Bernoulli(2))
    model = pj.product(binary, bank=bank, neural=neural(binary))
    checked = check_expert(model, random_params(model), rng_key=jax.random.key(1))
    assert set(checked) == ALWAYS - {"field"} | {"mean"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "left_out", "laws"), [r[1:] for r in masked()], ids=[r[0] for r in masked()]
)
def test_laws_with_experts_left_out(model, left_out, laws):
    params = model.mask(random_params(model), **dict.fromkeys(left_out, False))
    assert set(check_expert(model, params, rng_key=jax.random.key(1))) == laws


@pytest.mark.slow
def test_laws_of_a_positive_latent():
    # Integrated on a logarithmic grid, with a density that is infinite at zero when nu < 1.
    params = {"alpha": jnp.array([1.3]), "nu": jnp.array([1.2])}
    checked = check_expert(HeavyTail(units.GaussianDiag(1)), params, rng_key=jax.random.key(1))
    assert set(checked) == ENUMERATED


@pytest.mark.slow
@pytest.mark.parametrize("c", [2.0, -1.0])
def test_laws_of_a_latent_whose_density_has_a_kink(c):
    expert = Kinked(units.Bernoulli(4))
    params = {"w": jnp.array([1.3, -0.4, 2.0, -1.7]), "c": jnp.asarray(c)}
    for seed in range(3):
        assert set(check_expert(expert, params, rng_key=jax.random.key(seed))) == ENUMERATED


@pytest.mark.slow
def test_too_many_latents_to_sum_over():
    # 2^16 latent states: Monte Carlo laws only.
    expert = HiddenBank(units.Bernoulli(2), units.Bernoulli(16))
    checked = check_expert(expert, random_params(expert), rng_key=jax.random.key(1))
    assert set(checked) == ALWAYS | {"mean"}


@pytest.mark.slow
def test_laws_in_float64():
    with jax.enable_x64(True):
        expert = HiddenBank(units.Bernoulli(2), units.Bernoulli(2))
        params = random_params(expert)
        assert params["w"].dtype == jnp.float64
        assert set(check_expert(expert, params, rng_key=jax.random.key(1))) == ENUMERATED


def low_precision_bank(size, num_hidden):
    """A bank that multiplies in bfloat16, with weights that bfloat16 holds exactly."""
    rng = np.random.default_rng(3)
    w = rng.integers(-64, 64, size=(size, num_hidden)) / 64
    params = {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(rng.normal(size=num_hidden))}
    visible, hidden = units.Bernoulli(size), units.Bernoulli(num_hidden)
    return HiddenBank(visible, hidden, compute_dtype="bfloat16"), params


def test_laws_in_a_low_compute_dtype():
    # Cotangents are rounded to bfloat16, so that derivatives agree to 8 bits only.
    expert, params = low_precision_bank(3, 3)
    checked = check_expert(expert, params, rng_key=jax.random.key(1), tolerance=2**-9)
    assert set(checked) == ENUMERATED


def test_a_low_compute_dtype_accumulates_gradients_in_float32():
    # Rounding of single cotangents averages out over a batch; rounding of their sum would not,
    # and the difference between two such sums is what contrastive learning steps along.
    low, params = low_precision_bank(16, 8)
    full = HiddenBank(low.visible, low.hidden)
    x = jnp.asarray(np.random.default_rng(4).integers(0, 2, size=(4096, 16)), jnp.float32)

    def gradient(expert):
        def mean(w):
            return jnp.mean(jax.vmap(expert.log_factors, (None, 0))(params | {"w": w}, x))

        return np.asarray(jax.grad(mean)(params["w"]), float)

    error = np.linalg.norm(gradient(low) - gradient(full)) / np.linalg.norm(gradient(full))
    assert error < 2**-12


def test_default_params_are_not_too_small_to_matter():
    expert = WrongSignOfTheField(units.Bernoulli(3), units.Bernoulli(3))
    with pytest.raises(AssertionError, match="'integral'"):
        check_expert(expert, rng_key=jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rng_key": jnp.zeros(2, jnp.uint32)}, TypeError, "rng_key: expected a typed key"),
        ({"num_events": 1}, ValueError, "num_events: expected at least 2"),
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer of at least 1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        check_expert(Bias(units.Bernoulli(2)), **({"rng_key": jax.random.key(0)} | arguments))
