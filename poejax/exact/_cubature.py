"""Adaptive quadrature of any product over one to three real units."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _meshes
from poejax._product import Product, split_coordinates
from poejax.exact._enumeration import log_sum_exp
from poejax.exact._factors import in_default_float
from poejax.types import Array, Params

MAX_DIMS = 3
TOLERANCE = 1e-3  # nats
_STAGES = 20
_STEPS = {1: 16, 2: 16, 3: 16}  # refinements per stage
_SPLITS = {1: 16, 2: 64, 3: 128}  # cells halved per refinement
_SHELLS = 16  # initial cells along the radius
_COLD = 12  # stages before the density counts at full strength


class Quadrature(NamedTuple):
    """log Z by quadrature and the error to expect of it, in nats, [] each."""

    log_z: Array
    error: Array


class _Cells(NamedTuple):
    """Boxes in (u / reach, v) of a face: lower corner and widths [C, D]; φ at the nodes [C, n^D].

    φ is the log density with the Jacobian. Cells not yet in use have width 0 and φ = -inf.
    """

    face: Array
    low: Array
    width: Array
    values: Array


class _Frame(NamedTuple):
    """Where the mapping is anchored: the mode, its narrowest scale, the logarithmic range."""

    centre: Array
    scale: Array
    reach: Array


def applies(model: Product) -> bool:
    """Whether the visible units are at most three real numbers."""
    return model.visible.is_quadratic and model.visible.num_linear <= MAX_DIMS


def quadrature(model: Product, params: Params) -> Quadrature:
    """Integrate exp(log_density) over one to three real units, with an estimate of the error.

    Space is cut into the 2D pyramids between a centre c (the mode) and the faces of a cube,
    x = c + r v, |v|_∞ = 1, r = s (e^u - 1), which turns power-law tails into exponential ones, and
    ridges that run to infinity into wedges of fixed direction. Boxes in (u, v) with 5-point
    Gauss-Legendre nodes per axis are halved where two rules differ most, at first for a flattened
    density so that no far-off mode is missed that the flat one shows. The boxes are a function of
    params but are held fixed under differentiation.

    Nothing but `log_density` is used. The error adds up what the last third of the nodes changed,
    the differences between 5 and 3 nodes per axis, and the mass that a power law would leave beyond
    the last radius; it is inf where log Z itself has no digits left (beyond 1e5 in float32). It
    cannot know of a peak that no node has come near, one a thousand times narrower than it is far
    away or whose foot is hidden.

    Args:
      model: a product over at most three real visible units.
      params: its parameters.

    Returns:
      Quadrature(log_z, error); log_z is +inf where the density does not fall off.

    Raises:
      ValueError: if the visible units are not one to three real numbers, or params do not fit.
    """
    if not applies(model):
        raise ValueError(
            f"quadrature: expected at most {MAX_DIMS} real visible units, got {model.visible}"
        )
    model.check_params(params)
    return integrate(model, split_coordinates(params)[0])


def log_z(model: Product, params: Params) -> Array:
    """Return log Z by quadrature, NaN if it did not converge to `TOLERANCE`."""
    found = integrate(model, params)
    # Not `where(error < ...)` around +inf: an improper product is told apart from a hard one.
    good = (found.error <= TOLERANCE) | (found.log_z == jnp.inf)
    return jnp.where(good, found.log_z, jnp.nan)


@functools.partial(jax.jit, static_argnames="model")
def integrate(model: Product, params: Params) -> Quadrature:
    """`quadrature` without its checks."""
    params = in_default_float(params)
    fixed = jax.lax.stop_gradient(params)
    frame = _frame(model, fixed)
    cells, totals = _refine(model, fixed, frame)
    num_nodes = cells.values.shape[1]

    def log_weight(index: Array) -> Array:
        cell = (leaf[index] for leaf in cells[:3])
        return _log_integral(_values(model, params, frame, *cell), cells.width[index])

    total = log_sum_exp(log_weight, len(cells.face), num_nodes * max(model.num_factors, 4))
    change = jnp.abs(totals[_COLD] - totals[-1])  # from two thirds of the nodes to all
    doubt, _ = _errors(cells.values, cells.width, jnp.ones((), total.dtype))
    beyond = _beyond(cells, totals[-1])
    error = change + jnp.exp(jax.nn.logsumexp(doubt) - totals[-1]) + beyond
    # So far out differences of log densities are rounding: a density that grows ends up there.
    rounding = jnp.finfo(total.dtype).eps * jnp.abs(jax.lax.stop_gradient(total))
    error = jnp.where(rounding > 10 * TOLERANCE, jnp.inf, error)
    improper = (beyond == jnp.inf) | (total == jnp.inf)
    return Quadrature(
        jnp.where(improper, jnp.inf, total), jnp.where(jnp.isnan(error), jnp.inf, error)
    )


def _beyond(cells: _Cells, total: Array) -> Array:
    """Return the share of mass beyond the last shell, if the density goes on as a power law.

    +inf where the mass does not fall from the third quarter of the logarithmic radius to the last.
    """
    place, by_cell = cells.low[:, 0], _log_integral(cells.values, cells.width)
    third, last = (
        jnp.exp(jax.nn.logsumexp(by_cell, where=(place >= low) & (place < low + 0.25)) - total)
        for low in (0.5, 0.75)
    )
    ratio = last / jnp.maximum(third, jnp.finfo(last.dtype).tiny)
    power_law = last * ratio / (1 - jnp.minimum(ratio, 0.9))
    return jnp.where(last < 1e-6, last, jnp.where(ratio > 0.9, jnp.inf, power_law))


def _refine(model: Product, params: Params, frame: _Frame) -> tuple[_Cells, Array]:
    """Return the final cells, and log Z after every stage."""
    size = model.visible.num_linear
    face, low, width = _initial(size)
    num_start, num_splits, num_steps = len(face), _SPLITS[size], _STEPS[size]
    capacity = num_start + num_splits * num_steps * _STAGES
    evaluate = jax.vmap(functools.partial(_values, model, params, frame))
    dtype = frame.centre.dtype
    boxes = [jnp.asarray(face), jnp.asarray(low, dtype), jnp.asarray(width, dtype)]
    values = evaluate(*boxes)
    spare = capacity - num_start
    padded = [jnp.pad(a, [(0, spare)] + [(0, 0)] * (a.ndim - 1)) for a in boxes]
    empty = jnp.full((spare, values.shape[1]), -jnp.inf, values.dtype)
    cells = _Cells(padded[0], padded[1], padded[2], jnp.concatenate([values, empty]))

    def stage(carry: tuple[_Cells, Array], beta: Array) -> tuple[tuple[_Cells, Array], Array]:
        cells, used = carry
        error, axis = _errors(cells.values, cells.width, beta)

        def step(_: Array, state: tuple[_Cells, Array, Array, Array]) -> tuple:
            cells, error, axis, used = state
            _, parent = jax.lax.top_k(error, num_splits)
            half = jax.nn.one_hot(axis[parent], size, dtype=dtype) * cells.width[parent] / 2
            old = cells.face[parent], cells.low[parent], cells.width[parent] - half
            new = old[0], old[1] + half, old[2]
            for place, box in ((parent, old), (used + jnp.arange(num_splits), new)):
                fresh = _Cells(*box, evaluate(*box))
                cells = jax.tree.map(lambda a, b, i=place: a.at[i].set(b), cells, fresh)
                fresh_error, fresh_axis = _errors(fresh.values, fresh.width, beta)
                error, axis = error.at[place].set(fresh_error), axis.at[place].set(fresh_axis)
            return cells, error, axis, used + num_splits

        cells, _, _, used = jax.lax.fori_loop(0, num_steps, step, (cells, error, axis, used))
        return (cells, used), jax.nn.logsumexp(_log_integral(cells.values, cells.width))

    betas = jnp.minimum(1.0, 4.0 ** (jnp.arange(_STAGES, dtype=dtype) - _COLD))
    start = _meshes.alike((cells, jnp.asarray(num_start)), params)[0]
    (cells, _), totals = jax.lax.scan(stage, start, betas)
    return cells, totals


def _errors(values: Array, width: Array, beta: Array) -> tuple[Array, Array]:
    """Return each cell's largest log difference between rules for exp(beta φ), and its axis."""
    top = jnp.max(values, axis=1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    rules = jnp.asarray(_rules(width.shape[1]), values.dtype)
    parts = jnp.abs(jnp.matmul(jnp.exp(beta * (values - top)), rules, precision="highest"))
    log_part = jnp.log(jnp.max(parts, axis=1)) + jnp.sum(jnp.log(width), axis=1)
    return log_part + beta * top[:, 0], jnp.argmax(parts, axis=1)


def _values(
    model: Product, params: Params, frame: _Frame, face: Array, low: Array, width: Array
) -> Array:
    """Return φ at the nodes of one cell, [n^D]."""
    size = model.visible.num_linear

    def one(node: Array) -> Array:
        place = low + width * node
        u = frame.reach * place[0]
        radius = frame.scale * jnp.expm1(u)
        x = frame.centre + radius * _direction(size, face, place[1:])
        log_jacobian = (size - 1) * jnp.log(radius) + jnp.log(frame.scale * frame.reach) + u
        return (model.log_density(params, x) + log_jacobian).astype(x.dtype)

    values = jax.vmap(one)(jnp.asarray(_nodes(size)[0], low.dtype))
    # Far out, differences of overflowing terms are NaN; they stand for nothing.
    return jnp.where(jnp.isnan(values), -jnp.inf, values)


def _log_integral(values: Array, width: Array) -> Array:
    """Return log ∫ exp φ over cells, from φ [..., n^D] and widths [..., D]."""
    log_weights = jnp.asarray(_nodes(width.shape[-1])[1], values.dtype)
    return jax.nn.logsumexp(values + log_weights, axis=-1) + jnp.sum(jnp.log(width), axis=-1)


def _direction(size: int, face: Array, v: Array) -> Array:
    """Return the point on the cube's surface at `v` [D - 1] of a face: x_a = ±1, others v."""
    axis = face // 2
    full = jnp.concatenate([jnp.where(face % 2 == 0, 1.0, -1.0)[None].astype(v.dtype), v])
    return jnp.take(full, (jnp.arange(size) - axis) % size)


def _frame(model: Product, params: Params) -> _Frame:
    """Find the mode, moving to the best of many points at all distances, and its scale."""
    size, dtype = model.visible.num_linear, jnp.result_type(float, *jax.tree.leaves(params))
    ways = np.array([d for d in itertools.product((-1, 0, 1), repeat=size) if any(d)])
    radii = jnp.asarray(2.0 ** np.arange(-26, 27), dtype)
    offsets = radii[:, None, None] * jnp.asarray(ways, dtype)  # [radii, ways, D]

    def log_density(x: Array) -> Array:
        value = model.log_density(params, x).astype(dtype)
        return jnp.where(jnp.isnan(value), -jnp.inf, value)

    def move(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centre, best = state
        # A Newton step follows a narrow bent ridge, where the points around it would zigzag.
        newton = jnp.linalg.solve(-jax.hessian(log_density)(centre), jax.grad(log_density)(centre))
        places = jnp.concatenate([(centre + offsets).reshape(-1, size), (centre + newton)[None]])
        found = jax.vmap(log_density)(places)
        index = jnp.argmax(found)
        better = found[index] > best
        return jnp.where(better, places[index], centre), jnp.where(better, found[index], best)

    origin = jnp.zeros(size, dtype)
    start = _meshes.alike((origin, log_density(origin)), params)[0]
    centre, best = jax.lax.fori_loop(0, 64, move, start)
    around = jax.vmap(jax.vmap(log_density))(centre + offsets)
    fallen = jnp.max(best - around, axis=1) > 1.0
    scale = jnp.where(jnp.any(fallen), radii[jnp.argmax(fallen)], 1.0)
    if size == 1:
        reach = jnp.log(float(jnp.finfo(dtype).max) ** 0.45 / scale)  # squares are still numbers
    else:
        reach = jnp.log(jnp.asarray(0.1 / jnp.finfo(dtype).eps, dtype))  # ridges are still resolved
    return _Frame(centre, scale, reach)


@functools.cache
def _initial(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the first cells: every face, shells along q, halves along v."""
    axes = [
        np.arange(2 * size),
        np.arange(_SHELLS) / _SHELLS,
        *[np.array([-1.0, 0.0])] * (size - 1),
    ]
    corners = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
    widths = np.broadcast_to([1 / _SHELLS] + [1.0] * (size - 1), (len(corners), size))
    return corners[:, 0].astype(np.int32), corners[:, 1:], widths


@functools.cache
def _nodes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes of the unit box and their log weights, [n^D, D] and [n^D]."""
    points, weights = np.polynomial.legendre.leggauss(5)
    nodes = np.stack(np.meshgrid(*[(points + 1) / 2] * size, indexing="ij"), -1).reshape(-1, size)
    return nodes, np.log(_outer([weights / 2] * size))


@functools.cache
def _rules(size: int) -> np.ndarray:
    """Return, per axis, the 5-point rule minus the one with 3 of its nodes there, [n^D, D]."""
    points, weights = np.polynomial.legendre.leggauss(5)
    outer = 1 / (3 * points[0] ** 2)
    three = np.array([outer, 0, 2 - 2 * outer, 0, outer])
    one, difference = weights / 2, (weights - three) / 2
    rules = [
        _outer([difference if i == axis else one for i in range(size)]) for axis in range(size)
    ]
    return np.stack(rules, axis=1)


def _outer(factors: list[np.ndarray]) -> np.ndarray:
    return functools.reduce(np.multiply.outer, factors).ravel()
