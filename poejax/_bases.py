"""Proper bases: where an annealing path starts, with exact sampler and log Z."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _meshes
from poejax._product import Product, product, split_coordinates
from poejax._strength import PARALLEL
from poejax.exact import _square_student_t as square_student_t
from poejax.experts import Bias, StudentT
from poejax.experts._gaussian import require_real
from poejax.tails import as_float64
from poejax.types import Array, Event, Params, PyTree

_TAME_EXPONENT = 0.58  # at which one draw in a million overflows float32

SampleFn = Callable[[Array, Product, Params], Event]
"""`(rng_key, model, params) -> event`, exact; compared by identity."""


def _sample_without_latents(rng_key: Array, model: Product, params: Params) -> Event:
    return model.sample_visible(rng_key, params, dict.fromkeys(params, ()))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "log_z"],
    meta_fields=["model", "sample_fn"],
)
@dataclasses.dataclass(frozen=True)
class Base:
    """A normalised start of the annealing path: a product with its log Z and an exact sampler.

    The default sampler is right for products without latents. Where `params` hold coordinates,
    `sample_fn` gets those of the experts alone and draws in coordinates.
    """

    model: Product
    params: Params
    log_z: Array
    sample_fn: SampleFn = _sample_without_latents

    def sample(self, rng_key: Array) -> Event:
        """Draw one exact event."""
        rest, _ = split_coordinates(self.params)
        return self.model.restore(self.params, self.sample_fn(rng_key, self.model, rest))

    def within(self, coordinates: PyTree) -> Base:
        """Return the base without coordinates of its own, written in those of a model.

        Raises:
          ValueError: if it has others, or was fitted without any and is no single Bias.
        """
        rest, own = split_coordinates(self.params)
        if own:
            if _checks.is_concrete(own, coordinates) and not _same(own, coordinates):
                raise ValueError("base: expected the coordinates of params, got others")
            return dataclasses.replace(self, params=rest)
        if not coordinates:
            return self
        if [type(expert) for expert in self.model.experts.values()] != [Bias]:
            raise ValueError("base: expected one in the coordinates of params, got one without")
        visible, ((name, own),) = self.model.visible, rest.items()
        moved = {name: {"field": visible.move_field(own["field"], coordinates)}}
        log_z = self.log_z - visible.log_volume(coordinates)
        return dataclasses.replace(self, params=moved, log_z=log_z)


def base_rate(
    model: Product, data: Event, smoothing: float = 0.05, *, params: Params | None = None
) -> Base:
    """Independent units with the data's means: a base for annealing that is close to the data.

    Args:
      model: the model whose evidence is wanted; only its visible units are used.
      data: batch of events [N, ...], which may be Weighted.
      smoothing: in (0, 1), share of the uniform distribution mixed in (discrete units) or relative
        increase of the variance (real units), so that the base is broader than the data.
      params: the model's, if they hold coordinates: the base is then fitted in those, which keeps
        the digits of real data far from zero, and which a full scale needs.

    Returns:
      The base, with exact sampler and log Z.

    Raises:
      ValueError: if `data` is empty, holds no events of the visible units, or has a real column
        without variance (or, for Gaussian units, that depends linearly on others).

    Source: Salakhutdinov & Murray (2008), section 4, with symmetric smoothing.
    """
    _checks.model("model", model)
    if not 0 < smoothing < 1:
        raise ValueError(f"smoothing: expected a number in (0, 1), got {smoothing}")
    return _fitted(model, data, smoothing, params)


def gaussian_base(
    model: Product, data: Event, scale: float = 1.0, *, params: Params | None = None
) -> Base:
    """Gaussian with the data's mean and covariance: a base for models with Gaussian tails.

    The covariance is full for Gaussian units, diagonal for GaussianDiag units. Its tails are
    lighter than those of Student-t models, for which take `student_t_base`.

    Args:
      model: the model whose evidence is wanted; only its visible units are used.
      data: batch of events [N, D], with N > D for a full covariance; may be Weighted.
      scale: positive factor on the standard deviations; above 1 the base is broader than the data.
      params: as for `base_rate`.

    Returns:
      The base, with exact sampler and log Z.

    Raises:
      ValueError: if the visible units are not real, or `data` is no batch of their events or has
        no variance in some direction.
    """
    _checks.model("model", model)
    require_real(model.visible)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: expected a positive number, got {scale}")
    return _fitted(model, data, scale**2 - 1, params)


def student_t_base(model: Product, params: Params, closeness: float = 0.5) -> Base:
    """As many Student-t experts as dimensions, with tails at least as heavy as the model's.

    f(x) = Π_i (α_i + (w_iᵀx)²)^(-ν_i), i = 1..D, w_i linearly independent,
    log Z = -log|det W| + Σ_i [½ log π + lgamma(ν_i - ½) - lgamma(ν_i) + (½ - ν_i) log α_i].

    The w_i are D of the model's own, those of exponent above ½ that together confine x most (a
    pivoted orthogonalisation of w_j √(2 ν_j / α_j), the square-root precisions at the mode), where
    those whose ν_i comes out above 0.58 go before others, of which draws may overflow. Each
    has ν_i = ½ + closeness (ν_j - ½), and α_i = α_j ν_i / ν_j, which leaves its curvature at the
    mode as it is. So the model's density falls at least as fast as the base's in every direction.
    Draws are exact: √α_i times a normal over the root of a Gamma(ν_i - ½), then x = W⁻ᵀ y.

    Args:
      model: a product over Gaussian units with Student-t experts, whatever else it holds.
      params: its parameters, not traced.
      closeness: in (0, 1], 1 for the model's own exponents. Keep ν_i away from ½: a
        draw overflows float32 with probability of about 10^(-38 (2 ν_i - 1)).

    Returns:
      The base, with exact sampler and log Z.

    Raises:
      ValueError: if fewer than D linearly independent directions have an exponent above ½, or
        `params` are traced or do not fit the model.

    Source: the square case is ICA; Teh, Welling, Osindero & Hinton (2003), Energy-based models for
    sparse overcomplete representations.
    """
    if not 0 < closeness <= 1:
        raise ValueError(f"closeness: expected a number in (0, 1], got {closeness}")
    _checks.model("model", model)
    model.check_params(params)
    if not _checks.is_concrete(params):
        raise ValueError("params: expected concrete values to choose directions by, got traced")
    size = model.visible.num_linear
    directions, log_scale, exponent = _student_t_experts(model, params)
    usable = exponent > 0.5
    # First those whose draws stay far from overflow; others only where these do not span.
    tame = 0.5 + closeness * (exponent[usable] - 0.5) > _TAME_EXPONENT
    chosen = _most_confining(directions[usable], log_scale[usable], exponent[usable], tame)
    if len(chosen) < size:
        raise ValueError(
            f"params: expected Student-t experts of exponent above 0.5 along {size} linearly "
            f"independent directions, got {len(chosen)} (of {len(exponent)} such experts, "
            f"{int(usable.sum())} have that exponent)"
        )
    nu = 0.5 + closeness * (exponent[usable][chosen] - 0.5)
    log_alpha = log_scale[usable][chosen] + np.log(nu / exponent[usable][chosen])
    dtype = jnp.result_type(*jax.tree.leaves(params))
    base_params = {
        "heavy": {
            "w": jnp.asarray(directions[usable][chosen].T, dtype),
            "log_scale": jnp.asarray(log_alpha, dtype),
            "log_exponent": jnp.asarray(np.log(nu), dtype),
        }
    }
    expert = StudentT(model.visible, size)
    base_model = product(model.visible, heavy=expert)
    log_z = square_student_t.log_z(base_model, base_params)
    base_params |= {"coordinates": params["coordinates"]} if "coordinates" in params else {}
    return Base(base_model, base_params, log_z, square_student_t.sample)


def _fitted(model: Product, data: Event, smoothing: float, given: Params | None) -> Base:
    visible, coordinates = model.visible, {}
    data, weights = _checks.split_weights("data", _border.tree("data", data))
    visible.check("data", data)
    visible.check_spread("data", _checks.counted(data, weights))
    if given is not None:
        model.check_params(given)
        coordinates = split_coordinates(given)[1]
        data = visible.standardize_rows(coordinates, data)
    params = {"bias": {"field": visible.fit_field(data, smoothing, weights)}}
    _checks.finite("data: base rate of a site without variance, ", params)
    log_z = visible.log_mass(params["bias"]["field"])
    params |= {"coordinates": coordinates} if coordinates else {}
    return Base(product(visible, bias=Bias(visible)), params, log_z)


def _same(a: PyTree, b: PyTree) -> bool:
    leaves, others = jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b)
    return [path for path, _ in leaves] == [path for path, _ in others] and all(
        np.array_equal(_meshes.to_host(leaf), _meshes.to_host(other))
        for (_, leaf), (_, other) in zip(leaves, others, strict=True)
    )


def _student_t_experts(model: Product, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors [J, D], log α [J] and tempered exponents [J] over all banks."""
    banks = []
    for _, expert, own in model.present(params):
        if expert.is_student_t:
            tails, log_scale = expert.tails(own), expert.student_t_terms(own).log_scale
            assert tails is not None
            banks.append((tails.power, as_float64(log_scale), tails.exponent))
    none = (np.zeros((0, model.visible.num_linear)), np.zeros(0), np.zeros(0))
    directions, log_scale, exponent = zip(none, *banks, strict=True)
    return np.concatenate(directions), np.concatenate(log_scale), np.concatenate(exponent)


def _most_confining(
    directions: np.ndarray, log_scale: np.ndarray, exponent: np.ndarray, first: np.ndarray
) -> np.ndarray:
    """Return the indices of a basis, greedily the one of largest volume of precision rows.

    Of what is left independent, those where `first` [J] holds are taken before others.
    """
    rows = np.sqrt(2 * exponent)[:, None] * np.exp(-0.5 * log_scale)[:, None] * directions
    length = np.linalg.norm(rows, axis=1)
    chosen: list[int] = []
    while len(chosen) < rows.shape[1]:
        left = np.linalg.norm(rows, axis=1)
        independent = left > PARALLEL * length
        if not independent.any():
            break
        eligible = independent & first if (independent & first).any() else independent
        best = int(np.argmax(np.where(eligible, left, 0.0)))
        chosen.append(best)
        axis = rows[best] / left[best]
        rows = rows - np.outer(rows @ axis, axis)
    return np.array(chosen, int)
