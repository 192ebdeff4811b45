"""Block Gibbs leaves the model invariant: exactly on tiny spaces, and as the code draws it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import Block

import poejax as pj
from poejax import units
from poejax.experts import Bias, HiddenBank

MIXED = units.Joint(pixels=units.Bernoulli(2), label=units.Categorical(1, 3))
MIXED_MASK = {"pixels": np.array([True, False]), "label": np.array([False])}
PAIRS = {
    "bernoulli-bernoulli": (units.Bernoulli(3), units.Bernoulli(3), np.array([True, False, False])),
    "spin-spin": (units.Spin(3), units.Spin(3), np.array([False, True, False])),
    "categorical-bernoulli": (
        units.Categorical(2, 3),
        units.Bernoulli(2),
        np.array([True, False]),
    ),
    "joint-bernoulli": (MIXED, units.Bernoulli(2), MIXED_MASK),
}
BLOCKS = {
    "bernoulli-bernoulli": ((Block("bernoulli", 3),), (Block("bernoulli", 3),)),
    "spin-spin": ((Block("spin", 3),), (Block("spin", 3),)),
    "categorical-bernoulli": ((Block("categorical", 2, 3),), (Block("bernoulli", 2),)),
    "joint-bernoulli": (
        (Block("bernoulli", 2), Block("categorical", 1, 3)),
        (Block("bernoulli", 2),),
    ),
}
BETA = 0.5
NUM_CHAINS = 20_000
NUM_STEPS = 3


# Each of these functions runs once: what takes the time is compiling them.
OPTIONS = {"xla_backend_optimization_level": "0"}


@functools.partial(jax.jit, static_argnames="model", compiler_options=OPTIONS)
def tabulate(model, params, states):
    """Statistics [Sx, M], log p(z | x) [Sx, Sz], log p(x | z) [Sz, Sx] and log p(x) [Sx]."""
    latents = jax.vmap(model.latent_state_at)(jnp.arange(model.num_latent_states))
    joint = jax.vmap(jax.vmap(model.log_joint, (None, None, 0)), (None, 0, None))
    factors = jax.vmap(model.log_factors, (None, 0))(params, states).sum(axis=1)
    field = jax.vmap(model.visible_field, (None, 0))(params, latents)
    inner = jax.vmap(jax.vmap(model.visible.inner, (None, 0)), (0, None))(field, states)
    return (
        jax.vmap(model.visible.linear_statistic)(states),
        joint(params, states, latents) - factors[:, None],
        inner - jax.vmap(model.visible.log_partition)(field)[:, None],
        jax.vmap(model.log_density, (None, 0))(params, states) - pj.exact.log_z(model, params),
    )


class Tiny:
    """A model on a tiny space, its states, and what the model itself says about them."""

    def __init__(self, name, bank_type=HiddenBank):
        self.visible, self.hidden, self.mask = PAIRS[name]
        self.model = self.build(HiddenBank)
        self.kernel = pj.kernels.block_gibbs(self.build(bank_type))
        rng = np.random.default_rng(5)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)
        self.raw = params
        self.params = self.model.temper(params, BETA)
        self.states = self.visible.states()
        tables = jax.device_get(tabulate(self.model, self.params, self.states))
        self.t, log_up, log_down, log_p = (np.asarray(table, float) for table in tables)
        self.up, self.down, self.pi = np.exp(log_up), np.exp(log_down), np.exp(log_p)
        self.pi /= self.pi.sum()

    def build(self, bank_type):
        bias, bank = Bias(self.visible), bank_type(self.visible, self.hidden)
        return pj.product(self.visible, bias=bias, hidden=bank)

    @functools.cached_property
    def statistic_mask(self):
        """The clamp spread over the entries of the statistic."""
        masked = []
        for mask, unit in self.blocks(self.mask):
            masked.append(np.repeat(mask, unit.num_linear // unit.num_sites))
        return np.concatenate(masked)

    def blocks(self, tree):
        if isinstance(self.visible, units.Joint):
            return [(tree[name], unit) for name, unit in self.visible.blocks.items()]
        return [(tree, self.visible)]

    def index(self, x):
        """Number of the state that each row of a batch of events is."""
        t = np.concatenate([np.reshape(v, (len(v), -1)) for v, _ in self.blocks(x)], axis=1)
        match = (t[:, None, :] == self.t[None, :, :]).all(axis=-1)
        assert match.any(axis=1).all()
        return match.argmax(axis=1)

    def rows(self, index):
        return jax.tree.map(lambda leaf: leaf[jnp.asarray(index)], self.states)

    def transition(self, clamped):
        """One sweep as a matrix, from the model's own conditionals."""
        if not clamped:
            return self.up @ self.down
        held = self.t[:, self.statistic_mask]
        agree = (held[:, None] == held[None]).all(axis=-1)
        # p(x' | z, x'_held = x_held): units are independent, so the held ones only select.
        kept = self.down[None] * agree[:, None]
        return np.einsum("xz,xzy->xy", self.up, kept / kept.sum(axis=-1, keepdims=True))

    def conditional(self, start):
        """p(x | held sites as in state `start`)."""
        held = self.t[:, self.statistic_mask]
        p = self.pi * (held == held[start]).all(axis=1)
        return p / p.sum()


