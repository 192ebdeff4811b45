"""Mixtures of multivariate Gaussians with full, diagonal or spherical covariances."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from poejax._numerics import HALF_LOG_2PI
from poejax.mixtures import _em as em
from poejax.types import Array

_FAR = 2.0**40  # standard deviations beyond which squares may overflow


class MixtureParams(NamedTuple):
    """p(x) = Σ_k π_k N(x; μ_k, Σ_k); the covariances' shape says of which kind they are.

    log_weights: log π [K], Σ π = 1.
    means: [K, D].
    covariances: [K, D, D] (full), variances [K, D] (diag) or [K] (spherical).
    """

    log_weights: Array
    means: Array
    covariances: Array

    @property
    def num_features(self) -> int:
        """D, the size of one event."""
        return int(self.means.shape[-1])

    def component_log_probs(self, x: Array) -> Array:
        """Return log N(x; μ_k, Σ_k) [K] of one event [D]."""
        shared, relative = self.relative_log_probs(x)
        return shared + relative

    def relative_log_probs(self, x: Array) -> tuple[Array, Array]:
        """Return a part that all log N(x; μ_k, Σ_k) share, [], and the rest of each, [K].

        The part is 0 but for an event far from all components, whose squared distances overflow:
        there it is that of the nearest, and the rest comes from differences of distances.
        """
        scales, roots = _roots(self.covariances, self.covariances.ndim == 3)
        largest = float(jnp.finfo(jnp.result_type(self.means)).max)

        def one(component: tuple[Array, Array, Array | None]) -> tuple[Array, Array, Array]:
            mean, scale, root = component
            whitened = jnp.clip((x - mean) / scale, -largest, largest)
            log_scales = jnp.log(jnp.broadcast_to(scale, mean.shape))
            if root is not None:
                whitened = _solve(root, whitened)
                log_scales = log_scales + jnp.log(jnp.diag(root))
            log_norm = -jnp.sum(log_scales + HALF_LOG_2PI)
            return log_norm, jnp.sum(whitened**2), _norm(whitened)

        # One component after the other: a batch of events then needs N x D, not N x K x D, memory.
        log_norms, squares, distances = jax.lax.map(one, (self.means, scales, roots))
        is_far = distances > _FAR
        squares, distances = jnp.where(is_far, 0, squares), jnp.where(is_far, distances, _FAR)
        near = log_norms - 0.5 * jnp.where(is_far, distances * distances, squares)
        # The result does not depend on the reference, so it carries no gradient.
        least = jax.lax.stop_gradient(distances.min())
        far = log_norms - (distances - least) * (0.5 * distances + 0.5 * least)
        all_far = is_far.all()
        return jnp.where(all_far, -(0.5 * least) * least, 0), jnp.where(all_far, far, near)

    def sample_component(self, rng_key: Array, component: Array) -> Array:
        """Draw one event [D] from component k."""
        mean = self.means[component]
        scale, root = _roots(self.covariances[component], self.covariances.ndim == 3)
        noise = jax.random.normal(rng_key, mean.shape, mean.dtype)
        return mean + scale * (noise if root is None else em.matmul(root, noise))


def _roots(covariances: Array, is_full: bool) -> tuple[Array, Array | None]:
    """Return standard deviations and, of full covariances, the roots of their correlations.

    Of correlations, since products of small or of large variances leave floating point.
    """
    if not is_full:
        return jnp.sqrt(covariances), None
    scales = jnp.sqrt(jnp.diagonal(covariances, axis1=-2, axis2=-1))
    correlations = covariances / scales[..., :, None] / scales[..., None, :]
    return scales, jnp.linalg.cholesky(correlations)


@jax.custom_jvp
def _norm(x: Array) -> Array:
    """Return ‖x‖ though its square overflow, in value and gradient; less than 1 it is rough."""
    unit = 2.0 ** int(0.55 * jnp.finfo(x.dtype).maxexp)
    return jnp.minimum(unit * jnp.sqrt(jnp.sum((x / unit) ** 2)), float(jnp.finfo(x.dtype).max))


@_norm.defjvp
def _norm_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    norm = _norm(x)
    return norm, jnp.sum(x / jnp.where(norm > 1, norm, 1) * tangent)


@jax.custom_jvp
def _solve(root: Array, x: Array) -> Array:
    """Return root⁻¹ x, root [D, D] lower triangular, though what is subtracted overflow."""
    size = jnp.max(jnp.abs(x))
    unit = jnp.where(size > _FAR, size, 1)
    found = unit * jax.scipy.linalg.solve_triangular(root, x / unit, lower=True)
    largest = float(jnp.finfo(x.dtype).max)
    return jnp.clip(found, -largest, largest)


@_solve.defjvp
def _solve_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (root, x), (root_tangent, x_tangent) = primals, tangents
    found = _solve(root, x)
    moved = x_tangent - em.matmul(root_tangent, found)
    return found, jax.scipy.linalg.solve_triangular(root, moved, lower=True)
