"""An autoencoder whose code is binary and whose prior is a product of experts: loss and bounds."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import poejax as pj
from experiments.lab.encoders import two_layers
from experiments.lab.scoring import bernoulli_log_prob, log_mean_exp
from poejax import nn
from poejax.types import Array


class BinaryAutoencoder(nnx.Module):
    """Encoder, decoder, and a prior that is any product over the code."""

    def __init__(self, num_pixels: int, num_hidden: int, prior: pj.Product, rngs: nnx.Rngs) -> None:
        size = prior.visible.num_sites
        self.encoder = two_layers(num_pixels, num_hidden, size, rngs)
        self.decoder = two_layers(size, num_hidden, num_pixels, rngs)
        self.prior = nn.ProductModule(prior, rngs=rngs)

    def terms(self, x: Array, z: Array) -> tuple[Array, Array, Array]:
        """Return log p(x | z), the unnormalised log p(z) and log q(z | x), [K, B] each.

        Images x are [B, D], codes z [K, B, L].
        """
        log_p = bernoulli_log_prob(self.decoder(z), x)
        log_q = bernoulli_log_prob(self.encoder(x), z)
        return log_p, jax.vmap(jax.vmap(self.prior))(z), log_q


def draw_codes(rng_key: Array, model: BinaryAutoencoder, x: Array, num_codes: int) -> Array:
    """Draw codes z ~ q(z | x), [K, B, L]."""
    p = jax.nn.sigmoid(model.encoder(x))
    return jax.random.bernoulli(rng_key, p, (num_codes, *p.shape)).astype(p.dtype)


def loss(model: BinaryAutoencoder, x: Array, z: Array, chains: Array) -> Array:
    """Return a number whose gradient estimates that of -ELBO + log Z's part by the chains.

    Args:
      model: the autoencoder.
      x: images [B, D].
      z: codes [K, B, L] drawn by its encoder.
      chains: samples of its prior [M, L].
    """
    log_p, log_prior, log_q = model.terms(x, z)
    # log Z is the same for all codes: it drops out of the signal minus its baseline.
    signal = jax.lax.stop_gradient(log_p + log_prior - log_q)
    baseline = (jnp.sum(signal, axis=0) - signal) / (z.shape[0] - 1)
    # E_q[∂ log q] = 0, so the entropy needs no term of its own.
    reinforce = (signal - baseline) * log_q
    contrast = model.prior.surrogate(z.reshape(-1, z.shape[-1]), chains)
    return contrast - jnp.mean(log_p + reinforce)


Graph = nnx.GraphDef[BinaryAutoencoder]


@dataclasses.dataclass(frozen=True)
class Rule:
    """An estimator of the gradient of -ELBO; its state are the prior's persistent chains."""

    graph: Graph
    num_codes: int
    num_chains: int
    gibbs_steps: int
    model: Any = None  # what is learned is more than the prior
    check_data: Any = None

    def _kernel(self, params: Any) -> tuple[Any, pj.types.Params]:
        prior = nnx.merge(self.graph, params).prior
        return pj.kernels.block_gibbs(prior.model), prior.params

    def init(self, rng_key: Array, params: Any, data: Array) -> Any:
        """Start the chains at random."""
        del data
        return pj.chains.init(rng_key, *self._kernel(params), self.num_chains)

    def grad(
        self, rng_key: Array, params: Any, state: Any, batch: Array
    ) -> tuple[Any, Any, pj.types.LossInfo]:
        """Estimate the gradient from bits [B, D]."""
        code_key, chain_key = jax.random.split(rng_key)
        z = draw_codes(code_key, nnx.merge(self.graph, params), batch, self.num_codes)
        kernel, prior = self._kernel(params)
        state, _ = pj.chains.run(chain_key, kernel, prior, state, self.gibbs_steps)

        def of(params: Any) -> Array:
            return loss(nnx.merge(self.graph, params), batch, z, state.x)

        value, grads = jax.value_and_grad(of)(params)
        return grads, state, pj.types.LossInfo(value)


@functools.partial(jax.jit, static_argnames=("graph", "num_samples"))
def bounds(
    rng_key: Array, graph: Graph, params: Any, x: Array, log_z: Array, num_samples: int
) -> dict[str, Array]:
    """Return bounds on log p(x) of bits x [N, D] in nats, and KL(q, prior), means over images.

    The ELBO; the importance-weighted bound of all samples (Burda et al. 2016); both use log Z.
    """
    model = nnx.merge(graph, params)

    def one(inputs: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        key, x = inputs
        log_p, log_prior, log_q = model.terms(x[None], draw_codes(key, model, x[None], num_samples))
        kl = log_q - (log_prior - log_z)
        log_w = log_p - kl
        return log_w.mean(), log_mean_exp(log_w), kl.mean()

    elbo, iwae, kl = jax.lax.map(one, (jax.random.split(rng_key, x.shape[0]), x), batch_size=25)
    return {"elbo": elbo.mean(), "iwae": iwae.mean(), "kl": kl.mean()}
