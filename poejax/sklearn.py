"""The scikit-learn face: an RBM as a transformer, for pipelines and grid searches.

The only module of poejax that imports scikit-learn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from poejax import _checks, diagnostics, recipes, stacks
from poejax._product import Product
from poejax._sklearn import matrices
from poejax._sklearn.kinds import KINDS, Reals
from poejax._sklearn.learning import Learner
from poejax._sklearn.matrices import Matrix
from poejax.kernels import block_gibbs
from poejax.types import Array, Params

__all__ = [
    "RBM",
]


class RBM(Learner, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Restricted Boltzmann machine, learned by centred persistent contrastive divergence.

    log p(x) = aᵀx + Σ_j softplus(w_jᵀx + b_j) - log Z, x in {0, 1}^D

    A drop-in for `sklearn.neural_network.BernoulliRBM`: the data are shuffled, scores are
    deterministic, and log-likelihoods can be had from `model_` and `params_`. Real columns
    (`models.gaussian_rbm`) and codes are learned likewise. Sparse matrices are taken, and made
    dense.

    Real data are learned by `recipes.fit_gaussian_rbm`: from a single Gaussian of the rows, in
    coordinates where it is standard normal, with a fifth of the rows held out to say which
    parameters are kept, so that what is learned explains new rows no worse than that Gaussian.

    Args:
      n_components: number H of hidden units.
      visible: "bernoulli" for probabilities or bits, "gaussian" for real values in any units,
        "categorical" for codes 0 ... C - 1.
      learning_rate: of plain gradient descent, or as `recipes.gaussian_rbm_optimizer` takes it.
      batch_size: rows per update; all of them if there are fewer.
      n_iter: passes over the data in `fit`.
      n_chains: persistent chains.
      n_gibbs_steps: sweeps of every chain per update.
      binarize: of bernoulli units: "sample" takes values in [0, 1] for probabilities, drawn anew
        for every batch; "threshold" takes any real values, 1 where above `threshold`.
      threshold: see `binarize`.
      num_classes: number C of codes; the largest of the data and one more when None.
      optimizer: of gaussian units, "adam" or "sgd".
      verbose: 1 prints a line per pass, or per check of gaussian units.
      random_state: seed, RandomState or None, as everywhere in scikit-learn.

    Attributes:
      components_: w_jᵀ as rows, [H, D]; [H, D C] for codes, in coordinates for gaussian units.
      intercept_hidden_, intercept_visible_: b [H] and a [D] (or [D, C]).
      model_, params_: the product and its parameters, for any function of poejax.
      n_features_in_: D.
      n_iter_: passes made.
      gain_: of gaussian units, after `fit`: nats per held-out row above the single Gaussian.

    Source: Hinton (2002); Tieleman (2008).
    """

    def __init__(
        self,
        n_components: int = 256,
        *,
        visible: str = "bernoulli",
        learning_rate: float = 0.1,
        batch_size: int = 10,
        n_iter: int = 10,
        n_chains: int = 100,
        n_gibbs_steps: int = 1,
        binarize: str = "sample",
        threshold: float = 0.5,
        num_classes: int | None = None,
        optimizer: str = "adam",
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components = n_components
        self.visible = visible
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.n_chains = n_chains
        self.n_gibbs_steps = n_gibbs_steps
        self.binarize = binarize
        self.threshold = threshold
        self.num_classes = num_classes
        self.optimizer = optimizer
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: npt.ArrayLike | None = None) -> RBM:
        """Learn from a batch X [N, D], dense or sparse; returns self.

        Integer weights [N] are equal to repeating rows, bitwise. Others are scaled to a mean of
        one, and in a pass every row occurs as often as its weight says, rounded up or down at
        random.
        """
        self._check_options()
        X = self._validated(X, reset=True, ensure_min_samples=1 + (self.visible == "gaussian"))
        weights = self._weights(X, sample_weight)
        self.random_state_ = check_random_state(self.random_state)
        if self.visible == "gaussian":
            self._fit_gaussian(matrices.dense(X), weights)
        else:
            self._fit_discrete(X, weights)
        self.n_iter_ = self.n_iter
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: npt.ArrayLike | None = None) -> RBM:
        """Take one pass over a batch X [N, D], in the order given; returns self.

        Weights are as in `fit`. The first batch gives base rates, coordinates and the number of
        codes; no rows are held out, and the learning rate stays as it is.
        """
        self._check_options()
        first = not hasattr(self, "params_")
        X = self._validated(X, reset=first)
        weights = self._weights(X, sample_weight)
        if first:
            self.random_state_ = check_random_state(self.random_state)
        x = matrices.dense(X)
        if weights is not None:
            x = x[recipes.resampled(self.random_state_, weights)]
        if first:
            self._start(x)
            self.n_iter_ = 0
        x = self._kind.rows(x)
        for rows in gen_batches(len(x), self.batch_size):
            self._update(x[rows], len(x[rows]), 1)
        self.n_iter_ += 1
        return self

    def transform(self, X: Any) -> Matrix:
        """Return the features P(z_j = 1 | x) of a batch X [N, D], [N, H]."""
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        stack = [(self.model_, self._state_params())]
        return self._by_blocks(
            X, lambda x: np.asarray(stacks.features(stack, self._kind.mean_field(x)), x.dtype)
        )

    def score_samples(self, X: Any) -> Matrix:
        """Return scores of a batch of rows X [N, D], in nats, [N].

        Exact log pseudo-likelihoods Σ_i log p(x_i | x_rest) over all D sites of bits and codes:
        deterministic, unlike a one-site estimate; values between 0 and 1 are thresholded at a half.
        Log-likelihoods, in the units of X, of real values; their log Z is exact up to 16 hidden
        units, and estimated once by annealed importance sampling, with a fixed seed, beyond.
        """
        check_is_fitted(self)
        return self._by_blocks(self._validated(X, reset=False), self._scored)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of `score_samples`, for model selection."""
        return float(self.score_samples(X).mean())

    def gibbs(self, v: Any) -> Matrix:
        """Return a batch v [N, D] after one Gibbs sweep; each call draws anew."""
        check_is_fitted(self)
        x = matrices.dense(self._validated(v, reset=False))
        found = _sweeps(self._key(), self.model_, self._state_params(), self._kind.events(x), 1)
        return np.asarray(self._kind.restore(found), x.dtype)

    def sample(self, n_samples: int = 1, n_steps: int = 1000) -> Matrix:
        """Draw `n_samples` rows [n_samples, D], in the units of X; each call draws anew.

        Each is the end of a chain of `n_steps` Gibbs sweeps, from a persistent chain of learning.
        """
        check_is_fitted(self)
        _checks.positive_int("n_samples", n_samples)
        _checks.positive_int("n_steps", n_steps)
        chains = jnp.asarray(self._state.estimator_state.inner.x)
        starts = chains[self.random_state_.randint(len(chains), size=n_samples)]
        found = _sweeps(self._key(), self.model_, self._state_params(), starts, n_steps)
        return self._kind.restore(found)

    def impute(self, X: Any) -> Matrix:
        """Return a batch X [N, D] with what is missing filled in; what is there comes back as is.

        NaN is missing, and -1 for codes. Bits and real values get their posterior mean given the
        rest of the row (`inference.inpaint`, with a fixed seed), codes the likeliest one.
        """
        check_is_fitted(self)
        x = matrices.dense(self._validated(X, reset=False, ensure_all_finite="allow-nan"))
        found = np.array(x)
        incomplete = self._kind.missing(x).any(axis=1)
        if incomplete.any():
            key = jax.random.key(0)
            found[incomplete] = self._kind.fill(
                key, self.model_, self._state_params(), x[incomplete]
            )
        return found.astype(np.int64) if self.visible == "categorical" else found

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
        return np.asarray(self.model_.visible.linear_part(self.params_["bias"]["field"]))

    @property
    def params_(self) -> Params:
        """The parameters; with coordinates, for events in the units of X, if these are real."""
        coordinates = self._coordinates()
        return self._state_params() | ({"coordinates": coordinates} if coordinates else {})

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_state")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.sparse = True
        tags.non_deterministic = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        if "_state" in state:  # typed keys do not pickle; NumPy outlives the device
            trained = state["_state"]
            key = jax.random.key_data(trained.rng_key)
            state["_state"] = jax.tree.map(np.asarray, trained._replace(rng_key=key))
            state["_key_impl"] = str(jax.random.key_impl(trained.rng_key))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {"visible": "bernoulli", "num_classes": None, "optimizer": "adam"} | state
        impl = state.pop("_key_impl", None)
        super().__setstate__(state)
        if "_state" in state:
            trained = jax.tree.map(jnp.asarray, state["_state"])
            if impl is None:  # not kept by earlier versions; the lengths of keys differ
                impl = {2: "threefry2x32", 4: "rbg"}[len(trained.rng_key)]
            key = jax.random.wrap_key_data(trained.rng_key, impl=impl)
            self._state = trained._replace(rng_key=key)

    def _validated(self, X: Any, reset: bool, **options: Any) -> Any:
        dtypes = (np.float64, np.float32)
        return validate_data(self, X, reset=reset, dtype=dtypes, accept_sparse="csr", **options)

    def _weights(self, X: Any, sample_weight: npt.ArrayLike | None) -> Matrix | None:
        if sample_weight is None:
            return None
        given = np.asarray(sample_weight)
        if given.ndim == 1 and not given.any():
            raise ValueError("sample_weight: expected some weight above zero, got zeros")
        return np.asarray(
            _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        )

    def _check_options(self) -> None:
        for name in ("n_components", "batch_size", "n_iter", "n_chains", "n_gibbs_steps"):
            _checks.positive_int(name, getattr(self, name))
        rate = self.learning_rate
        if not _checks.is_real(rate) or not 0 < rate < np.inf:
            raise ValueError(f"learning_rate: expected a positive number, got {rate!r}")
        for name, choices in (
            ("visible", KINDS),
            ("binarize", ("sample", "threshold")),
            ("optimizer", recipes.OPTIMIZERS),
        ):
            if (found := getattr(self, name)) not in choices:
                expected = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
                raise ValueError(f"{name}: expected {expected}, got {found!r}")
        if not _checks.is_real(self.threshold) or not np.isfinite(self.threshold):
            raise ValueError(f"threshold: expected a finite number, got {self.threshold!r}")
        if (
            self.num_classes is not None
            and _checks.positive_int("num_classes", self.num_classes) < 2
        ):
            raise ValueError("num_classes: expected at least 2, got 1")

    def _by_blocks(self, X: Any, fn: Callable[[Matrix], Matrix]) -> Matrix:
        if not matrices.is_large(X):
            return fn(matrices.dense(X))
        return np.concatenate([fn(matrices.dense(X[block])) for block in matrices.row_blocks(X)])

    def _scored(self, x: Matrix) -> Matrix:
        kind = self._kind
        if not isinstance(kind, Reals):
            return np.asarray(_scores(self.model_, self.params_, kind.events(x)))
        if not hasattr(self, "_log_z"):
            key, params = jax.random.key(0), self._state_params()
            self._log_z, _ = recipes.gaussian_rbm_log_z(key, self.model_, params)
        return kind.log_densities(self.model_, self._state_params(), x) - self._log_z


@functools.partial(jax.jit, static_argnames="model")
def _scores(model: Product, params: Params, x: Array) -> Array:
    key = jax.random.key(0)  # all sites: nothing is drawn

    def one(event: Array) -> Array:
        return diagnostics.pseudo_log_likelihood(key, model, params, event)

    return jax.lax.map(one, x, batch_size=min(64, len(x)))


@functools.partial(jax.jit, static_argnames="model")
def _sweeps(rng_key: Array, model: Product, params: Params, x: Array, num_steps: int) -> Array:
    kernel = block_gibbs(model)

    def sweep(index: Array, x: Array) -> Array:
        # The first sweep has the key itself, so that `gibbs` draws what it always drew.
        key = jax.lax.cond(index > 0, lambda: jax.random.fold_in(rng_key, index), lambda: rng_key)

        def one(key: Array, event: Array) -> Array:
            return kernel.step(key, params, kernel.init(key, params, event))[0].x

        return jax.vmap(one)(jax.random.split(key, len(x)), x)

    return jax.lax.fori_loop(0, num_steps, sweep, x)
