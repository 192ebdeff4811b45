"""Counts as visible and hidden units, against enumeration in float64, with all that they allow."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from reference import Block
from scipy.special import gammaln
from tutorial_unit import Geometric

import poejax as pj
from poejax import estimators, evidence, exact, experts, kernels, propriety, training, units

BITS = Block("bernoulli", 3)
RATINGS = Block("binomial", 2, 5)
COUNTS = Block("poisson", 2)
PAIRS = {
    "ratings, bits": (RATINGS, BITS, units.Binomial(2, 4), units.Bernoulli(3)),
    "bits, ratings": (BITS, RATINGS, units.Bernoulli(3), units.Binomial(2, 4)),
    "counts, bits": (COUNTS, BITS, units.Poisson(2), units.Bernoulli(3)),
}


def build(visible, hidden):
    bank = experts.HiddenBank(visible, hidden)
    return pj.product(visible, bias=experts.Bias(visible), hidden=bank)


def machine(name, seed=0, scale=0.5):
    """A model with random parameters, and the reference of the same energy."""
    visible, hidden, *both = PAIRS[name]
    found = reference.random_machine(np.random.default_rng(seed), (visible,), (hidden,), scale)
    params = {
        "bias": {"field": jnp.asarray(found.a)},
        "hidden": {"w": jnp.asarray(found.w), "b": jnp.asarray(found.b)},
    }
    return build(*both), jax.tree.map(lambda leaf: leaf.astype(float), params), found


def log_density(found, t):
    """The reference's, with the base measure of the visible counts."""
    states, log_weights = reference.events(found.visible)
    row = {tuple(state): weight for state, weight in zip(states, log_weights, strict=True)}
    return found.log_density(t) + np.array([row[tuple(v)] for v in t])


def some_events(found, count=5):
    rng = np.random.default_rng(1)
    if found.visible == (COUNTS,):
        return rng.poisson(3.0, (count, 2)).astype(float)
    return reference.random_events(rng, found.visible, count)


@pytest.mark.slow
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_densities_conditionals_log_z_and_gradients(name, wide):
    tolerance = 1e-9 if wide else 1e-4
    with jax.enable_x64(wide):
        model, params, found = machine(name)
        t = some_events(found)
        s = reference.random_events(np.random.default_rng(2), found.hidden, 5)
        np.testing.assert_allclose(
            jax.vmap(model.log_density, (None, 0))(params, jnp.asarray(t)),
            log_density(found, t), rtol=tolerance, atol=tolerance,
        )  # fmt: skip
        means = jax.vmap(model.latent_mean, (None, 0))(params, jnp.asarray(t))["hidden"]
        np.testing.assert_allclose(means, found.hidden_mean(t), rtol=tolerance, atol=tolerance)
        latents = {"bias": (), "hidden": jnp.asarray(s)}
        axes = {"bias": None, "hidden": 0}
        means = jax.vmap(model.visible_mean, (None, axes))(params, latents)
        np.testing.assert_allclose(means, found.visible_mean(s), rtol=tolerance, atol=tolerance)
        assert float(exact.log_z(model, params)) == pytest.approx(found.log_z(), rel=tolerance)
        grads, _, _ = estimators.exact(model).grad(jax.random.key(0), params, (), jnp.asarray(t))
        expected = found.gradient(t)
        np.testing.assert_allclose(
            -grads["hidden"]["w"], expected["w"], rtol=10 * tolerance, atol=10 * tolerance
        )


@pytest.mark.parametrize("name", PAIRS)
def test_block_gibbs_leaves_the_exact_distribution_invariant(name):
    model, params, found = machine(name)
    p = found.probabilities()
    t, _ = reference.events(found.visible)
    rng = np.random.default_rng(3)
    x = jnp.asarray(t[rng.choice(len(p), 20_000, p=p / p.sum())], jnp.float32)
    kernel = kernels.block_gibbs(model)
    states = jax.vmap(kernel.init, (None, None, 0))(jax.random.key(0), params, x)
    states, _ = pj.chains.run(jax.random.key(1), kernel, params, states, 3)
    after = np.asarray(states.x, float)
    z = [reference.mean_z_scores(after**k, p @ t**k) for k in (1, 2)]
    z.append(reference.mean_z_scores(after[:, :1] * after[:, 1:], (p @ (t[:, :1] * t[:, 1:]))))
    scores = np.concatenate([np.ravel(v) for v in z])
    assert np.abs(scores).max() < reference.z_threshold(len(scores))


@dataclasses.dataclass(frozen=True)
class MissingOneTrial(units.Binomial):
    def sample(self, rng_key, field):
        return jnp.minimum(super().sample(rng_key, field), self.num_trials - 1)


@dataclasses.dataclass(frozen=True)
class WithoutBase(units.Poisson):
    def log_base(self, x):
        return jnp.zeros(())


