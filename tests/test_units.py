"""Units: samples against moments, moments against log partitions, enumeration, checks, clamping."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from poejax import units

ALL = {
    "bernoulli": units.Bernoulli(3),
    "spin": units.Spin(3),
    "categorical": units.Categorical(2, 3),
    "gaussian_diag": units.GaussianDiag(3),
    "standard_gaussian": units.StandardGaussian(3),
    "relu": units.ReLU(3),
    "binomial": units.Binomial(3, 4),
    "poisson": units.Poisson(3),
    "joint": units.Joint(
        pixels=units.Spin(2), label=units.Categorical(1, 3), scores=units.GaussianDiag(2)
    ),
    "joint_of_joints": units.Joint(
        a=units.Joint(b=units.Bernoulli(1), c=units.Bernoulli(2)), d=units.StandardGaussian(1)
    ),
}
DISCRETE = {
    "bernoulli": (units.Bernoulli(4), 16),
    "spin": (units.Spin(3), 8),
    "categorical": (units.Categorical(3, 3), 27),
    "binomial": (units.Binomial(3, 2), 27),
    "joint": (units.Joint(a=units.Bernoulli(2), b=units.Categorical(1, 3), c=units.Spin(1)), 24),
}
NUM_DRAWS = 20_000
# Each of these functions runs once: what takes the time is compiling them.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def random_field(unit, seed=0):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), unit.init_field()
    )
    return unit.field(params)


def statistics(unit, x):
    """Linear statistics of a batch, [N, M], in float64."""
    return np.asarray(compiled(jax.vmap(unit.linear_statistic))(x), float)


def assert_close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ALL)
def test_mean_is_the_gradient_of_the_log_partition(name):
    unit = ALL[name]
    field = random_field(unit)

    def shifted(v):
        return unit.log_partition(unit.combine([field, unit.linear_field(v)]))

    @compiled
    def both(v):
        return jax.grad(shifted)(v), unit.linear_statistic(unit.mean(field))

    gradient, mean = both(jnp.zeros(unit.num_linear))
    assert_close(gradient, mean)


def test_precision_derivative_is_minus_half_the_second_moment():
    unit = units.GaussianDiag(3)
    field = random_field(unit)
    gradient = jax.grad(unit.log_partition)(field)["precision"]
    assert_close(gradient, -0.5 * (unit.mean(field) ** 2 + 1 / field["precision"]))


def within_one_unit(unit):
    """[M, M] mask of pairs of statistics that belong to one one-hot unit."""
    if isinstance(unit, units.Joint):
        blocks = [within_one_unit(block) for block in unit.blocks.values()]
        size = sum(len(b) for b in blocks)
        mask, start = np.zeros((size, size), bool), 0
        for b in blocks:
            mask[start : start + len(b), start : start + len(b)] = b
            start += len(b)
        return mask
    width = unit.num_linear // unit.num_sites
    return np.kron(np.eye(unit.num_sites), np.ones((width, width))) > 0


def variances(unit, field):
    """Exact variances of the linear statistic."""
    if isinstance(unit, units.Joint):
        parts = [variances(block, field[name]) for name, block in unit.blocks.items()]
        return np.concatenate(parts)
    if isinstance(unit, units.GaussianDiag):
        return 1 / np.asarray(field["precision"], float)
    if isinstance(unit, units.StandardGaussian):
        return np.ones(unit.size)
    if isinstance(unit, units.ReLU):
        mean, eta = np.asarray(unit.mean(field), float), np.asarray(field, float)
        return 1 - mean * (mean - eta)
    mean = np.asarray(unit.mean(field), float).reshape(-1)
    if isinstance(unit, units.Poisson):
        return mean
    if isinstance(unit, units.Binomial):
        return mean * (1 - mean / unit.num_trials)
    return 1 - mean**2 if isinstance(unit, units.Spin) else mean * (1 - mean)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_samples_have_the_first_and_second_moments(name):
    unit = ALL[name]
    field = random_field(unit)
    keys = jax.random.split(jax.random.key(3), NUM_DRAWS)
    t = statistics(unit, compiled(jax.vmap(unit.sample, in_axes=(0, None)))(keys, field))
    mean = np.asarray(unit.linear_statistic(unit.mean(field)), float)
    exact = np.outer(mean, mean)  # units are independent given the field
    same = within_one_unit(unit) & ~np.eye(len(mean), dtype=bool)
    exact[same] = 0.0  # two classes of one one-hot unit are never on together
    exact[np.diag_indices_from(exact)] += variances(unit, field)
    i, j = np.triu_indices(len(mean))
    random = t.std(axis=0) > 0
    seconds, expected = t[:, i] * t[:, j], exact[i, j]
    constant = seconds.std(axis=0) == 0
    assert random.all()
    assert_close(seconds[0, constant], expected[constant])
    z = np.concatenate(
        [
            reference.mean_z_scores(t, mean),
            reference.mean_z_scores(seconds[:, ~constant], expected[~constant]),
        ]
    )
    assert np.abs(z).max() < reference.z_threshold(z.size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_samples_have_the_shape_of_an_event_and_pass_the_check(name):
    unit = ALL[name]
    keys = jax.random.split(jax.random.key(0), 5)
    x = compiled(jax.vmap(unit.random_event))(keys)
    unit.check("x", x)
    shapes = jax.tree.map(lambda leaf: leaf.shape[1:], x)
    assert shapes == unit.event_shape
    assert statistics(unit, x).shape == (5, unit.num_linear)


@pytest.mark.parametrize("name", DISCRETE)
def test_states_are_all_events_once(name):
    unit, count = DISCRETE[name]
    assert unit.num_states == count
    states = unit.states()
    unit.check("states", states)
    t = statistics(unit, states)
    assert len(np.unique(t, axis=0)) == count
    one = compiled(lambda index: unit.linear_statistic(unit.state_at(index)))
    np.testing.assert_array_equal(t, np.stack([one(i) for i in range(count)]))


@pytest.mark.parametrize("name", DISCRETE)
def test_log_partition_sums_over_the_states(name):
    unit, _ = DISCRETE[name]
    field = random_field(unit)

    @compiled
    def both(field):
        states = unit.states()
        inner = jax.vmap(lambda x: unit.inner(field, x) + unit.log_base(x))(states)
        mean = jax.nn.softmax(inner) @ jax.vmap(unit.linear_statistic)(states)
        summed = jax.nn.logsumexp(inner), mean
        return summed, (unit.log_partition(field), unit.linear_statistic(unit.mean(field)))

    summed, closed = both(field)
    assert_close(summed[0], closed[0])
    assert_close(summed[1], closed[1])


@pytest.mark.parametrize("unit", [units.GaussianDiag(2), units.StandardGaussian(2)])
def test_gaussian_log_partition_is_the_integral(unit):
    field = random_field(unit)
    axis = np.linspace(-16, 16, 257)
    x = jnp.asarray(list(itertools.product(axis, repeat=2)), jnp.float32)
    log_h = compiled(jax.vmap(lambda x: unit.log_base(x) + unit.inner(field, x)))(x)
    step = float(axis[1] - axis[0])
    assert_close(jax.nn.logsumexp(log_h) + 2 * math.log(step), unit.log_partition(field))


def test_continuous_units_have_no_states():
    for unit in (units.GaussianDiag(2), units.StandardGaussian(2), units.ReLU(2), ALL["joint"]):
        assert unit.num_states is None
        with pytest.raises(ValueError, match="infinitely many events"):
            unit.states()
        with pytest.raises(ValueError, match="infinitely many events"):
            unit.state_at(jnp.asarray(0))
    with pytest.raises(ValueError, match="use state_at in chunks"):
        units.Bernoulli(25).states()


def test_improper_gaussian_says_so():
    unit = units.GaussianDiag(2)
    field = {"linear": jnp.ones(2), "precision": jnp.array([1.0, 0.0])}
    assert jnp.isposinf(unit.log_partition(field))


ONE_HOT = np.eye(3, dtype=np.float32)[[0, 2]]
BAD = [
    (units.Bernoulli(2), np.array([[0.0, 0.5]]), r"x: expected values in \{0, 1\}"),
    (units.Bernoulli(2), np.array([0.0, 1.0]), r"x: expected shape \(N, 2\)"),
    (units.Bernoulli(2), np.zeros((3, 4)), r"x: expected shape \(N, 2\) for Bernoulli"),
    (units.Bernoulli(2), np.zeros((0, 2)), "x: expected at least one row"),
    (units.Bernoulli(2), np.array([[0.0, np.nan]]), "x: expected finite values"),
    (units.Spin(2), np.array([[0.0, 1.0]]), r"x: expected values in \{-1, \+1\}"),
    (units.Categorical(2, 3), np.zeros((1, 2, 3)), "x: expected one-hot rows"),
    (units.Categorical(2, 3), 0.5 * ONE_HOT[None], "x: expected one-hot rows"),
    (units.Categorical(2, 3), np.zeros((5, 2), int), r"got \(5, 2\); of class numbers jax.nn"),
    (units.Categorical(1, 3), np.arange(3), r"one_hot\(x.reshape\(-1, 1\), 3\) makes"),
    (units.Categorical(2, 3), np.zeros((1, 6)), r"x: expected shape \(N, 2, 3\)"),
    (units.GaussianDiag(2), np.array([[np.inf, 0.0]]), "x: expected finite values"),
    (units.StandardGaussian(2), np.zeros((1, 3)), r"x: expected shape \(N, 2\)"),
    (
        units.ReLU(2),
        np.array([[0.0, -0.5]]),
        r"x: expected values >= 0 for ReLU.*got -0.5 in row 0, column 1",
    ),
    (DISCRETE["joint"][0], np.zeros((1, 6)), r"x: expected a dict of \['a', 'b', 'c'\]"),
    (DISCRETE["joint"][0], {"a": np.zeros((1, 2))}, r"x: expected a dict of .*, got \['a'\]"),
    (
        units.Joint(a=units.Bernoulli(1), b=units.Spin(1)),
        {"a": np.ones((1, 1)), "b": np.zeros((1, 1))},
        r"x\['b'\]: expected values in \{-1, \+1\}",
    ),
]


@pytest.mark.parametrize(("unit", "x", "message"), BAD)
def test_check_names_what_is_wrong(unit, x, message):
    with pytest.raises(ValueError, match=message):
        unit.check("x", x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: units.Bernoulli(0), "size: expected an integer of at least 1"),
        (lambda: units.Spin(2.5), "size: expected an integer of at least 1"),
        (lambda: units.Categorical(2, 1), "num_classes: expected at least 2"),
        (lambda: units.Joint(), "expected at least one named block"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_event_is_not_a_batch():
    with pytest.raises(ValueError, match=r"jax\.vmap for a batch"):
        units.Bernoulli(2).linear_statistic(jnp.zeros((3, 2)))


@pytest.mark.parametrize("mask", [jnp.zeros(3), jnp.zeros(3, jnp.int32)])
def test_masks_are_boolean(mask):
    with pytest.raises(TypeError, match="clamp: expected a boolean mask"):
        units.Bernoulli(3).check_mask("clamp", mask)


def test_masks_have_one_entry_per_site():
    units.Categorical(2, 3).check_mask("clamp", jnp.array([True, False]))
    with pytest.raises(ValueError, match=r"clamp: expected shape \(2,\)"):
        units.Categorical(2, 3).check_mask("clamp", jnp.zeros((2, 3), bool))


def clamp_mask(unit, fixed):
    if isinstance(unit, units.Joint):
        return {name: clamp_mask(block, fixed) for name, block in unit.blocks.items()}
    return jnp.arange(unit.num_sites) < fixed


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_clamped_sites_stay_and_the_others_are_drawn_as_before(name):
    unit = ALL[name]
    field, mask = random_field(unit), clamp_mask(unit, 1)
    x = compiled(unit.random_event)(jax.random.key(8))
    keys = jax.random.split(jax.random.key(5), NUM_DRAWS)
    draw = compiled(jax.vmap(unit.sample_clamped, in_axes=(0, None, None, None)))
    t = statistics(unit, draw(keys, field, x, mask))
    start = np.asarray(unit.linear_statistic(x))
    mean = np.asarray(unit.linear_statistic(unit.mean(field)), float)
    free = t.std(axis=0) > 0
    # A site is held in all of its statistics; what is free has the unclamped mean.
    sizes = [jnp.sum(~leaf) for leaf in jax.tree.leaves(mask)]
    assert free.any() == (sum(map(int, sizes)) > 0)
    np.testing.assert_array_equal(t[:, ~free], np.broadcast_to(start[~free], t[:, ~free].shape))
    held = np.concatenate(
        [np.repeat(m, n) for m, n in zip(flat_masks(unit, mask), flat_widths(unit), strict=True)]
    )
    np.testing.assert_array_equal(held, ~free)
    if free.any():
        z = reference.mean_z_scores(t[:, free], mean[free])
        assert np.abs(z).max() < reference.z_threshold(z.size)


def flat_masks(unit, mask):
    if not isinstance(unit, units.Joint):
        return [np.asarray(mask)]
    return [m for name, block in unit.blocks.items() for m in flat_masks(block, mask[name])]


def flat_widths(unit):
    if not isinstance(unit, units.Joint):
        return [unit.num_linear // unit.num_sites]
    return [w for block in unit.blocks.values() for w in flat_widths(block)]
