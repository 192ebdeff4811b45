"""Mixtures by EM against float64 NumPy, scikit-learn, enumeration and quadrature."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from scipy import optimize, special, stats
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from poejax import mixtures
from poejax.mixtures import clusters

COVARIANCES = ("full", "diag", "spherical")
KEY = jax.random.key(0)
K, D, N = 3, 2, 400
NUM_DRAWS = 20_000

# Compiled once for all tests; the fits share shapes for the same reason.
log_probs = jax.jit(jax.vmap(mixtures.log_prob, (None, 0)))
posteriors = jax.jit(jax.vmap(mixtures.responsibilities, (None, 0)))
samples = jax.jit(jax.vmap(mixtures.sample, (0, None)))


def random_covariance(rng, covariance, num_dims):
    if covariance == "spherical":
        return np.exp(rng.normal())
    if covariance == "diag":
        return np.exp(rng.normal(size=num_dims))
    root = rng.normal(size=(num_dims, num_dims))
    return root @ root.T + 0.1 * np.eye(num_dims)


def random_mixture(covariance, seed=0, num_components=K, num_dims=D, spread=2.0):
    rng = np.random.default_rng(seed)
    return mixtures.MixtureParams(
        np.log(rng.dirichlet(np.full(num_components, 5.0))),
        spread * rng.normal(size=(num_components, num_dims)),
        np.stack([random_covariance(rng, covariance, num_dims) for _ in range(num_components)]),
    )


def random_bernoulli_mixture(seed=0, num_components=K, num_dims=3):
    rng = np.random.default_rng(seed)
    return mixtures.BernoulliMixtureParams(
        np.log(rng.dirichlet(np.full(num_components, 5.0))),
        rng.normal(size=(num_components, num_dims), scale=1.5),
    )


def as_matrix(covariance, num_dims=D):
    return np.diag(np.broadcast_to(covariance, num_dims)) if np.ndim(covariance) < 2 else covariance


def gaussian_data(seed=0, num_rows=N, num_dims=D):
    """Rows of a mixture whose components overlap, in float32."""
    rng = np.random.default_rng(seed)
    params = random_mixture("full", seed + 100, num_dims=num_dims)
    labels = rng.integers(K, size=num_rows)
    roots = np.linalg.cholesky(params.covariances)
    noise = rng.normal(size=(num_rows, num_dims))
    x = params.means[labels] + np.einsum("nij,nj->ni", roots[labels], noise)
    return x.astype(np.float32)


def bernoulli_data(params, num_rows, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(params.log_weights), size=num_rows, p=np.exp(params.log_weights))
    on = rng.random((num_rows, params.num_features)) < special.expit(params.logits[labels])
    return on.astype(np.uint8), labels


def numpy_log_joint(params, x):
    """log π_k p_k(x_n), [N, K], in float64."""
    if isinstance(params, mixtures.BernoulliMixtureParams):
        p = special.expit(np.asarray(params.logits, float))
        log_p = np.where(x[:, None] == 1, np.log(p), np.log1p(-p)).sum(axis=2)
    else:
        log_p = np.stack(
            [
                stats.multivariate_normal(m, as_matrix(c, len(m))).logpdf(x)
                for m, c in zip(params.means, params.covariances, strict=True)
            ],
            axis=1,
        )
    return np.asarray(params.log_weights, float) + log_p


def numpy_em(params, x, num_steps, update):
    """Parameters and mean log-likelihoods of `num_steps` textbook EM steps, in float64."""
    x = np.asarray(x, float)
    log_likelihoods = []
    for step in range(num_steps + 1):
        joint = numpy_log_joint(params, x)
        rows = special.logsumexp(joint, axis=1, keepdims=True)
        log_likelihoods.append(rows.mean())
        if step < num_steps:
            params = update(x, np.exp(joint - rows))
    return params, np.array(log_likelihoods)


def numpy_gaussian_step(covariance, ridge):
    def update(x, r):
        counts = r.sum(axis=0)
        means = r.T @ x / counts[:, None]
        covariances = []
        for k, mean in enumerate(means):
            full = np.cov(x.T, aweights=r[:, k], ddof=0) + ridge * np.eye(x.shape[1])
            np.testing.assert_allclose(mean, np.average(x, axis=0, weights=r[:, k]))
            diagonal = np.diag(full)
            kinds = {"full": full, "diag": diagonal, "spherical": diagonal.mean()}
            covariances.append(kinds[covariance])
        return mixtures.MixtureParams(np.log(counts / len(x)), means, np.stack(covariances))

    return update


def assert_same_params(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# --- densities and samples ------------------------------------------------------------------------

FAMILIES = (*COVARIANCES, "bernoulli")


def family_params(family, seed=0):
    return random_bernoulli_mixture(seed) if family == "bernoulli" else random_mixture(family, seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_densities_and_responsibilities_against_numpy(family):
    params = family_params(family)
    x = 3 * np.random.default_rng(1).normal(size=(20, params.num_features))
    if family == "bernoulli":
        x = (x > 0).astype(np.uint8)
    joint = numpy_log_joint(params, x)
    log_p = log_probs(params, x)
    np.testing.assert_allclose(log_p, special.logsumexp(joint, axis=1), rtol=2e-5)
    r = posteriors(params, x)
    np.testing.assert_allclose(r, special.softmax(joint, axis=1), atol=1e-5)
    np.testing.assert_allclose(mixtures.log_prob(params, x[0]), log_p[0], rtol=1e-6)
    gradient = jax.jit(jax.grad(mixtures.log_prob))(jax.tree.map(jnp.float32, params), x[0])
    assert all(np.isfinite(leaf).all() for leaf in gradient)
    with pytest.raises(ValueError, match=r"x: expected shape .*jax\.vmap for a batch"):
        mixtures.log_prob(params, x)


def draws_of(params, num_draws=NUM_DRAWS):
    keys = jax.random.split(jax.random.key(1), num_draws)
    return np.asarray(samples(keys, params))


def binomial_scores(counts, p):
    total = counts.sum()
    return (counts - total * p) / np.sqrt(total * p * (1 - p))


def cell_scores(params, x, edges):
    """Scores of how many draws fall in each cell of a grid, against the integrated density."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    points = (middle[:, None] + half[:, None] * nodes).ravel()
    mass = (half[:, None] * weights).ravel()
    grid = np.stack(np.meshgrid(points, points, indexing="ij"), axis=-1).reshape(-1, 2)
    log_p = log_probs(params, grid)
    p = np.exp(np.asarray(log_p, float)).reshape(len(points), -1) * mass[:, None] * mass
    p = p.reshape(len(middle), len(nodes), len(middle), len(nodes)).sum(axis=(1, 3)).ravel()
    counts, _, _ = np.histogram2d(*x.T, bins=[edges, edges])
    p = np.append(p, max(0, 1 - p.sum()))
    counts = np.append(counts.ravel(), len(x) - counts.sum())
    enough = len(x) * p > 25  # where a binomial is close to a Gaussian
    return (counts - len(x) * p)[enough] / np.sqrt(len(x) * p * (1 - p))[enough]


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_samples_follow_the_density(covariance):
    params = random_mixture(covariance, seed=1)
    edges = np.linspace(-6, 6, 13)
    z = cell_scores(params, draws_of(params), edges)
    assert z.size > 15
    assert np.abs(z).max() < reference.z_threshold(z.size)
    # The test has power: components in another order, or a root of the wrong covariance, fail.
    for wrong in (
        params._replace(log_weights=params.log_weights[::-1]),
        params._replace(covariances=params.covariances[::-1]),
    ):
        z = cell_scores(params, draws_of(wrong), edges)
        assert np.abs(z).max() > reference.z_threshold(z.size)