@functools.cache
def tiny(name):
    return Tiny(name)


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_the_sweep_keeps_the_model_exactly(name, clamped):
    case = tiny(name)
    matrix = case.transition(clamped)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    if not clamped:
        np.testing.assert_allclose(case.pi @ matrix, case.pi, atol=1e-6)
    for start in range(len(case.pi)) if clamped else ():
        target = case.conditional(start)
        np.testing.assert_allclose(target @ matrix, target, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_the_sweep_is_that_of_the_reference(name):
    case = tiny(name)
    visible, hidden = BLOCKS[name]
    a = case.visible.linear_part(case.raw["bias"]["field"])
    b = case.hidden.linear_part(case.raw["hidden"]["b"])
    a, b, w = (np.asarray(v, float) for v in (a, b, case.raw["hidden"]["w"]))
    machine = reference.Machine(visible, hidden, a, np.zeros(len(a)), b, w, BETA)
    order = [tuple(t) for t in reference.events(visible)[0]]
    order = [order.index(tuple(t)) for t in case.t]
    for clamp in (None, case.statistic_mask):
        expected = machine.gibbs_matrix(clamp)[np.ix_(order, order)]
        found = case.transition(clamp is not None)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(case.pi, machine.probabilities()[order], atol=1e-5)


def visible_of(params, state, info):
    return state.x


@functools.partial(
    jax.jit, static_argnames=("kernel", "num_chains", "num_steps"), compiler_options=OPTIONS
)
def simulate(rng_key, kernel, params, num_chains, num_steps, x=None, clamp=None):
    """Visible events of a run at every step, [num_steps, num_chains, ...]."""
    states = pj.chains.init(rng_key, kernel, params, num_chains, x, clamp)
    states, seen = pj.chains.run(
        rng_key, kernel, params, states, num_steps, pj.chains.History(visible_of)
    )
    return seen


def after_steps(case, seed, start, num_steps=NUM_STEPS, clamp=None):
    """State numbers of chains started at the state numbers `start`."""
    if clamp is not None:
        clamp = jax.tree.map(jnp.asarray, clamp)
    key, x = jax.random.key(seed), case.rows(start)
    seen = simulate(key, case.kernel, case.params, len(start), num_steps, x, clamp)
    return case.index(jax.tree.map(lambda leaf: leaf[-1], seen))


def stationary_z_scores(case, seed=0):
    """z-scores of the counts after a few steps of chains that start from exact samples."""
    start = np.random.default_rng(seed).choice(len(case.pi), NUM_CHAINS, p=case.pi)
    counts = np.bincount(after_steps(case, seed, start), minlength=len(case.pi))
    return reference.count_z_scores(counts, case.pi)


@pytest.mark.parametrize("name", PAIRS)
def test_chains_from_exact_samples_stay_exact(name):
    z = stationary_z_scores(tiny(name))
    assert np.abs(z).max() < reference.z_threshold(z.size)


@pytest.mark.parametrize("name", PAIRS)
def test_clamped_chains_stay_at_the_conditional(name):
    case = tiny(name)
    # A value of the held sites that is neither the first nor common by chance.
    first = int(np.argsort(case.pi)[len(case.pi) // 2])
    target = case.conditional(first)
    start = np.random.default_rng(1).choice(len(target), NUM_CHAINS, p=target)
    found = after_steps(case, 1, start, clamp=case.mask)
    held = case.t[:, case.statistic_mask]
    np.testing.assert_array_equal(held[found], held[start])
    assert (found != start).mean() > 0.1  # the free sites do move
    counts = np.bincount(found, minlength=len(target))
    assert not counts[target == 0].any()
    z = reference.count_z_scores(counts[target > 0], target[target > 0])
    assert np.abs(z).max() < reference.z_threshold(z.size)


@pytest.mark.parametrize("clamped", [False, True])
def test_one_step_draws_the_rows_of_the_matrix(clamped):
    case = tiny("bernoulli-bernoulli")
    count = len(case.pi)
    per_state = NUM_CHAINS // count
    start = np.repeat(np.arange(count), per_state)
    found = after_steps(case, 2, start, num_steps=1, clamp=case.mask if clamped else None)
    matrix = case.transition(clamped)
    z = []
    for i in range(count):
        counts = np.bincount(found[start == i], minlength=count)
        possible = matrix[i] > 0
        assert not counts[~possible].any()
        z.append(reference.count_z_scores(counts[possible], matrix[i, possible]))
    z = np.concatenate(z)
    assert np.abs(z).max() < reference.z_threshold(z.size)


class WrongSign(HiddenBank):
    def visible_field(self, params, z):
        return -super().visible_field(params, z)


class TwiceBeta(HiddenBank):
    def sample_latent(self, rng_key, params, x):
        return super().sample_latent(rng_key, self.temper(params, 2.0), x)


class Transposed(HiddenBank):
    def visible_field(self, params, z):
        return super().visible_field(params | {"w": params["w"].T}, z)


class FieldWithoutBeta(HiddenBank):
    def visible_field(self, params, z):
        return super().visible_field(params | {"beta": 1.0}, z)


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("bernoulli-bernoulli", WrongSign),
        ("bernoulli-bernoulli", TwiceBeta),
        ("bernoulli-bernoulli", Transposed),
        ("bernoulli-bernoulli", FieldWithoutBeta),
        ("spin-spin", TwiceBeta),
        ("spin-spin", Transposed),
    ],
)
def test_a_wrong_kernel_fails_the_same_statistic(name, mutant):
    z = stationary_z_scores(Tiny(name, mutant))
    assert np.abs(z).max() > reference.z_threshold(z.size)


def test_a_chain_does_not_depend_on_its_neighbours():
    case = tiny("bernoulli-bernoulli")
    three, seven = (
        np.asarray(simulate(jax.random.key(4), case.kernel, case.params, num_chains, 5))
        for num_chains in (3, 7)
    )
    np.testing.assert_array_equal(three, seven[:, :3])
    assert len({chain.tobytes() for chain in seven.swapaxes(0, 1)}) > 3


def test_a_chain_keeps_the_dtype_it_started_in():
    case = tiny("bernoulli-bernoulli")
    for start, dtype in ((jnp.bfloat16, jnp.bfloat16), (bool, jnp.float32)):
        x = jnp.zeros((2, 3), start)
        seen = simulate(jax.random.key(0), case.kernel, case.params, 2, 1, x)
        assert seen.dtype == dtype


def test_clamped_gaussian_sites_condition_the_others():
    visible = units.GaussianDiag(2)
    model = pj.product(
        visible, bias=Bias(visible), hidden=HiddenBank(visible, units.StandardGaussian(1))
    )
    log_precision = jnp.array([0.4, 0.9])
    params = {
        "bias": {"field": {"linear": jnp.array([0.3, -0.5]), "log_precision": log_precision}},
        "hidden": {"w": jnp.array([[0.7], [0.9]]), "b": jnp.array([0.2])},
    }
    # log p(x) = aᵀx - ½ xᵀΛx + ½ (b + wᵀx)²: a Gaussian of precision Λ - wwᵀ.
    w = np.array([0.7, 0.9])
    precision = np.diag(np.exp([0.4, 0.9])) - np.outer(w, w)
    linear = np.array([0.3, -0.5]) + 0.2 * w
    held = 1.5
    mean = (linear[1] - precision[1, 0] * held) / precision[1, 1]
    variance = 1 / precision[1, 1]
    rng = np.random.default_rng(0)
    free = mean + np.sqrt(variance) * rng.normal(size=NUM_CHAINS)
    x = jnp.asarray(np.stack([np.full(NUM_CHAINS, held), free], axis=1), jnp.float32)
    kernel = pj.kernels.block_gibbs(model)
    clamp = jnp.array([True, False])
    seen = simulate(jax.random.key(0), kernel, params, NUM_CHAINS, NUM_STEPS, x, clamp)
    x = np.asarray(seen[-1], float)
    np.testing.assert_array_equal(x[:, 0], held)
    moments = np.stack([x[:, 1] - mean, (x[:, 1] - mean) ** 2 - variance], axis=1)
    z = reference.mean_z_scores(moments, 0)
    assert np.abs(z).max() < reference.z_threshold(z.size)
