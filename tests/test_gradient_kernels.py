"""MALA, HMC and Gibbs with gradients leave the model invariant, and work wherever kernels do."""

from __future__ import annotations

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

import poejax as pj
from poejax import evidence, experts, kernels, training, units
from poejax.kernels import HMC, MALA, GibbsWithGradients


@dataclasses.dataclass(frozen=True)
class Energy(experts.Expert):
    """An opaque expert: v·tanh(Wᵀt(x)) - ½ |t(x)|², of which only the density is known."""

    num_factors = 1
    num_latent_states = None
    is_opaque = True

    def init(self, rng_key):
        w = jax.random.normal(rng_key, (self.visible.num_linear, 4))
        return {"w": w, "v": jnp.ones(4)}

    def log_factors(self, params, x):
        t = self.visible.linear_statistic(x)
        value = jnp.tanh(t @ params["w"]) @ params["v"] - 0.5 * jnp.sum(t**2)
        return params.get("beta", 1.0) * value[None]

    def visible_field(self, params, z):
        raise TypeError("no field is known")

    def temper(self, params, beta):
        return params | {"beta": jnp.asarray(beta)}


def bank(visible, hidden):
    parts = {"bias": experts.Bias(visible), "hidden": experts.HiddenBank(visible, hidden)}
    return pj.product(visible, **parts)


def opaque(visible):
    return pj.product(visible, energy=Energy(visible))


# --- Gibbs with gradients, exactly ---

NUM_DRAWS = 4_000  # from each state
MIXED = units.Joint(pixels=units.Bernoulli(2), label=units.Categorical(1, 3))
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


@functools.partial(jax.jit, static_argnames="kernel")
def step_all(kernel, rng_key, params, states):
    return jax.vmap(kernel.step, (0, None, 0))(
        jax.random.split(rng_key, len(jax.tree.leaves(states.x)[0])), params, states
    )


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


# --- MALA and HMC ---

NUM_CHAINS = 20_000
PLANE = units.Gaussian(2)
W = np.array([[0.8, 0.6], [-0.28, 0.96]])  # rows: unit vectors, not orthogonal


class Case:
    """A model of the plane with exact samples, and a map to independent uniforms."""

    def __init__(self, name, beta):
        self.beta = beta
        build = {"gaussian": self._gaussian, "student": self._student, "mixture": self._mixture}
        self.model, params, self.draw, self.uniforms = build[name]()
        self.params = self.model.temper(jax.tree.map(jnp.asarray, params), beta)

    def _gaussian(self):
        mean, log_diagonal, off = np.array([0.5, -1.0]), np.array([0.2, -0.3]), 0.6
        rows = np.sqrt(self.beta) * np.array([[np.exp(0.2), off], [0, np.exp(-0.3)]])
        params = {"mean": mean, "log_diagonal": log_diagonal, "off_diagonal": np.array([off])}
        return (
            pj.product(PLANE, one=experts.Gaussian(PLANE, "full")),
            {"one": params},
            lambda rng: mean + rng.normal(size=(NUM_CHAINS, 2)) @ np.linalg.inv(rows).T,
            lambda x: stats.norm.cdf((x - mean) @ rows.T),
        )

    def _student(self):
        # (α + y²)^(-ν) is a t density of 2ν - 1 degrees of freedom.
        df, scale = 2 * self.beta * 2.5 - 1, np.array([1.0, 1.5])
        scale_of_t = np.sqrt(scale / df)
        params = {"w": W.T, "log_scale": np.log(scale), "log_exponent": np.log([2.5, 2.5])}
        return (
            pj.product(PLANE, bank=experts.StudentT(PLANE, 2)),
            {"bank": params},
            lambda rng: scale_of_t * rng.standard_t(df, size=(NUM_CHAINS, 2)) @ np.linalg.inv(W).T,
            lambda x: stats.t.cdf(x @ W.T / scale_of_t, df),
        )

    def _mixture(self):
        visible = units.GaussianDiag(2)
        log_pi = np.log([0.4, 0.6])
        mean, precision = np.array([[-1.0, 0.5], [1.2, -0.3]]), np.array([[1.0, 2.0], [1.5, 0.7]])
        # (π N)^β is a Gaussian of precision βλ with the weight π^β Π λ^((β - 1)/2).
        weight = np.exp(self.beta * log_pi + 0.5 * (self.beta - 1) * np.log(precision).sum(axis=1))
        weight, std = weight / weight.sum(), 1 / np.sqrt(self.beta * precision)

        def draw(rng):
            k = rng.choice(2, NUM_CHAINS, p=weight)
            return mean[k] + std[k] * rng.normal(size=(NUM_CHAINS, 2))

        def uniforms(x):
            # The first coordinate's marginal, and the second's conditional given the first.
            z = (x[:, None] - mean) / std
            cdf = stats.norm.cdf(z)
            given = weight * stats.norm.pdf(z[..., 0]) / std[:, 0]
            given /= given.sum(axis=1, keepdims=True)
            return np.stack([cdf[..., 0] @ weight, (given * cdf[..., 1]).sum(axis=1)], axis=1)

        params = {
            "logits": log_pi[None],
            "mean": mean[None],
            "log_precision": np.log(precision)[None],
        }
        return (
            pj.product(visible, mix=experts.GaussianMixture(visible, 2, joint=True)),
            {"mix": params},
            draw,
            uniforms,
        )


