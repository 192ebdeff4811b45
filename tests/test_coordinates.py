"""Real units and families at means from 0 to 1e6 and scales from 1e-6 to 1e6, against float64."""

from __future__ import annotations

import coordinate_cases as cases
import coordinate_formulas as formulas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coordinate_cases import FAMILIES, PLACES

import poejax as pj
from poejax import evidence, exact, experts, units
from poejax.units.gaussian import QuadraticUnit

NUM_EVENTS = 12
EPS = float(np.finfo(np.float32).eps)
LATENTS = ("bank", "mix", "uni", "sum", "heavy")


def events(model, params, seed=0, dtype=np.float32):
    """Statistics [N, M] in float64 of events about the place where params are, as `dtype` says."""
    rng = np.random.default_rng(seed)
    y = 2 * rng.normal(size=(NUM_EVENTS, model.visible.num_linear))
    y[:, :-2] = y[:, :-2] > 0
    t = formulas.to_x(params, y)
    return formulas.as_rows(model, formulas.as_event(model, t, dtype))


def worst(found, expected, slack=0.0):
    """The largest error over what rounding of float32 numbers of that size explains."""
    allowed = 1e-5 * np.maximum(1, np.abs(expected)) + slack
    return np.max(np.abs(np.asarray(found, np.float64) - expected) / allowed)


@jax.jit
def _stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def answers(model, params, x):
    """What a product says of events x [P, N, ...], for params with leaves [P] of coordinates."""
    coordinates = params["coordinates"]

    def one(coordinates, x):
        here = params | {"coordinates": coordinates}
        found = {"log_density": model.log_density(here, x)}
        if model.is_opaque:
            return found
        z = found["latent"] = model.latent_mean(here, x)
        mask = jnp.arange(2) == 1
        if isinstance(model.visible, units.Joint):
            mask = {"pixels": jnp.ones(2, bool), "real": mask}
        found["mean"] = model.visible_mean(here, z)
        return found | {"held": model.visible_mean(here, z, x, mask)}

    return jax.vmap(jax.vmap(one, (None, 0)))(coordinates, x)


_answers = jax.jit(answers, static_argnums=0)


def errors(name, run=_answers, places=PLACES):
    """The worst errors of densities and conditionals at all places, {what: error}."""
    model = FAMILIES[name]
    params = [cases.placed(model, cases.draw_params(name), place) for place in places]
    t = [events(model, p) for p in params]
    stacked = cases.draw_params(name) | {"coordinates": _stack([p["coordinates"] for p in params])}
    found = run(model, stacked, _stack([formulas.as_event(model, rows) for rows in t]))
    found = jax.tree.map(np.asarray, found)
    result = {}
    for i, (own, rows) in enumerate(zip(params, t, strict=True)):
        here = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        compared = [("log_density", here["log_density"], formulas.log_density(model, own, rows), 0)]
        _, scale = formulas.affine(own)
        size = np.abs(np.concatenate([np.ones(len(rows[0]) - 2), np.diag(scale)]))
        if not model.is_opaque:
            y, params64 = formulas.to_y(own, rows), formulas.f64(own)
            z = {n: formulas.latent_mean(e, params64[n], y) for n, e in model.items}
            for n in LATENTS:
                if n in z:
                    got = here["latent"][n]
                    got = got["choice"] if isinstance(got, dict) else got
                    compared.append((f"latent {n}", got, z[n], 0))
            for what, held in (("mean", None), ("held", rows)):
                expected = formulas.visible_mean(model, own, z, held)
                got = formulas.as_rows(model, here[what])
                # What is said in x is rounded there.
                rounding = 2 * EPS * np.abs(expected) / size
                compared.append((what, (got - expected) / size, 0 * got, rounding))
        for what, got, expected, slack in compared:
            result[what] = max(result.get(what, 0), worst(got, expected, slack))
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_densities_and_conditionals_at_every_place(name):
    found = errors(name)
    assert max(found.values()) < 1, found


