"""Named models: products of a few lines."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from poejax import _border, _checks
from poejax._product import Product, product
from poejax.experts import Bias, GaussianMixture, HiddenBank, StudentT
from poejax.types import Array, Params
from poejax.units import Bernoulli, Gaussian, GaussianDiag

__all__ = [
    "gaussian_rbm",
    "product_of_gaussian_mixtures",
    "product_of_student_t",
    "rbm",
    "rbm_from_log_probs",
]


def rbm(
    num_visible: int,
    num_hidden: int,
    visible_bias: bool = True,
    *,
    compute_dtype: str | None = None,
) -> Product:
    """Binary restricted Boltzmann machine: a product of experts 1 + exp(w_jᵀx + b_j).

    log p(x) = aᵀx + Σ_j softplus(w_jᵀx + b_j) - log Z

    Args:
      num_visible: number D of visible units in {0, 1}.
      num_hidden: number H of hidden units in {0, 1}.
      visible_bias: whether to include the expert exp(aᵀx).
      compute_dtype: "bfloat16" rounds the factors of matrix products; see `experts.HiddenBank`. To
        learn and to sample fast: a likelihood is best measured without.

    Returns:
      Product with params {"bias": {"field": [D]}, "hidden": {"w": [D, H], "b": [H]}}.

    Raises:
      ValueError: if a count is not positive, or `compute_dtype` is another.
      TypeError: if `visible_bias` is no bool.

    Source: Smolensky (1986); Hinton (2002), section 4.
    """
    if not isinstance(visible_bias, bool):
        raise TypeError(f"visible_bias: expected a bool, got {_checks.describe(visible_bias)}")
    visible = Bernoulli(_checks.positive_int("num_visible", num_visible))
    latent = Bernoulli(_checks.positive_int("num_hidden", num_hidden))
    hidden = HiddenBank(visible, latent, compute_dtype=compute_dtype)
    if not visible_bias:
        return product(visible, hidden=hidden)
    return product(visible, bias=Bias(visible), hidden=hidden)


def gaussian_rbm(num_visible: int, num_hidden: int) -> Product:
    """RBM with real visible and binary hidden units.

    log p(x) = -½ Σ_i λ_i (x_i - linear_i / λ_i)² + Σ_j softplus(w_jᵀx + b_j) - log Z

    with λ_i = exp(log_precision_i). Start from `init_from`, whose coordinates suit data in any
    units, or learn by `recipes.fit_gaussian_rbm`.

    Args:
      num_visible: number D of real visible units.
      num_hidden: number H of hidden units in {0, 1}.

    Returns:
      Product with params {"bias": {"field": {"linear": [D], "log_precision": [D]}},
      "hidden": {"w": [D, H], "b": [H]}}.
    """
    visible = GaussianDiag(_checks.positive_int("num_visible", num_visible))
    hidden = HiddenBank(visible, Bernoulli(_checks.positive_int("num_hidden", num_hidden)))
    return product(visible, bias=Bias(visible), hidden=hidden)


def product_of_student_t(num_visible: int, num_experts: int) -> Product:
    """Product of Student-t experts, the energy-based relative of independent components.

    log p(x) = -Σ_j ν_j log(α_j + (w_jᵀx)²) - log Z, |w_j| = 1

    At init ν_j = 1, proper if num_experts > num_visible / 2 directions are in general position.

    Args:
      num_visible: number D of real visible units.
      num_experts: number J of directions.

    Returns:
      Product with params {"student_t": {"w": [D, J], "log_scale": [J], "log_exponent": [J]}}.

    Source: Teh, Welling, Osindero & Hinton (2003), Energy-based models for sparse overcomplete
    representations.
    """
    visible = Gaussian(_checks.positive_int("num_visible", num_visible))
    return product(visible, student_t=StudentT(visible, num_experts))


def product_of_gaussian_mixtures(
    num_visible: int, num_experts: int, num_components: int = 2
) -> Product:
    """Product of mixtures of Gaussians over all of x.

    p(x) = (1/Z) Π_m Σ_k π_mk Π_i N(x_i; μ_mki, σ²_mki), m = 1..num_experts

    Args:
      num_visible: number D of real visible units.
      num_experts: number M of mixtures.
      num_components: number K of Gaussians in each; the product is a mixture of K^M.

    Returns:
      Product with params {"mixture_0": ..., ...}, each those of a joint GaussianMixture.

    Source: Hinton (2002), section 5.
    """
    visible = GaussianDiag(_checks.positive_int("num_visible", num_visible))
    expert = GaussianMixture(visible, num_components, joint=True)
    names = [f"mixture_{m}" for m in range(_checks.positive_int("num_experts", num_experts))]
    return product(visible, **dict.fromkeys(names, expert))


def rbm_from_log_probs(log_probs: Array) -> tuple[Product, Params]:
    """Build an RBM with a prescribed distribution: one softplus expert per corner of the cube.

    The expert of corner c has w = α (2c - 1) and is on at c only: it multiplies p(c) by
    1 + exp(v_c) = S exp(log_probs_c), and leaves the other corners alone as α grows. Corners
    rarer than about 1e-7 of the likeliest come out as rare as that.

    Args:
      log_probs: log probabilities of {0, 1}^d, [2^d]; entry i belongs to the corner whose bit k is
        (i >> k) & 1. Need not be normalised; -inf is allowed.

    Returns:
      `(model, params)`, an RBM without visible bias with 2^d hidden units.

    Raises:
      ValueError: if the length is no power of two, or no entry is finite, or any is NaN or +inf.

    Source: the idea of Le Roux & Bengio (2008), Theorem 2, without its induction.
    """
    log_probs = jnp.asarray(_border.array("log_probs", log_probs), jnp.result_type(float))
    num_corners = log_probs.size
    if log_probs.ndim != 1 or num_corners < 2 or num_corners & (num_corners - 1):
        raise ValueError(f"log_probs: expected shape (2**d,), d >= 1, got {log_probs.shape}")
    if _checks.is_concrete(log_probs) and not bool(
        jnp.all(log_probs < jnp.inf) & jnp.any(log_probs > -jnp.inf)
    ):
        raise ValueError("log_probs: expected values below +inf, at least one finite, got others")
    dim = num_corners.bit_length() - 1
    model = rbm(dim, num_corners, visible_bias=False)

    floor = jnp.maximum(jnp.min(log_probs), jnp.max(log_probs) - math.log(1e7 * num_corners))
    t = jnp.maximum(log_probs - floor + math.log(2.0), 0.0)  # log of the factor at its own corner
    v = t + jnp.log(-jnp.expm1(-jnp.maximum(t, 1e-6)))
    # At every other corner an expert is at most exp(max v - α) away from one; all 2^d of them
    # together stay below 1e-7.
    alpha = jnp.ceil(jnp.max(v) + dim * math.log(2.0) + 16.0)
    corners = jax.vmap(model.visible.state_at)(jnp.arange(num_corners))
    w = alpha * (2 * corners - 1)
    return model, {"hidden": {"w": w.T, "b": v - alpha * corners.sum(axis=1)}}
