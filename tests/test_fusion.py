"""Gaussians fused inside other people's programs: traced masks, networks, and the other route."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import poejax as pj
from poejax import gaussians

K, D, BATCH = 3, 2, 4
KINDS = ("diagonal", "full")
# Rows of a batch see different experts, and one of them none: there the prior is alone.
MASKS = np.array([[True, True, True], [True, False, True], [False, True, False], [False] * K])


def random_batch(kind, seed=0):
    """Means, precisions, weights, prior mean and prior precision, each with a batch axis."""
    rng = np.random.default_rng(seed)

    def precisions(*shape):
        if kind == "diagonal":
            return np.exp(rng.normal(size=(*shape, D)))
        root = rng.normal(size=(*shape, D, D + 2))
        return root @ root.mT

    means, prior_means = rng.normal(size=(BATCH, K, D)), rng.normal(size=(BATCH, D))
    weights = rng.uniform(0.2, 2, size=(BATCH, K))
    return means, precisions(BATCH, K), weights, prior_means, precisions(BATCH)


def as_matrix(precision):
    return np.diag(precision) if precision.ndim == 1 else precision


def numpy_value_and_gradients(means, precisions, weights, prior_mean, prior_precision, mask, c, g):
    """c·mean + <g, precision> + log Z of one row, and its gradients, in float64.

    With M = Λ⁻¹ the differentials are
      dμ = M [dη - dΛ μ],  d log Z = Σ w_k d log Z_k over log Z = ∫ Π N_k^w_k, so that under the
      product p: ∂ log Z/∂θ_k = w_k E_p[∂ log N_k/∂θ_k] and ∂ log Z/∂w_k = E_p[log N_k],
    from which each gradient follows by hand; nothing is shared with the implementation.
    """
    experts = [*zip(means, precisions, weights, mask, strict=True)]
    experts.append((prior_mean, prior_precision, 1.0, True))
    experts = [(m, as_matrix(p), w, keep) for m, p, w, keep in experts]
    total = sum(w * p for _, p, w, keep in experts if keep)
    covariance = np.linalg.inv(total)
    mean = covariance @ sum(w * p @ m for m, p, w, keep in experts if keep)
    pull = covariance @ c
    outer_g = g if g.ndim == 2 else np.diag(g)
    gradients = []
    for m, p, w, keep in experts:
        if not keep:
            gradients.append((np.zeros(D), np.zeros((D, D)), 0.0))
            continue
        apart = m - mean
        spread = covariance + np.outer(apart, apart)
        log_n = 0.5 * (np.linalg.slogdet(p / (2 * np.pi))[1] - np.sum(p * spread))
        to_mean = w * p @ (pull - apart)
        towards = np.outer(pull, apart)
        to_precision = w * (0.5 * (np.linalg.inv(p) - spread) + towards + outer_g)
        to_weight = log_n + pull @ p @ apart + np.sum(outer_g * p)
        gradients.append((to_mean, 0.5 * (to_precision + to_precision.T), to_weight))
    log_z = -0.5 * np.linalg.slogdet(total / (2 * np.pi))[1]
    log_z += 0.5 * mean @ total @ mean
    for m, p, w, keep in experts:
        if keep:
            log_z += 0.5 * w * (np.linalg.slogdet(p / (2 * np.pi))[1] - m @ p @ m)
    if g.ndim == 1:
        gradients = [(a, np.diag(b), w) for a, b, w in gradients]
    by_mean, by_precision, by_weight = zip(*gradients, strict=True)
    value = c @ mean + np.sum(outer_g * total) + log_z
    return value, (
        np.stack(by_mean[:-1]),
        np.stack(by_precision[:-1]),
        np.array(by_weight[:-1]),
        by_mean[-1],
        by_precision[-1],
    )


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_traced_masks_against_a_derivation_by_hand(kind, x64, compiles_nothing):
    arguments = random_batch(kind)
    rng = np.random.default_rng(1)
    c, g = rng.normal(size=(BATCH, D)), 0.1 * rng.normal(size=arguments[4].shape)
    g = g + g.mT if kind == "full" else g
    # An expert that is out holds NaN, in its mean, its precision and its weight.
    spoilt = [leaf.copy() for leaf in arguments]
    for leaf in spoilt[:3]:
        leaf[~MASKS] = np.nan

    def loss(arguments, mask, c, g):
        means, precisions, weights, *prior = arguments
        found = gaussians.product(means, precisions, weights, mask, tuple(prior))
        return c @ found.mean + jnp.sum(g * found.precision) + found.log_z

    value_and_grad = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    with jax.enable_x64(x64):
        values, gradients = value_and_grad(spoilt, MASKS, c, g)
        assert values.dtype == (jnp.float64 if x64 else jnp.float32)
        with compiles_nothing():
            value_and_grad(list(arguments), MASKS[::-1], c, g)
    tolerance = 1e-11 if x64 else 2e-5
    for row in range(BATCH):
        expected_value, expected = numpy_value_and_gradients(
            *(leaf[row] for leaf in arguments), MASKS[row], c[row], g[row]
        )
        np.testing.assert_allclose(values[row], expected_value, rtol=tolerance, atol=tolerance)
        for found, by_hand in zip(gradients, expected, strict=True):
            scale = max(1, np.abs(by_hand).max())
            np.testing.assert_allclose(
                found[row], by_hand, rtol=10 * tolerance, atol=tolerance * scale
            )
        for found in gradients[:3]:
            assert (np.asarray(found[row])[~MASKS[row]] == 0).all()


def random_networks(rng, kind, num_in=3):
    """One linear map per view, to its mean, the root or log of its precision, and its weight."""
    num_out = 2 * D + 1 if kind == "diagonal" else D + D * D + 1
    return 0.5 * rng.normal(size=(K, num_out, num_in + 1))


def fused_by_networks(xp, networks, x, kind):
    """What the experts of inputs x [K, I] are; `xp` is NumPy or jax.numpy."""
    outputs = xp.einsum("koi,ki->ko", networks[:, :, :-1], x) + networks[:, :, -1]
    means, raw, score = outputs[:, :D], outputs[:, D:-1], outputs[:, -1]
    if kind == "diagonal":
        precisions = xp.exp(raw)
    else:
        roots = raw.reshape(K, D, D)
        precisions = xp.einsum("kia,kja->kij", roots, roots) + 0.5 * xp.eye(D)
    return means, precisions, xp.log1p(xp.exp(score))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_a_networks_output_train_it(kind):
    rng = np.random.default_rng(2)
    networks, x = random_networks(rng, kind), rng.normal(size=(BATCH, K, 3))
    masks = MASKS.copy()
    masks[:, 2] = False  # a view that is missing everywhere
    x[~masks] = np.nan
    priors = np.zeros(D), np.ones(D)

    def loss(networks, x, mask):
        # A network's own gradient at NaN would be 0 · NaN: the input is filled before it.
        x = jnp.where(mask[:, None], x, 0)
        means, precisions, weights = fused_by_networks(jnp, networks, x, kind)
        mean, precision, log_z = gaussians.product(means, precisions, weights, mask, priors)
        return jnp.sum(jnp.sin(mean)) + 0.1 * jnp.sum(precision**2) + log_z

    def numpy_loss(networks):
        total = 0.0
        for row, mask in zip(x, masks, strict=True):
            experts = fused_by_networks(np, networks, np.where(mask[:, None], row, 0), kind)
            zero = np.zeros((D,) if kind == "diagonal" else (D, D))
            ones = np.ones(D) if kind == "diagonal" else np.eye(D)
            value, _ = numpy_value_and_gradients(*experts, priors[0], ones, mask, priors[0], zero)
            chosen = [(m, as_matrix(p), w) for m, p, w in zip(*experts, strict=True)]
            chosen = [e for e, keep in zip(chosen, mask, strict=True) if keep]
            total_precision = np.eye(D) + sum(w * p for _, p, w in chosen)
            linear = sum((w * p @ m for m, p, w in chosen), np.zeros(D))
            mean = np.linalg.solve(total_precision, linear)
            total += np.sin(mean).sum() + 0.1 * np.sum(total_precision**2) + value
        return total

    def batch_loss(networks, x, masks):
        return jax.vmap(loss, (None, 0, 0))(networks, x, masks).sum()

    value, gradient = jax.jit(jax.value_and_grad(batch_loss))(networks, x, masks)
    np.testing.assert_allclose(value, numpy_loss(networks), rtol=1e-5)
    expected, step = np.zeros_like(networks), 1e-5
    for index in np.ndindex(networks.shape):
        moved = [networks.copy(), networks.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        expected[index] = (numpy_loss(moved[0]) - numpy_loss(moved[1])) / (2 * step)
    assert np.abs(expected[:2, -1]).min() > 1e-3, "the weights' own network has something to learn"
    scale = np.abs(expected).max()
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * scale)
    assert (np.asarray(gradient[2]) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_a_product_of_gaussian_experts(kind, random_params):
    # The other route shares no code: fields that add, and log Z from the units' log partition.
    full = kind == "full"
    visible = pj.units.Gaussian(D) if full else pj.units.GaussianDiag(D)
    expert = pj.experts.Gaussian(visible, covariance="full" if full else "diag")
    model = pj.product(visible, a=expert, b=expert, c=expert)
    params = random_params(model)
    weights = jnp.array([0.5, 1.0, 1.7])

    def precision_of(p):
        if not full:
            return jnp.exp(p["log_precision"])
        rows = jnp.diag(jnp.exp(p["log_diagonal"]))
        rows = rows.at[jnp.triu_indices(D, 1)].set(p["off_diagonal"])
        return rows.T @ rows

    def fused(params, weights, mask):
        stacked = [(p["mean"], precision_of(p)) for p in params.values()]
        means, precisions = (jnp.stack(leaves) for leaves in zip(*stacked, strict=True))
        return gaussians.product(means, precisions, weights, mask)

    def log_z(params, weights, mask):
        exponents = jnp.where(mask, weights, 0)
        tempered = {
            name: expert.temper(p, beta)
            for (name, p), beta in zip(params.items(), exponents, strict=True)
        }
        return pj.exact.log_z(model, tempered), tempered

    @jax.jit
    def both(params, weights, mask):
        by_fusion = jax.value_and_grad(lambda p, w: fused(p, w, mask).log_z, (0, 1))
        by_model = jax.value_and_grad(lambda p, w: log_z(p, w, mask), (0, 1), has_aux=True)
        (value, tempered), gradients = by_model(params, weights)
        nothing = dict.fromkeys(params, ())
        field = model.visible_field(tempered, nothing)
        precision = field["rows"].T @ field["rows"] if full else field["precision"]
        mean = model.visible_mean(tempered, nothing)
        found = fused(params, weights, mask)
        return (
            (found.mean, found.precision, by_fusion(params, weights)),
            (mean, precision, (value, gradients)),
        )

    for mask in ([True, True, True], [True, False, True]):
        found, expected = both(params, weights, np.array(mask))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_every_subset_of_views_gives_the_exact_posterior_of_a_linear_gaussian_model():
    # x_v = W_v z + noise of precision tau_v: as a function of z, p(x_v | z) = c_v N(z; m_v, Λ_v⁻¹).
    rng = np.random.default_rng(3)
    size = 3
    loadings, x = rng.normal(size=(K, size, D)), rng.normal(size=(K, size))
    tau = np.array([0.5, 2.0, 4.0])
    precisions = tau[:, None, None] * loadings.mT @ loadings
    means = np.linalg.solve(precisions, tau[:, None, None] * loadings.mT @ x[:, :, None])[..., 0]
    log_c = np.array(
        [
            stats.norm.logpdf(x[v], loadings[v] @ means[v], tau[v] ** -0.5).sum()
            - 0.5 * np.linalg.slogdet(precisions[v] / (2 * np.pi))[1]
            for v in range(K)
        ]
    )
    masks = np.array([[bool(i >> v & 1) for v in range(K)] for i in range(2**K)])
    prior = np.zeros(D), np.ones(D)
    fuse = jax.jit(jax.vmap(lambda mask: gaussians.product(means, precisions, None, mask, prior)))
    found = fuse(masks)
    for i, mask in enumerate(masks):
        if not mask.any():
            np.testing.assert_array_equal(found.mean[i], prior[0])
            np.testing.assert_allclose(found.log_z[i], 0, atol=1e-6)
            continue
        w, seen = np.concatenate(loadings[mask]), np.concatenate(x[mask])
        covariance = w @ w.T + np.diag(np.repeat(1 / tau[mask], size))
        gain = w.T @ np.linalg.inv(covariance)
        np.testing.assert_allclose(found.mean[i], gain @ seen, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            np.linalg.inv(np.asarray(found.precision[i], float)),
            np.eye(D) - gain @ w,
            rtol=1e-4,
            atol=1e-5,
        )
        evidence = stats.multivariate_normal(np.zeros(len(seen)), covariance).logpdf(seen)
        np.testing.assert_allclose(log_c[mask].sum() + found.log_z[i], evidence, rtol=2e-5)


def test_the_expansion_is_the_product_of_the_mixtures():
    rng = np.random.default_rng(0)
    log_weights, means = rng.normal(size=(2, D, K))
    precisions = np.exp(rng.normal(size=(D, K)))
    expanded = gaussians.expand_axis_aligned(log_weights, means, precisions)
    assert [leaf.shape for leaf in expanded] == [(K**D,), (K**D, D), (K**D, D)]
    x = rng.normal(size=(50, D))

    components = stats.norm.logpdf(x[:, :, None], means, precisions**-0.5)
    expected = special.logsumexp(log_weights + components, axis=2).sum(axis=1)
    log_prob = jax.vmap(jax.vmap(gaussians.log_prob, (0, 0, None)), (None, None, 0))
    found = jax.nn.logsumexp(
        expanded.log_weights + log_prob(expanded.means, expanded.precisions, x), axis=1
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    log_z = special.logsumexp(log_weights, axis=1).sum()
    np.testing.assert_allclose(jax.nn.logsumexp(expanded.log_weights), log_z, rtol=1e-5)
    for m, choice in enumerate(itertools.product(range(K), repeat=D)):
        np.testing.assert_allclose(expanded.means[m], means[range(D), choice], rtol=1e-6)


def test_the_expansion_is_refused_when_large_or_malformed():
    ones = np.ones((17, 2))
    with pytest.raises(ValueError, match=r"at most 65536 components, got 2\^17 = 131072"):
        gaussians.expand_axis_aligned(ones, ones, ones)
    assert gaussians.expand_axis_aligned(*[ones[:16]] * 3).means.shape == (2**16, 16)
    # One component per coordinate stays one component, for any number of coordinates.
    assert gaussians.expand_axis_aligned(*[np.ones((100, 1))] * 3).means.shape == (1, 100)
    with pytest.raises(ValueError, match="means: expected shape"):
        gaussians.expand_axis_aligned(ones, ones[:1], ones)
    with pytest.raises(ValueError, match="log_weights: expected a non-empty"):
        gaussians.expand_axis_aligned(ones[0], ones[0], ones[0])
