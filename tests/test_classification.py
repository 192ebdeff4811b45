"""Classifying with RBMs: pieces against references, small runs, the gradient of the RBM prior."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from sklearn.linear_model import LogisticRegression

import poejax as pj
from experiments import classification, rbm_prior
from experiments.classification import arms
from experiments.lab import logistic, supervised
from experiments.rbm_prior import autoencoder
from poejax import datasets, nn

SMOKE = classification.PRESETS["smoke"]


def blobs(num_rows, seed=0):
    """Ten classes of noisy 6x6 images: a bright pixel or two, and clutter."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_rows, dtype=np.int32) % 10
    images = rng.integers(0, 120, (num_rows, 36))
    images[np.arange(num_rows), 3 * labels] += rng.integers(60, 130, num_rows)
    return supervised.Examples(jnp.asarray(images, jnp.uint8), jnp.asarray(labels))


def test_the_path_of_penalties_is_of_the_mean_loss():
    data = blobs(200)
    x, labels = np.asarray(supervised.scaled(data.images), float), np.asarray(data.labels)
    found = {p: m.coef_.copy() for p, m in logistic.path(x, labels, (0.03, 0.3), 2000)}
    assert list(found) == [0.3, 0.03]
    # scikit-learn minimises C Σ loss + ½ |w|², the path the mean loss + ½ penalty |w|².
    peer = LogisticRegression(C=1 / (0.03 * 200), tol=1e-8, max_iter=2000).fit(x, labels)
    np.testing.assert_allclose(found[0.03], peer.coef_, atol=2e-3)


def test_dropout_keeps_the_mean_and_needs_a_key():
    network = nn.Classifier((6, 400), 3, rngs=nnx.Rngs(0), dropout=0.4)
    network.readout.kernel = nnx.Param(jnp.ones((400, 3)) / 400)
    x = jnp.linspace(0, 1, 6)
    plain = network(x)
    keys = jax.random.split(jax.random.key(0), 400)
    dropped = np.asarray(jax.vmap(lambda key: network(x, key))(keys)[:, 0], float)
    z = (dropped.mean() - float(plain[0])) / (dropped.std(ddof=1) / np.sqrt(len(dropped)))
    assert abs(z) < reference.z_threshold(1)
    activity = network.activation(network.hidden[0](x))
    # Var = Σ_j (φ_j / 400)² · p / (1 - p), to within the error of a variance of 400 draws.
    expected = float(jnp.sum((activity / 400) ** 2)) * 0.4 / 0.6
    assert dropped.var(ddof=1) == pytest.approx(expected, rel=0.3)
    with pytest.raises(ValueError, match="dropout: expected a number in"):
        nn.Classifier((6, 4), 3, rngs=nnx.Rngs(0), dropout=1.0)


def test_noisy_bits_have_the_mean_of_the_intensities():
    images = jnp.tile(jnp.asarray([0, 51, 204, 255], jnp.uint8), (4000, 1))
    x = np.asarray(arms.NoisyBits(0.2)(jax.random.key(0), images), float)
    assert set(np.unique(x)) == {0.0, np.float32(1.25)}
    expected = np.array([0, 0.2, 0.8, 1.0])
    std_err = np.maximum(x.std(axis=0) / np.sqrt(len(x)), 1e-9)
    assert np.abs((x.mean(axis=0) - expected) / std_err).max() < reference.z_threshold(3)
    whole = arms.NoisyBits(0.0)(jax.random.key(0), images)
    np.testing.assert_array_equal(whole, datasets.stochastic(*_bits_key(images)))


def _bits_key(images):
    return jax.random.split(jax.random.key(0))[0], images


def test_an_epoch_is_chosen_by_validation_errors():
    data, held_out = blobs(100), blobs(60, seed=1)
    graph, params = nnx.split(nn.Classifier((36, 12), 10, rngs=nnx.Rngs(0), activation=jax.nn.relu))
    trainer = supervised.Trainer(graph, num_epochs=24, batch_size=20)
    fit, scores = trainer.start(jax.random.key(2), params, 0.05, data), []
    tried = []
    for _ in range(24):
        fit, loss = trainer.epoch(fit, data, held_out)
        logits = nnx.merge(graph, fit.state.params)(supervised.scaled(held_out.images))
        wrong = int(jnp.sum(logits.argmax(axis=1) != held_out.labels))
        entropy = float(supervised.mean_cross_entropy(logits, held_out.labels))
        scores.append(wrong + entropy / (1 + entropy))
        tried.append(fit.state.params)
    assert float(loss) < 0.5 * np.log(10)
    best = int(np.argmin(scores))
    assert int(fit.best_epoch) == best
    assert float(fit.score) == pytest.approx(scores[best], abs=1e-5)
    assert scores[best] < 0.6 * 60
    jax.tree.map(np.testing.assert_array_equal, fit.best, tried[best])


