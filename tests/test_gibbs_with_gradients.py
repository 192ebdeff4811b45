"""Gibbs with gradients, exactly: its transition matrix, its proposal, its draws."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from kernel_cases import MIXED, bank, opaque, step_all

import poejax as pj
from poejax import kernels, units
from poejax.kernels import GibbsWithGradients

NUM_DRAWS = 4_000  # from each state
DISCRETE = {
    "bernoulli": (bank(units.Bernoulli(3), units.Bernoulli(3)), [True, False, False]),
    "spin": (bank(units.Spin(3), units.Bernoulli(2)), [False, True, False]),
    "categorical": (bank(units.Categorical(2, 3), units.Bernoulli(2)), [True, False]),
    "joint": (bank(MIXED, units.Bernoulli(2)), {"pixels": [True, False], "label": [False]}),
    "opaque": (opaque(units.Bernoulli(3)), [False, False, True]),
}


@functools.partial(jax.jit, static_argnames="kernel")
def consider_all(kernel, params, states, clamp):
    """Statistics [S, M], log p(x), gradients of it, and each move's log q, log ratio and end."""

    def row(x):
        here = kernel.proposal(params, x, clamp)
        moves = jnp.arange(here.log_q.size)
        (ends, _), ratio = jax.vmap(lambda m: kernel.consider(params, x, here, m, clamp))(moves)
        gradient = jax.grad(kernel.model.log_density, argnums=1)(params, x)
        t = kernel.model.visible.linear_statistic
        return t(x), here.log_density, t(gradient), here.log_q, ratio, jax.vmap(t)(ends)

    return jax.vmap(row)(states)


class Tiny:
    """A discrete model small enough for the kernel's matrix, from the code that steps."""

    def __init__(self, name, clamped, kernel_type=GibbsWithGradients):
        self.model, mask = DISCRETE[name]
        self.kernel = kernel_type(self.model, num_flips=2)
        rng = np.random.default_rng(3)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)
        self.params = self.model.temper(params, 0.7)
        is_list = lambda v: isinstance(v, list)  # noqa: E731
        self.mask = jax.tree.map(jnp.asarray, mask, is_leaf=is_list) if clamped else None
        self.states = self.model.visible.states()
        tables = jax.device_get(consider_all(self.kernel, self.params, self.states, self.mask))
        t, log_p, self.gradient, log_q, log_ratio, ends = (np.asarray(v, float) for v in tables)
        self.t, self.pi = t, np.exp(log_p - log_p.max())
        self.pi /= self.pi.sum()
        index = (ends[:, :, None] == t[None, None]).all(axis=-1).argmax(axis=-1)
        count = len(t)
        self.q, self.matrix = np.zeros((count, count)), np.zeros((count, count))
        for i in range(count):
            moves = np.flatnonzero(np.isfinite(log_q[i]))
            q = np.exp(log_q[i, moves])
            np.add.at(self.q[i], index[i, moves], q)
            np.add.at(
                self.matrix[i], index[i, moves], q * np.exp(np.minimum(log_ratio[i, moves], 0))
            )
            self.matrix[i, i] += 1 - self.matrix[i].sum()

    def neighbours(self):
        """Which pairs of states differ in one site that is free."""
        site_of = []
        visible = self.model.visible
        blocks = visible.blocks.items() if isinstance(visible, units.Joint) else [(None, visible)]
        free = []
        for name, unit in blocks:
            width = unit.num_linear // unit.num_sites
            site_of += list(np.repeat(np.arange(unit.num_sites) + len(free), width))
            mask = self.mask if name is None or self.mask is None else self.mask[name]
            free += [True] * unit.num_sites if mask is None else list(~np.asarray(mask))
        differs = self.t[:, None] != self.t[None]
        sites = np.stack(
            [differs[..., np.array(site_of) == s].any(axis=-1) for s in range(len(free))], axis=-1
        )
        return (sites.sum(axis=-1) == 1) & (sites & np.array(free)).any(axis=-1)