class Unadjusted(MALA):
    def step(self, rng_key, params, state):
        gradient = jax.grad(self.model.log_density, argnums=1)(params, state.x)
        noise = jax.random.normal(rng_key, state.x.shape)
        x = state.x + self.step_size * gradient + jnp.sqrt(2 * self.step_size) * noise
        return state._replace(x=x), pj.types.MetropolisInfo(jnp.ones(()), jnp.array(True))


class TooCold(HMC):
    def log_density(self, params, state):
        return lambda x: 1.2 * super(TooCold, self).log_density(params, state)(x)


MAKE = {
    "mala": lambda model: kernels.mala(model, 0.4),
    "hmc": lambda model: kernels.hmc(model, 0.9, 3),
    "hmc with masses": lambda model: kernels.hmc(model, 0.9, 3, 0.0, np.array([0.6, 1.7])),
    "unadjusted": lambda model: Unadjusted(model, 0.4),
    "too cold": lambda model: TooCold(model, 0.9, 3, 0.2, None),
}


@functools.partial(jax.jit, static_argnames=("kernel", "num_steps"))
def run(rng_key, kernel, params, x, num_steps, clamp=None):
    """Events after `num_steps` steps from the rows of `x`, and the rate of accepted proposals."""
    states = pj.chains.init(rng_key, kernel, params, NUM_CHAINS, x, clamp)
    accepted = lambda params, state, info: info.is_accepted  # noqa: E731
    states, seen = pj.chains.run(rng_key, kernel, params, states, num_steps, accepted)
    return states.x, jnp.mean(seen.mean)


def p_values(case, name, num_steps=5):
    """Kolmogorov-Smirnov p of both coordinates, and of their product, after steps from exact x."""
    x = case.draw(np.random.default_rng(1))
    kernel = MAKE[name](case.model)
    x, rate = run(jax.random.key(0), kernel, case.params, jnp.asarray(x, jnp.float32), num_steps)
    u = case.uniforms(np.asarray(x, float))
    both = np.corrcoef(stats.norm.ppf(u).T)[0, 1] * np.sqrt(NUM_CHAINS)
    tests = [stats.kstest(column, "uniform").pvalue for column in u.T]
    return np.array([*tests, 2 * stats.norm.sf(abs(both))]), float(rate)


@pytest.mark.parametrize("beta", [1.0, 0.7])
@pytest.mark.parametrize("target", ["gaussian", "student", "mixture"])
@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_chains_from_exact_samples_stay_exact(name, target, beta):
    p, rate = p_values(Case(target, beta), name)
    assert p.min() > 1e-4 / p.size
    assert 0.3 < rate < 0.99  # so that the acceptance matters


def test_masses_change_the_motion_and_not_the_target():
    p, rate = p_values(Case("gaussian", 1.0), "hmc with masses")
    assert p.min() > 1e-4 / p.size
    assert 0.3 < rate < 0.99


@pytest.mark.parametrize("name", ["unadjusted", "too cold"])
def test_a_wrong_kernel_fails_the_same_statistic(name):
    p, _ = p_values(Case("gaussian", 1.0), name)
    assert p.min() < 1e-4 / p.size


