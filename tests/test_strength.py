"""The condition over subspaces: against brute force over all subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tail_cases import KEY, PLANE, SPACE, student_t, verdict

import poejax as pj
from poejax import experts, propriety, units
from poejax._strength import MARGIN, weak_subspace


def is_strong(vectors, weights):
    """Whether every set S that does not span has rank(S) + Σ_{j not in S} weights_j > D."""
    size = vectors.shape[1]
    for chosen in itertools.product([False, True], repeat=len(vectors)):
        inside = np.array(chosen)
        rank = np.linalg.matrix_rank(vectors[inside], tol=1e-6) if inside.any() else 0
        missing = size - rank
        if missing and weights[~inside].sum() <= missing * (1 + MARGIN):
            return False
    return True


def draw_instance(rng, kind):
    size, count = rng.integers(1, 5), rng.integers(1, 9)
    if kind == "generic":
        vectors = rng.normal(size=(count, size))
    elif kind == "small integers":
        vectors = rng.integers(-1, 2, size=(count, size)).astype(float)
        vectors[(vectors == 0).all(axis=1), 0] = 1.0
    elif kind == "coordinates":
        vectors = np.eye(size)[rng.integers(size, size=count)]
    else:  # all but one in a hyperplane
        vectors = rng.normal(size=(count, size))
        vectors[1:, 0] = 0.0
        vectors[(vectors == 0).all(axis=1), 0] = 1.0
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if rng.random() < 0.5:  # ties, with sums that meet the dimension exactly
        weights = rng.choice([0.25, 0.5, 0.75, 1.0, 1.5], size=count)
    else:
        weights = rng.uniform(0, 2.5 * size / count, size=count)
    return vectors, weights


@pytest.mark.parametrize("kind", ["generic", "small integers", "coordinates", "hyperplane"])
def test_weak_subspaces_against_all_subsets(kind):
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(150):
        vectors, weights = draw_instance(rng, kind)
        found = weak_subspace(vectors, weights)
        assert (found is None) == is_strong(vectors, weights), (vectors, weights)
        outcomes.append(found is None)
        if found is not None:
            np.testing.assert_allclose(found @ found.T, np.eye(len(found)), atol=1e-9)
            seen = np.linalg.norm(vectors @ found.T, axis=1) > 1e-6
            assert weights[seen].sum() <= len(found) * (1 + 2 * MARGIN)
    assert 20 < sum(outcomes) < 130


@pytest.mark.slow
def test_a_margin_is_found_in_large_instances():
    # Columns in general position: the whole space is the weakest, so that the verdict turns on the
    # total alone.
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(288, 144))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weights = rng.uniform(0.2, 1.0, size=288)
    weights *= 144 / weights.sum()
    assert weak_subspace(vectors, 1.005 * weights) is None
    assert len(weak_subspace(vectors, 0.995 * weights)) == 144
    # 144 columns within 80 dimensions leave 64 to the other 144 columns.
    vectors[:144, 80:] = 0
    weights = np.full(288, 0.9)
    weights[144:] = 0.99 * 64 / 144
    assert len(weak_subspace(vectors, weights)) == 64
    weights[144:] = 1.01 * 64 / 144
    assert weak_subspace(vectors, weights) is None


def test_many_experts_in_many_dimensions():
    visible = units.Gaussian(144)
    model = pj.product(visible, heavy=experts.StudentT(visible, 288, init_exponent=0.255))
    assert verdict(model, model.init(KEY)) == "proper"


def test_every_direction_may_pass_and_the_plane_fail():
    three = [[1, 0], [0, 1], [1, 1]]
    model, params = student_t(PLANE, three, 0.3)
    with pytest.raises(ValueError, match=r"\['heavy'\] .* all 2 dim.* is 1.8 and must exceed 2"):
        propriety.require_proper(model, params)
    assert verdict(*student_t(PLANE, three, 0.34)) == "proper"


def test_the_error_names_the_subspace():
    # In the complement of columns 0 and 3 lives column 1 alone, with 2ν = 0.8.
    columns = [[1, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0]]
    model, params = student_t(SPACE, columns, [1.0, 0.4, 1.0, 1.0])
    message = r"1-dimensional .* to columns \[0, 2, 3\] of 'heavy': .* is 0.8 and must exceed 1"
    with pytest.raises(ValueError, match=message):
        propriety.require_proper(model, params)
    model, params = student_t(SPACE, columns[:3], 5.0)
    with pytest.raises(ValueError, match="no expert decays along the 1-dimensional"):
        propriety.require_proper(model, params)
