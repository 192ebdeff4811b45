"""Learning rules against exact expectations."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import poejax as pj
from poejax import datasets

BARS = jnp.asarray(datasets.bars_and_stripes(3), jnp.float32)
MODEL = pj.models.rbm(9, 4)


def exact_nll_grad(model, params, x):
    return pj.estimators.exact(model).grad(jax.random.key(0), params, (), x)[0]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def exact_samples(key, model, params, count):
    log_p = jnp.log(pj.exact.probabilities(model, params))
    return jax.vmap(model.visible.state_at)(jax.random.categorical(key, log_p, shape=(count,)))


def test_exact_gradient_is_that_of_the_exact_likelihood(random_params):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), random_params(MODEL))
        x = jnp.asarray(BARS, float)

        def nll(params):
            density = jax.vmap(MODEL.log_density, (None, 0))(params, x)
            return pj.exact.log_z(MODEL, params) - density.mean()

        found = flat(exact_nll_grad(MODEL, params, x))
        leaves, tree = jax.tree.flatten(params)
        differences = []
        for i, leaf in enumerate(leaves):
            for j in np.ndindex(leaf.shape):
                sides = [
                    float(
                        nll(
                            jax.tree.unflatten(
                                tree, [*leaves[:i], leaf.at[j].add(h), *leaves[i + 1 :]]
                            )
                        )
                    )
                    for h in (1e-5, -1e-5)
                ]
                differences.append((sides[0] - sides[1]) / 2e-5)
    np.testing.assert_allclose(found, differences, atol=1e-8)


def z_scores(model, params, estimator, state_fn, expected, num_draws=4000):
    """Return z-scores of the mean of independent gradient draws against `expected`."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0,))
    def draw(key):
        state_key, grad_key = jax.random.split(key)
        return estimator.grad(grad_key, params, state_fn(state_key), BARS)[0]

    grads = draw(jax.random.split(jax.random.key(7), num_draws))
    draws = np.concatenate([g.reshape(num_draws, -1) for g in jax.tree.leaves(grads)], axis=1)
    std_err = draws.std(0, ddof=1) / np.sqrt(num_draws)
    return (draws.mean(0) - expected) / np.maximum(std_err, 1e-7)


def bonferroni(num_tests):
    """Return the two-sided 1e-4 threshold of the largest of `num_tests` normal scores."""
    from scipy import stats

    return stats.norm.isf(0.5e-4 / num_tests)


def test_pcd_is_unbiased_at_equilibrium(random_params):
    params = random_params(MODEL, scale=0.7)
    estimator = pj.estimators.pcd(MODEL, 8, num_steps=2)

    def chains(key):
        return pj.types.ChainState(exact_samples(key, MODEL, params, 8))

    expected = flat(exact_nll_grad(MODEL, params, BARS))
    scores = z_scores(MODEL, params, estimator, chains, expected)
    assert np.abs(scores).max() < bonferroni(scores.size)
    # The same statistic must see a sampler at twice the inverse temperature.
    hot = jax.tree.map(lambda leaf: 2 * leaf, params)

    def wrong(key):
        return pj.types.ChainState(exact_samples(key, MODEL, hot, 8))

    assert np.abs(z_scores(MODEL, params, estimator, wrong, expected)).max() > bonferroni(
        scores.size
    )


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 3])
def test_cd_k_is_the_expectation_under_k_steps_from_the_data(random_params, num_steps):
    params = random_params(MODEL, scale=1.5)
    visibles, hiddens = MODEL.visible.states(), MODEL.experts["hidden"].hidden.states()
    field = visibles @ params["hidden"]["w"] + params["hidden"]["b"]
    up = jnp.exp(hiddens @ field.T - jax.nn.softplus(field).sum(1)).T
    field = hiddens @ params["hidden"]["w"].T + params["bias"]["field"]
    down = jnp.exp(visibles @ field.T - jax.nn.softplus(field).sum(1)).T
    start = jnp.mean(jnp.all(BARS[:, None] == visibles, axis=-1), axis=0)
    end = start @ jnp.linalg.matrix_power(up @ down, num_steps)

    def contrast(params):
        density = jax.vmap(MODEL.log_density, (None, 0))(params, visibles)
        return jnp.vdot(end - start, density)

    expected = flat(jax.grad(contrast)(params))
    estimator = pj.estimators.cd(MODEL, num_steps=num_steps)
    scores = z_scores(MODEL, params, estimator, lambda _: (), expected)
    assert np.abs(scores).max() < bonferroni(scores.size)
    other = flat(exact_nll_grad(MODEL, params, BARS))
    assert np.abs(z_scores(MODEL, params, estimator, lambda _: (), other)).max() > 10