def test_bernoulli_samples_follow_the_probabilities():
    params = random_bernoulli_mixture(seed=1)
    states = np.array(list(itertools.product((0, 1), repeat=3)))
    p = np.exp(log_probs(params, states), dtype=float)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)

    def scores(params):
        x = draws_of(params)
        assert set(np.unique(x)) == {0.0, 1.0}
        counts = np.bincount((x @ [4, 2, 1]).astype(int), minlength=8)
        return binomial_scores(counts, p)

    assert np.abs(scores(params)).max() < reference.z_threshold(8)
    # The test has power: the wrong sign, or weights of other components, fail.
    for wrong in (
        params._replace(logits=-params.logits),
        params._replace(log_weights=params.log_weights[::-1]),
    ):
        assert np.abs(scores(wrong)).max() > reference.z_threshold(8)


# --- the evidence lower bound ---------------------------------------------------------------------


@pytest.mark.parametrize("family", ["full", "bernoulli"])
def test_the_bound_is_the_log_likelihood_after_the_e_step_and_below_it_otherwise(family):
    params = family_params(family)
    x = gaussian_data() if family == "full" else bernoulli_data(params, N)[0]
    joint = numpy_log_joint(params, x)
    log_likelihood = special.logsumexp(joint, axis=1).mean()
    posterior = special.softmax(joint, axis=1)
    np.testing.assert_allclose(mixtures.elbo(params, x, posterior), log_likelihood, rtol=1e-5)
    rng = np.random.default_rng(0)
    hard = np.eye(K)[rng.integers(K, size=len(x))]
    for r in (hard, rng.dirichlet(np.ones(K), size=len(x))):
        gap = special.rel_entr(r, posterior).sum(axis=1).mean()
        assert gap > 0.1
        found = mixtures.elbo(params, x, r)
        np.testing.assert_allclose(found, log_likelihood - gap, rtol=1e-5)
    gradient = jax.grad(mixtures.elbo, 2)(jax.tree.map(jnp.asarray, params), x, jnp.asarray(hard))
    assert np.isfinite(gradient).all()


