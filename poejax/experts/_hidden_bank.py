"""A bank of hidden units coupled to the visible ones by a weight matrix: the RBM's experts."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from poejax import _checks, _rounded
from poejax._numerics import HALF_LOG_2PI, map_rows, widen
from poejax.experts._base import Expert, get_beta, require_units, set_beta, statistic_changes
from poejax.experts._forms import Bank, Coupling
from poejax.tails import Tails, as_float64
from poejax.types import Array, Event, Field, Latent, Params
from poejax.units import Unit

_WHOLE_NUMBERS = 257  # 0 to 256, which bfloat16 holds exactly


@dataclasses.dataclass(frozen=True)
class HiddenBank(Expert):
    """Hidden units z, one expert each: log f_j(x) = A_hidden(b + t(x)ᵀW)_j.

    For binary hidden units log f_j(x) = softplus(w_jᵀx + b_j), the expert 1 + exp(w_jᵀx + b_j):
    large where w_jᵀx + b_j > 0, and 0 where the expert withdraws. Given x the hidden units are
    independent with field b + t(x)ᵀW; given z they add the field W z.

    Params: {"w": [M, N], "b": field of the hidden units}, with M and N the lengths of the linear
    statistics of visible and hidden units; w ~ N(0, init_scale²) and b = 0 at init.

    Args:
      visible: the visible units.
      hidden: hidden units with a proper base measure: Bernoulli, Spin, Categorical,
        StandardGaussian, ReLU, or a Joint of these.
      init_scale: standard deviation of the initial weights; 0.01 as in Hinton (2010), section 8.
      compute_dtype: "bfloat16" multiplies by weights rounded to 8 significant bits, which are then
        those of the density too, for units of a few whole values, which it holds exactly; hidden
        means are rounded in gradients (near 1 in steps of 2^-8). Products accumulate, and all else
        runs, in float32. It saves time where hundreds of rows share the weights, on a processor
        with a unit for it: TPUs, GPUs, CPUs with AVX512-BF16 or AMX; few rows, and other CPUs, take
        longer. None follows JAX's `default_matmul_precision`, which on TPU and GPU may round too.

    Source: Smolensky (1986), Hinton (2002); Welling, Rosen-Zvi & Hinton (2004) for general units.
    """

    hidden: Unit
    init_scale: float = 0.01
    compute_dtype: str | None = None

    def __post_init__(self) -> None:
        require_units("visible", self.visible)
        require_units("hidden", self.hidden)
        if not _checks.is_real(self.init_scale) or not 0 <= self.init_scale < math.inf:
            raise ValueError(f"init_scale: expected a finite number >= 0, got {self.init_scale!r}")
        if self.compute_dtype not in (None, "bfloat16"):
            raise ValueError(
                f"compute_dtype: expected None or 'bfloat16', got {self.compute_dtype!r}"
            )
        for name, unit in (("visible", self.visible), ("hidden", self.hidden)):
            if self.compute_dtype is not None and not _is_held(unit):
                raise ValueError(
                    f"compute_dtype: expected None, as bfloat16 does not hold the values of the "
                    f"{name} units {unit}, got {self.compute_dtype!r}"
                )
        if not self.hidden.has_proper_base:
            raise ValueError(
                f"hidden: expected units with a proper base measure, got {self.hidden}; "
                "for real hidden units use StandardGaussian or ReLU"
            )

    @property
    def num_factors(self) -> int:
        return self.hidden.num_sites

    @property
    def num_latent_states(self) -> int | None:
        return self.hidden.num_states

    @property
    def bank(self) -> Bank:
        return self

    @property
    def has_gaussian_latents(self) -> bool:
        return self.hidden.is_standard_gaussian

    def coupling(self, params: Params) -> Coupling:
        params, beta = widen(params), get_beta(params)
        b = self.hidden.field(params["b"])
        return Coupling(beta * b, beta * self._weights(params), jnp.full_like(b, HALF_LOG_2PI))

    def features(self, params: Params, x: Event, bias: bool = True) -> Array:
        """Return E[t(z) | x], [N], with the hidden bias or without."""
        if not bias:
            b = params["b"]
            params = params | {"b": self.hidden.shift_linear(b, -self.hidden.linear_part(b))}
        return self.hidden.linear_statistic(self.latent_mean(params, x))

    def init(self, rng_key: Array) -> Params:
        shape = (self.visible.num_linear, self.hidden.num_linear)
        w = self.init_scale * jax.random.normal(rng_key, shape)
        return {"w": w, "b": self.hidden.init_field()}

    def latent_field(self, params: Params, x: Event) -> Field:
        """Return the field of the hidden units given x, beta (b + t(x)ᵀW)."""
        return self._field(params, self._pre_activation(params, x))

    def log_factors(self, params: Params, x: Event) -> Array:
        return self.hidden.log_partitions(self.latent_field(params, x))

    def log_product(self, params: Params, x: Event) -> Array:
        return self.hidden.log_partition(self.latent_field(params, x))

    def log_change(self, old: Params, new: Params, x: Event) -> Array:
        fields = self.latent_field(old, x), self.latent_field(new, x)
        return self.hidden.log_partition_change(*fields)

    def log_ratios(self, params: Params, x: Array, sites: Array, values: Array) -> Array:
        pre = self._pre_activation(params, x)
        here = self.hidden.log_partitions(self._field(params, pre))

        def one(row: tuple[Array, Array]) -> Array:
            changes, rows = row
            there = pre + jnp.sum(changes[:, :, None] * rows, axis=1)
            factors = jax.vmap(lambda v: self.hidden.log_partitions(self._field(params, v)))(there)
            return jnp.sum(factors - here, axis=-1)

        # A site adds its rows of the weights alone: D H operations for all D sites, not D² H.
        changes = statistic_changes(self.visible, x, sites, values)
        shape = (self.visible.num_sites, -1, self.hidden.num_linear)
        rows = self._weights(params).reshape(shape)[sites]
        return map_rows(one, (changes, rows), values.shape[1] * self.hidden.num_linear)

    def latent_log_weight(self, params: Params, z: Latent) -> Array:
        bias = self.hidden.inner(self.hidden.field(params["b"]), z)
        return get_beta(params) * bias + self.hidden.log_base(z)

    def latent_state_at(self, index: Array) -> Latent:
        return self.hidden.state_at(index)

    def sample_latent(self, rng_key: Array, params: Params, x: Event) -> Latent:
        return self.hidden.sample(rng_key, self.latent_field(params, x))

    def latent_mean(self, params: Params, x: Event) -> Latent:
        return self.hidden.mean(self.latent_field(params, x))

    def visible_field(self, params: Params, z: Latent) -> Field:
        v = self._matmul(self.hidden.linear_statistic(z), params["w"], transpose=True)
        return self.visible.linear_field(get_beta(params) * v)

    def temper(self, params: Params, beta: Array | float) -> Params:
        return set_beta(params, beta)

    def tails(self, params: Params) -> Tails | None:
        return self.hidden.bank_tails(as_float64(get_beta(params)) * as_float64(params["w"]))

    def _weights(self, params: Params) -> Array:
        """Return w [M, N] as products have it."""
        if self.compute_dtype is None:
            return params["w"]
        return jax.lax.reduce_precision(params["w"], exponent_bits=8, mantissa_bits=7)

    def _pre_activation(self, params: Params, x: Event) -> Array:
        return self._matmul(self.visible.linear_statistic(x), params["w"])

    def _field(self, params: Params, pre: Array) -> Field:
        hidden = self.hidden
        field = hidden.combine([hidden.field(params["b"]), hidden.linear_field(pre)])
        return hidden.scale(field, get_beta(params))

    def _matmul(self, v: Array, w: Array, transpose: bool = False) -> Array:
        wide = jnp.promote_types(jnp.result_type(v, w), jnp.float32)
        if self.compute_dtype is None:
            # Not by preferred_element_type: on CPUs XLA has no such product of two bfloat16 factors
            # for every way in which they may come to lie.
            v, w = v.astype(wide), w.astype(wide)
            return jnp.matmul(v, w.T if transpose else w)
        return _rounded.matmul(v, w, transpose).astype(wide)


def _is_held(unit: Unit) -> bool:
    few = unit.each_block(lambda block: (block.num_values or math.inf) <= _WHOLE_NUMBERS)
    return all(jax.tree.leaves(few))
