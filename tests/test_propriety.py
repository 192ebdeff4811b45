"""Which products can be normalised: verdicts against the mass of distant shells, by family."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tail_cases import DIAGONAL, KEY, PLANE, SPACE, heavy, student_t, verdict

import poejax as pj
from poejax import experts, propriety, units


@pytest.mark.parametrize(("exponent", "expected"), [(0.3, "improper"), (0.45, "proper")])
def test_verdicts_follow_the_mass_of_distant_shells(exponent, expected):
    # The mass between radii R and R + dR is R² ∫ f(R θ) dθ dlog R, of order R^(2 - 6ν) for three
    # directions: its integral is finite if that power is negative.
    model, params = student_t(PLANE, [[1, 0], [0, 1], [1, 1]], exponent)
    w = np.asarray(params["heavy"]["w"], float)
    w = w / np.linalg.norm(w, axis=0)
    angle = np.linspace(0, np.pi, 400_001)
    projections = np.stack([np.cos(angle), np.sin(angle)], -1) @ w

    def shell(radius):
        return radius**2 * np.exp(-exponent * np.log1p((radius * projections) ** 2).sum(-1)).mean()

    slope = np.log10(shell(1e4) / shell(1e3))
    assert abs(slope - (2 - 6 * exponent)) < 0.1
    assert verdict(model, params) == expected == ("proper" if slope < 0 else "improper")


def test_a_gaussian_covers_what_powers_do_not():
    visible = PLANE
    model = pj.product(
        visible,
        heavy=experts.StudentT(visible, 1),
        row=experts.Gaussian(visible, coordinate=0),
    )
    gaussian = {"mean": jnp.zeros(1), "log_precision": jnp.full(1, -30.0)}
    for direction, exponent, expected in [
        ([0, 1], 0.6, "proper"),
        ([1, 1], 0.6, "proper"),
        ([1, 1], 0.4, "improper"),
        ([1, 0], 2.0, "improper"),
    ]:
        params = {"heavy": heavy([direction], exponent), "row": gaussian}
        assert verdict(model, params) == expected, (direction, exponent)


# The other families.


def bank_beside(hidden, weights, visible=DIAGONAL, precision=0.0, **others):
    bank = experts.HiddenBank(visible, hidden)
    model = pj.product(visible, hidden=bank, broad=experts.Gaussian(visible), **others)
    params = model.init(KEY)
    params["hidden"]["w"] = jnp.asarray(weights, jnp.float32)
    params["broad"]["log_precision"] = jnp.full(3, precision)
    return model, params


def test_hidden_units_grow_where_no_gaussian_decays():
    only_first = experts.Gaussian(DIAGONAL, coordinate=0)
    binary = pj.product(DIAGONAL, h=experts.HiddenBank(DIAGONAL, units.Bernoulli(1)), g=only_first)
    params = binary.init(KEY)
    params["h"]["w"] = jnp.array([[1.0], [0], [0]])
    reason = propriety.classify(binary, params).reason
    assert "no expert decays along a 2-dimensional subspace of coordinates [1, 2]" in reason
    params["h"]["w"] = jnp.array([[1.0], [0.1], [0]])
    assert "experts ['h'] grow exponentially" in propriety.classify(binary, params).reason
    for hidden in (units.Bernoulli(2), units.Spin(2), units.Categorical(1, 2)):
        assert verdict(*bank_beside(hidden, 9 * jnp.ones((3, 2)), precision=-9.0)) == "proper"


def test_growth_is_fatal_beside_powers():
    model = pj.product(
        PLANE,
        heavy=experts.StudentT(PLANE, 2),
        hidden=experts.HiddenBank(PLANE, units.Categorical(1, 2)),
    )
    params = {"heavy": heavy(np.eye(2), 5.0), "hidden": {"w": jnp.ones((2, 2)), "b": 0.0}}
    params["hidden"]["b"] = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match=r"experts .* grow exponentially where .* all 2 dim"):
        propriety.require_proper(model, params)  # both classes tilt the same way
    params["hidden"]["w"] = jnp.array([[1.0, -1.0], [0, 0]])
    with pytest.raises(ValueError, match=r"experts \['hidden'\] grow exponentially"):
        propriety.require_proper(model, params)
    assert verdict(model, model.temper(params, 0.0)) == "improper"  # β = 0 kills them all
    params["hidden"]["w"] = jnp.zeros((2, 2))
    assert verdict(model, params) == "proper"


def test_gaussian_hidden_units_against_the_precision():
    w = jax.random.normal(KEY, (3, 4))
    largest = float(jnp.linalg.eigvalsh(w @ w.T)[-1])
    hidden = units.StandardGaussian(4)
    for factor, expected in [(1.01, "proper"), (0.99, "improper")]:
        model, params = bank_beside(hidden, w, precision=float(np.log(factor * largest)))
        assert verdict(model, params) == expected
        # By enumeration of nothing: with continuous latents only the marginal precision tells.
        total = factor * largest * np.eye(3) - np.asarray(w @ w.T)
        assert (np.linalg.eigvalsh(total)[0] > 0) == (expected == "proper")
    with pytest.raises(ValueError, match=r"experts \['hidden'\] grow .* faster somewhere"):
        propriety.require_proper(model, params)
    # Decay scales with β and growth with β², so half the temperature makes this one proper.
    assert verdict(model, model.temper(params, 0.5)) == "proper"
    full = pj.product(
        SPACE,
        hidden=experts.HiddenBank(SPACE, hidden),
        full=experts.Gaussian(SPACE, "full"),
    )
    skewed = jnp.array([3.0, -2.0, 5.0])
    for factor, expected in [(1.01, "proper"), (0.99, "improper")]:
        rows = np.eye(3)
        rows[np.triu_indices(3, 1)] = skewed
        scale = factor * np.linalg.norm(np.linalg.solve(rows.T, np.asarray(w, float)), 2)
        params = full.init(KEY)
        params["hidden"]["w"] = w
        params["full"]["log_diagonal"] = jnp.full(3, np.log(scale))
        params["full"]["off_diagonal"] = jnp.asarray(scale * skewed)
        assert verdict(full, params) == expected


def test_rectified_growth_is_told_by_bounds():
    tails = pj.tails.bounded(2)
    decay = tails._replace(decay=np.eye(2))

    def told(rows):
        found = {"g": decay, "r": tails._replace(half_square=np.array(rows, float))}
        try:
            return propriety._classify(found, pj.tails.everywhere(2)).verdict
        except propriety._Improper:
            return "improper"

    assert told([[0.9, 0], [0, 0.9]]) == "proper"
    assert told([[1.1, 0], [0, 0]]) == "improper"
    assert told([[0.8, 0.1], [0.8, -0.1]]) == "improper"  # neither row alone, but both at once
    # Opposite rows are never both on; the sufficient bound fails and no growth is found.
    assert told([[0.9, 0], [-0.9, 0]]) == "unknown"


def test_rectified_hidden_units_against_the_precision():
    w = 0.5 * jnp.ones((3, 2))  # |w|² = 0.75, and both at once 1.5
    for precision, expected in [(1.51, "proper"), (1.49, "improper")]:
        model, params = bank_beside(units.ReLU(2), w, precision=float(np.log(precision)))
        assert verdict(model, params) == expected


def test_unigauss_needs_company():
    alone = pj.product(DIAGONAL, uni=experts.Unigauss(DIAGONAL, 2))
    with pytest.raises(ValueError, match=r"uniform parts of unigauss .* such as a broad Gaussian"):
        propriety.require_proper(alone, alone.init(KEY))
    beside = pj.product(
        DIAGONAL, uni=experts.Unigauss(DIAGONAL, 2), broad=experts.Gaussian(DIAGONAL)
    )
    assert verdict(beside, beside.init(KEY)) == "proper"


def test_mixtures_decay_like_their_broadest_component():
    for joint in (False, True):
        mixture = experts.GaussianMixture(DIAGONAL, 2, joint)
        bank = experts.HiddenBank(DIAGONAL, units.StandardGaussian(1))
        model = pj.product(DIAGONAL, mixture=mixture, bank=bank)
        params = model.init(KEY)
        shape = params["mixture"]["log_precision"].shape
        log_precision = jnp.zeros(shape).at[0, 1].set(1.0)
        params["mixture"]["log_precision"] = log_precision
        for weight, expected in [(0.99, "proper"), (1.01, "improper")]:
            params["bank"]["w"] = jnp.array([[weight], [0], [0]])
            assert verdict(model, params) == expected
    # Jointly each component may be broad elsewhere: then only one of the bounds is known.
    crossed = jnp.array([[[0.0, 1, 1], [1, 0, 1]]])
    params["mixture"]["log_precision"] = crossed
    params["bank"]["w"] = jnp.full((3, 1), 0.7)
    assert verdict(model, params) == "unknown"


def test_joint_units_are_judged_on_their_real_part():
    visible = units.Joint(label=units.Categorical(1, 2), x=units.GaussianDiag(2))
    bank = experts.HiddenBank(visible, units.Bernoulli(3))
    model = pj.product(visible, bank=bank, bias=experts.Bias(visible))
    assert verdict(model, model.init(KEY)) == "proper"
    alone = pj.product(visible, bank=bank)
    params = alone.init(KEY)
    assert verdict(alone, params) == "improper"
    params["bank"]["w"] = params["bank"]["w"].at[2:].set(0)
    reason = propriety.classify(alone, params).reason
    assert reason == "no expert decays along all 2 dimensions"
    own = units.Joint(z=units.StandardGaussian(2), b=units.Bernoulli(1))
    model = pj.product(own, bank=experts.HiddenBank(own, units.Bernoulli(3)))
    assert verdict(model, model.init(KEY)) == "proper"


class Opaque(experts.Bias):
    """A family that does not say how it decays."""

    def tails(self, params):
        return None


def test_what_is_unknown_passes():
    model = pj.product(DIAGONAL, mine=Opaque(DIAGONAL), uni=experts.Unigauss(DIAGONAL, 1))
    params = model.init(KEY)
    assert propriety.classify(model, params).reason == "experts ['mine'] do not state their tails"
    propriety.require_proper(model, params)
    improper = pj.product(DIAGONAL, uni=experts.Unigauss(DIAGONAL, 1))

    @jax.jit
    def traced(params):
        propriety.require_proper(improper, params)
        return params["uni"]["logit"]

    traced(improper.init(KEY))
    discrete = pj.product(units.Bernoulli(3), mine=Opaque(units.Bernoulli(3)))
    assert verdict(discrete, discrete.init(KEY)) == "proper"


def test_powers_weigh_the_tails_of_their_expert():
    directions = [[1, 0], [0, 1], [1, 1]]
    inner = experts.StudentT(PLANE, 3)
    model = pj.product(PLANE, weighted=experts.Power(PLANE, inner))
    for weight, expected in [(0.9, "improper"), (1.1, "proper")]:
        params = {"expert": heavy(directions, 1 / 3), "log_weight": jnp.log(weight)}
        assert verdict(model, {"weighted": params}) == expected
    signed = pj.product(PLANE, weighted=experts.Power(PLANE, inner, signed=True))
    params = {"weighted": {"expert": heavy(directions, 1.0), "weight": jnp.array(-1.0)}}
    assert verdict(signed, params) == "unknown"


def test_nested_products_are_flattened_and_absent_experts_left_out():
    inner = pj.product(PLANE, heavy=experts.StudentT(PLANE, 1))
    model = pj.product(PLANE, inner=inner, other=experts.StudentT(PLANE, 1))
    params = {"inner": {"heavy": heavy([[1, 0]], 1.0)}, "other": heavy([[0, 1]], 1.0)}
    assert verdict(model, params) == "proper"
    params["inner"]["heavy"] = heavy([[1, 0]], 0.5)
    with pytest.raises(ValueError, match=r"experts \['inner.heavy'\] .* columns \[0\] of 'other'"):
        propriety.require_proper(model, params)
    masked = model.mask(params, inner=False)
    assert [name for name, _, _ in model.present(masked)] == ["other"]
    assert "no expert decays along the 1-dim" in propriety.classify(model, masked).reason


@pytest.mark.slow
@pytest.mark.parametrize("unit", [units.GaussianDiag(2), units.Gaussian(2)], ids=str)
def test_tails_state_the_density_far_out(unit):
    """Along rays, log f(s x) / s² tends to ½ (growth - decay), and the rest to the powers."""
    every = {
        "bias": experts.Bias(unit),
        "mixture": experts.GaussianMixture(unit, 2),
        "uni": experts.Unigauss(unit, 2),
        "gaussian_bank": experts.HiddenBank(unit, units.StandardGaussian(2), init_scale=1.0),
        "binary_bank": experts.HiddenBank(unit, units.Bernoulli(2), init_scale=1.0),
        "spin_bank": experts.HiddenBank(unit, units.Spin(2), init_scale=1.0),
        "classes": experts.HiddenBank(unit, units.Categorical(2, 3), init_scale=1.0),
        "row": experts.Gaussian(unit, coordinate=1),
    }
    if isinstance(unit, units.Gaussian):
        every["heavy"] = experts.StudentT(unit, 3)
        every["full"] = experts.Gaussian(unit, "full")
    for i, (name, expert) in enumerate(every.items()):
        leaves, tree = jax.tree.flatten(expert.init(jax.random.key(i)))
        keys = jax.random.split(jax.random.key(50 + i), len(leaves))
        drawn = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        params = expert.temper(jax.tree.unflatten(tree, drawn), 0.7)
        tails = expert.tails(params)
        for angle in np.linspace(0, 6, 7):
            x = np.array([np.cos(angle), np.sin(angle)])
            near, far = (float(jnp.sum(expert.log_factors(params, s * x))) for s in (1e3, 2e3))
            quadratic = ((tails.square @ x) ** 2).sum() - ((tails.decay @ x) ** 2).sum()
            linear = tails.tilt @ x
            if len(tails.spread):
                hidden = expert.hidden
                if isinstance(hidden, units.Categorical):
                    linear += (tails.spread @ x).reshape(2, 3).max(axis=1).sum()
                else:
                    linear += np.abs(tails.spread @ x).sum()
            power = tails.exponent[np.abs(tails.power @ x) > 1e-3].sum()
            expected = 0.5 * quadratic * 3e6 + linear * 1e3 - 2 * power * np.log(2)
            tolerance = 0.05 + 2e-2 * abs(expected) * bool(quadratic) + 1e-4 * abs(expected)
            assert abs(far - near - expected) < tolerance, (name, angle)


# Where it is asked.


def test_drivers_refuse_improper_models():
    model, params = student_t(PLANE, [[1, 0], [0, 1], [1, 1]], 0.3)
    match = "params: expected a normalisable model, but experts .* decay too slowly"
    x = jax.random.normal(KEY, (10, 2))
    base, betas = pj.evidence.base_rate(model, x), pj.evidence.linear_betas(3)
    kernel = pj.kernels.block_gibbs(model)
    estimator, tx = pj.estimators.cd(model), optax.sgd(0.1)
    with pytest.raises(ValueError, match=match):
        pj.evidence.ais(KEY, model, params, base, betas, 4)
    with pytest.raises(ValueError, match=match):
        pj.evidence.reverse_ais(KEY, model, params, base, betas, x)
    with pytest.raises(ValueError, match=match):
        pj.chains.init(KEY, kernel, params, 4)
    with pytest.raises(ValueError, match=match):
        pj.training.init(KEY, model, estimator, tx, x, params=params)
    pj.training.init(KEY, model, estimator, tx, x)  # drawn at ν = 1
    mask = jnp.array([True, False])
    pj.chains.init(KEY, kernel, params, 10, x, clamp=mask)  # proper given the first coordinate