def test_each_half_step_raises_the_bound():
    with jax.enable_x64(True):
        x = gaussian_data().astype(float)
        params = random_mixture("full")
        for _ in range(5):
            r = posteriors(params, x)
            before = mixtures.elbo(params, x, r)
            params, report = mixtures.fit_em(KEY, x, K, params=params, max_steps=1, ridge=0.0)
            np.testing.assert_allclose(report.log_likelihood[0], before, rtol=1e-12)
            between = mixtures.elbo(params, x, r)
            assert before < between < report.log_likelihood[1]


def test_the_bound_refuses_rows_that_are_no_distributions():
    params, x = random_mixture("full"), gaussian_data()
    with pytest.raises(ValueError, match="responsibilities: expected non-negative rows of sum 1"):
        mixtures.elbo(params, x, np.ones((N, K)))
    with pytest.raises(ValueError, match="responsibilities: expected shape"):
        mixtures.elbo(params, x, np.ones((N, K + 1)) / (K + 1))


# --- EM for Gaussians -----------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_em_against_numpy_step_by_step(covariance):
    x, start, ridge = gaussian_data(num_dims=3), random_mixture(covariance, 3, num_dims=3), 0.01
    update = numpy_gaussian_step(covariance, ridge)
    expected, log_likelihoods = numpy_em(start, x, 15, update)
    params, report = mixtures.fit_em(
        KEY, x, K, covariance=covariance, params=start, max_steps=15, tol=0.0, ridge=ridge
    )
    assert int(report.num_steps) == 15
    assert not report.converged
    np.testing.assert_allclose(report.log_likelihood, log_likelihoods, rtol=2e-5)
    assert_same_params(params, expected, 2e-4)
    # From responsibilities, the first M step makes the start.
    r = np.random.default_rng(0).dirichlet(np.ones(K), size=N)
    expected, log_likelihoods = numpy_em(update(x.astype(float), r), x, 3, update)
    params, report = mixtures.fit_em(
        KEY, x, K, covariance=covariance, init=r, max_steps=3, tol=0.0, ridge=ridge
    )
    np.testing.assert_allclose(report.log_likelihood, log_likelihoods, rtol=2e-5)
    assert_same_params(params, expected, 2e-4)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("x64", [False, True])
