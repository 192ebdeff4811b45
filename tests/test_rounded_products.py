"""Products of factors rounded to bfloat16: values, derivatives and batches of both, float64's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import poejax as pj
from poejax._rounded import matmul

M, N, ROWS, MEMBERS = 7, 5, 6, 3


def rounded(v):
    return np.asarray(jnp.asarray(v, jnp.bfloat16), np.float64)


def factors(transpose, scale=1.0, offset=0.0):
    rng = np.random.default_rng(0)
    x = offset + scale * rng.normal(size=(MEMBERS, ROWS, M))
    w = rng.normal(size=(MEMBERS, M, N))
    g = scale * rng.normal(size=(MEMBERS, ROWS, N))
    w = w.swapaxes(1, 2) if transpose else w
    return tuple(jnp.asarray(v, jnp.float32) for v in (x, w, g))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("own_weights", [False, True], ids=["one w", "members"])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-6, 0.0), (1e6, 0.0), (1.0, 300.0)])
@pytest.mark.parametrize("jitted", [False, True])
def test_values_and_cotangents_sum_rounded_factors_in_float32(
    jitted, scale, offset, own_weights, transpose
):
    x, w, g = factors(transpose, scale, offset)
    w = w if own_weights else w[0]

    def batched(x, w):
        rows = jax.vmap(lambda v, w: matmul(v, w, transpose), (0, None))
        return jax.vmap(rows, (0, 0 if own_weights else None))(x, w)

    def all_three(x, w, g):
        value, pull = jax.vjp(batched, x, w)
        return value, *pull(g)

    found = (jax.jit(all_three) if jitted else all_three)(x, w, g)
    x, w, g = rounded(x), rounded(w), rounded(g)
    full = np.broadcast_to(w, (MEMBERS, *w.shape[-2:]))
    full = full.swapaxes(1, 2) if transpose else full
    by_w = np.einsum("abm,abn->anm" if transpose else "abm,abn->amn", x, g)
    expected = x @ full, g @ full.swapaxes(1, 2), by_w if own_weights else by_w.sum(0)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6 * np.abs(other).max())


def test_without_jit_too():
    x, w, _ = factors(False)
    with jax.disable_jit():
        found = jax.vmap(lambda v: matmul(v, w[0], False))(x[0])
    np.testing.assert_allclose(found, rounded(x[0]) @ rounded(w[0]), rtol=1e-5, atol=1e-6)


def test_factors_that_do_not_fit_are_refused():
    for v, w, transpose in ((7, (1, 3), False), (1, (7, 3), False), (3, (7, 4), True)):
        with pytest.raises(ValueError, match=rf"v: expected a vector of .* got \({v},\)"):
            matmul(jnp.ones(v), jnp.ones(w), transpose)


def test_gradients_of_no_rows_are_zero():
    x, w, _ = factors(False)
    grad = jax.grad(lambda w: jnp.sum(jax.vmap(lambda v: matmul(v, w, False))(x[0, :0])))
    assert not np.asarray(grad(w[0])).any()


def test_forward_and_second_derivatives():
    x, w, _ = factors(False)
    x, w = x[0, 0], w[0]
    _, tangent = jax.jvp(lambda v: matmul(v, w, False), (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(tangent, rounded(w).sum(0), rtol=1e-5)
    hessian = jax.hessian(lambda v: jnp.sum(matmul(v, w, False) ** 2))(x)
    # The cotangent is rounded once more on its way back.
    exact = 2 * rounded(w) @ rounded(w).T
    np.testing.assert_allclose(hessian, exact, rtol=2**-6, atol=2**-7)


def test_a_result_may_be_turned_in_the_same_program():
    # XLA folds a transpose into the product, which then has to be one that a CPU has.
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((64, 256), (256, 128)))

    def rows(x, w):
        return jax.vmap(lambda v: matmul(v, w, False))(x)

    expected = rounded(x) @ rounded(w)
    found = jax.jit(lambda x, w: rows(x, w).T)(x, w)
    np.testing.assert_allclose(found.T, expected, rtol=1e-4, atol=1e-4)
    found = jax.jit(lambda x: rows(x.T, w).T)(jnp.asarray(x.T))
    np.testing.assert_allclose(found.T, expected, rtol=1e-4, atol=1e-4)
    jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda v: matmul(v, w, False))))(x[:2])
    np.testing.assert_array_equal(jacobian, np.broadcast_to(rounded(w).T, (2, 128, 256)))


def low_model(size=12, num_hidden=9):
    visible, hidden = pj.units.Bernoulli(size), pj.units.Bernoulli(num_hidden)
    bank = pj.experts.HiddenBank(visible, hidden, init_scale=1.0, compute_dtype="bfloat16")
    return pj.product(visible, bias=pj.experts.Bias(visible), hidden=bank)


def test_a_cpu_multiplies_in_bfloat16():
    def lowered(model):
        x = jnp.ones((4, 12))
        grad = jax.jit(jax.grad(lambda p: jnp.sum(jax.vmap(model.log_density, (None, 0))(p, x))))
        return (
            grad.trace(model.init(jax.random.key(0))).lower(lowering_platforms=("cpu",)).as_text()
        )

    def of_matrices(text):
        lines = [line for line in text.splitlines() if "dot_general" in line]
        return [line for line in lines if "x9x" in line.split("->")[0]]

    low = of_matrices(lowered(low_model()))
    assert len(low) == 2  # the fields, and their gradient
    assert all("9xbf16" in line and "f32>" in line.split("->")[1] for line in low)


def test_the_gradient_inside_shard_map_is_that_outside():
    model = low_model()
    params = model.init(jax.random.key(0))
    count = len(jax.devices())
    x = jax.random.bernoulli(jax.random.key(1), 0.4, (8 * count, 12)).astype(jnp.float32)
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data")

    def total(params, x):
        return jnp.sum(jax.vmap(model.log_density, (None, 0))(params, x))

    # Of parameters that all devices share, the gradient is the sum over them.
    whole = jax.shard_map(
        jax.grad(total), mesh=mesh, in_specs=(jax.sharding.PartitionSpec(), rows), out_specs=jax.P()
    )
    found, expected = jax.jit(whole)(params, x), jax.grad(total)(params, x)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


def test_rows_over_devices_stay_there():
    model = low_model()
    params = model.init(jax.random.key(0))
    count = len(jax.devices())
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(jnp.ones((8 * count, 12)), rows)
    grad = jax.jit(jax.grad(lambda p, x: jnp.sum(jax.vmap(model.log_density, (None, 0))(p, x))))
    text = grad.lower(params, x).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text


def test_gradients_over_explicit_axes_are_those_of_one_device():
    model = low_model()
    params = model.init(jax.random.key(0))
    count = len(jax.devices())
    x = jax.random.bernoulli(jax.random.key(1), 0.4, (8 * count, 12)).astype(jnp.float32)
    mesh = jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    rows = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P("data")))
    shared = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.P()))

    def grads(params, x):
        log_density = jax.vmap(model.log_density, (None, 0))
        of_all = jax.grad(lambda p, x: jnp.sum(log_density(p, x)), (0, 1))(params, x)
        return of_all, jax.vmap(jax.grad(model.log_density), (None, 0))(params, x)

    def of_members(params, x):
        many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
        return jax.vmap(jax.grad(lambda p, x: grads(p, x)[0][1].sum(), 1), (0, None))(many, x)

    expected = grads(params, x)
    for fn in (grads, jax.jit(grads)):
        with jax.set_mesh(mesh):
            found = fn(shared, rows)
        kinds = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, found)
        assert kinds[0][0]["hidden"]["w"] == jax.P(None, None)
        assert kinds[0][1] == jax.P("data", None)
        assert kinds[1]["hidden"]["w"] == jax.P("data", None, None)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
    with jax.set_mesh(mesh):
        found = jax.jit(of_members)(shared, rows)
    np.testing.assert_allclose(found, of_members(params, x), rtol=1e-4, atol=1e-4)


def test_exports_with_a_symbolic_number_of_rows():
    model = low_model()
    params = model.init(jax.random.key(0))
    (rows,) = export.symbolic_shape("rows")

    def grads(params, x):
        return jax.grad(lambda p: jnp.sum(jax.vmap(model.log_density, (None, 0))(p, x)))(params)

    shape = jax.ShapeDtypeStruct((rows, 12), jnp.float32)
    made = export.export(jax.jit(grads), platforms=("cpu", "cuda", "tpu"))(
        jax.eval_shape(lambda: params), shape
    )
    x = jax.random.bernoulli(jax.random.key(1), 0.4, (5, 12)).astype(jnp.float32)
    found, expected = made.call(params, x), grads(params, x)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
