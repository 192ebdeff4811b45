"""Inside `jax.shard_map` a member of an ensemble is what it is alone; Explicit meshes are named."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import poejax as pj
from poejax import _meshes, estimators, evidence, kernels, training

KEY = jax.random.key(0)
MODEL = pj.models.rbm(9, 4)
PARAMS = MODEL.init(KEY)
KERNEL = kernels.block_gibbs(MODEL)
BARS = jnp.asarray(pj.datasets.bars_and_stripes(3), jnp.float32)
PLANE = pj.units.GaussianDiag(2)
REALS = pj.product(
    PLANE,
    gaussian=pj.experts.Gaussian(PLANE),
    hidden=pj.experts.HiddenBank(PLANE, pj.units.Bernoulli(3)),
)
POINTS = jax.random.normal(KEY, (16, 2))
BASE, BETAS = evidence.base_rate(MODEL, BARS), evidence.linear_betas(5)


def over(num_devices, kind=AxisType.Auto):
    return jax.make_mesh((num_devices,), ("c",), axis_types=(kind,))


@dataclasses.dataclass(frozen=True)
class OwnRule:
    """As a user writes one, who has not heard of meshes."""

    model: pj.Product

    def init(self, rng_key, params, data):
        return ()

    def grad(self, rng_key, params, state, batch):
        x = 1 - batch
        return jax.grad(lambda p: estimators.surrogate(self.model, p, batch, x))(params), state, ()


def grad_of(estimator, params):
    """One gradient under common parameters, from a member's own rows."""

    def member(index, x):
        state = estimator.init(KEY, params, x)
        return estimator.grad(jax.random.fold_in(KEY, index), params, state, x)[0]

    return member


def steps_of(estimator, start, own_keys=True):
    """Three steps from common parameters, so that only data, or also keys, are a member's own."""

    def member(index, x):
        key = jax.random.fold_in(KEY, index) if own_keys else KEY
        tx = optax.sgd(0.1)
        state = training.init(key, estimator, tx, x, params=start)
        return training.train_steps(estimator, tx, state, x, 4, 3)[0].params

    return member


def of_missing(index, x):
    """A gradient from rows with holes that all have in common, under a member's own key."""
    estimator = estimators.imputed(estimators.cd(MODEL), num_steps=2)
    rows = estimators.Incomplete(BARS, jnp.arange(BARS.size).reshape(BARS.shape) % 3 > 0)
    key = jax.random.fold_in(KEY, index)
    return estimator.grad(key, PARAMS, estimator.init(KEY, PARAMS, rows), rows)[0]


def annealed(index, x):
    params = PARAMS | {"bias": {"field": x[index]}}  # beside weights that all have in common
    return evidence.ais(KEY, MODEL, params, BASE, BETAS, 30).log_weights


def stepped(kernel, params, rows):
    """Chains from common rows by a common key, of parameters that differ in one leaf."""

    def member(index, x):
        name = next(iter(params))
        scale = 1 + 0.5 * jnp.mean(x)
        own = params | {name: jax.tree.map(lambda v: scale * v, params[name])}
        return pj.chains.run(KEY, kernel, own, pj.types.ChainState(rows), 3)[0].x

    return member


def _x(params, state, info):
    return state.x


def watched(observe):
    def member(index, x):
        states = pj.types.ChainState(x)
        return pj.chains.run(KEY, KERNEL, PARAMS, states, 4, observe=observe, thin=2)[1]

    return member


REAL_PARAMS = REALS.init(KEY)
MEMBERS = {
    "cd": (grad_of(estimators.cd(MODEL), PARAMS), BARS),
    "pcd": (grad_of(estimators.pcd(MODEL, 5), PARAMS), BARS),
    "imputed": (of_missing, BARS),
    "exact": (grad_of(estimators.exact(MODEL), PARAMS), BARS),
    "pseudo-likelihood": (grad_of(estimators.pseudo_likelihood(MODEL), PARAMS), BARS),
    "score matching": (grad_of(estimators.score_matching(REALS), REAL_PARAMS), POINTS),
    "train_steps by cd": (steps_of(estimators.cd(MODEL), PARAMS, own_keys=False), BARS),
    "train_steps by pcd": (steps_of(estimators.pcd(MODEL, 5), PARAMS), BARS),
    "train_steps by a rule of one's own": (steps_of(OwnRule(MODEL), PARAMS), BARS),
    "ais": (annealed, BARS),
    "gibbs with gradients": (stepped(kernels.gibbs_with_gradients(MODEL), PARAMS, BARS), BARS),
    "moments": (watched(_x), BARS),
    "history": (watched(pj.chains.History(_x)), BARS),
}


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_of_an_ensemble_is_what_it_is_alone(name, check_vma):
    member, data = MEMBERS[name]
    shares = data.reshape(2, -1, *data.shape[1:])
    alone = [jax.jit(member)(i, shares[i]) for i in range(2)]

    def one(index, x):
        return jax.tree.map(lambda v: v[None], member(index[0], x[0]))

    together = jax.jit(
        jax.shard_map(
            one,
            mesh=over(2),
            in_specs=PartitionSpec("c"),
            out_specs=PartitionSpec("c"),
            check_vma=check_vma,
        )
    )(jnp.arange(2), shares)
    jax.tree.map(
        lambda found, *wanted: np.testing.assert_allclose(found, jnp.stack(wanted), atol=1e-6),
        together,
        *alone,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [kernels.mala, kernels.hmc])
def test_gradient_kernels_too(kernel, monkeypatch):
    pytest.importorskip("blackjax")
    case = stepped(kernel(REALS, 0.1), REAL_PARAMS, POINTS), POINTS
    monkeypatch.setitem(MEMBERS, kernel.__name__, case)
    test_a_member_of_an_ensemble_is_what_it_is_alone(kernel.__name__, True)


