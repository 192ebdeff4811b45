"""Densities, conditionals, log Z and gradients agree with NumPy enumeration, for every pairing.

In float32 to 1e-4 and in float64 to 1e-9, relative to max(1, |reference|): 240 random machines.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import Block

import poejax as pj
from poejax import units

MACHINES = 8  # per pairing; 30 pairings
BETAS = np.tile([1.0, 0.37], MACHINES // 2)
NUM_EVENTS = 4

MIXED = {"pixels": Block("bernoulli", 2), "label": Block("categorical", 1, 3)}
VISIBLE = {
    "bernoulli": Block("bernoulli", 4),
    "spin": Block("spin", 3),
    "categorical": Block("categorical", 2, 3),
    "gaussian": Block("gaussian_diag", 2),
    "joint": MIXED,
}
HIDDEN = {
    "bernoulli": Block("bernoulli", 3),
    "spin": Block("spin", 4),
    "categorical": Block("categorical", 2, 3),
    "gaussian": Block("standard_gaussian", 2),
    "relu": Block("relu", 2),
    "joint": MIXED,
}
PAIRINGS = [(v, h) for v in VISIBLE for h in HIDDEN]
REAL_PAIRINGS = [("gaussian", "gaussian"), ("gaussian", "relu")]
UNITS = {
    "bernoulli": units.Bernoulli,
    "spin": units.Spin,
    "gaussian_diag": units.GaussianDiag,
    "standard_gaussian": units.StandardGaussian,
    "relu": units.ReLU,
}


def as_unit(side):
    if isinstance(side, dict):
        return units.Joint(**{name: as_unit(block) for name, block in side.items()})
    if side.kind == "categorical":
        return units.Categorical(side.size, side.num_classes)
    return UNITS[side.kind](side.size)


def as_blocks(side):
    return tuple(side.values()) if isinstance(side, dict) else (side,)


def as_event(side, flat):
    """Statistics [..., width] as events of poejax, which leads with the same axes."""
    if isinstance(side, dict):
        cuts = np.cumsum([block.width for block in side.values()])[:-1]
        parts = np.split(flat, cuts, axis=-1)
        return {name: as_event(side[name], part) for name, part in zip(side, parts, strict=True)}
    if side.kind == "categorical":
        return jnp.asarray(flat.reshape(*flat.shape[:-1], side.size, side.num_classes))
    return jnp.asarray(flat)


def as_field(side, linear, precision):
    if not isinstance(side, dict) and side.kind == "gaussian_diag":
        return {"linear": jnp.asarray(linear), "log_precision": jnp.log(jnp.asarray(precision))}
    return as_event(side, linear)


def as_flat(side, tree):
    """The inverse of `as_event`, keeping one leading axis of machines and one of events."""
    blocks = [tree[name] for name in side] if isinstance(side, dict) else [tree]
    return np.concatenate([np.reshape(b, (*np.shape(b)[:2], -1)) for b in blocks], axis=-1)


@functools.cache
def case(visible, hidden):
    """One pairing: model, stacked params and events, and the reference's answers."""
    rng = np.random.default_rng([PAIRINGS.index((visible, hidden)), 17])
    v, h = VISIBLE[visible], HIDDEN[hidden]
    machines = [
        reference.random_machine(rng, as_blocks(v), as_blocks(h), beta=beta) for beta in BETAS
    ]
    t = np.stack([reference.random_events(rng, m.visible, NUM_EVENTS) for m in machines])
    s = np.stack([reference.random_events(rng, m.hidden, NUM_EVENTS) for m in machines])
    expected = {
        "log_density": [m.log_density(x) for m, x in zip(machines, t, strict=True)],
        "latent_mean": [m.hidden_mean(x) for m, x in zip(machines, t, strict=True)],
        "visible_mean": [m.visible_mean(z) for m, z in zip(machines, s, strict=True)],
    }
    if (visible, hidden) not in REAL_PAIRINGS:
        expected["log_z"] = [m.log_z() for m in machines]
        gradients = [m.gradient(x) for m, x in zip(machines, t, strict=True)]
        for name in ("a", "b", "w") + (("log_precision",) if visible == "gaussian" else ()):
            expected[name] = [gradient[name] for gradient in gradients]
    return machines, t, s, {name: np.array(value) for name, value in expected.items()}


def build(visible, hidden):
    unit = as_unit(VISIBLE[visible])
    bank = pj.experts.HiddenBank(unit, as_unit(HIDDEN[hidden]))
    return pj.product(unit, bias=pj.experts.Bias(unit), hidden=bank)


def stacked_params(visible, hidden, machines):
    a, precision, b, w = (
        np.stack([getattr(m, name) for m in machines]) for name in ("a", "precision", "b", "w")
    )
    return {
        "bias": {"field": as_field(VISIBLE[visible], a, precision)},
        "hidden": {"w": jnp.asarray(w), "b": as_field(HIDDEN[hidden], b, None)},
    }


