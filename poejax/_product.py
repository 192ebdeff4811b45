"""Composition: a product of experts is a sum of log factors, of latents and of fields."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from poejax import _border, _checks, _meshes
from poejax.experts import Expert
from poejax.experts import _combine as combine
from poejax.experts._presence import set_present, split_present
from poejax.types import Array, Event, Field, Latent, Params, PyTree
from poejax.units import Unit


@dataclasses.dataclass(frozen=True)
class Product(Expert):
    """p(x) = h(x) Π_k f_k(x) / Z over shared visible units, itself an expert, so products nest.

    Params, latents and factors are keyed or ordered by expert name. The base measure h is counted
    once, in `log_density` of the outermost product, and never in `log_factors`. Build one with
    `product`.

    Real visible units may be computed in coordinates near their data, y = (x - origin) / scale:
    params of the outermost product then hold a leaf tree "coordinates" besides, which is never
    trained. Experts' params and fields are about y, events go in and come out as x, and
    `log_density` is that of x, so that Z is the same number in all coordinates. `init_from` takes
    them from data; without them y = x.
    """

    items: tuple[tuple[str, Expert], ...]

    @property
    def experts(self) -> dict[str, Expert]:
        """The experts by name."""
        return dict(self.items)

    @property
    def parts(self) -> tuple[tuple[str, Expert], ...]:
        return self.items

    @property
    def has_scale_latents(self) -> bool:
        return any(expert.has_scale_latents for _, expert in self.items)

    @property
    def num_factors(self) -> int:
        return sum(expert.num_factors for _, expert in self.items)

    @property
    def num_latent_states(self) -> int | None:
        return combine.num_latent_states(self.items)

    @property
    def is_opaque(self) -> bool:
        return any(expert.is_opaque for _, expert in self.items)

    @property
    def temper_is_power(self) -> bool:
        return all(expert.temper_is_power for _, expert in self.items)

    def init(self, rng_key: Array) -> Params:
        """Draw initial parameters of all experts: {name: params}."""
        _checks.rng_key("rng_key", rng_key)
        return {name: expert.init(key) for name, expert, key in combine.keyed(self.items, rng_key)}

    def init_from(self, rng_key: Array, data: Event, full: bool = False) -> Params:
        """Draw a start near a batch of events, so that training has only structure left to learn.

        Coordinates are the data's means and standard deviations (or a Cholesky factor of their
        covariance); in them Bias, Gaussian and GaussianMixture experts share out the data's base
        rates or moments, each taking the power 1/K; all others start as in `init`.

        Args:
          rng_key: one typed key.
          data: batch of events [N, ...], which may be Weighted.
          full: whether real units get coordinates in which their covariance is the identity, where
            N exceeds their number; the conditional given latents is then correlated in x.

        Returns:
          {name: params}, and "coordinates" where there are real visible units.

        Raises:
          ValueError: if `data` are empty or no events of the visible units, or a real column has
            no variance.
        """
        data, weights = _checks.split_weights("data", _border.tree("data", data))
        self.visible.check("data", data)
        self.visible.check_spread("data", _checks.counted(data, weights))
        params = self.init(rng_key)
        coordinates = self.visible.coordinates(data, full, weights)
        y = self.visible.standardize_rows(coordinates, data)
        share = 1 / max(1, sum(expert.carries_base_rate for _, expert in self.items))
        for name, expert, key in combine.keyed(self.items, jax.random.fold_in(rng_key, 1)):
            params[name] = expert.fit(key, params[name], y, share, weights)
        return params | ({"coordinates": coordinates} if coordinates else {})

    def standardize(self, params: Params, x: Event) -> tuple[Params, Event]:
        """Return the experts' parameters alone, and the event they are about."""
        if "coordinates" not in params:
            return params, x
        rest, coordinates = split_coordinates(params)
        return rest, self.visible.standardize(coordinates, x)

    def restore(self, params: Params, y: Event) -> Event:
        """Return an event in the user's units, from one that the experts are about."""
        if "coordinates" not in params:
            return y
        return self.visible.restore(split_coordinates(params)[1], y)

    def log_density(self, params: Params, x: Event) -> Array:
        """Return log h(x) + Σ_k log f_k(x), unnormalised, []."""
        if "coordinates" in params:
            volume = self.visible.log_volume(split_coordinates(params)[1])
            params, x = self.standardize(params, x)
            return self.log_density(params, x) - volume
        return self.visible.log_base(x) + self.log_product(params, x)

    def log_factors(self, params: Params, x: Event) -> Array:
        """Return all experts' votes in the order given, [K]."""
        params, x = self.standardize(params, x)
        votes = [e.log_factors(params[name], x) for name, e in self.items]
        return jnp.concatenate(votes)

    def log_product(self, params: Params, x: Event) -> Array:
        params, x = self.standardize(params, x)
        return jnp.sum(jnp.stack([e.log_product(params[name], x) for name, e in self.items]))

    def log_change(self, old: Params, new: Params, x: Event) -> Array:
        old, x = self.standardize(old, x)
        new, _ = split_coordinates(new)
        # A sum for each expert, which XLA fuses, where it would write out the factors of all.
        changes = [e.log_change(old[name], new[name], x) for name, e in self.items]
        return jnp.sum(jnp.stack(changes))

    def log_ratios(self, params: Params, x: Array, sites: Array, values: Array) -> Array:
        """Return how Σ_k log f_k changes with single sites, [S, V]; see `Expert.log_ratios`."""
        changes = [e.log_ratios(params[n], x, sites, values) for n, e in self.items]
        return jnp.sum(jnp.stack(changes), axis=0)

    def log_joint(self, params: Params, x: Event, z: Latent) -> Array:
        """Return Σ_k log_joint_k(x, z_k), whose integral over z is exp Σ_k log_factors."""
        params, x = self.standardize(params, x)
        joints = [e.log_joint(params[n], x, z[n]) for n, e in self.items]
        return jnp.sum(jnp.stack(joints))

    def latent_log_weight(self, params: Params, z: Latent) -> Array:
        """Return Σ_k g_k(z_k)."""
        weights = [e.latent_log_weight(params[n], z[n]) for n, e in self.items]
        return jnp.sum(jnp.stack(weights))

    def latent_state_at(self, index: Array) -> Latent:
        """Return the latent configuration number `index`, {name: z}."""
        return combine.latent_states_at(self.items, index)

    def sample_latent(self, rng_key: Array, params: Params, x: Event) -> Latent:
        """Draw {name: z_k ~ p(z_k | x)}: latents are independent given x."""
        params, x = self.standardize(params, x)
        keyed = combine.keyed(self.items, rng_key)
        return {name: e.sample_latent(key, params[name], x) for name, e, key in keyed}

    def latent_mean(self, params: Params, x: Event) -> Latent:
        """Return {name: E[z_k | x]}."""
        params, x = self.standardize(params, x)
        return {name: e.latent_mean(params[name], x) for name, e in self.items}

    def visible_field(self, params: Params, z: Latent) -> Field:
        """Return Σ_k field_k(z_k), in coordinates if there are any."""
        return self.visible.combine(
            [e.visible_field(params[name], z[name]) for name, e in self.items]
        )

    def temper(self, params: Params, beta: Array | float) -> Params:
        """Return the parameters with every expert at inverse temperature `beta`."""
        return params | {name: expert.temper(params[name], beta) for name, expert in self.items}

    def mask(self, params: Params, **present: Array | bool) -> Params:
        """Return the parameters with some experts absent, at the same shapes.

        log f_k(x) becomes 0 and its field 0 where `present[k]` is False, e.g. for a missing
        modality; under `vmap` each event has experts of its own. What an absent expert holds, NaN
        included, reaches no value and no gradient.

        Args:
          params: this model's parameters.
          **present: for any of the experts, by name: a boolean, traced or not, []. A nested
            product is absent as a whole.

        Returns:
          Parameters with a leaf "present" in each expert named, for use in place of `params`; as
          with "beta", the optimizer does not see it.

        Raises:
          ValueError: if there is no such expert.
          TypeError: if a value is not boolean.
        """
        masked = dict(params)
        for name, is_present in present.items():
            expert = self.experts.get(name)
            if expert is None:
                raise ValueError(f"present: expected names of {list(self.experts)}, got {name!r}")
            _checks.shape(name, is_present, (), "one event; use jax.vmap for a batch")
            if jnp.result_type(is_present) != jnp.bool_:
                raise TypeError(f"{name}: expected a boolean, got {is_present!r}")
            if isinstance(expert, Product):
                masked[name] = expert.mask(
                    params[name], **dict.fromkeys(expert.experts, is_present)
                )
            else:
                masked[name] = set_present(params[name], is_present)
        return masked

    def sample_visible(
        self,
        rng_key: Array,
        params: Params,
        z: Latent,
        x: Event | None = None,
        clamp: PyTree = None,
    ) -> Event:
        """Draw x from p(x | z), or, where `clamp` [num_sites] is True, keep that site of `x`."""
        field = self.visible_field(params, z)
        if clamp is None:
            return self.restore(params, self.visible.sample(rng_key, field))
        coordinates = params.get("coordinates")
        return self.visible.sample_clamped(rng_key, field, x, clamp, coordinates)

    def visible_mean(
        self, params: Params, z: Latent, x: Event | None = None, clamp: PyTree = None
    ) -> Event:
        """Return E[x | z], or, where `clamp` is True, given that site of `x` too."""
        field = self.visible_field(params, z)
        if clamp is None:
            return self.restore(params, self.visible.mean(field))
        return self.visible.mean_clamped(field, x, clamp, params.get("coordinates"))

    def init_visible(self, rng_key: Array, params: Params | None = None) -> Event:
        """Draw a random start for a chain; of the parameters only coordinates are looked at."""
        y = self.visible.random_event(rng_key)
        return y if params is None else self.restore(params, y)

    def present(self, params: Params, prefix: str = "") -> Iterator[tuple[str, Expert, Params]]:
        """Yield (name, expert, params) of what is multiplied, nested ones as "outer.inner".

        Experts whose params hold a leaf "present" that is False are absent; on the host.
        """
        for name, expert in self.items:
            own = params[name]
            if isinstance(expert, Product):
                yield from expert.present(own, f"{prefix}{name}.")
            elif not isinstance(own, dict) or np.all(_meshes.to_host(own.get("present", 1)) > 0.5):
                yield prefix + name, expert, own

    def check_params(self, params: Params) -> None:
        """Raise ValueError unless `params` has this model's structure, shapes and finite values."""
        if isinstance(params, dict) and "coordinates" in params:
            self.visible.check_coordinates("params['coordinates']", params["coordinates"])
            params, _ = split_coordinates(params)
        _checks.floating_params("params", params)
        _checks.same_structure("params", params, shapes(self), optional=("beta", "present"))
        _checks.finite("params", self._present_params(params))

    def _present_params(self, params: Params) -> Params:
        """Return the parameters with those of absent experts replaced by ones."""
        return {
            name: expert._present_params(params[name])
            if isinstance(expert, Product)
            else split_present(params[name])[0]
            for name, expert in self.items
        }


