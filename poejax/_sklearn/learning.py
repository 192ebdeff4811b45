"""How the scikit-learn face learns: starts, passes and updates."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from scipy.sparse import issparse

from poejax import diagnostics, models, recipes, training
from poejax._product import Product, product
from poejax._sklearn import matrices
from poejax._sklearn.kinds import Bits, Codes, Kind, Reals
from poejax._sklearn.matrices import Matrix
from poejax.estimators import centered, pcd
from poejax.experts import Bias, HiddenBank
from poejax.types import Array, Params, PyTree
from poejax.units import Bernoulli, Categorical

_NUM_SCORED, _NUM_SITES = 256, 16  # by which a pass is judged with verbose=1


class Learner:
    """The part of the face that learns, in terms of its options."""

    n_components: int
    visible: str
    learning_rate: float
    batch_size: int
    n_iter: int
    n_chains: int
    n_gibbs_steps: int
    binarize: str
    threshold: float
    num_classes: int | None
    optimizer: str
    verbose: int
    random_state_: np.random.RandomState
    n_features_in_: int
    model_: Product
    _state: training.TrainState
    _origin_and_scale: PyTree

    def _state_params(self) -> Params:
        if not hasattr(self, "_state"):
            raise AttributeError("this RBM has not been fitted")
        average = self._state.average
        return self._state.params if average is None else average

    def _coordinates(self) -> PyTree:
        return getattr(self, "_origin_and_scale", {})

    @property
    def _kind(self) -> Kind:
        if self.visible == "gaussian":
            return Reals(self._coordinates())
        if self.visible == "categorical":
            return Codes(self.model_.visible.event_shape[1])
        return Bits(self.threshold if self.binarize == "threshold" else None)

    def _key(self) -> Array:
        return jax.random.key(self.random_state_.randint(np.iinfo(np.int32).max))

    def _fit_gaussian(self, x: Matrix, weights: Matrix | None) -> None:
        def report(passes: int, gain: float, error: float) -> None:
            if self.verbose:
                print(f"[RBM] pass {passes}, {gain:.2f} ± {error:.2f} nats above one Gaussian")

        found = recipes.fit_gaussian_rbm(
            self._key(),
            x,
            self.n_components,
            num_passes=self.n_iter,
            weights=weights,
            optimizer=self.optimizer,
            learning_rate=float(self.learning_rate),
            batch_size=self.batch_size,
            num_chains=self.n_chains,
            num_gibbs_steps=self.n_gibbs_steps,
            on_check=report,
        )
        self.model_, self._state, self.gain_ = found.model, found.state, found.gain
        self._origin_and_scale = found.params["coordinates"]
        self.__dict__.pop("_log_z", None)

    def _fit_discrete(self, X: Any, weights: Matrix | None) -> None:
        if weights is not None and recipes.are_repetitions(weights):
            X, weights = X[recipes.resampled(self.random_state_, weights)], None
        is_large = (
            issparse(X) and matrices.dense_bytes(X) > matrices.LARGE and self.visible == "bernoulli"
        )
        X = X if is_large else matrices.dense(X)
        if weights is None and not is_large:
            X = matrices.grouped(X)
        self._start(X, weights)
        rows = X if is_large else self._kind.rows(X)
        for iteration in range(self.n_iter):
            for x in self._blocks(rows, weights):
                size = min(self.batch_size, len(x))
                self._update(x, size, len(x) // size)
            if self.verbose:
                sites = min(_NUM_SITES, self.n_features_in_)
                events = self._kind.events(matrices.dense(X[:_NUM_SCORED]))
                score = _estimates(
                    self._state.rng_key, self.model_, self._state_params(), events, sites
                )
                print(f"[RBM] pass {iteration + 1}, pseudo-log-likelihood {score.mean():.2f}")

    def _blocks(self, rows: Any, weights: Matrix | None) -> Iterator[Matrix]:
        """Yield what one pass learns from: rows as they are, or drawn, or dense by blocks."""
        if not issparse(rows):
            yield rows if weights is None else rows[recipes.resampled(self.random_state_, weights)]
            return
        shares = np.ones(rows.shape[0]) if weights is None else weights
        order = self.random_state_.permutation(recipes.resampled(self.random_state_, shares))
        for block in matrices.row_blocks(rows):
            if len(found := order[block]):
                yield self._kind.rows(matrices.dense(rows[found]))

    def _start(self, X: Any, weights: Matrix | None = None) -> None:
        for name in ("_origin_and_scale", "gain_"):  # of a fit with other units
            self.__dict__.pop(name, None)
        params_key, train_key = jax.random.split(self._key())
        if self.visible == "gaussian":
            self.model_ = models.gaussian_rbm(X.shape[1], self.n_components)
            params, coordinates = recipes.gaussian_start(params_key, self.model_, X, weights)
            params = recipes.spread_weights(jax.random.fold_in(params_key, 1), params)
            self._origin_and_scale = coordinates
            rows = self._kind.rows(X)
        else:
            self.model_ = self._discrete_model(X)
            params = self.model_.init(params_key)
            rows, params["bias"]["field"] = self._base_rates(X, weights)
        if self.visible == "categorical":  # one-hot, all of them would be many times as large
            rows = rows[self.random_state_.randint(len(rows), size=self.n_chains)]
        self._state = self._run(self.batch_size).init(train_key, rows, params)
        if self.visible == "gaussian":
            opt_state = recipes.bound_precision(self._state.opt_state, rows)
            self._state = self._state._replace(opt_state=opt_state)

    def _discrete_model(self, X: Matrix) -> Product:
        if self.visible == "bernoulli":
            return models.rbm(X.shape[1], self.n_components)
        visible = Categorical(X.shape[1], self.num_classes or max(2, int(X.max()) + 1))
        hidden = HiddenBank(visible, Bernoulli(self.n_components))
        return product(visible, bias=Bias(visible), hidden=hidden)

    def _base_rates(self, X: Any, weights: Matrix | None) -> tuple[Matrix, Params]:
        """Return rows to start chains at, and the visible bias of the rates of all."""
        if not issparse(X):
            rows = self._kind.rows(X)
            return rows, self._kind.field(self.model_, rows, weights)
        shares = np.ones(X.shape[0]) if weights is None else weights
        total = np.zeros(X.shape[1])
        for block in matrices.row_blocks(X):
            rows = self._kind.rows(matrices.dense(X[block]))
            total += shares[block] @ rows
        return rows, self._kind.field(self.model_, (total / shares.sum())[None], None)

    def _run(self, batch_size: int) -> training.Run:
        rate, real = float(self.learning_rate), self.visible == "gaussian"
        return training.Run(
            centered(pcd(self.model_, self.n_chains, num_steps=self.n_gibbs_steps)),
            recipes.gaussian_rbm_optimizer(rate, method=self.optimizer)
            if real
            else optax.sgd(rate),
            batch_size,
            preprocess=self._kind.preprocess,
            average=real,
        )

    def _update(self, x: Matrix, batch_size: int, num_steps: int) -> None:
        self.__dict__.pop("_log_z", None)
        self._state, _ = self._run(batch_size).steps(self._state, x, num_steps)


@functools.partial(jax.jit, static_argnames=("model", "num_sites"))
def _estimates(rng_key: Array, model: Product, params: Params, x: Array, num_sites: int) -> Array:
    def one(event: Array) -> Array:
        return diagnostics.pseudo_log_likelihood(rng_key, model, params, event, num_sites)

    return jax.vmap(one)(x)
