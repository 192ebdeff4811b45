"""A VAE of two views whose posteriors are fused, and what bounds its likelihood; unbatched."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import poejax as pj
from experiments.lab.encoders import two_layers
from experiments.lab.scoring import bernoulli_log_prob, log_mean_exp
from poejax.types import Array

Fusion = Literal["product", "mixture"]
Mask = tuple[bool, bool]
BOTH, ONLY_A, ONLY_B = (True, True), (True, False), (False, True)


class View(nnx.Module):
    """One view's Gaussian expert over z, and its decoder p(x | z)."""

    def __init__(self, num_pixels: int, num_hidden: int, num_latents: int, rngs: nnx.Rngs) -> None:
        """Draw the initial weights."""
        self.encoder = two_layers(num_pixels, num_hidden, 2 * num_latents, rngs)
        self.decoder = two_layers(num_latents, num_hidden, num_pixels, rngs)

    def expert(self, x: Array) -> tuple[Array, Array]:
        """Return mean and precision over z, [L] each, of the expert of one view [P]."""
        mean, raw = jnp.split(self.encoder(x), 2)
        return mean, nnx.softplus(raw) + 1e-4


class MultimodalVAE(nnx.Module):
    """p(z) Π_v p(x_v | z) with z ~ N(0, I); an event is x [2, P], one row per view."""

    def __init__(self, num_pixels: int, num_hidden: int, num_latents: int, rngs: nnx.Rngs) -> None:
        """Build two views of the same sizes."""
        self.views = nnx.List([View(num_pixels, num_hidden, num_latents, rngs) for _ in BOTH])

    def posterior(self, x: Array, mask: Mask) -> pj.gaussians.GaussianProduct:
        """Fuse the experts of the views in `mask` with the prior; the rest of x may be NaN."""
        means, precisions = map(jnp.stack, zip(*map(View.expert, self.views, x), strict=True))
        prior = jnp.zeros(means.shape[1]), jnp.ones(means.shape[1])
        return pj.gaussians.product(means, precisions, mask=jnp.array(mask), prior=prior)

    def logits(self, z: Array) -> Array:
        """Return the logits [2, P] of p(x | z)."""
        return jnp.stack([view.decoder(z) for view in self.views])


Graph = nnx.GraphDef[MultimodalVAE]


def draw(
    rng_key: Array, model: MultimodalVAE, fusion: Fusion, x: Array, given: Mask, num_samples: int
) -> tuple[Array, Array]:
    """Draw z [S, L] from q(z | views given) and return it with log p(z) - log q(z), [S].

    A mixture is drawn from in turn, as many from each component, and is mixed in q; `num_samples`
    is rounded up to a multiple of the number of components.
    """
    if fusion == "product":
        masks = [given]
    else:
        masks = [mask for mask, is_given in zip((ONLY_A, ONLY_B), given, strict=True) if is_given]
    posteriors = [model.posterior(x, mask) for mask in masks]
    keys = jax.random.split(rng_key, (len(masks), -(-num_samples // len(masks))))
    sample = jax.vmap(pj.gaussians.sample, (0, None, None))
    draws = [sample(k, q.mean, q.precision) for k, q in zip(keys, posteriors, strict=True)]
    z = jnp.concatenate(draws)
    log_prob = jax.vmap(pj.gaussians.log_prob, (None, None, 0))
    log_qs = jnp.stack([log_prob(q.mean, q.precision, z) for q in posteriors])
    log_q = jax.nn.logsumexp(log_qs, axis=0) - jnp.log(len(masks))
    return z, log_prob(jnp.zeros(z.shape[1]), jnp.ones(z.shape[1]), z) - log_q


def elbo(rng_key: Array, model: MultimodalVAE, fusion: Fusion, x: Array, subset: Mask) -> Array:
    """Estimate E_q(z | subset)[log p(x_subset, z) - log q(z | subset)], without bias, [].

    The draws are reparametrised, so its gradient is that of the ELBO, without bias too.
    """
    z, log_ratio = draw(rng_key, model, fusion, x, subset, 1)
    log_p = jax.vmap(lambda z: bernoulli_log_prob(model.logits(z), x)[np.array(subset)].sum())(z)
    return jnp.mean(log_p + log_ratio)


def score(
    rng_key: Array, model: MultimodalVAE, fusion: Fusion, x: Array, num_samples: int
) -> dict[str, Array]:
    """Score one test event x [2, P], in nats.

    From each set of given views, with S draws z_s ~ q(z | given) and
    w_s = p(a, b, z_s) / q(z_s | given):
      elbo = mean log w_s, iwae = log mean w_s: lower bounds, in expectation, on log p(a, b);
      prediction = log mean p(missing | z_s): such a bound on the log of ∫ q(z | given)
      p(missing | z) dz, which is a normalised density of the missing view;
      bit_error: share of the missing bits that mean p(missing | z_s) rounds to wrongly.
    """
    scores = {}
    for i, (name, given) in enumerate({"ab": BOTH, "a": ONLY_A, "b": ONLY_B}.items()):
        # What is not given is NaN: had it any influence, the scores would show it.
        seen = jnp.where(np.array(given)[:, None], x, jnp.nan)
        key = jax.random.fold_in(rng_key, i)
        z, log_ratio = draw(key, model, fusion, seen, given, num_samples)
        logits = jax.vmap(model.logits)(z)
        log_p = bernoulli_log_prob(logits, x)
        log_w = log_p.sum(axis=1) + log_ratio
        scores[f"{name}_elbo"] = log_w.mean()
        scores[f"{name}_iwae"] = log_mean_exp(log_w)
        if given != BOTH:
            missing = given.index(False)
            mean = jax.nn.sigmoid(logits[:, missing]).mean(axis=0)
            scores[f"{name}_prediction"] = log_mean_exp(log_p[:, missing])
            scores[f"{name}_bit_error"] = bit_error(mean, x[missing])
            scores[f"{name}_completion"] = mean
    return scores


def bit_error(p: Array, x: Array) -> Array:
    """Return the share of bits x [P] that probabilities p [P] round to wrongly."""
    return jnp.mean((p > 0.5) != (x > 0.5))
