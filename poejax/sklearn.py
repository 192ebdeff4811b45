"""The scikit-learn face: a binary RBM as a transformer, for pipelines and grid searches.

The only module of poejax that imports scikit-learn.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data

from poejax import _checks, diagnostics, models, stacks, training
from poejax.estimators import centered, pcd
from poejax.kernels import block_gibbs
from poejax.product import Product
from poejax.types import Array, Estimator, Params

Matrix = npt.NDArray[Any]


class RBM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Binary restricted Boltzmann machine, learned by centred persistent contrastive divergence.

    log p(x) = aᵀx + Σ_j softplus(w_jᵀx + b_j) - log Z, x in {0, 1}^D

    A drop-in for `sklearn.neural_network.BernoulliRBM`: the data are shuffled, scores are
    deterministic, and log-likelihoods can be had from `model_` and `params_`.

    Args:
      n_components: number H of hidden units.
      learning_rate: of plain gradient descent.
      batch_size: rows per update; all of them if there are fewer.
      n_iter: passes over the data in `fit`.
      n_chains: persistent chains.
      n_gibbs_steps: sweeps of every chain per update.
      binarize: "sample" takes values in [0, 1] for probabilities, drawn anew for every batch;
        "threshold" takes any real values, 1 where above `threshold`.
      threshold: see `binarize`.
      verbose: 1 prints a line per pass.
      random_state: seed, RandomState or None, as everywhere in scikit-learn.

    Attributes:
      components_: w_jᵀ as rows, [H, D].
      intercept_hidden_, intercept_visible_: b [H] and a [D].
      model_, params_: the product and its parameters, for any function of poejax.
      n_features_in_: D.
      n_iter_: passes made.

    Source: Hinton (2002); Tieleman (2008).
    """

    def __init__(
        self,
        n_components: int = 256,
        *,
        learning_rate: float = 0.1,
        batch_size: int = 10,
        n_iter: int = 10,
        n_chains: int = 100,
        n_gibbs_steps: int = 1,
        binarize: str = "sample",
        threshold: float = 0.5,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.n_chains = n_chains
        self.n_gibbs_steps = n_gibbs_steps
        self.binarize = binarize
        self.threshold = threshold
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: npt.ArrayLike, y: Any = None) -> RBM:
        """Learn from a batch X [N, D]; returns self."""
        self._check_options()
        x = self._probabilities(X, reset=True)
        self._start(x)
        size = min(self.batch_size, len(x))
        for iteration in range(self.n_iter):
            self._update(x, size, len(x) // size)
            if self.verbose:
                score = self._pseudo_log_likelihoods(x[:1000]).mean()
                print(f"[RBM] pass {iteration + 1}, pseudo-log-likelihood {score:.2f}")
        self.n_iter_ = self.n_iter
        return self

    def partial_fit(self, X: npt.ArrayLike, y: Any = None) -> RBM:
        """Take one pass over a batch X [N, D], in the order given; returns self."""
        self._check_options()
        first = not hasattr(self, "params_")
        x = self._probabilities(X, reset=first)
        if first:
            self._start(x)
            self.n_iter_ = 0
        for rows in gen_batches(len(x), self.batch_size):
            self._update(x[rows], len(x[rows]), 1)
        self.n_iter_ += 1
        return self

    def transform(self, X: npt.ArrayLike) -> Matrix:
        """Return the features P(z_j = 1 | x) of a batch X [N, D], [N, H]."""
        check_is_fitted(self)
        x = self._probabilities(X, reset=False)
        found = stacks.features(
            [(self.model_, self.params_)], jnp.asarray(x, jnp.result_type(float))
        )
        return np.asarray(found, x.dtype)

    def score_samples(self, X: npt.ArrayLike) -> Matrix:
        """Return exact log pseudo-likelihoods of a batch of bits X [N, D], in nats, [N].

        Σ_i log p(x_i | x_rest), over all D sites: deterministic, unlike a one-site estimate.
        Values between 0 and 1 are thresholded at a half.
        """
        check_is_fitted(self)
        return self._pseudo_log_likelihoods(self._probabilities(X, reset=False))

    def score(self, X: npt.ArrayLike, y: Any = None) -> float:
        """Return the mean of `score_samples`, for model selection."""
        return float(self.score_samples(X).mean())

    def gibbs(self, v: npt.ArrayLike) -> Matrix:
        """Return a batch of bits v [N, D] after one Gibbs sweep; each call draws anew."""
        check_is_fitted(self)
        x = self._probabilities(v, reset=False)
        seed = self.random_state_.randint(np.iinfo(np.int32).max)
        bits = jnp.asarray(x > 0.5, jnp.result_type(float))
        return np.asarray(_sweep(jax.random.key(seed), self.model_, self.params_, bits), x.dtype)

    @property
    def components_(self) -> Matrix:
        """The weights w_jᵀ as rows, [H, D]."""
        return np.asarray(self.params_["hidden"]["w"]).T

    @property
    def intercept_hidden_(self) -> Matrix:
        """The hidden biases b, [H]."""
        return np.asarray(self.params_["hidden"]["b"])

    @property
    def intercept_visible_(self) -> Matrix:
        """The visible biases a, [D]."""
        return np.asarray(self.params_["bias"]["field"])

    @property
    def params_(self) -> Params:
        """The parameters."""
        if not hasattr(self, "_state"):
            raise AttributeError("this RBM has not been fitted")
        return self._state.params

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.non_deterministic = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        if "_state" in state:  # typed keys do not pickle; NumPy outlives the device
            trained = state["_state"]
            key = jax.random.key_data(trained.rng_key)
            state["_state"] = jax.tree.map(np.asarray, trained._replace(rng_key=key))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_state" in state:
            trained = jax.tree.map(jnp.asarray, state["_state"])
            key = jax.random.wrap_key_data(trained.rng_key)
            self._state = trained._replace(rng_key=key)

    def _probabilities(self, X: npt.ArrayLike, reset: bool) -> Matrix:
        x = validate_data(self, X, reset=reset, dtype=(np.float64, np.float32))
        if self.binarize == "threshold":
            return (x > self.threshold).astype(x.dtype)
        if x.min() < 0 or x.max() > 1:
            raise ValueError(
                "X: expected probabilities in [0, 1] with binarize='sample', got values in "
                f"[{x.min():g}, {x.max():g}]; scale them, or pass binarize='threshold'"
            )
        return x

    def _check_options(self) -> None:
        for name in ("n_components", "batch_size", "n_iter", "n_chains", "n_gibbs_steps"):
            _checks.positive_int(name, getattr(self, name))
        rate = self.learning_rate
        if not _checks.is_real(rate) or not 0 < rate < np.inf:
            raise ValueError(f"learning_rate: expected a positive number, got {rate!r}")
        if self.binarize not in ("sample", "threshold"):
            raise ValueError(f"binarize: expected 'sample' or 'threshold', got {self.binarize!r}")
        if not _checks.is_real(self.threshold) or not np.isfinite(self.threshold):
            raise ValueError(f"threshold: expected a finite number, got {self.threshold!r}")

    def _start(self, x: Matrix) -> None:
        self.random_state_ = check_random_state(self.random_state)
        key = jax.random.key(self.random_state_.randint(np.iinfo(np.int32).max))
        self.model_ = models.rbm(x.shape[1], self.n_components)
        params_key, train_key = jax.random.split(key)
        params = self.model_.init(params_key)
        params["bias"]["field"] = self.model_.visible.fit_field(x, smoothing=0.01)
        tx = _sgd(float(self.learning_rate))
        self._state = training.init(
            train_key, self.model_, self._rule(), tx, x, params=params, preprocess=_draw
        )

    def _rule(self) -> Estimator:
        return centered(pcd(self.model_, self.n_chains, num_steps=self.n_gibbs_steps), self.model_)

    def _update(self, x: Matrix, batch_size: int, num_steps: int) -> None:
        tx = _sgd(float(self.learning_rate))
        self._state, _ = training.train_steps(
            self._rule(), tx, self._state, x, batch_size, num_steps, preprocess=_draw
        )

    def _pseudo_log_likelihoods(self, x: Matrix) -> Matrix:
        bits = jnp.asarray(x > 0.5, jnp.result_type(float))
        return np.asarray(_scores(self.model_, self.params_, bits))


@functools.lru_cache
def _sgd(learning_rate: float) -> optax.GradientTransformation:
    # Optimizers compare by identity: one per rate, so that refitting compiles nothing.
    return optax.sgd(learning_rate)


def _draw(rng_key: Array, probabilities: Array) -> Array:
    return jax.random.bernoulli(rng_key, probabilities).astype(jnp.result_type(float))


@functools.partial(jax.jit, static_argnames="model")
def _scores(model: Product, params: Params, x: Array) -> Array:
    key = jax.random.key(0)  # all sites: nothing is drawn

    def one(event: Array) -> Array:
        return diagnostics.pseudo_log_likelihood(key, model, params, event)

    return jax.lax.map(one, x, batch_size=min(64, len(x)))


@functools.partial(jax.jit, static_argnames="model")
def _sweep(rng_key: Array, model: Product, params: Params, x: Array) -> Array:
    kernel = block_gibbs(model)

    def one(key: Array, event: Array) -> Array:
        return kernel.step(key, params, kernel.init(key, params, event))[0].x

    return jax.vmap(one)(jax.random.split(rng_key, len(x)), x)