def test_wrong_counts_are_told():
    unit = MissingOneTrial(2, 4)
    field = jnp.array([0.3, 1.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = np.asarray(jax.vmap(unit.sample, (0, None))(keys, field))
    scores = reference.mean_z_scores(draws, np.asarray(unit.mean(field)))
    assert np.abs(scores).max() > 2 * reference.z_threshold(2)
    _, params, found = machine("counts, bits")
    wrong = build(WithoutBase(2), units.Bernoulli(3))
    t = some_events(found)
    assert abs(float(wrong.log_density(params, t[0]) - log_density(found, t)[0])) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_annealing_from_a_base_rate(name):
    model, params, found = machine(name)
    base = evidence.base_rate(model, jnp.asarray(some_events(found, 200), jnp.float32))
    forward = evidence.ais(jax.random.key(4), model, params, base, evidence.linear_betas(200), 300)
    assert abs(float(forward.log_z) - found.log_z()) < 4 * float(forward.std_err)
    assert float(forward.std_err) < 0.05


@pytest.mark.slow
def test_rules_that_look_at_neighbours_and_gradients():
    model, params, found = machine("ratings, bits")
    x = some_events(found, 1)[0]
    p = found.probabilities().reshape(5, 5)
    conditionals = p[int(x[0]), int(x[1])] / np.array([p[:, int(x[1])].sum(), p[int(x[0])].sum()])
    found_pll = pj.diagnostics.pseudo_log_likelihood(
        jax.random.key(0), model, params, jnp.asarray(x)
    )
    assert float(found_pll) == pytest.approx(np.log(conditionals).sum(), abs=1e-4)
    flow = estimators.minimum_probability_flow(model).loss(None, params, jnp.asarray(x))
    here = p[int(x[0]), int(x[1])]
    others = np.concatenate([p[:, int(x[1])], p[int(x[0])]])
    assert float(flow) == pytest.approx(np.sqrt(others / here).sum() - 2, rel=1e-4)
    t, _ = reference.events(found.visible)
    rng = np.random.default_rng(5)
    start = jnp.asarray(t[rng.choice(25, 20_000, p=p.ravel())], jnp.float32)
    kernel = kernels.gibbs_with_gradients(model, 4)
    states = jax.vmap(kernel.init, (None, None, 0))(jax.random.key(0), params, start)
    states, info = pj.chains.step_all(jax.random.key(1), kernel, params, states)
    rate = float(jnp.mean(info.is_accepted))
    states, _ = pj.chains.run(jax.random.key(2), kernel, params, states, 3)
    counts = np.bincount((np.asarray(states.x) @ [5, 1]).astype(int), minlength=25)
    scores = reference.count_z_scores(counts, p.ravel())
    assert np.abs(scores).max() < reference.z_threshold(len(scores))
    assert 0.1 < rate < 0.999


def test_what_counts_do_not_allow_is_refused_by_name():
    ratings, counts = (build(PAIRS[n][2], PAIRS[n][3]) for n in ("ratings, bits", "counts, bits"))
    with pytest.raises(ValueError, match="finitely many values, got Poisson"):
        kernels.gibbs_with_gradients(counts)
    with pytest.raises(ValueError, match="finitely many values, got Poisson"):
        estimators.pseudo_likelihood(counts)
    with pytest.raises(ValueError, match="two values, Bernoulli or Spin, got Binomial"):
        estimators.ratio_matching(ratings)
    with pytest.raises(ValueError, match="mala: expected real visible units"):
        kernels.mala(ratings, 0.1)
    x = jnp.ones((3, 2))
    for model in (ratings, counts):
        with pytest.raises(ValueError, match="noise: BitFlips expects"):
            pj.inference.denoise(
                jax.random.key(0), model, model.init(jax.random.key(0)), x,
                pj.inference.BitFlips(0.1),
            )  # fmt: skip
    with pytest.raises(ValueError, match=r"integers from 0 to 4 for Binomial.*, got 5"):
        units.Binomial(2, 4).check("x", np.array([[1, 5]]))
    for bad in (-1, 0.5):
        with pytest.raises(ValueError, match=r"integers from 0 to 2\*\*24 for Poisson.*, got"):
            units.Poisson(2).check("x", np.array([[1, bad]]))
    with pytest.raises(ValueError, match="num_trials: expected an integer of at least 1, got 0"):
        units.Binomial(2, 0)
    with pytest.raises(ValueError, match="infinitely many"):
        units.Poisson(2).states()


@pytest.mark.parametrize(
    ("hidden", "w", "expected"),
    [
        (units.Bernoulli(1), 3.0, "proper"),
        (units.Spin(1), 3.0, "proper"),
        (units.StandardGaussian(1), 0.3, "improper"),
        (units.StandardGaussian(1), 0.0, "proper"),
        (units.ReLU(1), 0.3, "improper"),
        (units.ReLU(1), -0.1, "proper"),
        (units.Poisson(1), 0.1, "unknown"),
    ],
)
def test_propriety_over_counts(hidden, w, expected):
    model = build(units.Poisson(2), hidden)
    params = model.init(jax.random.key(0))
    params["hidden"]["w"] = jnp.array([[w], [0.0]])
    assert propriety.classify(model, params).verdict == expected
    # By the sum itself, cut off at two places: it settles if and only if it converges.
    x = jnp.arange(400.0)
    log_f = jax.vmap(lambda v: model.log_density(params, jnp.array([v, 0.0])))(x)
    settled = abs(float(jax.nn.logsumexp(log_f[:300]) - jax.nn.logsumexp(log_f))) < 1e-3
    if expected != "unknown":
        assert settled == (expected == "proper")


def test_propriety_over_counts_beside_reals():
    visible = units.Joint(counts=units.Poisson(1), reals=units.GaussianDiag(1))
    for hidden, verdict in (
        (units.Bernoulli(2), "proper"),
        (units.StandardGaussian(2), "improper"),
    ):
        model = build(visible, hidden)
        params = model.init(jax.random.key(0))
        params["hidden"]["w"] = jnp.array([[0.5, 0.2], [0.1, 0.3]])
        assert propriety.classify(model, params).verdict == verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ratings, bits", "counts, bits"])
def test_learning_finds_that_two_counts_go_together(name):
    model = build(*PAIRS[name][2:])
    rng = np.random.default_rng(0)
    high = rng.random((1000, 1)) < 0.5
    if name == "counts, bits":
        data = rng.poisson(np.where(high, 9.0, 2.0), (1000, 2))
    else:
        data = rng.binomial(4, np.where(high, 0.85, 0.15), (1000, 2))

    def nll(params):
        log_f = jax.vmap(model.log_density, (None, 0))(params, jnp.asarray(data, float))
        return float(exact.log_z(model, params) - jnp.mean(log_f))

    start = model.init_from(jax.random.key(0), data)
    estimator, tx = estimators.pcd(model, 200), optax.adam(0.02)
    # Averaged: at this rate single parameters are as often worse than independence as better.
    run = training.Run(estimator, tx, 100, average=True, average_decay=0.99)
    state = run.init(jax.random.key(0), data, start)
    state, _ = run.steps(state, jnp.asarray(data), 600)
    # Alone, a site has the law of the mixture; together they share which half it is.
    alone = [np.unique(data[:, i], return_counts=True)[1] / 1000 for i in (0, 1)]
    apart = -sum(float(p @ np.log(p)) for p in alone)
    assert nll(state.average) < apart - 0.15 < nll(start)


def test_log_binomials_keep_their_digits():
    for n in (3, 100, 1000):
        unit = units.Binomial(1, n)
        x = np.arange(0, n + 1, max(1, n // 50))
        found = jax.vmap(unit.log_base)(jnp.asarray(x[:, None], jnp.float32))
        exact_value = gammaln(n + 1) - gammaln(x + 1) - gammaln(n - x + 1)
        np.testing.assert_allclose(found, exact_value, rtol=3e-7, atol=1e-5)


def test_draws_under_another_generator():
    key = jax.random.key(0, impl="rbg")
    draws = jax.vmap(units.Poisson(1).sample, (0, None))(
        jax.random.split(key, 4000), jnp.log(jnp.array([7.0]))
    )
    score = reference.mean_z_scores(draws, np.array([7.0]))
    assert np.abs(score).max() < 4


@pytest.mark.slow
def test_a_unit_of_ones_own_does_the_same():
    """Nothing of the library knows `tutorial_unit.Geometric`."""
    visible = Geometric(2, 6)
    model = build(visible, units.Bernoulli(3))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32),
        model.init(jax.random.key(0)),
    )
    values = np.stack(np.meshgrid(np.arange(7), np.arange(7), indexing="ij"), -1).reshape(-1, 2)
    log_f = jax.vmap(model.log_density, (None, 0))(params, jnp.asarray(values, jnp.float32))
    log_z = float(jax.nn.logsumexp(log_f))
    assert float(exact.log_z(model, params)) == pytest.approx(log_z, abs=1e-4)
    p = np.exp(np.asarray(log_f, float) - log_z)
    data = values[rng.choice(49, 20_000, p=p / p.sum())]
    base = evidence.base_rate(model, data[:500])
    found = evidence.ais(jax.random.key(1), model, params, base, evidence.linear_betas(100), 300)
    assert abs(float(found.log_z) - log_z) < 4 * float(found.std_err)
    assert propriety.classify(model, params).verdict == "proper"
    loss = estimators.minimum_probability_flow(model).loss(None, params, jnp.ones(2))
    assert np.isfinite(float(loss))
    for kernel in (kernels.block_gibbs(model), kernels.gibbs_with_gradients(model, 4)):
        x = jnp.asarray(data, jnp.float32)
        states = jax.vmap(kernel.init, (None, None, 0))(jax.random.key(0), params, x)
        states, _ = pj.chains.run(jax.random.key(2), kernel, params, states, 3)
        counts = np.bincount((np.asarray(states.x) @ [7, 1]).astype(int), minlength=49)
        scores = reference.count_z_scores(counts, p)
        assert np.abs(scores).max() < reference.z_threshold(len(scores))