BLOCKS = units.Joint(late=units.GaussianDiag(1), early=units.Gaussian(1))


class Overwrite(HMC):
    def step(self, rng_key, params, state):
        free, info = super().step(rng_key, params, state._replace(clamp=None))
        x = jax.tree.map(jnp.where, state.clamp, state.x, free.x)
        return state._replace(x=x), info


@pytest.mark.parametrize("name", ["mala", "hmc", "overwrite"])
def test_clamped_sites_condition_the_others(name):
    model = bank(BLOCKS, units.StandardGaussian(1))
    field = {
        "late": {"linear": jnp.array([0.3]), "log_precision": jnp.array([0.4])},
        "early": {
            "linear": jnp.array([-0.5]),
            "log_diagonal": jnp.array([0.45]),
            "off_diagonal": jnp.zeros(0),
        },
    }
    params = {
        "bias": {"field": field},
        "hidden": {"w": jnp.array([[0.7], [0.9]]), "b": jnp.array([0.2])},
    }
    # log p(x) = aᵀx - ½ xᵀΛx + ½ (b + wᵀx)²: a Gaussian of precision Λ - wwᵀ.
    held, precision = 1.5, np.exp(0.9) - 0.9**2
    mean = (-0.5 + 0.2 * 0.9 + 0.7 * 0.9 * held) / precision
    start = mean + np.random.default_rng(0).normal(size=(NUM_CHAINS, 1)) / np.sqrt(precision)
    x = {"late": jnp.full((NUM_CHAINS, 1), held), "early": jnp.asarray(start, jnp.float32)}
    mask = {"late": jnp.array([True]), "early": jnp.array([False])}
    masses = {"late": np.array([5.0]), "early": np.array([0.5])}
    kernel = {
        "mala": kernels.mala(model, 0.4),
        "hmc": kernels.hmc(model, 0.8, 4, inverse_mass=masses),
        "overwrite": Overwrite(model, 0.8, 4, 0.2, None),
    }[name]
    if name == "hmc":
        assert kernel.inverse_mass == (0.5, 5.0)  # in the order of the flattened dict
    x, rate = run(jax.random.key(1), kernel, params, x, 5, mask)
    assert (x["late"] == held).all()
    assert 0.3 < float(rate) < 0.999
    u = stats.norm.cdf((np.asarray(x["early"], float)[:, 0] - mean) * np.sqrt(precision))
    assert (stats.kstest(u, "uniform").pvalue > 1e-4) == (name != "overwrite")


def test_a_trajectory_that_diverges_stays_and_says_so():
    case = Case("gaussian", 1.0)
    kernel = kernels.hmc(case.model, 50.0)
    x = jnp.ones((4, 2))
    after, info = step_all(kernel, jax.random.key(0), case.params, pj.types.ChainState(x))
    assert info.is_divergent.all()
    assert not info.is_accepted.any()
    np.testing.assert_array_equal(after.x, x)


@pytest.mark.parametrize(("name", "target"), [("mala", 0.57), ("hmc", 0.8)])
def test_tuning_finds_the_step_size_of_a_target_rate(name, target, compiles_nothing):
    case = Case("gaussian", 1.0)
    first = MAKE[name](case.model)
    x = jnp.asarray(case.draw(np.random.default_rng(0))[:500], jnp.float32)
    states = pj.types.ChainState(x)
    tuned, after = kernels.tune_step_size(jax.random.key(0), first, case.params, states, target)
    assert not np.array_equal(after.x, x)
    _, info = step_all(tuned, jax.random.key(1), case.params, after)
    assert float(info.acceptance_rate.mean()) == pytest.approx(target, abs=0.06)
    far = dataclasses.replace(first, step_size=1e-3)
    with compiles_nothing():
        again, _ = kernels.tune_step_size(jax.random.key(2), far, case.params, states, target)
    assert again.step_size == pytest.approx(tuned.step_size, rel=0.2)


# --- Wherever a kernel goes ---

RBM = pj.models.rbm(8, 4)
GAUSSIAN_RBM = pj.models.gaussian_rbm(2, 3)


def by_gradients(path):
    return kernels.gibbs_with_gradients(path, 4)