def test_centred_gradient_is_the_gradient_in_centred_coordinates(random_params):
    params = random_params(MODEL)
    exact = pj.estimators.exact(MODEL)
    centered = pj.estimators.centered(exact, MODEL, decay=0.0)
    state = centered.init(jax.random.key(0), params, BARS)
    found, state, _ = centered.grad(jax.random.key(0), params, state, BARS)
    mu, lam = state.visible_offset, state.hidden_offsets["hidden"]
    np.testing.assert_allclose(mu, BARS.mean(0), atol=1e-6)

    def ordinary(c):
        # log p depends on (x - μ)ᵀ W (z - λ) + aᵀ(x - μ) + bᵀ(z - λ).
        return {
            "bias": {"field": c["a"] - c["w"] @ lam},
            "hidden": {"w": c["w"], "b": c["b"] - mu @ c["w"]},
        }

    w = params["hidden"]["w"]
    coordinates = {
        "w": w,
        "a": params["bias"]["field"] + w @ lam,
        "b": params["hidden"]["b"] + mu @ w,
    }

    def nll(c):
        p = ordinary(c)
        density = jax.vmap(MODEL.log_density, (None, 0))(p, BARS)
        return pj.exact.log_z(MODEL, p) - density.mean()

    step = jax.grad(nll)(coordinates)
    expected = jax.tree.map(
        jnp.subtract, ordinary(jax.tree.map(jnp.add, coordinates, step)), ordinary(coordinates)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_centring_makes_learning_blind_to_which_value_is_zero(random_params):
    # The model of flipped data is the flipped model; centred gradients keep it so, plain ones not.
    params = random_params(MODEL)
    w, b, a = params["hidden"]["w"], params["hidden"]["b"], params["bias"]["field"]
    flipped = {"bias": {"field": -a}, "hidden": {"w": -w, "b": b + w.sum(0)}}

    def gradient(params, x, wrap):
        estimator = pj.estimators.exact(MODEL)
        if wrap:
            estimator = pj.estimators.centered(estimator, MODEL, decay=0.0)
        state = estimator.init(jax.random.key(0), params, x)
        return estimator.grad(jax.random.key(0), params, state, x)[0]["hidden"]["w"]

    for wrap in (True, False):
        same = jnp.allclose(
            gradient(params, BARS, wrap), -gradient(flipped, 1 - BARS, wrap), atol=1e-5
        )
        assert bool(same) == wrap


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [pj.units.Spin(3), pj.units.Categorical(2, 3)])
@pytest.mark.parametrize(
    "visible",
    [
        pj.units.GaussianDiag(4),
        pj.units.Joint(image=pj.units.Bernoulli(4), label=pj.units.Categorical(1, 3)),
    ],
)
def test_centring_works_for_any_bank(visible, hidden):
    model = pj.product(
        visible, bias=pj.experts.Bias(visible), hidden=pj.experts.HiddenBank(visible, hidden)
    )
    params = model.init(jax.random.key(0))
    x = jax.vmap(model.init_visible)(jax.random.split(jax.random.key(1), 32))
    estimator = pj.estimators.centered(pj.estimators.pcd(model, 16), model)
    state = estimator.init(jax.random.key(2), params, x)
    grads, _, _ = estimator.grad(jax.random.key(3), params, state, x)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert np.isfinite(flat(grads)).all()


def test_what_cannot_be_centred_is_refused():
    visible = pj.units.Bernoulli(4)
    bias = pj.experts.Bias(visible)
    bank = pj.experts.HiddenBank(visible, pj.units.Bernoulli(3))
    no_bank, no_bias = pj.product(visible, bias=bias), pj.product(visible, hidden=bank)
    nested = pj.product(visible, bias=bias, inner=no_bias)
    cd = pj.estimators.cd
    with pytest.raises(ValueError, match="expected a HiddenBank to centre"):
        pj.estimators.centered(cd(no_bank), no_bank)
    with pytest.raises(ValueError, match="expected a Bias expert to take up the hidden offsets"):
        pj.estimators.centered(cd(no_bias), no_bias)
    with pytest.raises(ValueError, match="cannot centre inside the nested product 'inner'"):
        pj.estimators.centered(cd(nested), nested)
    with pytest.raises(ValueError, match=r"decay: expected a number in \[0, 1\)"):
        pj.estimators.centered(cd(nested), nested, decay=1.0)
    estimator = pj.estimators.centered(cd(no_bias), no_bias, hidden_offsets=False)
    params = no_bias.init(jax.random.key(0))
    x = visible.states()
    grads, _, _ = estimator.grad(
        jax.random.key(1), params, estimator.init(jax.random.key(0), params, x), x
    )
    assert np.isfinite(flat(grads)).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pj.estimators.cd(MODEL, num_steps=0), "num_steps: expected an integer of at"),
        (lambda: pj.estimators.pcd(MODEL, 0), "num_chains: expected an integer of at least 1"),
        (lambda: pj.estimators.pcd(MODEL, 2.5), "num_chains: expected an integer"),
    ],
)
def test_bad_estimator_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_kernels_of_another_model_are_refused():
    model, other = pj.models.rbm(4, 3), pj.models.rbm(4, 2)
    wrong = pj.kernels.block_gibbs(other)
    for build in (
        lambda kernel: pj.estimators.cd(model, kernel),
        lambda kernel: pj.estimators.pcd(model, 10, kernel),
        lambda kernel: pj.estimators.imputed(pj.estimators.cd(model), model, kernel),
    ):
        with pytest.raises(ValueError, match="kernel: expected one of Product"):
            build(wrong)
        with pytest.raises(TypeError, match="kernel: expected a kernel such as"):
            build(pj.kernels.block_gibbs)
    incomplete = pj.estimators.imputed(pj.estimators.cd(model), model)
    with pytest.raises(ValueError, match="estimator: expected an estimator for complete events"):
        pj.estimators.centered(incomplete, model)
    with pytest.raises(ValueError, match="a: expected an estimator for complete events"):
        pj.estimators.blend(model, a=(incomplete, 1.0))
    with pytest.raises(TypeError, match=r"a: expected \(estimator, weight\)"):
        pj.estimators.blend(model, a=pj.estimators.cd(model))