def estimated_gradient(model, params, beta, x):
    """The gradient of the mean log-likelihood, and log Z, by `estimators.exact`."""
    estimator = pj.estimators.exact(model)
    grads, _, info = estimator.grad(jax.random.key(0), model.temper(params, beta), (), x)
    return jax.tree.map(jnp.negative, grads), info.model_log_density


def differentiated_gradient(model, params, beta, x):
    """The same by differentiating `exact.log_prob`."""

    def log_likelihood(params):
        tempered = model.temper(params, beta)
        log_z = pj.exact.log_z(model, tempered)
        log_prob = jax.vmap(lambda x: pj.exact.log_prob(model, tempered, x, log_z))(x)
        return jnp.mean(log_prob), log_z

    return jax.grad(log_likelihood, has_aux=True)(params)


@functools.partial(
    jax.jit,
    static_argnames=("model", "gradient"),
    compiler_options={"xla_backend_optimization_level": "0"},  # each is run once
)
def answers(model, params, betas, x, z, gradient):
    """All answers of one pairing, for params [machines] and events [machines, events]."""

    def one(params, beta, x, z):
        tempered = model.temper(params, beta)
        latents = {"bias": (), "hidden": z}
        found = {
            "log_density": jax.vmap(model.log_density, (None, 0))(tempered, x),
            "latent_mean": jax.vmap(model.latent_mean, (None, 0))(tempered, x)["hidden"],
            "visible_mean": jax.vmap(model.visible_mean, (None, 0))(tempered, latents),
        }
        if gradient is not None:
            found["gradient"], found["log_z"] = gradient(model, params, beta, x)
        return found

    return jax.vmap(one)(params, betas, x, z)


def assert_agree(name, found, expected, tolerance):
    error = np.abs(np.asarray(found) - expected) / np.maximum(1, np.abs(expected))
    assert error.max() <= tolerance, f"{name}: {error.max():.2g} at {np.argmax(error)}"


def assert_gradients_agree(visible, hidden, grads, expected, tolerance):
    grads = jax.tree.map(lambda leaf: leaf[:, None], grads)  # one row for `as_flat`
    field = grads["bias"]["field"]
    if visible == "gaussian":
        found = field["log_precision"][:, 0]
        assert_agree("log_precision", found, expected["log_precision"], tolerance)
        field = field["linear"]
    assert_agree("a", as_flat(VISIBLE[visible], field)[:, 0], expected["a"], tolerance)
    b = as_flat(HIDDEN[hidden], grads["hidden"]["b"])[:, 0]
    assert_agree("b", b, expected["b"], tolerance)
    assert_agree("w", grads["hidden"]["w"][:, 0], expected["w"], tolerance)


def check(visible, hidden, gradient, tolerance):
    machines, t, s, expected = case(visible, hidden)
    v, h = VISIBLE[visible], HIDDEN[hidden]
    params = stacked_params(visible, hidden, machines)
    gradient = gradient if "log_z" in expected else None
    found = answers(
        build(visible, hidden), params, jnp.asarray(BETAS), as_event(v, t), as_event(h, s), gradient
    )
    found["latent_mean"] = as_flat(h, found["latent_mean"])
    found["visible_mean"] = as_flat(v, found["visible_mean"])
    grads = found.pop("gradient", None)
    for name, value in found.items():
        assert_agree(name, value, expected[name], tolerance)
    if gradient is not None:
        assert_gradients_agree(visible, hidden, grads, expected, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("visible", "hidden"), PAIRINGS)
def test_float32(visible, hidden):
    check(visible, hidden, estimated_gradient, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("visible", "hidden"), PAIRINGS)
def test_float64(visible, hidden):
    with jax.enable_x64(True):
        check(visible, hidden, differentiated_gradient, 1e-9)


def test_there_are_240_machines():
    assert len(PAIRINGS) * MACHINES == 240


def test_real_units_on_both_sides_have_a_closed_form_and_no_enumeration():
    machines, *_ = case("gaussian", "gaussian")
    model = build("gaussian", "gaussian")
    params = jax.tree.map(lambda leaf: leaf[0], stacked_params("gaussian", "gaussian", machines))
    assert pj.exact.method(model) == "gaussian"
    with pytest.raises(ValueError, match="expected finitely many visible states"):
        pj.exact.probabilities(model, params)


@pytest.mark.parametrize(("visible", "hidden"), [("bernoulli", "spin"), ("joint", "gaussian")])
def test_probabilities(visible, hidden):
    machines, *_ = case(visible, hidden)
    model = build(visible, hidden)
    params = stacked_params(visible, hidden, machines)
    probabilities = jax.vmap(lambda p, b: pj.exact.probabilities(model, model.temper(p, b)))
    found = probabilities(params, jnp.asarray(BETAS, jnp.float32))
    states = as_flat(
        VISIBLE[visible], jax.tree.map(lambda leaf: leaf[None], model.visible.states())
    )
    for p, machine in zip(found, machines, strict=True):
        # The order of states differs: match them by their statistics.
        by_state = dict(zip(map(tuple, states[0]), p, strict=True))
        events, _ = reference.events(machine.visible)
        assert_agree("p", [by_state[tuple(t)] for t in events], machine.probabilities(), 1e-5)