def by_hmc(path):
    return kernels.hmc(path, 0.5, 5)


def by_mala(path):
    return kernels.mala(path, 0.3)


@pytest.mark.parametrize("make", [by_gradients, by_hmc, by_mala])
def test_annealing_both_ways_against_exact_log_z(make, random_params):
    if make is by_gradients:
        model, params = RBM, random_params(RBM, 2, 0.7)
        truth = float(pj.exact.log_z(model, params))
        log_p = jnp.log(pj.exact.probabilities(model, params))
        x = RBM.visible.states()[jax.random.categorical(jax.random.key(0), log_p, shape=(400,))]
    else:
        case = Case("gaussian", 1.0)
        model, params, truth = case.model, case.params, 0.0
        x = jnp.asarray(case.draw(np.random.default_rng(0))[:400], jnp.float32)
    base, betas = evidence.base_rate(model, x, 0.3), evidence.linear_betas(50)
    forward = evidence.ais(jax.random.key(2), model, params, base, betas, 400, make)
    reverse = evidence.reverse_ais(jax.random.key(3), model, params, base, betas, x, make)
    for found in (forward, reverse):
        assert abs(float(found.log_z) - truth) < 4 * float(found.std_err)
        assert float(found.std_err) < 0.1


def nll(model, params, data):
    log_p = jax.vmap(model.log_density, (None, 0))(params, data)
    return float(pj.exact.log_z(model, params) - jnp.mean(log_p))


