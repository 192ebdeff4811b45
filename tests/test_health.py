"""Health of chains: its figures against NumPy, and its verdict over planted chains."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, stats

import poejax as pj
from poejax import chains, units
from poejax.diagnostics import Health, OnlineHealth, has_mixed, health

pytest.importorskip("blackjax")
STEPS, CHAINS, CASES = 200, 8, 40


def ar(rng, num_steps, num_chains, phi):
    """Stationary chains x' = φ x + √(1 - φ²) ε, one entry per φ, [T, C, S]."""
    phi = np.atleast_1d(phi)
    noise = rng.normal(size=(num_steps, num_chains, len(phi)))
    noise[1:] *= np.sqrt(1 - phi**2)
    columns = [signal.lfilter([1], [1, -p], noise[..., i], axis=0) for i, p in enumerate(phi)]
    return np.stack(columns, axis=-1)


# What ArviZ computes, written from Vehtari et al. (2021), of one entry [T, C] in float64.


def split(x):
    half = len(x) // 2
    return np.concatenate([x[:half], x[half : 2 * half]], axis=1)


def scores(x):
    ranks = stats.rankdata(x, method="average").reshape(x.shape)
    return stats.norm.ppf((ranks - 3 / 8) / (x.size + 1 / 4))


def plain_r_hat(x):
    n = len(x)
    within, between = x.var(axis=0, ddof=1).mean(), x.mean(axis=0).var(ddof=1)
    return np.sqrt((n - 1) / n + between / within)


def r_hat(x):
    x = split(x)
    return max(plain_r_hat(scores(x)), plain_r_hat(scores(abs(x - np.median(x)))))


def ess(x):
    n, count = len(x), x.size
    if np.ptp(x) == 0:
        return count
    gaps = x - x.mean(axis=0)
    acov = np.array([(gaps[: n - t] * gaps[t:]).sum(axis=0).mean() / n for t in range(n)])
    within = acov[0] * n / (n - 1)
    variance = acov[0] + x.mean(axis=0).var(ddof=1)
    rho = 1 - (within - acov) / variance
    rho[0] = 1
    pairs = []
    for t in range(0, n - 1, 2):
        if rho[t] + rho[t + 1] <= 0:
            break
        pairs.append(min(rho[t] + rho[t + 1], pairs[-1] if pairs else np.inf))
    t = 2 * len(pairs)
    last = max(rho[t], 0) if t < n - 1 else 0
    return count / max(-1 + 2 * sum(pairs) + last, 1 / np.log10(count))


def ess_bulk(x):
    return ess(scores(split(x)))


def ess_tail(x):
    return min(ess(split(1.0 * (x <= np.quantile(x, p)))) for p in (0.05, 0.95))


def nested_r_hat(x, number):
    """Margossian et al. (2024), equations of section 2, by loops."""
    num_chains = x.shape[1]
    groups = np.split(np.arange(num_chains), number)
    within = []
    for group in groups:
        means = [x[:, c].mean() for c in group]
        between_chains = np.var(means, ddof=1) if len(group) > 1 else 0
        within.append(between_chains + np.mean([x[:, c].var(ddof=1) for c in group]))
    between = np.var([x[:, group].mean() for group in groups], ddof=1)
    return np.sqrt(1 + between / np.mean(within))


def examples(rng):
    slow = ar(rng, STEPS, 12, [0.0, 0.5, 0.9, -0.4])
    bits = ar(rng, STEPS, 12, [0.6, 0.6]) > stats.norm.ppf([0.5, 0.98])
    apart = ar(rng, STEPS, 12, [0.3]) + 2 * (np.arange(12) % 2)[:, None]
    cauchy = rng.standard_cauchy(size=(STEPS, 12, 1))
    return np.concatenate([slow, bits, apart, cauchy], axis=-1)


def test_all_figures_are_those_of_the_papers():
    x = examples(np.random.default_rng(0))
    found = health(x)
    columns = range(x.shape[-1])
    wanted = {
        "r_hat": [r_hat(x[..., i]) for i in columns],
        "nested_r_hat": [nested_r_hat(x[..., i], 4) for i in columns],
        "ess_bulk": [ess_bulk(x[..., i]) for i in columns],
        "ess_tail": [ess_tail(x[..., i]) for i in columns],
    }
    wanted["autocorrelation_time"] = STEPS * 12 / np.array(wanted["ess_bulk"])
    for name, values in wanted.items():
        # In chains that stay apart correlations last to the end, where sums stop a lag apart.
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-2, err_msg=name)
        easy = np.array([0, 1, 2, 3, 4, 5, 7])
        np.testing.assert_allclose(
            getattr(found, name)[easy], np.array(values)[easy], rtol=1e-3, err_msg=name
        )