def test_em_matches_scikit_learn_from_the_same_start(covariance, x64):
    x = gaussian_data(seed=2, num_rows=600, num_dims=4).astype(float)
    means = x[[0, 1, 2]]
    variances = np.full((K, 4), x.var(axis=0))
    covariances = {
        "full": np.stack([np.diag(v) for v in variances]),
        "diag": variances,
        "spherical": variances.mean(axis=1),
    }[covariance]
    precisions = np.linalg.inv(covariances) if covariance == "full" else 1 / covariances
    ridge = 1e-4

    theirs = GaussianMixture(
        K,
        covariance_type=covariance,
        tol=1e-9,
        reg_covar=ridge,
        max_iter=1000,
        means_init=means,
        weights_init=np.full(K, 1 / K),
        precisions_init=precisions,
    ).fit(x)
    start = mixtures.MixtureParams(np.log(np.full(K, 1 / K)), means, covariances)
    with jax.enable_x64(x64):
        params, report = mixtures.fit_em(
            KEY,
            x,
            K,
            covariance=covariance,
            params=start,
            max_steps=1000,
            tol=1e-9 if x64 else 1e-6,
            ridge=ridge,
        )
        assert report.converged
        assert report.num_steps > 10
        assert params.means.dtype == (jnp.float64 if x64 else jnp.float32)
        log_p = log_probs(params, x)
        np.testing.assert_allclose(log_p.mean(), report.log_likelihood[-1], rtol=1e-5)
        # Nats per example.
        assert abs(float(log_p.mean()) - theirs.score(x)) < (1e-6 if x64 else 1e-3)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_log_likelihood_never_falls(covariance):
    rng = np.random.default_rng(0)
    hard_cases = [
        gaussian_data(num_dims=3),
        1e4 + rng.normal(size=(N, 3)),  # far from the origin
        rng.integers(0, 2, size=(N, 3)).astype(float),  # rows that coincide
        np.repeat(rng.normal(size=(N // 200, 3)), 200, axis=0),  # fewer distinct rows than K
        np.pad(rng.normal(size=(N, 1)), ((0, 0), (0, 2))),  # on a line
    ]
    for x, ridge in itertools.product(hard_cases, (1e-3, 0.5)):
        _, report = mixtures.fit_em(KEY, x, 4, covariance=covariance, ridge=ridge, max_steps=50)
        assert np.isfinite(report.log_likelihood).all()
        assert (np.diff(report.log_likelihood) >= 0).all()
        assert (report.objective == report.log_likelihood).all()


def test_a_fit_far_from_the_origin_is_the_fit_at_the_origin():
    x = np.round(gaussian_data() * 256) / 256  # exact in float32 there too
    here, report = mixtures.fit_em(KEY, x, K)
    there, report_there = mixtures.fit_em(KEY, x + 4096, K)
    np.testing.assert_allclose(report_there.log_likelihood, report.log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(there.covariances, here.covariances, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(there.means - 4096, here.means, atol=2e-3)


@pytest.mark.parametrize("init", ["kmeans++", "kmeans"])
def test_fits_recover_a_planted_mixture(init):
    rng = np.random.default_rng(0)
    planted = np.array([[-8.0, 0.0], [8.0, 0.0], [0.0, 12.0]])
    labels = rng.integers(K, size=N)
    x = planted[labels] + rng.normal(size=(N, 2))
    params, report = mixtures.fit_em(KEY, x, K, init=init)
    assert report.converged
    order = np.argmin(((params.means[:, None] - planted) ** 2).sum(axis=-1), axis=0)
    counts = np.bincount(labels)
    z = (np.asarray(params.means)[order] - planted) * np.sqrt(counts)[:, None]
    assert np.abs(z).max() < reference.z_threshold(z.size)
    weights = np.exp(params.log_weights)[order]
    np.testing.assert_allclose(weights, counts / N, atol=1e-4)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_dead_component_gives_no_nan(covariance):
    x = gaussian_data(num_dims=3)
    dead = np.eye(K)[np.zeros(N, int)]
    params, report = mixtures.fit_em(KEY, x, K, covariance=covariance, init=dead, max_steps=3)
    assert all(np.isfinite(leaf).all() for leaf in (*params, *report))
    np.testing.assert_allclose(params.means[0], x.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(np.exp(params.log_weights), [1, 0, 0], atol=1e-6)
    # The dead ones keep the data's covariance that they started with.
    np.testing.assert_allclose(params.covariances[1:], [params.covariances[0]] * 2, rtol=1e-4)


def test_as_many_components_as_rows_give_no_nan():
    x = gaussian_data(num_rows=6, num_dims=8)
    params, report = mixtures.fit_em(KEY, x, 6, ridge=1e-2)
    assert all(np.isfinite(leaf).all() for leaf in (*params, *report))


def test_more_restarts_are_never_worse():
    x = gaussian_data(seed=0)
    finals = [
        float(mixtures.fit_em(KEY, x, K, num_restarts=n)[1].log_likelihood[-1]) for n in (1, 8)
    ]
    assert finals == sorted(finals)
    assert finals[-1] > finals[0] + 1e-3


def test_a_covariance_that_becomes_singular_is_an_error_that_names_the_ridge():
    flat = np.stack([np.arange(10.0), np.arange(10.0)], axis=1)
    with pytest.raises(FloatingPointError, match="ridge: a covariance became singular"):
        mixtures.fit_em(KEY, flat, 2, ridge=0.0)
    # Under a trace it can only be reported.
    traced = jax.jit(lambda x, ridge: mixtures.fit_em(KEY, x, 2, ridge=ridge))
    assert not traced(flat, 0.0)[1].converged
    params, report = traced(flat, 0.1)
    assert report.converged
    assert_same_params(params, mixtures.fit_em(KEY, flat, 2, ridge=0.1)[0], 1e-4)


# --- k-means --------------------------------------------------------------------------------------


def test_seeds_are_drawn_in_proportion_to_the_squared_distance():
    x = np.array([[0.0], [1.0], [3.0], [7.0]], np.float32)
    keys = jax.random.split(KEY, NUM_DRAWS)
    seed = jax.vmap(lambda key, x: clusters.plus_plus(key, x, 2).centroids, (0, None))
    seeds = jax.jit(seed)(keys, x)
    first, second = np.asarray(seeds)[:, 0], np.asarray(seeds)[:, 1]
    counts = ((first == x.T)[:, :, None] * (second == x.T)[:, None, :]).sum(axis=0)

    def scores(power):
        p = np.abs(x - x.T).astype(float) ** power
        p /= 4 * p.sum(axis=1, keepdims=True)
        off = ~np.eye(4, dtype=bool)
        assert counts[~off].sum() == 0
        return binomial_scores(counts[off], p[off])

    assert np.abs(scores(2)).max() < reference.z_threshold(12)
    # The test has power: distances that are not squared fail.
    assert np.abs(scores(1)).max() > reference.z_threshold(12)


def test_kmeans_finds_the_best_of_all_partitions():
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)

    def spread(labels):
        groups = [x[labels == k] for k in range(2)]
        return sum(((g - g.mean(axis=0)) ** 2).sum() for g in groups if len(g))

    best = min(spread(np.array(labels)) for labels in itertools.product((0, 1), repeat=9))
    found = mixtures.kmeans(KEY, x, 2, num_restarts=10)
    np.testing.assert_allclose(spread(np.asarray(found.assignments)), best, rtol=1e-5)
    for k in range(2):
        np.testing.assert_allclose(
            found.centroids[k], x[found.assignments == k].mean(axis=0), atol=1e-6
        )


def test_kmeans_against_scikit_learn_and_far_from_the_origin():
    x = np.round(gaussian_data() * 256) / 256
    found = mixtures.kmeans(KEY, x, K)
    distances = ((x[:, None] - np.asarray(found.centroids)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(found.assignments, distances.argmin(axis=1))
    # What scikit-learn makes of our result is our result: nothing is left to improve.
    theirs = KMeans(K, init=np.asarray(found.centroids), n_init=1, algorithm="lloyd", tol=0).fit(x)
    np.testing.assert_allclose(theirs.cluster_centers_, found.centroids, atol=1e-4)
    far = mixtures.kmeans(KEY, x + 4096, K)
    np.testing.assert_array_equal(far.assignments, found.assignments)


def test_kmeans_with_fewer_distinct_rows_than_clusters():
    x = np.repeat(np.array([[0, 1], [5, 5]]), 4, axis=0)
    found = mixtures.kmeans(KEY, x, 4)
    assert np.isfinite(found.centroids).all()
    np.testing.assert_allclose(found.centroids[found.assignments], x, atol=1e-6)


# --- mixtures of Bernoullis -----------------------------------------------------------------------


def test_bernoulli_em_against_numpy_step_by_step():
    x, _ = bernoulli_data(random_bernoulli_mixture(1, num_dims=6), N)
    start, s = random_bernoulli_mixture(2, num_dims=6), 0.7

    def update(x, r):
        counts = r.sum(axis=0)
        p = (r.T @ x + s) / (counts[:, None] + 2 * s)
        return mixtures.BernoulliMixtureParams(np.log(counts / len(x)), special.logit(p))

    expected, log_likelihoods = numpy_em(start, x, 15, update)
    params, report = mixtures.fit_em_bernoulli(
        KEY, x, K, params=start, smoothing=s, max_steps=15, tol=0.0
    )
    assert int(report.num_steps) == 15
    np.testing.assert_allclose(report.log_likelihood, log_likelihoods, rtol=2e-5)
    assert_same_params(params, expected, 2e-4)
    p = special.expit(np.asarray(params.logits, float))
    prior = s / N * np.sum(np.log(p) + np.log1p(-p))
    np.testing.assert_allclose(report.objective[-1], log_likelihoods[-1] + prior, rtol=2e-5)


def test_bernoulli_em_recovers_a_planted_mixture():
    rng = np.random.default_rng(0)
    p = rng.choice([0.1, 0.9], size=(K, 40))
    weights = np.array([0.2, 0.3, 0.5])
    planted = mixtures.BernoulliMixtureParams(np.log(weights), special.logit(p))
    x, labels = bernoulli_data(planted, 3000)
    params, report = mixtures.fit_em_bernoulli(KEY, x, K, smoothing=1e-3)
    assert report.converged
    distance = ((special.expit(params.logits)[:, None] - p) ** 2).sum(axis=2)
    rows, order = optimize.linear_sum_assignment(distance)
    assert (rows == np.arange(K)).all()
    # So well apart that the labels are as good as known: errors are those of counting.
    counts = np.bincount(labels)[order][:, None]
    z = (special.expit(params.logits) - p[order]) / np.sqrt(p[order] * (1 - p[order]) / counts)
    assert np.abs(z).max() < reference.z_threshold(z.size)
    z = (np.exp(params.log_weights) - weights[order]) / np.sqrt(weights * (1 - weights) / 3000)[
        order
    ]
    assert np.abs(z).max() < reference.z_threshold(K)
    r = posteriors(params, x)
    assert (order[np.argmax(r, axis=1)] == labels).mean() > 0.999


@pytest.mark.parametrize("smoothing", [1e-3, 1.0])
def test_the_bernoulli_objective_never_falls(smoothing):
    x, _ = bernoulli_data(random_bernoulli_mixture(1, num_dims=20), 200)
    # One unit always on, one always off, and rows that coincide.
    always = np.concatenate([x, np.ones((200, 1)), np.zeros((200, 1))], axis=1)[np.arange(200) // 3]
    for data in (always, always[::-1]):
        params, report = mixtures.fit_em_bernoulli(KEY, data, 6, smoothing=smoothing)
        assert all(np.isfinite(leaf).all() for leaf in (*params, *report))
        assert (np.diff(report.objective) >= 0).all()
        assert report.num_steps > 1


def test_storage_of_binary_data_does_not_matter():
    x, _ = bernoulli_data(random_bernoulli_mixture(1, num_dims=6), N)
    start = random_bernoulli_mixture(2, num_dims=6)
    fits = [
        mixtures.fit_em_bernoulli(KEY, x.astype(dtype), K, max_steps=15, params=start)[0]
        for dtype in (np.uint8, bool, np.float32)
    ]
    for fit in fits[1:]:
        assert_same_params(fit, fits[0], 1e-6)


def test_an_unused_bernoulli_component_goes_to_one_half():
    x, _ = bernoulli_data(random_bernoulli_mixture(1), 50)
    r = np.stack([np.ones(50), np.zeros(50)], axis=1)
    params, _ = mixtures.fit_em_bernoulli(KEY, x, 2, init=r, max_steps=5)
    np.testing.assert_allclose(params.logits[1], 0, atol=1e-3)
    np.testing.assert_allclose(np.exp(params.log_weights), [1, 0], atol=1e-6)


# --- all drivers ----------------------------------------------------------------------------------


def test_new_data_and_keys_compile_nothing(compiles_nothing):
    binary = [bernoulli_data(random_bernoulli_mixture(s), N)[0] for s in range(2)]
    real = [gaussian_data(s) for s in range(2)]
    keys = list(jax.random.split(KEY, 2))

    def fit_all(i):
        mixtures.fit_em(keys[i], real[i], K, ridge=(1e-6, 1e-3)[i], tol=(1e-3, 1e-4)[i])
        mixtures.fit_em_bernoulli(keys[i], binary[i], K, smoothing=(0.1, 1.0)[i])
        mixtures.kmeans(keys[i], real[i], K)

    fit_all(0)
    with compiles_nothing():
        fit_all(1)


def test_a_fit_is_a_function_of_its_key():
    x = gaussian_data()
    a, b = (mixtures.fit_em(KEY, x, K)[0] for _ in range(2))
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)
    other, _ = mixtures.fit_em(jax.random.key(1), x, K)
    assert (np.asarray(a.means) != np.asarray(other.means)).any()


X = np.random.default_rng(0).normal(size=(10, 2))
START = random_mixture("full")
WITH_NAN = np.where(np.arange(20).reshape(10, 2) == 3, np.nan, X)
NOT_PD = START._replace(covariances=-START.covariances)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X[0]}, r"x: expected a non-empty batch \[N, D\]"),
        ({"x": X[:0]}, r"x: expected a non-empty batch \[N, D\]"),
        ({"x": WITH_NAN}, "x: expected finite values"),
        ({"num_components": 11}, "num_components: expected at most the 10 rows of x, got 11"),
        ({"num_components": 0}, "num_components: expected an integer of at least 1"),
        ({"covariance": "tied"}, "covariance: expected one of"),
        ({"max_steps": 0}, "max_steps: expected an integer"),
        ({"tol": -1.0}, "tol: expected a finite number >= 0"),
        ({"tol": np.nan}, "tol: expected a finite number >= 0"),
        ({"ridge": -1e-3}, "ridge: expected a finite number >= 0"),
        ({"ridge": np.inf}, "ridge: expected a finite number >= 0"),
        ({"init": "random"}, 'init: expected "kmeans\\+\\+", "kmeans" or responsibilities'),
        ({"init": np.ones((10, 2)) / 2}, "init: expected shape"),
        ({"init": np.ones((10, K))}, "init: expected non-negative rows of sum 1"),
        ({"num_restarts": 0}, "num_restarts: expected an integer"),
        ({"num_restarts": 2, "params": START}, "num_restarts: expected 1 when the start is given"),
        ({"params": START, "init": np.ones((10, K)) / K}, "init: expected a name beside params"),
        ({"params": random_mixture("diag")}, "params.covariances: expected shape"),
        ({"params": START._replace(means=START.means * np.nan)}, "params.*means: expected finite"),
        ({"params": START._replace(log_weights=np.zeros(K))}, "params.log_weights: .* of sum 1"),
        ({"params": NOT_PD}, "params.covariances: expected positive definite"),
        ({"params": random_bernoulli_mixture()}, "params: expected MixtureParams, got Bernoulli"),
    ],
)
def test_bad_input_of_fit_em_is_named(changes, message):
    arguments = {"x": X, "num_components": K} | changes
    with pytest.raises(ValueError, match=message):
        mixtures.fit_em(KEY, **arguments)


def test_bad_input_of_the_others_is_named():
    with pytest.raises(TypeError, match="rng_key: expected a typed key"):
        mixtures.fit_em(0, X, K)
    with pytest.raises(ValueError, match=r"x: expected values in \{0, 1\}"):
        mixtures.fit_em_bernoulli(KEY, X, K)
    for smoothing in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="smoothing: expected"):
            mixtures.fit_em_bernoulli(KEY, X > 0, K, smoothing=smoothing)
    with pytest.raises(ValueError, match=r"params\.logits: expected shape"):
        mixtures.fit_em_bernoulli(KEY, X > 0, K, params=random_bernoulli_mixture())
    with pytest.raises(ValueError, match="num_clusters: expected at most the 10 rows"):
        mixtures.kmeans(KEY, X, 11)
    with pytest.raises(ValueError, match="x: expected finite values"):
        mixtures.kmeans(KEY, WITH_NAN, 2)


@pytest.mark.parametrize("seed", range(4))
def test_tol_zero_ends_where_rounding_refuses_a_step(seed):
    # One Gaussian is fitted by one step; the next ones change nothing but the last bit. With the
    # refusal and the end of the loop rounded apart, this climb never ended.
    x = jax.random.normal(jax.random.key(seed), (2000, 1))
    params, report = mixtures.fit_em(jax.random.key(0), x, 1, max_steps=50, tol=0.0)
    assert int(report.num_steps) <= 50
    np.testing.assert_allclose(params.means[0], x.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(params.covariances[0, 0], x.var(axis=0), rtol=1e-4)
