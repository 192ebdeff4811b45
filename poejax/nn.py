"""Products inside neural networks: Flax modules that hold a product, its features, or a stack.

The only module of poejax that imports Flax.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
from flax import nnx

from poejax import _checks
from poejax._product import Product, shapes
from poejax.estimators._common import surrogate
from poejax.experts import HiddenBank
from poejax.stacks import Layer
from poejax.types import Array, Event, Params
from poejax.units import Bernoulli

__all__ = [
    "Classifier",
    "Features",
    "LinenProduct",
    "ProductModule",
]

_GLOROT = nnx.initializers.glorot_uniform()


class ProductModule(nnx.Module):
    """A product's parameters as a node of an NNX module tree.

    Args:
      model: the product.
      params: its parameters; drawn by `model.init` from `rngs.params()` when None.
      rngs: NNX random streams, used if `params` is None.

    Temperatures and masks ("beta", "present") are plain Variables, which optimizers leave alone.
    """

    def __init__(
        self, model: Product, *, params: Params | None = None, rngs: nnx.Rngs | None = None
    ) -> None:
        if params is None:
            if rngs is None:
                raise ValueError("rngs: expected nnx.Rngs where params are not given, got None")
            params = model.init(_typed(rngs.params()))
        model.check_params(params)
        self.model = model
        trained = {path for path, _ in jax.tree.leaves_with_path(shapes(model))}

        def variable(path: Any, leaf: Array) -> nnx.Variable[Array]:
            kind = nnx.Param if path in trained else nnx.Variable
            return kind(jnp.asarray(leaf))

        self.variables = nnx.data(jax.tree.map_with_path(variable, params))

    @property
    def params(self) -> Params:
        """The parameters as a plain tree, for any function of poejax."""
        return jax.tree.map(
            lambda variable: variable[...],
            self.variables,
            is_leaf=lambda node: isinstance(node, nnx.Variable),
        )

    def __call__(self, x: Event) -> Array:
        """Return the unnormalised log density of one event, []."""
        return self.model.log_density(self.params, x)

    def surrogate(self, x_data: Event, x_model: Event) -> Array:
        """Return the contrastive loss of two batches, to add to a loss of your own.

        -mean log_density(x_data) + mean log_density(x_model): its gradient is that of the negative
        log-likelihood if `x_model` [M, ...] are samples of the model, and reaches whatever network
        computed `x_data` [N, ...] as well. Its value is no likelihood.
        """
        return surrogate(self.model, self.params, x_data, x_model)


class LinenProduct(flax.linen.Module):
    """A product's parameters as a Linen module: `apply(variables, x)` is log_density of one event.

    The parameters are the variable "product" of the collection "params", so that
    `variables["params"]["product"]` goes to any function of poejax.
    """

    product: Product

    @flax.linen.compact
    def __call__(self, x: Event) -> Array:
        """Return the unnormalised log density of one event, []."""
        params = self.param("product", lambda rng_key: self.product.init(_typed(rng_key)))
        return self.product.log_density(params, x)


class Features(nnx.Module):
    """The features of a binary hidden bank as a layer: φ(x) = sigm(x W + b), or without b.

    Args:
      layer: `(model, params)`, an RBM; its weights are the layer's initial values.
      bank: name of the bank.
      bias: whether to use the hidden bias.

    Raises:
      ValueError: if there is no bank of that name with Bernoulli hidden units, or it is tempered
        or masked.

    Source: Erhan et al. (2010); Hinton & Salakhutdinov (2006).
    """

    def __init__(self, layer: Layer, bank: str = "hidden", bias: bool = True) -> None:
        model, params = layer
        expert = model.experts.get(bank)
        if not isinstance(expert, HiddenBank) or not isinstance(expert.hidden, Bernoulli):
            raise ValueError(f"bank: expected one with Bernoulli hidden units, got {expert}")
        model.check_params(params)
        if "coordinates" in params or set(params[bank]) != {"w", "b"}:
            raise ValueError(f"params: expected w and b alone in {bank!r}, got {set(params[bank])}")
        self.w = nnx.Param(jnp.asarray(params[bank]["w"]))
        self.b = nnx.Param(jnp.asarray(params[bank]["b"])) if bias else None

    def __call__(self, x: Array) -> Array:
        """Return features [..., H] of inputs [..., D]."""
        x = jnp.asarray(x)
        pre = jnp.matmul(x.astype(jnp.result_type(x, self.w.dtype)), self.w[...])
        return jax.nn.sigmoid(pre if self.b is None else pre + self.b[...])


class Classifier(nnx.Module):
    """A feed-forward network with a linear read-out, started at random or from a stack of RBMs.

    Args:
      sizes: inputs, then hidden units of each layer, e.g. (784, 500, 500).
      num_classes: number of classes C.
      rngs: NNX random streams.
      activation: of the hidden layers.
      kernel_init: initialiser of the hidden layers' weights.
      dropout: probability, in [0, 1), that a hidden unit is left out while training.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        num_classes: int,
        *,
        rngs: nnx.Rngs,
        activation: Callable[[Array], Array] = jax.nn.sigmoid,
        kernel_init: Callable[..., Any] = _GLOROT,
        dropout: float = 0.0,
    ) -> None:
        if not sizes:
            raise ValueError("sizes: expected the number of inputs at least, got none")
        for size in (*sizes, num_classes):
            _checks.positive_int("sizes, num_classes", size)
        dropout = _checks.fraction("dropout", dropout)
        self.activation = activation
        self.dropout = dropout
        self.hidden = nnx.List(
            [
                nnx.Linear(n_in, n_out, kernel_init=kernel_init, rngs=rngs)
                for n_in, n_out in itertools.pairwise(sizes)
            ]
        )
        self.readout = nnx.Linear(
            sizes[-1], num_classes, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    @classmethod
    def from_stack(
        cls,
        stack: Sequence[Layer],
        num_classes: int,
        *,
        rngs: nnx.Rngs,
        bank: str = "hidden",
        dropout: float = 0.0,
    ) -> Classifier:
        """Start every hidden layer at the weights and hidden biases of an RBM, bottom first.

        Args:
          stack: `[(model, params), ...]`, each with as many visible units as the one below has
            hidden ones.
          num_classes: number of classes C.
          rngs: NNX random streams.
          bank: name of the hidden bank in every RBM.
          dropout: as above.

        Raises:
          ValueError: if the stack is empty, its sizes do not follow on each other, or a bank is
            not binary.

        Source: Hinton, Osindero & Teh (2006); Erhan et al. (2010).
        """
        layers = [Features(layer, bank) for layer in stack]
        if not layers:
            raise ValueError("stack: expected at least one RBM, got none")
        shapes = [layer.w.shape for layer in layers]
        for below, above in itertools.pairwise(shapes):
            if below[1] != above[0]:
                raise ValueError(f"stack: expected sizes that follow on each other, got {shapes}")
        sizes = [shapes[0][0], *(shape[1] for shape in shapes)]
        network = cls(sizes, num_classes, rngs=rngs, dropout=dropout)
        for linear, layer in zip(network.hidden, layers, strict=True):
            linear.kernel = layer.w
            linear.bias = layer.b
        return network

    def __call__(self, x: Array, rng_key: Array | None = None) -> Array:
        """Return logits [..., C] of inputs [..., D]; with a key, hidden units are dropped by it."""
        for number, layer in enumerate(self.hidden):
            x = self.activation(layer(x))
            if rng_key is not None and self.dropout:
                key = jax.random.fold_in(rng_key, number)
                keep = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
                x = jnp.where(keep, x / (1 - self.dropout), 0)
        return self.readout(x)


def _typed(rng_key: Array) -> Array:
    # Linen hands on whichever kind of key its user gave.
    if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key):
        return rng_key
    return jax.random.wrap_key_data(rng_key)