def test_two_values_that_fold_into_one_keep_their_ranks():
    # The median lies half-way, so that all are equally far from it.
    x = np.tile([0.0, 1.0, 1.0, 0.0], 50).reshape(50, 4) * 1.0
    x = np.random.default_rng(1).permuted(x, axis=0)
    np.testing.assert_allclose(health(x).r_hat, plain_r_hat(split(x)), rtol=1e-5)
    assert np.ptp(abs(x - np.median(x))) == 0


@pytest.mark.slow
def test_superchains_are_neighbours_and_as_many_as_is_said():
    x = ar(np.random.default_rng(2), 20, 24, [0.5])[..., 0] + np.repeat([0, 1, 2], 8)
    for number in (2, 3, 24):
        wanted = nested_r_hat(x, number)
        np.testing.assert_allclose(health(x, number).nested_r_hat, wanted, rtol=1e-5)
    np.testing.assert_allclose(health(x).nested_r_hat, nested_r_hat(x, 6), rtol=1e-5)
    # One chain is taken as its halves.
    np.testing.assert_allclose(
        health(x[:, :1]).nested_r_hat, nested_r_hat(split(x[:, :1]), 2), rtol=1e-5
    )


@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (1, 1)])
def test_figures_have_the_shape_of_an_entry(shape):
    found = health(np.random.default_rng(0).normal(size=(8, 4, *shape)))
    assert {f.shape for f in found} == {shape}


@pytest.mark.slow
def test_pieces_do_not_show(monkeypatch):
    x = examples(np.random.default_rng(3))[:50]
    whole = health(x)
    monkeypatch.setattr(pj._health, "_PIECE", 3 * 50 * 12)
    for a, b in zip(whole, health(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, jnp.bfloat16, np.float16, np.float64])