NUMBERS = {
    "float32": (np.float32, PLACES),
    "float64": (np.float64, [p for p in PLACES if all(m <= 1e4 * s for m, s in p)]),
    "int64": (np.int64, [p for p in PLACES if all(s >= 1 for _, s in p)]),
    "bfloat16": (jnp.bfloat16, [p for p in PLACES if all(m <= 1e2 * s for m, s in p)]),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_likelihoods_of_events_and_parameters_of_every_dtype(name):
    model = FAMILIES[name]
    low = ("bfloat16", "float16")[list(FAMILIES).index(name) % 2]
    for dtype in ("float32", low):
        params = cases.draw_params(name, dtype)
        log_z = formulas.grid(model, params).log_z() if dtype == low else 0.0
        kinds = NUMBERS if dtype == "float32" else ("float32",)
        for kind, (event_dtype, places) in ((kind, NUMBERS[kind]) for kind in kinds):
            for place in places:
                own = cases.placed(model, params, place)
                t = events(model, own, 1, event_dtype)
                x = formulas.as_event(model, t, event_dtype)
                found = evidence.log_likelihood(model, own, x, log_z).values
                error = worst(found, formulas.log_density(model, own, t) - log_z)
                assert error < 1, (dtype, kind, place, error)


# Z does not see coordinates: over full units those families that have ways of their own there.
EXACT = [name for name in FAMILIES if exact.method(FAMILIES[name]) != "quadrature"]
EXACT = [name for name in EXACT if name.split()[1] not in ("joint", "sum", "power", "unigauss")]
EXACT += ["diag joint mixture", "diag sum", "diag power", "diag unigauss", "diag neural"]
LOW = ("diag linear bank", "diag mixture", "diag sum", "diag power", "full student-t")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_log_z_is_the_integral_over_x(name):
    model = FAMILIES[name]
    for dtype in ("float32", "bfloat16")[: 2 if name in LOW else 1]:
        for place in PLACES[::8]:
            params = cases.placed(model, cases.draw_params(name, dtype), place)
            found = float(exact.log_z(model, params))  # the same number wherever x is
            assert found == pytest.approx(formulas.grid(model, params).log_z(), abs=2e-5), dtype


def moved(tree, place):
    """Parameters about y as parameters about x, where a family's are means and precisions."""
    (origin, scale) = (np.array(v) for v in zip(*place, strict=True))
    if not isinstance(tree, dict):
        return tree
    if "linear" in tree:
        mean = origin + scale * tree["linear"] * np.exp(-tree["log_precision"])
        log_precision = tree["log_precision"] - 2 * np.log(scale)
        return {"linear": mean * np.exp(log_precision), "log_precision": log_precision}
    if "log_precision" in tree:
        shape = tree["mean"].shape
        shift, width = (np.broadcast_to(_columns(v, shape), shape) for v in (origin, scale))
        log_precision = tree["log_precision"] - 2 * np.log(width)
        return tree | {"mean": shift + width * tree["mean"], "log_precision": log_precision}
    return {name: moved(leaf, place) for name, leaf in tree.items()}


def _columns(v, shape):
    return v[:, None, None] if len(shape) == 3 and shape[0] == 2 else v


@pytest.mark.parametrize("name", ["mixture", "joint mixture", "unigauss", "sum", "power"])
def test_far_means_without_coordinates_lose_no_more_than_their_own_digits(name):
    # Of parameters of one column each: a mean of 1e4 deviations has a float32's four digits left.
    name = f"diag {name}"
    model = FAMILIES[name]
    for place in [p for p in PLACES if all(m <= 1e4 * s for m, s in p)]:
        params = moved(formulas.f64(cases.draw_params(name)), place)
        if name == "diag unigauss":
            params["uni"]["logit"] -= np.log(place[0][1] * place[1][1])  # of x's uniform density
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        t = events(model, {"coordinates": cases.coordinates(place, False)})
        reach = max(m / s for m, s in place)
        truth = formulas.grid(model, params, place).log_z()
        found = evidence.log_likelihood(model, params, formulas.as_event(model, t), truth).values
        expected = formulas.log_density(model, params, t) - truth
        assert worst(found, expected, 40 * EPS * (reach + 30)) < 1, place
        log_z = float(exact.log_z(model, params))
        assert log_z == pytest.approx(truth, abs=1e-4 + 10 * EPS * reach), place


# That the table would see it.


def without_the_volume(monkeypatch):
    monkeypatch.setattr(QuadraticUnit, "log_volume", lambda self, c: jnp.zeros(()))


def scaled_twice(monkeypatch):
    whole = QuadraticUnit.standardize
    monkeypatch.setattr(
        QuadraticUnit,
        "standardize",
        lambda self, c, x: whole(self, c | {"origin": 0 * c["origin"]}, whole(self, c, x)),
    )


def without_the_origin(monkeypatch):
    whole = QuadraticUnit.restore
    monkeypatch.setattr(
        QuadraticUnit, "restore", lambda self, c, y: whole(self, c, y) - c["origin"]
    )


def overwritten_after_the_draw(monkeypatch):
    monkeypatch.setattr(
        QuadraticUnit,
        "mean_clamped",
        lambda self, field, x, mask, c: jnp.where(mask, x, self.restore(c, self.mean(field))),
    )


@pytest.mark.parametrize(
    ("name", "mutate", "what"),
    [
        ("diag gaussian", without_the_volume, "log_density"),
        ("diag gaussian", scaled_twice, "log_density"),
        ("diag gaussian", without_the_origin, "mean"),
        ("full gaussian", overwritten_after_the_draw, "held"),
    ],
)
def test_the_table_sees_a_mutation(name, mutate, what, monkeypatch):
    mutate(monkeypatch)
    run = jax.jit(lambda *arguments: answers(*arguments), static_argnums=0)
    assert errors(name, run, PLACES[:8])[what] > 10


# Where parameters with coordinates go.


@pytest.mark.parametrize("full", [False, True])
def test_coordinates_of_low_precision_are_the_numbers_that_they_hold(full):
    model = pj.product(cases.PLANE, one=experts.Gaussian(cases.PLANE, "full"))
    params = cases.draw_params("full student-t beside", "bfloat16")["broad"]
    low = cases.placed(model, {"one": params}, ((1013.0, 4.0), (300.0, 1e-2)), full, "bfloat16")
    same = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    x = jnp.asarray(events(model, same), jnp.float32)

    @jax.jit
    def say(p):
        return (
            jax.vmap(model.log_density, (None, 0))(p, x),
            model.restore(p, jnp.array([1.5, -0.5])),
            model.visible_mean(p, {"one": ()}, x[0], jnp.array([True, False])),
            model.visible.move_field(model.visible.init_field(), p["coordinates"])["linear"],
        )

    for found, expected in zip(say(low), say(same), strict=True):
        assert found.dtype == expected.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["diag binary bank", "full student-t", "joint binary bank"])