FULL = pj.product(PLANE, one=experts.Gaussian(PLANE, "full"))
HIDDEN = opaque(units.Bernoulli(4))
LEARNERS = {
    "pcd, opaque, gradients": pj.estimators.pcd(
        HIDDEN, 50, kernels.gibbs_with_gradients(HIDDEN, 4)
    ),
    "pcd, hmc": pj.estimators.pcd(FULL, 50, kernels.hmc(FULL, 0.3, 5)),
    "cd, mala": pj.estimators.cd(FULL, kernels.mala(FULL, 0.1), num_steps=3),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_learning_lowers_the_exact_nll(name):
    estimator, tx = LEARNERS[name], optax.adam(0.03)
    model = estimator.model
    rng = np.random.default_rng(0)
    if model is FULL:
        data = jnp.asarray(rng.normal(size=(200, 2)) @ [[1.5, 0.8], [0.0, 0.6]] + [1, -1])
    else:
        size = model.visible.size
        data = jnp.asarray((rng.random((200, 1)) < 0.5) ^ (rng.random((200, size)) < 0.1), float)
    state = training.init(jax.random.key(0), model, estimator, tx, data)
    before = nll(model, state.params, data)
    state, _ = training.train_steps(estimator, tx, state, data, 50, 300)
    assert nll(model, state.params, data) < before - 0.5


def test_chains_are_bitwise_the_same_on_1_and_8_devices(random_params):
    # Discrete ones: pre-activations may differ in the last bit, which real events would show.
    mesh = Mesh(np.array(jax.devices()), ("chains",))
    params, kernel = random_params(RBM), by_gradients(RBM)
    one = pj.chains.init(jax.random.key(0), kernel, params, 16)
    eight = jax.device_put(one, NamedSharding(mesh, PartitionSpec("chains")))
    a, _ = pj.chains.run(jax.random.key(1), kernel, params, one, 3)
    b, _ = pj.chains.run(jax.random.key(1), kernel, params, eight, 3)
    assert len(b.x.sharding.device_set) == 8
    assert (a.x != one.x).any()
    np.testing.assert_array_equal(a.x, b.x)


@pytest.mark.parametrize("make", [by_gradients, by_hmc])
def test_an_equal_kernel_rebuilt_compiles_nothing(make, random_params, compiles_nothing):
    build = functools.partial(
        *((pj.models.rbm, 8, 4) if make is by_gradients else (pj.models.gaussian_rbm, 2, 3))
    )
    params, other = random_params(build(), 0), random_params(build(), 1)
    states = pj.chains.init(jax.random.key(0), make(build()), params, 5)
    pj.chains.run(jax.random.key(1), make(build()), params, states, 3)
    with compiles_nothing():
        pj.chains.run(jax.random.key(2), make(build()), other, states, 3)


@pytest.mark.parametrize("make", [by_gradients, by_hmc, by_mala])
def test_every_precision_can_be_mixed(make):
    model = RBM if make is by_gradients else GAUSSIAN_RBM
    kernel, key = make(model), jax.random.key(0)
    with jax.enable_x64(True):
        for x_type in (jnp.float32, jnp.float64, jnp.bfloat16):
            for params_type in (jnp.float32, jnp.float64):
                params = jax.tree.map(
                    lambda s, dtype=params_type: jnp.zeros(s.shape, dtype), model.init(key)
                )
                x = jnp.zeros(model.visible.event_shape, x_type)
                state = kernel.init(key, params, x)
                after, _ = jax.eval_shape(kernel.step, key, params, state)
                assert after.x.dtype == state.x.dtype
                wide = make is not by_gradients and x_type == jnp.bfloat16
                assert after.x.dtype == (jnp.float32 if wide else x_type)


def test_block_gibbs_refuses_what_it_cannot_sample():
    inner = pj.product(PLANE, bias=experts.Bias(PLANE), energy=Energy(PLANE))
    model = pj.product(PLANE, outer=inner, other=Energy(PLANE))
    for build in (kernels.block_gibbs, pj.estimators.cd):
        with pytest.raises(ValueError, match=r"experts \['outer.energy', 'other'\]; sample .*hmc"):
            build(model)
    assert kernels.mala(model, 0.1).model == model
    # As on an annealing path.
    path = pj.product(PLANE, base=inner.experts["bias"], target=model)
    with pytest.raises(ValueError, match=r"experts \['target.outer.energy', 'target.other'\]"):
        kernels.block_gibbs(path)


REAL, BITS = bank(PLANE, units.Bernoulli(1)), RBM


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: kernels.mala(BITS, 0.1), "mala: expected real visible units .* got Bernoulli"),
        (lambda: kernels.hmc(opaque(MIXED), 0.1), "hmc: expected real visible units"),
        (lambda: kernels.mala(REAL, 0.0), "step_size: expected a positive finite number, got 0"),
        (lambda: kernels.hmc(REAL, float("nan")), "step_size: expected a positive finite"),
        (lambda: kernels.hmc(REAL, 0.1, 0), "num_leapfrog: expected an integer of at least 1"),
        (lambda: kernels.hmc(REAL, 0.1, jitter=1.0), r"jitter: expected a number in \[0, 1\)"),
        (
            lambda: kernels.hmc(REAL, 0.1, inverse_mass=[1.0]),
            r"inverse_mass: expected shape \(N, 2\)",
        ),
        (
            lambda: kernels.hmc(REAL, 0.1, inverse_mass=[1.0, 0.0]),
            "inverse_mass: expected positive numbers, got 0",
        ),
        (
            lambda: kernels.hmc(opaque(BLOCKS), 0.1, inverse_mass={"late": [1.0]}),
            r"inverse_mass: expected a dict of \['early', 'late'\]",
        ),
        (lambda: kernels.gibbs_with_gradients(REAL), "gibbs_with_gradients: expected Bernoulli"),
        (lambda: kernels.gibbs_with_gradients(BITS, 0), "num_flips: expected an integer"),
        (
            lambda: kernels.tune_step_size(
                jax.random.key(0), by_mala(REAL), REAL.init(jax.random.key(0)), (), target=1.0
            ),
            r"target: expected a number in \(0, 1\)",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_types():
    with pytest.raises(TypeError, match="step_size: expected a number fixed at compile time"):
        jax.jit(lambda step: kernels.mala(REAL, step).step_size)(0.1)
    with pytest.raises(TypeError, match="kernel: expected one from mala or hmc"):
        kernels.tune_step_size(jax.random.key(0), by_gradients(BITS), None, None)
    for make in (by_mala, by_hmc):
        with pytest.raises(TypeError, match="clamp: expected a boolean mask"):
            make(REAL).init(jax.random.key(0), None, jnp.zeros(2), jnp.zeros(2))


def test_without_blackjax_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "blackjax", None)
    for make in (by_mala, by_hmc):
        with pytest.raises(ImportError, match=r"need the blackjax package: pip install 'poejax\["):
            make(REAL)
