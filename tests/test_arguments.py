"""Every argument of the wrong kind is named, before anything compiles."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from poejax import estimators, evidence, inference, kernels, stacks, training

KEY = jax.random.key(0)
MODEL = pj.models.rbm(9, 4)
OTHER = pj.models.rbm(8, 2).init(KEY)
REAL = pj.models.gaussian_rbm(3, 2)
PARAMS = MODEL.init(KEY)
X = np.asarray(pj.datasets.bars_and_stripes(3), np.float32)
RULE = estimators.cd(MODEL)
TX = optax.sgd(0.1)
KERNEL = kernels.block_gibbs(MODEL)
STATE = training.init(KEY, MODEL, RULE, TX, X)
CHAINS = pj.chains.init(KEY, KERNEL, PARAMS, 8)
BETAS = evidence.linear_betas(5)
BASE = evidence.base_rate(MODEL, X)
FLIPS = inference.BitFlips(0.1)
NAN = float("nan")


def start(**change):
    given = {"rng_key": KEY, "model": MODEL, "estimator": RULE, "tx": TX, "data": X} | change
    return training.init(**given)


def go_on(**change):
    given = {"estimator": RULE, "tx": TX, "state": STATE, "data": X}
    return training.train_steps(**given | {"batch_size": 4, "num_steps": 2} | change)


def run(kernel=KERNEL, params=PARAMS, states=CHAINS, **change):
    return pj.chains.run(KEY, kernel, params, states, 3, **change)


def ais(**change):
    given = {"model": MODEL, "params": PARAMS, "base": BASE, "betas": BETAS, "num_chains": 4}
    return evidence.ais(KEY, **given | change)


def fit_stack(**change):
    given = {"probabilities": X, "num_hidden": [3], "make_estimator": estimators.cd, "tx": TX}
    return stacks.fit_greedy(KEY, **given | {"batch_size": 4, "num_steps": 2} | change)


def log_likelihood(x=X, log_z=0.0, model=MODEL, params=PARAMS):
    return evidence.log_likelihood(model, params, x, log_z)


def cast(dtype):
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, dtype), PARAMS)


SLIPS = {
    "units": [
        ("visible", lambda: pj.experts.HiddenBank(784, 500)),
        ("hidden", lambda: pj.experts.HiddenBank(MODEL.visible, 500)),
        ("visible", lambda: pj.experts.Bias(784)),
        ("visible", lambda: pj.experts.Neural(784, lambda key: {}, lambda params, x: 0.0)),
        ("size", lambda: pj.units.Bernoulli("9")),
        ("init_scale", lambda: pj.experts.HiddenBank(MODEL.visible, MODEL.visible, NAN)),
        ("init_scale", lambda: pj.experts.HiddenBank(MODEL.visible, MODEL.visible, -1.0)),
        ("init_scale", lambda: pj.experts.HiddenBank(MODEL.visible, MODEL.visible, "0.01")),
        ("num_hidden", lambda: pj.models.rbm(9, 0)),
        ("num_visible", lambda: pj.models.rbm(9.0, 4)),
        ("num_visible", lambda: pj.models.gaussian_rbm(0, 4)),
        ("num_hidden", lambda: pj.models.gaussian_rbm(3, True)),
        ("log_probs", lambda: pj.models.rbm_from_log_probs([0.0, 0.0])),
    ],
    "models": [
        ("model", lambda: estimators.pcd(PARAMS, 10)),
        ("model", lambda: estimators.cd(PARAMS)),
        ("model", lambda: estimators.exact(pj.models.rbm)),
        ("model", lambda: estimators.pseudo_likelihood(PARAMS)),
        ("model", lambda: estimators.score_matching(PARAMS)),
        ("model", lambda: estimators.discriminative(PARAMS)),
        ("model", lambda: estimators.centered(RULE, PARAMS)),
        ("model", lambda: estimators.imputed(RULE, PARAMS)),
        ("model", lambda: kernels.block_gibbs(PARAMS)),
        ("model", lambda: kernels.gibbs_with_gradients(PARAMS)),
        ("model", lambda: kernels.mala(PARAMS, 0.1)),
        ("model", lambda: evidence.base_rate(PARAMS, X)),
        ("model", lambda: evidence.gaussian_base(PARAMS, X)),
        ("model", lambda: evidence.student_t_base(PARAMS, MODEL)),
        ("model", lambda: inference.rank(PARAMS, MODEL, X)),
        ("model", lambda: inference.denoise(KEY, PARAMS, MODEL, X, FLIPS)),
        ("model", lambda: inference.inpaint(KEY, PARAMS, MODEL, X, X[0] > 0)),
        ("model", lambda: log_likelihood(model=PARAMS, params=MODEL)),
        ("model", lambda: ais(model=PARAMS)),
        ("model", lambda: evidence.reverse_ais(KEY, PARAMS, MODEL, BASE, BETAS, X)),
        ("model", lambda: start(model=pj.models.rbm)),
    ],
    "training": [
        ("rng_key", lambda: start(rng_key=0)),
        ("estimator", lambda: start(estimator=estimators.cd)),
        ("estimator", lambda: start(estimator=estimators.cd(REAL))),
        ("tx", lambda: start(tx=0.1)),
        ("tx", lambda: start(tx=optax.sgd)),
        ("data", lambda: start(data=None)),
        ("data", lambda: start(data=X.tolist())),
        ("data", lambda: start(data="x.npy")),
        ("data", lambda: start(data={"x": X, "w": X[:, 0]})),
        ("preprocess", lambda: start(preprocess="threshold")),
        ("estimator", lambda: go_on(estimator=None)),
        ("tx", lambda: go_on(tx=optax.sgd)),
        ("tx", lambda: go_on(tx=optax.adam(0.1))),
        ("state", lambda: go_on(state=PARAMS)),
        ("data", lambda: go_on(data=X[:, :8])),
        ("preprocess", lambda: go_on(preprocess="threshold")),
        ("make_estimator", lambda: fit_stack(make_estimator=RULE)),
        ("tx", lambda: fit_stack(tx=0.1)),
        ("probabilities", lambda: fit_stack(probabilities=255 * X)),
        ("x", lambda: stacks.features([(MODEL, PARAMS)], X[:, :8])),
    ],
    "parameters": [
        *[(r"params\['bias'\]", lambda d=d: start(params=cast(d))) for d in (int, bool, complex)],
        (r"params\['bias'\]", lambda: pj.exact.log_z(MODEL, cast(int))),
        (r"params\['bias'\]", lambda: pj.exact.log_z(MODEL, cast(">f4"))),
        (r"params\['bias'\]", lambda: inference.rank(MODEL, cast(complex), X)),
        (r"params\['bias'\]", lambda: pj.exact.log_z(MODEL, {"bias": {"field": "a"}})),
        ("params", lambda: pj.exact.log_z(MODEL, OTHER)),
        ("params", lambda: pj.exact.log_z(MODEL, X)),
        ("params", lambda: start(params=OTHER)),
        ("params", lambda: ais(params=OTHER)),
        ("params", lambda: inference.rank(MODEL, STATE, X)),
        ("params", lambda: log_likelihood(params=OTHER)),
    ],
    "chains": [
        ("params", lambda: pj.chains.init(KEY, KERNEL, OTHER, 4)),
        ("kernel", lambda: pj.chains.init(KEY, MODEL, PARAMS, 4)),
        ("x", lambda: pj.chains.init(KEY, KERNEL, PARAMS, 4, "x")),
        ("params", lambda: run(params=OTHER)),
        ("kernel", lambda: run(kernel=MODEL)),
        ("kernel", lambda: run(kernel=kernels.block_gibbs)),
        ("states", lambda: run(states=X)),
        ("states", lambda: run(states=None)),
        ("states.x", lambda: run(states=CHAINS._replace(x=CHAINS.x[:, :8]))),
        ("observe", lambda: run(observe="mean")),
        ("kernel", lambda: estimators.pcd(MODEL, 10, kernels.block_gibbs)),
    ],
    "evidence": [
        ("base", lambda: ais(base=X)),
        ("base", lambda: ais(base=None)),
        ("log_z", lambda: log_likelihood(log_z=None)),
        ("log_z", lambda: log_likelihood(log_z=NAN)),
        ("log_z", lambda: log_likelihood(log_z=np.zeros(16))),
        ("log_z", lambda: log_likelihood(log_z="16")),
        ("x", lambda: log_likelihood(x=None)),
        ("x", lambda: log_likelihood(x=X.astype(complex))),
        ("x", lambda: evidence.reverse_ais(KEY, MODEL, PARAMS, BASE, BETAS, X[:, :8])),
        ("observed", lambda: inference.inpaint(KEY, MODEL, PARAMS, X, "all")),
        ("tol", lambda: pj.mixtures.fit_em(KEY, X, 2, tol=None)),
        ("tol", lambda: pj.mixtures.fit_em_bernoulli(KEY, X, 2, tol="small")),
        ("step", lambda: pj.checkpoint.save("unused", STATE, step=1.5)),
        ("step", lambda: pj.checkpoint.save("unused", STATE, step="last")),
        ("means", lambda: pj.gaussians.product([[0.0]], [[1.0]])),
        ("precisions", lambda: pj.gaussians.product(np.zeros((1, 1)), [[1.0]])),
    ],
}


@pytest.mark.parametrize(
    ("name", "call"),
    [pytest.param(*slip, id=f"{kind}-{i}") for kind in SLIPS for i, slip in enumerate(SLIPS[kind])],
)
def test_an_argument_of_the_wrong_kind_is_named(name, call):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert re.match(rf"{name}\b|{name}", message), message
    assert len(message) < 600  # a model may be in it, data never


def test_an_exact_log_z_makes_no_nan():
    with jax.debug_nans(True):
        found = log_likelihood(log_z=pj.exact.log_z(MODEL, PARAMS))
    assert np.isnan(found.ess)
    assert found.ci_low == found.mean == found.ci_high


@pytest.mark.slow
@pytest.mark.parametrize(
    "guard", [lambda: jax.debug_nans(True), lambda: jax.numpy_dtype_promotion("strict")]
)
def test_the_path_from_data_to_evidence_obeys_the_guards_of_jax(guard):
    x = jax.device_put(X)
    with guard():
        state = training.init(KEY, MODEL, RULE, TX, x)
        state, _ = training.train_steps(RULE, TX, state, x, 4, 2)
        base = evidence.base_rate(MODEL, x)
        log_z = evidence.ais(KEY, MODEL, state.params, base, BETAS, 20)
        log_likelihood(x, log_z)
        inference.rank(MODEL, state.params, x)
        inference.inpaint(KEY, MODEL, PARAMS, x, x > 0, num_steps=4, burn_in=1)
        run(states=pj.chains.init(KEY, KERNEL, state.params, 4), params=state.params)


def test_what_is_called_in_loops_moves_nothing_to_the_device():
    x = jax.device_put(X)
    log_z = pj.exact.log_z(MODEL, PARAMS)
    with jax.transfer_guard("disallow"):
        go_on(data=x)
        run()
        pj.exact.log_z(MODEL, PARAMS)
        log_likelihood(x, log_z)
        inference.rank(MODEL, PARAMS, x)


def test_params_of_an_optimizer_pass_as_they_are():
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PARAMS)
    for params in (PARAMS, wide, half, MODEL.temper(PARAMS, 0.5), MODEL.mask(PARAMS, hidden=True)):
        MODEL.check_params(params)