def test_propriety_does_not_depend_on_coordinates(name):
    model = FAMILIES[name]
    params = cases.draw_params(name)
    expected = pj.propriety.classify(model, params)
    assert expected.verdict == "proper"
    for place in (PLACES[0], PLACES[7]):
        assert pj.propriety.classify(model, cases.placed(model, params, place)) == expected
    if "bank" in params:
        steep = model.experts["bank"].init(jax.random.key(0))
        steep = params | {"bias": jax.tree.map(lambda leaf: leaf - 90.0, params["bias"])}
        verdict = pj.propriety.classify(model, steep).verdict
        assert (
            pj.propriety.classify(model, cases.placed(model, steep, PLACES[7])).verdict == verdict
        )


@pytest.mark.slow
def test_classes_given_real_inputs_far_from_zero():
    visible = units.Joint(real=units.GaussianDiag(2), label=units.Categorical(1, 3))
    bank = experts.HiddenBank(visible, units.Bernoulli(3), init_scale=1.0)
    model = pj.product(visible, bias=experts.Bias(visible), bank=bank)
    place = cases.coordinates(((1013.0, 1e-2), (1e6, 1.0)), False)
    params = model.init(jax.random.key(0)) | {"coordinates": {"real": place}}
    x = {"real": jnp.array([1013.012, 1e6 - 1.0]), "label": jnp.zeros((1, 3))}
    density = [model.log_density(params, x | {"label": row[None]}) for row in jnp.eye(3)]
    found = pj.inference.class_log_probs(model, params, x)
    np.testing.assert_allclose(found, jax.nn.log_softmax(jnp.stack(density)), atol=1e-5)


@pytest.mark.parametrize("name", ["full binary bank", "joint binary bank"])
def test_params_with_coordinates_come_back_from_a_checkpoint(name, tmp_path):
    model = FAMILIES[name]
    params = cases.placed(model, cases.draw_params(name, "bfloat16"), PLACES[9])
    pj.checkpoint.save_params(tmp_path / "params", params)
    for found in (
        pj.checkpoint.load_params(tmp_path / "params"),
        pj.checkpoint.load_params(tmp_path / "params", params),
    ):
        assert jax.tree.structure(found) == jax.tree.structure(params)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        model.check_params(found)
