"""The study of digits says what its persistent chains do, and warns once where they do not mix."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import poejax as pj
from experiments.mnist_rbm import report

MODEL = pj.models.rbm(16, 4)
X = jnp.asarray(np.random.default_rng(0).integers(0, 2, size=(64, 16)), jnp.float32)


def run_of(rule):
    return pj.training.Run(rule, optax.sgd(0.01), 16)


def follow(rule, params, num_reports=3):
    """Return the figures of every report."""
    run = run_of(rule)
    state = run.init(jax.random.key(0), X, params)
    watch, found = report.ChainWatch(state), []
    run.steps(state, X, 10 * num_reports, lambda *args: found.append(watch(*args)), 10)
    return found


def two_modes():
    """Parameters under which all sites are equal, as 0000... and 1111... alike."""
    params = MODEL.init(jax.random.key(1))
    hidden = {"w": jnp.full((16, 4), 2.0), "b": jnp.full(4, -16.0)}
    return params | {"hidden": hidden, "bias": {"field": jnp.full(16, -4.0)}}


@pytest.mark.slow
@pytest.mark.parametrize("is_centered", [False, True])
def test_chains_that_mix_are_shown_and_left_alone(capsys, is_centered):
    rule = pj.estimators.pcd(MODEL, 200)
    rule = pj.estimators.centered(rule) if is_centered else rule
    found = follow(rule, MODEL.init(jax.random.key(1)))
    for figures in found:
        assert 0.4 < figures["flip_rate"] < 0.6
        assert abs(figures["chain_autocorrelation"]) < 4 / np.sqrt(200 * 16)
    assert capsys.readouterr().err == ""
    record = {"reconstruction_error": 0.1, "free_energy_gap": 0.0, "examples_per_second": 1.0}
    shown = report.live_figures(record | found[-1])
    assert {"flips", "chain gap", "chain acf"} <= set(shown)
    assert "flips" not in report.live_figures(record)


def test_chains_that_keep_to_their_mode_are_told_of_in_one_line(capsys):
    found = follow(pj.estimators.pcd(MODEL, 200), two_modes())
    assert found[-1]["chain_autocorrelation"] > 0.5
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: the persistent chains do not mix: their autocorrelation")
    assert "over 10 updates" in lines[0]
    assert "--num-gibbs-steps" in lines[0]


def test_without_persistent_chains_there_is_nothing_to_show(capsys):
    assert follow(pj.estimators.cd(MODEL), None) == [{}, {}, {}]
    assert report.ChainWatch(SimpleNamespace(estimator_state=(), step=0)).x is None
    assert capsys.readouterr().err == ""
