"""What a run makes of its rows and its optimizer before it compiles, whichever row it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import datasets, estimators, stacks, training

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MODEL = pj.models.rbm(6, 3)
REAL = pj.models.gaussian_rbm(4, 3)
PCD = estimators.pcd(MODEL, 5)
TX = optax.sgd(0.1)
BITS = (RNG.random((60, 6)) < 0.4).astype(np.float32)
GREY = RNG.integers(0, 256, (60, 6)).astype(np.uint8)


def plain(rng_key, rows):
    return rows.astype(jnp.float32)


def go(data, rule=PCD, tx=TX, model=MODEL, first=None, preprocess=None):
    """Start on `first`, or on `data`, and take three steps on `data`."""
    first = data if first is None else first
    state = training.init(KEY, model, rule, tx, first, preprocess=preprocess)
    return training.train_steps(rule, tx, state, data, 10, 3, preprocess=preprocess)[0]


@pytest.mark.slow
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(("value", "got"), [(9.0, "got 9.0"), (np.nan, "got nan")])
@pytest.mark.parametrize("row", [3, 37])
def test_a_stray_value_in_a_later_chunk_is_refused_whichever_row_it_is_in(convert, value, got, row):
    second = BITS.copy()
    second[row, 2] = value
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^data: expected .* {got} in row {row}, column 2"):
            go(convert(second), first=BITS)


@pytest.mark.slow
def test_arrays_changed_in_place_are_looked_at_again():
    rows = BITS.copy()
    state = training.init(KEY, MODEL, PCD, TX, rows)
    training.train_steps(PCD, TX, state, rows, 10, 1)
    rows[50, 0] = 2
    with pytest.raises(ValueError, match=r"data: .* got 2.0 in row 50, column 0"):
        training.train_steps(PCD, TX, state, rows, 10, 1)


@pytest.mark.parametrize(
    ("preprocess", "rows", "message"),
    [
        (stacks.draw_bits, GREY.astype(np.float32), r"data: expected values in \[0, 1\], e.g. pix"),
        (stacks.draw_bits, np.where(GREY > 250, np.nan, 0), "data: expected values in .* got nan"),
        (datasets.stochastic, GREY / 255, "data: expected intensities 0..255 of dtype uint8"),
        (datasets.threshold, GREY / 255, "data: expected intensities 0..255 of dtype uint8"),
        (plain, GREY, r"preprocess\(data\): expected values in \{0, 1\}"),
    ],
)
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_rows_that_preprocess_would_make_nonsense_of_are_refused(
    preprocess, rows, message, convert
):
    with pytest.raises((ValueError, TypeError), match=message):
        go(convert(rows), preprocess=preprocess)


def test_rows_of_a_later_chunk_are_preprocessed_whole_where_they_stay_on_the_device():
    second = BITS.copy()
    second[59, 5] = 3
    with pytest.raises(ValueError, match=r"preprocess\(data\): .* got 3.0 in row 59, column 5"):
        go(jnp.asarray(second), first=BITS, preprocess=plain)


@pytest.mark.slow
def test_events_that_are_not_finite_are_not_blamed_on_the_learning_rate():
    second = BITS.copy()
    second[:, 1] = np.nan
    with pytest.raises(
        ValueError, match=r"^preprocess\(data\): expected finite events, got others"
    ):
        go(second, first=BITS, preprocess=plain)


def test_bits_are_drawn_from_probabilities_of_any_dtype():
    for rows in (BITS.astype(np.uint8), BITS.astype(bool), BITS):
        found = stacks.draw_bits(KEY, jnp.asarray(rows))
        assert found.dtype == rows.dtype
        np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize("constant", [0.0, 300.7, -1e6])
def test_a_constant_column_of_real_units_is_refused(constant):
    x = RNG.normal(size=(50, 4))
    training.init(KEY, REAL, estimators.cd(REAL), TX, x)
    x[:, 2] = constant
    with pytest.raises(ValueError, match=r"^data: expected variance in every column, got column 2"):
        training.init(KEY, REAL, estimators.cd(REAL), TX, x)
    visible = pj.units.Joint(real=pj.units.GaussianDiag(4), bits=pj.units.Bernoulli(6))
    joint = pj.product(visible, bias=pj.experts.Bias(visible))
    with pytest.raises(ValueError, match=r"^data\['real'\]: expected variance in every column"):
        training.init(KEY, joint, estimators.cd(joint), TX, {"real": x, "bits": BITS[:50]})


@pytest.mark.slow
def test_a_column_constant_where_it_was_seen_is_refused():
    x, observed = RNG.normal(size=(50, 4)), RNG.random((50, 4)) < 0.7
    rule = estimators.imputed(estimators.cd(REAL), REAL, num_steps=2)
    hidden = np.where(observed, x, np.nan)
    training.init(KEY, REAL, rule, TX, estimators.Incomplete(hidden, observed))
    x[:, 1] = np.where(observed[:, 1], 20.0, x[:, 1])
    with pytest.raises(
        ValueError, match=r"^data.x: expected variance in every column, got column 1"
    ):
        training.init(KEY, REAL, rule, TX, estimators.Incomplete(x, observed))


def test_seen_values_of_incomplete_rows_are_quoted_with_their_place():
    observed = RNG.random(BITS.shape) < 0.7
    observed[17] = [True, False, True, True, True, True]
    x = np.where(observed, BITS, np.nan)
    rule = estimators.imputed(estimators.cd(MODEL), MODEL, num_steps=2)
    rule.check_data("data", estimators.Incomplete(x, observed))
    for column, got in ((1, None), (2, "4.0")):
        bad = x.copy()
        bad[17, column] = 4
        if got is None:  # what is not seen is not looked at
            rule.check_data("data", estimators.Incomplete(bad, observed))
            continue
        with pytest.raises(ValueError, match=rf"^data.x: .* got {got} in row 17, column {column}"):
            rule.check_data("data", estimators.Incomplete(bad, observed))


NEEDY = {
    "reduce_on_plateau": lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    "polyak_sgd": optax.polyak_sgd,
    "lbfgs": optax.lbfgs,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDY)
def test_optimizers_that_need_the_loss_get_it_or_are_refused(name):
    tx, rule = NEEDY[name](), estimators.pseudo_likelihood(MODEL)
    state = training.init(KEY, MODEL, rule, tx, BITS)
    # All rows at once, as line searches compare losses of one batch with those of the last.
    state, _ = training.train_steps(rule, tx, state, BITS, len(BITS), 3)
    before, after = (
        rule.grad(KEY, params, (), BITS)[2].loss for params in (MODEL.init(KEY), state.params)
    )
    assert after < before
    with pytest.raises(TypeError, match=r"^tx: expected an optimizer that updates by gradients"):
        training.init(KEY, MODEL, PCD, tx, BITS)


@pytest.mark.slow
def test_the_loss_that_goes_to_an_optimizer_is_that_of_the_batch():
    seen = []

    def update(grads, state, params=None, *, value, grad, value_fn, **rest):
        jax.debug.callback(lambda *v: seen.append(v), value, value_fn(params), ordered=True)
        return jax.tree.map(lambda g, h: -0.1 * (g + h) / 2, grads, grad), state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    rule = estimators.pseudo_likelihood(MODEL)
    state = training.init(KEY, MODEL, rule, tx, BITS)
    _, metrics = training.train_steps(rule, tx, state, BITS, 10, 3)
    jax.effects_barrier()
    np.testing.assert_allclose(np.array(seen)[:, 0], metrics.info.loss)
    np.testing.assert_allclose(np.array(seen)[:, 1], metrics.info.loss, rtol=1e-6)


def test_an_optimizer_that_needs_what_nobody_has_is_refused():
    def update(grads, state, params=None, *, curvature, **rest):
        return grads, state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(TypeError, match=r"^tx: expected .* missing .* 'curvature'"):
        training.init(KEY, MODEL, estimators.pseudo_likelihood(MODEL), tx, BITS)


@pytest.mark.slow
def test_a_rule_of_ones_own_checks_its_own_rows():
    class OwnRule:
        model = MODEL

        def check_data(self, name, data):
            if not (data["age"] > 0).all():
                raise ValueError(f"{name}['age']: expected positive ages")

        def init(self, rng_key, params, data):
            return ()

        def grad(self, rng_key, params, state, batch):
            return jax.tree.map(jnp.zeros_like, params), state, batch["age"].mean()

    rule, ages = OwnRule(), np.arange(1.0, 61)
    go({"x": BITS, "age": ages}, rule)
    with pytest.raises(ValueError, match=r"^data\['age'\]: expected positive ages"):
        go({"x": BITS, "age": -ages}, rule, first={"x": BITS, "age": ages})
