"""Matrix products whose factors are rounded to bfloat16, and that sum in float32.

A cast alone would give gradients in bfloat16 too, sums over a batch of which contrastive learning
takes small differences; a dot algorithm alone is one that a CPU does not follow. So this is a
primitive of its own, whose derivatives are products of the same kind: an einsum of two factors,
whose every index is one of the other's or of the result's.
"""

from __future__ import annotations

import functools
import string
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding

from poejax import _meshes
from poejax._numerics import always
from poejax.types import Array

_ALGORITHM = jax.lax.DotAlgorithmPreset.BF16_BF16_F32
_product_p = Primitive("rounded_product")
_Terms = tuple[str, str, str]


def matmul(v: Array, w: Array, transpose: bool) -> Array:
    """Return vᵀw, or w v where it is to transpose, in float32; v and w are rounded to bfloat16."""
    if w.ndim != 2 or v.shape != (length := w.shape[1 if transpose else 0],):
        raise ValueError(f"v: expected a vector of {length} entries for w {w.shape}, got {v.shape}")
    v, w = (jnp.asarray(factor, jnp.float32) for factor in _meshes.alike(v, w))
    return _product(v, w, "k", "nk" if transpose else "kn", "n")


def _product(x: Array, y: Array, *terms: str, over: NamedSharding | None = None) -> Array:
    """Return the einsum; `over` is how it lies over Explicit axes, where that is not plain."""
    made: Array = _product_p.bind(x, y, terms=terms, over=over)
    return made


def _computed(x: Array, y: Array, **how: Any) -> Array:
    on = {"cpu": _on_cpu, "default": _by_algorithm}
    made: Array = jax.lax.platform_dependent(
        x, y, **{platform: functools.partial(fn, **how) for platform, fn in on.items()}
    )
    return made


def _by_algorithm(x: Array, y: Array, *, terms: _Terms, over: NamedSharding | None) -> Array:
    spec = "{},{}->{}".format(*terms)
    return jnp.einsum(spec, x, y, precision=_ALGORITHM, out_sharding=over)


def _on_cpu(x: Array, y: Array, *, terms: _Terms, over: NamedSharding | None) -> Array:
    # Half the time where a CPU has a unit for it, which XLA asks only where the last index of x is
    # summed over; x is turned for it, and apart from the product, as XLA would turn it back.
    (a, b, out), x, y = terms, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    turned = "".join([i for i in out if i in a] + [i for i in a if i not in out])
    if a[-1] in out and turned[-1] not in out and 0 not in x.shape:
        axes = [a.index(i) for i in turned]
        over_axes = _meshes.is_explicit(jax.typeof(x))
        x, a = (jnp.transpose(x, axes) if over_axes else _turned(x, axes)), turned
    made = jnp.einsum(
        f"{a},{b}->{out}",
        *jax.lax.optimization_barrier((x, y)),
        preferred_element_type=jnp.float32,
        out_sharding=over,
    )
    # Folded into the product, a transpose before or after it may leave one that no kernel takes.
    return jax.lax.optimization_barrier(made)


def _turned(x: Array, axes: list[int]) -> Array:
    turned: Array = jax.lax.cond(
        always(jax.lax.bitcast_convert_type(x, jnp.uint16)),
        lambda v: jnp.transpose(v, axes),
        lambda v: jnp.zeros_like(jnp.transpose(v, axes)),
        x,
    )
    return turned


def _shape(x: Any, y: Any, **how: Any) -> Any:
    return jax.make_jaxpr(functools.partial(_by_algorithm, **how))(x, y).out_avals[0]


def _batched(
    factors: Any, axes: Any, *, terms: _Terms, over: NamedSharding | None
) -> tuple[Array, int]:
    new = next(i for i in string.ascii_letters if i not in "".join(terms))
    *both, out = terms
    a, b = (
        i if axis is None else i[:axis] + new + i[axis:] for i, axis in zip(both, axes, strict=True)
    )
    if over is not None:
        of = zip(factors, axes, strict=True)
        first = next(jax.typeof(v).sharding.spec[axis] for v, axis in of if axis is not None)
        over = over.update(spec=jax.P(first, *over.spec))
    return _product(*factors, a, b, new + out, over=over), 0


def _to_x(given: Array, x: Any, y: Array, *, terms: _Terms, **_: Any) -> Array:
    a, b, out = terms
    return _product(given, y, out, b, a, over=_like(x))


def _to_y(given: Array, x: Array, y: Any, *, terms: _Terms, **_: Any) -> Array:
    a, b, out = terms
    return _product(x, given, a, out, b, over=_like(y))


def _like(factor: Any) -> NamedSharding | None:
    """Return how the cotangent of a factor lies: as the factor does."""
    return factor.aval.sharding if _meshes.is_explicit(factor.aval) else None


_product_p.def_impl(jax.jit(_computed, static_argnames=("terms", "over")))
_product_p.def_abstract_eval(_shape)
batching.primitive_batchers[_product_p] = _batched
ad.defbilinear(_product_p, _to_x, _to_y)
mlir.register_lowering(_product_p, mlir.lower_fun(_computed, multiple_results=False))