tiny = functools.cache(Tiny)


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("name", DISCRETE)
def test_the_matrix_is_reversible_with_respect_to_the_model(name, clamped):
    case = tiny(name, clamped)
    # p restricted to one value of the held sites is in balance too, since no move leaves it.
    flow = case.pi[:, None] * case.matrix
    np.testing.assert_allclose(flow, flow.T, atol=2e-7)
    np.testing.assert_allclose(case.pi @ case.matrix, case.pi, atol=1e-6)
    assert not case.matrix[~case.neighbours() & ~np.eye(len(case.pi), dtype=bool)].any()


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("name", DISCRETE)
def test_the_proposal_is_the_one_stated(name, clamped):
    case = tiny(name, clamped)
    change = np.einsum("im,ijm->ij", case.gradient, case.t[None] - case.t[:, None])
    weights = np.where(case.neighbours(), np.exp(0.5 * change), 0)
    np.testing.assert_allclose(case.q, weights / weights.sum(axis=1, keepdims=True), atol=1e-5)


class NoReverse(GibbsWithGradients):
    def consider(self, params, x, here, move, clamp=None):
        there, log_ratio = super().consider(params, x, here, move, clamp)
        reverse = self.move(x, move)[1]
        return there, log_ratio - there[1].log_q[reverse] + here.log_q[move]


class TwiceBeta(GibbsWithGradients):
    def consider(self, params, x, here, move, clamp=None):
        there, log_ratio = super().consider(params, x, here, move, clamp)
        return there, log_ratio + there[1].log_density - here.log_density


@pytest.mark.parametrize("mutant", [NoReverse, TwiceBeta])
def test_a_wrong_acceptance_breaks_the_balance(mutant):
    case = Tiny("bernoulli", False, mutant)
    assert np.abs(case.pi @ case.matrix - case.pi).max() > 1e-3


def row_z_scores(case, kernel):
    """z-scores of the ends of one step (two flips) from every state against the matrix's rows."""
    count = len(case.pi)
    start = np.repeat(np.arange(count), NUM_DRAWS)
    mask = jax.tree.map(lambda m: jnp.broadcast_to(m, (len(start), *m.shape)), case.mask)
    x = jax.tree.map(lambda leaf: leaf[start], case.states)
    states, info = step_all(kernel, jax.random.key(0), case.params, pj.types.ChainState(x, mask))
    t = np.asarray(jax.vmap(case.model.visible.linear_statistic)(states.x))
    end = (t[:, None] == case.t[None]).all(axis=-1).argmax(axis=-1)
    matrix = np.linalg.matrix_power(case.matrix, 2)
    z = []
    for i in range(count):
        counts, possible = np.bincount(end[start == i], minlength=count), matrix[i] > 0
        assert not counts[~possible].any()
        z.append(reference.count_z_scores(counts[possible], matrix[i, possible]))
    assert info.acceptance_rate.shape == info.is_accepted.shape == (len(start), 2)
    return np.concatenate(z)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "clamped"),
    [("bernoulli", False), ("spin", True), ("categorical", False), ("joint", True)],
)
def test_a_step_draws_the_rows_of_the_matrix(name, clamped):
    case = tiny(name, clamped)
    z = row_z_scores(case, case.kernel)
    assert np.abs(z).max() < reference.z_threshold(z.size)
    if name == "bernoulli":
        z = row_z_scores(case, NoReverse(case.model, 2))
        assert np.abs(z).max() > reference.z_threshold(z.size)


@pytest.mark.slow
def test_with_all_sites_held_nothing_moves():
    model = DISCRETE["joint"][0]
    params = model.init(jax.random.key(0))
    mask = {"pixels": jnp.ones(2, bool), "label": jnp.ones(1, bool)}
    kernel = kernels.gibbs_with_gradients(model, 3)
    states = pj.chains.init(
        jax.random.key(1), kernel, params, 8, jax.tree.map(lambda v: v[:8], MIXED.states()), mask
    )
    after, info = step_all(kernel, jax.random.key(2), params, states)
    jax.tree.map(np.testing.assert_array_equal, after.x, states.x)
    assert not info.is_accepted.any()
    assert not info.acceptance_rate.any()