@functools.lru_cache(maxsize=256)
def shapes(model: Product) -> PyTree:
    """Return the shapes of a model's parameters; to trace `init` takes milliseconds."""
    return jax.eval_shape(model.init, _checks.abstract_key())


def log_densities(model: Product, params: Params, x: Event) -> Array:
    """Return log_density of a batch [N, ...], [N], compiled once per model.

    Events on the host are standardized there, in their own precision.
    """
    rest, coordinates = split_coordinates(params)
    y = model.visible.standardize_rows(coordinates, x)
    density = _log_densities(model, rest, y)
    return density - model.visible.log_volume(coordinates) if coordinates else density


@functools.partial(jax.jit, static_argnames="model")
def _log_densities(model: Product, params: Params, x: Event) -> Array:
    return jax.vmap(model.log_density, in_axes=(None, 0))(params, x)


def split_coordinates(params: Params) -> tuple[Params, PyTree]:
    """Split off the coordinates of real visible units, {} if there are none; they stay fixed."""
    rest = {name: own for name, own in params.items() if name != "coordinates"}
    return rest, jax.lax.stop_gradient(params.get("coordinates", {}))


def product(visible: Unit, **experts: Expert) -> Product:
    """Multiply experts over shared visible units.

    p(x) = h(x) Π_k f_k(x) / Z

    Args:
      visible: the units all experts see.
      **experts: named experts over exactly these units; a Product is an expert too.

    Returns:
      The product; `product.experts[name]` is the expert of that name.

    Raises:
      ValueError: if no expert is given or an expert sees other units.
      TypeError: if an argument is not an expert.

    Example:
      >>> visible = pj.units.Bernoulli(784)
      >>> model = pj.product(
      ...     visible,
      ...     bias=pj.experts.Bias(visible),
      ...     hidden=pj.experts.HiddenBank(visible, pj.units.Bernoulli(500)),
      ... )

    Source: Hinton (2002), Training products of experts by minimizing contrastive divergence.
    """
    if not experts:
        raise ValueError("product: expected at least one expert, got none")
    if "coordinates" in experts:
        raise ValueError(
            "product: expected another name than 'coordinates', which is that of params"
        )
    return Product(visible, combine.named("product", visible, experts))