@pytest.mark.slow
def test_smoke_study_resumes_and_takes_more_arms(tmp_path):
    config = dataclasses.replace(SMOKE, arms=("features", "hybrid"))
    first = classification.train_and_evaluate(config, tmp_path)
    assert first["features/seed0"]["test_error"] < 0.2
    assert first["hybrid/seed0"]["test_error"] < 0.5  # chance is 0.9
    assert (tmp_path / "figures" / "errors.png").stat().st_size > 5_000
    with pytest.raises(FileExistsError, match="holds a run already"):
        classification.train_and_evaluate(config, tmp_path)
    more = dataclasses.replace(SMOKE, resume=True, arms=("features", "fine-tuned"))
    results = classification.train_and_evaluate(more, tmp_path)
    assert results["features/seed0"] == first["features/seed0"]
    assert results["rbm/seed0"] == first["rbm/seed0"]  # its RBM came from disk
    assert results["fine-tuned/seed0"]["test_error"] < 0.3
    assert json.loads((tmp_path / "results.json").read_text()) == results
    (table,) = classification.table(results)
    assert [row[0] for row in table["rows"]] == ["features", "fine-tuned", "hybrid"]
    (tmp_path / "results.json").write_text('{"features/seed0": {"test_er')
    with pytest.raises(ValueError, match=r"results.json: expected JSON, got what cannot be read"):
        classification.train_and_evaluate(more, tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"results.json: expected a JSON object, got list"):
        classification.train_and_evaluate(more, tmp_path)
    other = dataclasses.replace(more, num_hidden=7)
    with pytest.raises(ValueError, match=r"another config: num_hidden=7 \(was 32\)"):
        classification.train_and_evaluate(other, tmp_path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num-seeds", "0"], "num_seeds: expected at least 1, got 0"),
        (["--dropout", "1"], r"dropout: expected a number in [0, 1), got 1.0"),
        (["--batch-size", "5000"], "batch_size: expected at most 1297, got 5000"),
        (["--arms", "magic"], "magic"),
        (["--penalties", "nan"], "penalties: expected finite numbers, got nan"),
        (["--rbm-rate", "nan"], "rbm_rate: expected finite numbers, got nan"),
    ],
)
def test_impossible_options_end_in_one_clear_message(args, message, assert_refused):
    assert_refused(classification.main, args, message)


def exact_elbo(model, x):
    """ELBO of one image by enumeration of all codes."""
    states = model.prior.model.visible.states()
    log_p, log_prior, log_q = model.terms(x[None], states[:, None])
    log_z = pj.exact.log_z(model.prior.model, model.prior.params)
    return jnp.sum(jnp.exp(log_q) * (log_p + log_prior - log_z - log_q))


def prior_problem():
    prior = pj.models.rbm(3, 2)
    model = autoencoder.BinaryAutoencoder(5, 4, prior, nnx.Rngs(0))
    graph, params = nnx.split(model)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    leaves = [0.5 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return graph, jax.tree.unflatten(tree, leaves), jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])


@pytest.mark.slow
def test_the_loss_of_the_rbm_prior_has_the_gradient_of_the_exact_bound():
    graph, params, x = prior_problem()
    expected = jax.grad(lambda p: -exact_elbo(nnx.merge(graph, p), x))(params)
    model = nnx.merge(graph, params)
    prior = model.prior.model
    probabilities = pj.exact.probabilities(prior, model.prior.params)

    def draw(key, biased):
        code_key, chain_key = jax.random.split(key)
        z = autoencoder.draw_codes(code_key, model, x[None], 3)
        rows = jax.random.choice(chain_key, 8, (4,), p=probabilities)  # chains at equilibrium
        chains = prior.visible.states()[rows]
        z = jnp.where(biased, jnp.ones_like(z).at[0].set(0), z)
        return jax.grad(lambda p: autoencoder.loss(nnx.merge(graph, p), x[None], z, chains))(params)

    draw_all = jax.jit(jax.vmap(draw, in_axes=(0, None)))

    def z_scores(biased):
        drawn = draw_all(jax.random.split(jax.random.key(7), 10_000), biased)
        scores = []
        for got, want in zip(jax.tree.leaves(drawn), jax.tree.leaves(expected), strict=True):
            got = np.asarray(got, float)
            std_err = np.maximum(got.std(axis=0) / np.sqrt(len(got)), 1e-6)
            scores.append(((got.mean(axis=0) - np.asarray(want)) / std_err).ravel())
        return np.concatenate(scores)

    scores = z_scores(False)
    assert np.abs(scores).max() < reference.z_threshold(len(scores))
    # The mutation: codes that the encoder did not draw.
    assert np.abs(z_scores(True)).max() > reference.z_threshold(len(scores))


@pytest.mark.slow
def test_the_bounds_of_the_rbm_prior_against_enumeration():
    graph, params, x = prior_problem()
    model = nnx.merge(graph, params)
    log_z = pj.exact.log_z(model.prior.model, model.prior.params)
    found = autoencoder.bounds(jax.random.key(0), graph, params, x[None], log_z, 40_000)
    log_p, log_prior, log_q = model.terms(x[None], model.prior.model.visible.states()[:, None])
    q = np.exp(np.asarray(log_q, float))
    log_w = np.asarray(log_p + log_prior - log_z - log_q, float)
    elbo = np.sum(q * log_w)
    std_err = np.sqrt(np.sum(q * (log_w - elbo) ** 2) / 40_000)
    assert abs(float(found["elbo"]) - elbo) < reference.z_threshold(3) * std_err
    evidence = float(jax.nn.logsumexp(log_p + log_prior - log_z))
    w = np.exp(log_w - evidence)
    spread = np.sqrt(np.sum(q * (w - 1) ** 2) / 40_000)
    assert abs(float(found["iwae"]) - evidence) < reference.z_threshold(3) * spread
    kl = np.sum(q * np.asarray(log_q - log_prior + log_z, float))
    assert float(found["kl"]) == pytest.approx(kl, abs=0.05)
    assert elbo < evidence


@pytest.mark.slow
def test_smoke_run_of_the_rbm_prior(tmp_path):
    config = dataclasses.replace(rbm_prior.PRESETS["smoke"], num_epochs=2)
    results = rbm_prior.train_and_evaluate(config, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["scores"] == results["scores"]
    for rows in results["scores"].values():
        assert 64 * np.log(0.5) + 5 < rows[0]["elbo"] < rows[0]["iwae"] < 0
        assert rows[0]["kl"] > 0
    for name in ("curves", "samples"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5_000
    assert "gain of the RBM prior" in rbm_prior.table(results)[0]["caption"]