@pytest.mark.slow
def test_without_the_cast_members_would_learn_by_the_gradients_of_all(monkeypatch):
    monkeypatch.setattr(_meshes, "alike", lambda *trees: trees)
    jax.clear_caches()
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_a_member_of_an_ensemble_is_what_it_is_alone("pcd", True)
    jax.clear_caches()


@pytest.mark.slow
def test_an_optimizer_that_takes_the_mean_over_the_mesh_learns_one_model_by_all_rows():
    estimator = estimators.exact(MODEL)
    tx = optax.chain(optax.stateless(lambda grads, _: jax.lax.pmean(grads, "c")), optax.sgd(0.1))
    plain = optax.sgd(0.1)
    wanted, _ = training.train_steps(
        estimator, plain, training.init(KEY, estimator, plain, BARS, params=PARAMS), BARS, 16, 1
    )

    @partial(jax.shard_map, mesh=over(2), in_specs=PartitionSpec("c"), out_specs=PartitionSpec())
    def learn(x):
        state = training.init(KEY, estimator, tx, x, params=PARAMS)
        return training.train_steps(estimator, tx, state, x, 8, 1)[0].params

    found = jax.jit(learn)(BARS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted.params)


EXPLICIT = NamedSharding(over(8, AxisType.Explicit), PartitionSpec("c"))
CHAINS = pj.types.ChainState(BARS)
WIDE, ROWS = pj.models.rbm(16, 8), pj.types.ChainState(jnp.ones((2, 16)))
TX, PCD = optax.sgd(0.1), estimators.pcd(MODEL, 16)


def spread_state():
    state = training.init(KEY, PCD, TX, BARS)
    return state._replace(estimator_state=jax.device_put(state.estimator_state, EXPLICIT))


def annealing(name):
    def resumed():
        state = evidence.ais_init(KEY, MODEL, PARAMS, BASE, BETAS, 16)
        state = state._replace(**{name: jax.device_put(getattr(state, name), EXPLICIT)})
        return evidence.ais_steps(state, MODEL, PARAMS, BASE, BETAS, 2)

    return resumed


def bars():
    return jax.device_put(BARS, EXPLICIT)


REFUSED = {
    "chains.run": lambda: pj.chains.run(KEY, KERNEL, PARAMS, jax.device_put(CHAINS, EXPLICIT), 2),
    "chains.init": lambda: pj.chains.init(KEY, KERNEL, PARAMS, 16, x=bars()),
    "under jit": lambda: jax.jit(
        lambda x: pj.chains.run(KEY, KERNEL, PARAMS, pj.types.ChainState(x), 2)
    )(bars()),
    "parameters": lambda: pj.chains.run(
        KEY, kernels.block_gibbs(WIDE), jax.device_put(WIDE.init(KEY), EXPLICIT), ROWS, 2
    ),
    "ais_steps": annealing("chains"),
    "ais_steps, weights": annealing("log_weights"),
    "reverse_ais": lambda: evidence.reverse_ais(KEY, MODEL, PARAMS, BASE, BETAS, bars()),
    "training.init": lambda: training.init(KEY, PCD, TX, bars()),
    "train_steps, data": lambda: training.train_steps(
        PCD, TX, training.init(KEY, PCD, TX, BARS), bars(), 4, 2
    ),
    "train_steps, chains": lambda: training.train_steps(PCD, TX, spread_state(), BARS, 4, 2),
    "log_likelihood": lambda: evidence.log_likelihood(MODEL, PARAMS, bars(), 1.0),
    "rank": lambda: pj.inference.rank(MODEL, PARAMS, bars()),
    "base_rate": lambda: evidence.base_rate(MODEL, bars()),
    "denoise": lambda: pj.inference.denoise(KEY, MODEL, PARAMS, bars(), pj.inference.BitFlips(0.1)),
    "inpaint": lambda: pj.inference.inpaint(KEY, MODEL, PARAMS, bars(), jnp.arange(9) < 4),
    "fit_em": lambda: pj.mixtures.fit_em(KEY, jax.device_put(POINTS, EXPLICIT), 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_explicit_axes_are_refused_with_the_remedy(name):
    with pytest.raises(ValueError, match=r"AxisType\.Auto"):
        REFUSED[name]()


def test_the_number_of_chains_may_be_left_open_in_an_export():
    (n,) = export.symbolic_shape("n")
    data = jax.random.key_data(KEY)
    rows = jax.ShapeDtypeStruct((n, 9), jnp.float32)
    weights = jax.ShapeDtypeStruct((n,), jnp.float32)

    def run(data, x):
        key = jax.random.wrap_key_data(data)
        return pj.chains.run(key, KERNEL, PARAMS, pj.types.ChainState(x), 3)[0].x

    def anneal(data, x, w):
        state = evidence.ais_init(jax.random.wrap_key_data(data), MODEL, PARAMS, BASE, BETAS, 2)
        state = state._replace(chains=pj.types.ChainState(x), log_weights=w, rest=0 * w)
        return evidence.ais_steps(state, MODEL, PARAMS, BASE, BETAS, 5).log_weights

    def score(x):
        return evidence.log_likelihood(MODEL, PARAMS, x, 1.0).values

    for fn, shapes, values in (
        (run, (data, rows), (data, BARS)),
        (anneal, (data, rows, weights), (data, BARS, BARS[:, 0])),
        (score, (rows,), (BARS,)),
    ):
        found = export.export(jax.jit(fn))(*shapes).call(*values)
        np.testing.assert_allclose(found, jax.jit(fn)(*values), atol=1e-6)
