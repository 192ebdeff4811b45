"""Products as Flax modules, their features as layers, stacks of them as networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import poejax as pj
from poejax import nn, stacks

RBM = pj.models.rbm(6, 4)


@pytest.mark.slow
def test_a_product_in_an_nnx_tree(random_params):
    params = random_params(RBM)
    module = nn.ProductModule(RBM, params=params)
    x = RBM.visible.states()[11]
    assert float(module(x)) == pytest.approx(float(RBM.log_density(params, x)))
    grads = nnx.grad(lambda module: module(x))(module)
    expected = jax.grad(RBM.log_density)(params, x)
    found = nnx.to_pure_dict(nnx.state(grads))["variables"]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    drawn = nn.ProductModule(RBM, rngs=nnx.Rngs(3))
    assert drawn.params["hidden"]["w"].shape == (6, 4)


@pytest.mark.slow
def test_the_surrogate_is_the_contrastive_gradient(random_params):
    module = nn.ProductModule(RBM, params=random_params(RBM))
    data, model = RBM.visible.states()[:7], RBM.visible.states()[20:]
    grads = nnx.grad(lambda module: module.surrogate(data, model))(module)
    expected = pj.estimators._common.contrast(RBM, module.params, data, model)[0]
    found = nnx.to_pure_dict(nnx.state(grads))["variables"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    # It reaches the data, and not the samples.
    by_data = jax.grad(lambda x: module.surrogate(x, model))(data)
    by_model = jax.grad(lambda x: module.surrogate(data, x))(model)
    assert float(jnp.abs(by_data).max()) > 0
    assert float(jnp.abs(by_model).max()) == 0


def test_an_optimizer_lowers_the_exact_loss():
    module = nn.ProductModule(RBM, rngs=nnx.Rngs(0))
    x = RBM.visible.states()[jnp.array([0, 3, 48, 51])]

    def loss(module):
        return pj.exact.log_z(RBM, module.params) - jnp.mean(jax.vmap(module)(x))

    optimizer = nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        value, grads = nnx.value_and_grad(loss)(module)
        optimizer.update(module, grads)
        return value

    values = [float(step(module, optimizer)) for _ in range(150)]
    assert values[-1] < values[0] - 1.5
    assert values[-1] > np.log(4) - 1e-4  # no loss is below the entropy of four equal events


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)])
def test_a_product_in_linen(key):
    module = nn.LinenProduct(RBM)
    x = RBM.visible.states()[5]
    variables = module.init(key, x)
    params = variables["params"]["product"]
    expected = RBM.log_density(params, x)
    assert float(module.apply(variables, x)) == pytest.approx(float(expected))


def test_features_are_latent_means(random_params):
    params = random_params(RBM)
    x = RBM.visible.states()[:9]
    for bias in (True, False):
        layer = nn.Features((RBM, params), bias=bias)
        expected = jax.vmap(lambda x, b=bias: pj.inference.features(RBM, params, x, bias=b))(x)
        np.testing.assert_allclose(layer(x), expected, atol=1e-6)
        assert len(jax.tree.leaves(nnx.state(layer, nnx.Param))) == 1 + bias
    np.testing.assert_allclose(layer(x.astype(jnp.uint8)), layer(x))


def greedy(x, sizes=(5, 3)):
    return stacks.fit_greedy(
        jax.random.key(1), x, sizes, lambda m: pj.estimators.cd(m), optax.sgd(0.3), 16, 1000
    )


@pytest.mark.slow
def test_a_stack_becomes_a_network():
    x = pj.datasets.bars_and_stripes(3).astype(np.float32)
    stack = greedy(x)
    assert [params["hidden"]["w"].shape for _, params in stack] == [(9, 5), (5, 3)]
    network = nn.Classifier.from_stack(stack, 2, rngs=nnx.Rngs(0))
    hidden = x
    for layer in network.hidden:
        hidden = network.activation(layer(hidden))
    np.testing.assert_allclose(hidden, stacks.features(stack, x), atol=1e-6)
    assert network(x).shape == (16, 2)
    # The upper layer learned what the lower one says: better than before training.
    model, params = stack[1]
    below = jnp.tile(stacks.features(stack[:1], x), (50, 1))
    bits = stacks.draw_bits(jax.random.key(2), below)
    start = params | {"hidden": jax.tree.map(jnp.zeros_like, params["hidden"])}
    start["bias"] = {"field": jnp.zeros(5)}
    likelihoods = [
        float(pj.evidence.log_likelihood(model, p, bits, pj.exact.log_z(model, p)).mean)
        for p in (start, params)
    ]
    assert likelihoods[1] > likelihoods[0] + 0.1


def test_a_network_learns():
    x = pj.datasets.bars_and_stripes(3).astype(np.float32)[1:-1]
    y = (np.arange(len(x)) >= len(x) // 2).astype(int)
    network = nn.Classifier((9, 8), 2, rngs=nnx.Rngs(0), activation=jax.nn.relu)
    optimizer = nnx.Optimizer(network, optax.adam(0.05), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer):
        def loss(network):
            return optax.softmax_cross_entropy_with_integer_labels(network(x), y).mean()

        value, grads = nnx.value_and_grad(loss)(network)
        optimizer.update(network, grads)
        return value

    assert float(step(network, optimizer)) == pytest.approx(np.log(2), abs=1e-5)
    for _ in range(100):
        step(network, optimizer)
    # The first and last pattern of either half are the same for rows and columns.
    assert float(jnp.mean(network(x).argmax(-1) == y)) > 0.8


def test_settings_are_not_trained(random_params):
    params = RBM.mask(RBM.temper(random_params(RBM), 0.5), hidden=True)
    module = nn.ProductModule(RBM, params=params)
    x = jnp.ones((3, RBM.visible.size))
    optimizer = nnx.Optimizer(module, optax.adamw(0.1, weight_decay=6.0), wrt=nnx.Param)
    optimizer.update(module, nnx.grad(lambda m: m.surrogate(x, 1 - x))(module))
    assert (np.asarray(module.params["hidden"]["w"]) != np.asarray(params["hidden"]["w"])).any()
    for name in ("beta", "present"):
        assert float(module.params["hidden"][name]) == float(params["hidden"][name])
    with pytest.raises(ValueError, match="params: expected w and b alone in 'hidden'"):
        nn.Features((RBM, params))


def test_a_network_may_call_a_parameter_beta():
    visible = pj.units.GaussianDiag(2)
    energy = pj.experts.Neural(
        visible,
        init_fn=lambda rng_key: [{"beta": jnp.ones(2)}],
        apply_fn=lambda phi, x: jnp.sum(phi[0]["beta"] * x**2),
    )
    model = pj.product(visible, energy=energy)
    params = model.temper(model.init(jax.random.key(0)), 0.5)
    state = nnx.to_flat_state(nnx.state(nn.ProductModule(model, params=params), nnx.Param))
    assert [path for path, _ in state] == [("variables", "energy", "network", 0, "beta")]


def test_features_do_not_round_their_inputs(random_params):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(RBM))
    x = jax.random.uniform(jax.random.key(0), (4, RBM.visible.size))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    found = nn.Features((RBM, params))(x)
    np.testing.assert_allclose(found, nn.Features((RBM, wide))(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.ProductModule(RBM), "rngs: expected nnx.Rngs"),
        (lambda: nn.ProductModule(RBM, params={}), "params: expected a leaf"),
        (lambda: nn.Features((RBM, {}), bank="bias"), "bank: expected one with Bernoulli hidden"),
        (lambda: nn.Classifier.from_stack([], 2, rngs=nnx.Rngs(0)), "stack: expected at least one"),
        (lambda: nn.Classifier((9, 0), 2, rngs=nnx.Rngs(0)), "sizes, num_classes: expected an int"),
        (lambda: greedy(2 * np.ones((20, 4))), r"probabilities: expected values in \[0, 1\]"),
        (lambda: greedy(np.ones((20, 4)), ()), "num_hidden: expected a size for every layer"),
        (lambda: greedy(np.ones((20, 4)), 5), "num_hidden: expected a size for every layer, got 5"),
        (lambda: greedy(np.ones((20, 4)), jnp.array([3, 0])), "num_hidden: expected an integer of"),
        (lambda: greedy(np.ones((20, 4)), (3, 0)), "num_hidden: expected an integer of at least 1"),
        (lambda: nn.Classifier([], 2, rngs=nnx.Rngs(0)), "sizes: expected the number of inputs"),
        (lambda: nn.Classifier((9,), 2, rngs=nnx.Rngs(0), dropout="a"), "dropout: expected a num"),
        (lambda: greedy(np.ones(4)), r"probabilities: expected shape \(N, D\)"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