def test_any_real_dtype(dtype):
    x = (ar(np.random.default_rng(4), 60, 4, [0.5])[..., 0] > 0).astype(dtype)
    for a, b in zip(health(x), health(x.astype(np.float32)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_far_from_zero_nothing_is_lost():
    x = ar(np.random.default_rng(5), 100, 4, [0.0, 0.9])
    near = health(x)
    for far in (health(1e6 + x), health(1e200 * x), health(1e9 - x)):
        for name in ("r_hat", "nested_r_hat", "ess_bulk", "ess_tail"):
            # Tails at 5 and 95 % change places; ranks do but for rounding of the addition.
            np.testing.assert_allclose(getattr(far, name), getattr(near, name), rtol=0.02)
    integers = np.round(10 * x).astype(np.int64)
    for a, b in zip(health(integers + 10**12), health(integers), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_what_never_moves_says_nothing():
    x = ar(np.random.default_rng(6), 100, 4, [0.0, 0.0, 0.0])
    x[..., 1], x[..., 2] = 0.1, [0.1, 0.2, 0.3, 0.4]
    found = health(x)
    still = Health(1.0, 1.0, 0.0, 0.0, np.inf)
    assert tuple(float(f[1]) for f in found) == still
    assert found.r_hat[2] == np.inf
    assert found.ess_bulk[2] == 0
    assert has_mixed(health(x[..., :2]))
    assert not has_mixed(found)
    # Nothing moved at all.
    assert not has_mixed(health(x[..., 1:2]))
    assert not has_mixed(health(x[..., 1]))


@pytest.mark.parametrize(
    ("values", "number", "error", "message"),
    [
        (np.full((8, 4), np.nan), None, ValueError, "values: expected finite .* got nan in step 0"),
        (np.where(np.arange(9) == 8, np.inf, 1.0)[:, None], None, ValueError, "inf in step 8"),
        (np.zeros(8), None, ValueError, r"values: expected shape \[num_steps, num_chains"),
        (np.zeros((8, 0)), None, ValueError, r"values: expected shape \[num_steps, num_chains"),
        (np.zeros((3, 4)), None, ValueError, "values: expected at least 4 steps, got 3"),
        (np.zeros((8, 4), complex), None, TypeError, "values: expected real numbers"),
        (np.zeros((8, 4)), 3, ValueError, "num_superchains: expected a divisor >= 2 of the 4"),
        (np.zeros((8, 4)), 1, ValueError, "num_superchains: expected a divisor >= 2 of the 4"),
        (np.zeros((8, 4)), 2.0, ValueError, "num_superchains: expected an integer"),
    ],
)
def test_slips_are_named(values, number, error, message):
    with pytest.raises(error, match=message):
        health(values, number)


def test_traced_values_are_refused():
    with pytest.raises(TypeError, match=r"within compiled code use diagnostics\.OnlineHealth"):
        jax.jit(health)(jnp.zeros((8, 4)))


def test_without_blackjax_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "blackjax", None)
    with pytest.raises(ImportError, match=r"health needs the blackjax package: pip install 'poej"):
        health(np.zeros((8, 4)))


# The planted set: chains of which it is known whether they mix.

VISIBLE = units.Spin(16)
MODEL = pj.product(VISIBLE, hidden=pj.experts.HiddenBank(VISIBLE, units.Spin(12)))


def rbm_history(seed, coupling, both=True):
    """Block Gibbs on a spin RBM with two modes, ±(ξ, η), from its modes; and the modes' masses."""
    rng = np.random.default_rng(seed)
    xi, eta = rng.choice([-1.0, 1.0], size=16), rng.choice([-1.0, 1.0], size=12)
    z = 1 - 2 * (np.arange(2**12)[:, None] >> np.arange(12) & 1)
    params = {"hidden": {"w": jnp.asarray(coupling * np.outer(xi, eta)), "b": jnp.zeros(12)}}
    log_masses = 16 * np.log(np.cosh(coupling * z @ eta))
    masses = np.exp(log_masses - log_masses.max())
    masses /= masses.sum()
    overlap = z @ eta / 12
    between = masses[abs(overlap) < 0.5].sum()  # what one has to go through from mode to mode
    signs = np.where(np.arange(CHAINS) % 2, 1, -1) if both else np.ones(CHAINS)
    kernel = pj.kernels.block_gibbs(MODEL)
    states = chains.init(jax.random.key(seed), kernel, params, CHAINS, np.outer(signs, xi))
    key = jax.random.key(1000 + seed)
    _, x = chains.run(key, kernel, params, states, STEPS, chains.History(spins))
    return np.asarray(x), between


def spins(params, state, info):
    return state.x


def cases_of(found):
    """One Health per case, of a Health or an OnlineHealthResult with an axis of cases."""
    fields = (found.r_hat, found.nested_r_hat, found[2], found[2], found.autocorrelation_time)
    return [Health(*(f[i] for f in fields)) for i in range(len(found.r_hat))]


@jax.jit
def online(x):
    observer = OnlineHealth(spins)
    x = jnp.asarray(x, jnp.float32)
    return observer.result(jax.lax.scan(observer.update, observer.init(x[0]), x)[0])


def stuck(rng):
    """Verdicts wanted False: histories [T, C, ...] by kind."""
    kinds = {"rbm": [rbm_history(s, rng.uniform(0.25, 0.5))[0] for s in range(CASES)]}
    modes = np.stack([rng.permuted([-1, -1, *rng.choice([-1, 1], 4), 1, 1]) for _ in range(CASES)])
    places = rng.uniform(1, 4, size=CASES) * modes.T
    mixture = ar(rng, STEPS, CHAINS, rng.uniform(0, 0.6, size=CASES)) + places
    drift = ar(rng, STEPS, CHAINS, 1 - 10 ** rng.uniform(-4, -2, size=CASES))
    return kinds | {
        "mixture": list(mixture.transpose(2, 0, 1)),
        "drift": list(drift.T.swapaxes(1, 2)),
    }


def mixed(rng):
    """Verdicts wanted True."""
    kinds = {"rbm": [rbm_history(s, rng.uniform(0.0, 0.04))[0] for s in range(CASES)]}
    hops = rng.choice([-1, 1], size=(STEPS, CHAINS, CASES)) * rng.uniform(1, 4, size=CASES)
    mixture = ar(rng, STEPS, CHAINS, rng.uniform(0, 0.6, size=CASES)) + hops
    fast = ar(rng, STEPS, CHAINS, rng.uniform(-0.5, 0.7, size=CASES))
    return kinds | {
        "mixture": list(mixture.transpose(2, 0, 1)),
        "fast": list(fast.T.swapaxes(1, 2)),
    }


def share_mixed(kinds, look=health):
    """Share of cases that are found to have mixed, by kind."""
    together = {
        kind: cases_of(look(np.stack(x, axis=2))) for kind, x in kinds.items()
    }  # one call for each kind: entries know nothing of each other
    return {kind: np.mean([has_mixed(case) for case in found]) for kind, found in together.items()}


def test_planted_modes_are_modes():
    for seed in range(3):
        assert rbm_history(seed, 0.25)[1] < 1e-6
        x = rbm_history(seed, 0.25)[0]
        overlap = (x * x[0]).mean(axis=-1)
        assert overlap.min() > 0  # no chain ever left
        assert rbm_history(seed, 0.04)[1] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("look", [health, online])
def test_stuck_chains_are_found_and_mixed_ones_are_left_alone(look):
    missed = share_mixed(stuck(np.random.default_rng(10)), look)
    assert np.mean(list(missed.values())) <= 0.05, missed
    found = share_mixed(mixed(np.random.default_rng(11)), look)
    assert np.mean(list(found.values())) >= 0.95, found


@pytest.mark.slow
def test_with_chains_and_steps_exchanged_the_planted_set_would_fail():
    missed = share_mixed(stuck(np.random.default_rng(10)), lambda x: health(np.swapaxes(x, 0, 1)))
    assert np.mean(list(missed.values())) > 0.3, missed


def test_no_figure_tells_of_a_mode_without_a_chain():
    verdicts = [has_mixed(health(rbm_history(s, 0.3, both=False)[0])) for s in range(5)]
    assert all(verdicts)
