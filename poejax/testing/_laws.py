"""How the kit compares: to rounding, or to standard errors, naming the law that fails."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NoReturn

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from poejax.types import Array, PyTree

_CALLS = itertools.count()

# Small functions that run a few times: their compilation is what takes the time.
compile_once = functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": "0"}
)


@dataclasses.dataclass(frozen=True)
class Laws:
    """Compares arrays and says which law of which part fails, and where.

    subject: the part, and `kind` what it is called.
    where: follows "fails" in the message, e.g. " at beta=1".
    """

    subject: Any
    kind: str
    where: str
    tolerance: float
    level: float

    def fail(self, law: str, what: str, expected: Any, found: Any) -> NoReturn:
        """Raise AssertionError."""
        raise AssertionError(
            f"law {law!r} fails{self.where}: {what}: expected {expected}, found {found}; "
            f"{self.kind} {self.subject}"
        )

    def require(self, law: str, what: str, expected: Any, found: Any) -> None:
        """Require that two values are equal."""
        if expected != found:
            self.fail(law, what, expected, found)

    def alike(self, law: str, what: str, expected: PyTree, found: PyTree) -> None:
        """Require one tree structure, and equal shapes and dtypes of all leaves."""
        try:
            chex.assert_trees_all_equal_structs(expected, found)
            chex.assert_trees_all_equal_shapes_and_dtypes(expected, found)
        except AssertionError as error:
            kinds = [jax.tree.map(jax.typeof, tree) for tree in (expected, found)]
            raise AssertionError(
                f"law {law!r} fails{self.where}: {what}: expected {kinds[0]}, found {kinds[1]}; "
                f"{self.kind} {self.subject}"
            ) from error

    def equal(self, law: str, what: str, expected: Any, found: Any, slack: Any = 0.0) -> None:
        """Require `found` to be `expected` to rounding of its largest entry, plus `slack`."""
        expected, found = np.asarray(expected, float), np.asarray(found, float)
        if expected.shape != found.shape:
            self.fail(law, f"shape of {what}", expected.shape, found.shape)
        allowed = self.tolerance * (1 + np.max(np.abs(expected), initial=0.0)) + slack
        self.not_positive(law, what, expected, found, np.abs(found - expected) - allowed)

    def trees(self, law: str, what: str, expected: PyTree, found: PyTree) -> None:
        """Require trees to be alike, and equal to rounding."""
        self.alike(law, what, expected, found)
        self.equal(law, what, flat_rows(expected), flat_rows(found))

    def sampled(self, law: str, what: str, expected: Any, found: Any, std_err: Any) -> None:
        """Require equality to standard errors, over all entries at once (Bonferroni)."""
        quantile = NormalDist().inv_cdf(1 - self.level / (2 * max(1, np.size(found))))
        self.equal(law, what, expected, found, quantile * std_err)

    def not_positive(self, law: str, what: str, expected: Any, found: Any, excess: Any) -> None:
        """Require that no entry of `excess` is positive or NaN, or quote the worst."""
        if not np.all(excess <= 0):
            worst = np.unravel_index(np.argmax(np.nan_to_num(excess, nan=np.inf)), excess.shape)
            at = f"{what}, entry {tuple(map(int, worst))}"
            self.fail(law, at, f"{expected[worst]:.7g}", f"{found[worst]:.7g}")

    def frequencies(self, law: str, p: Any, states: Any, draws: Any) -> None:
        """Compare draws [E, n, L] with the probabilities p [E, S] of the states [E, S, L].

        Chernoff: P(a frequency as far out as q) <= exp(-n KL(q, p)) on either side.
        """
        n = draws.shape[1]
        q = np.stack([self._count(law, *pair) for pair in zip(states, draws, strict=True)])
        excess = n * _divergence(q, p) - math.log(2 * p.size / self.level)
        self.not_positive(law, f"frequency of (event, state) in {n} draws", p, q, excess)

    def waves(self, law: str, p: Any, points: Any, draws: Any) -> None:
        """Compare draws [E, n, L] with the density p [E, S] on the points [E, S, L].

        By the characteristic function at a few frequencies: bounded, so that its means are near
        normal.
        """
        center = np.einsum("es,esl->el", p, points)[:, None]
        spread = np.sqrt(np.einsum("es,esl->el", p, (points - center) ** 2))[:, None]
        on_points, on_draws = (_waves((y - center) / spread) for y in (points, draws))
        expected = np.einsum("es,esk->ek", p, on_points)
        variance = np.einsum("es,esk->ek", p, (on_points - expected[:, None]) ** 2)
        std_err = np.sqrt(variance / draws.shape[1])
        self.sampled(law, "characteristic function", expected, on_draws.mean(axis=1), std_err)

    def same_law(self, law: str, first: Any, second: Any) -> None:
        """Require two batches of independent draws [n, L], [m, L] to have one distribution."""
        center = np.median(first, axis=0)
        # Quantiles: the spread of heavy tails need not be finite.
        spread = np.maximum(np.ptp(np.quantile(first, [0.1, 0.9], axis=0), axis=0), 1e-6)
        waves = [_waves(np.asarray((y - center) / spread, float)) for y in (first, second)]
        std_err = np.sqrt(sum(w.var(axis=0) / len(w) for w in waves))
        expected, found = (w.mean(axis=0) for w in waves)
        self.sampled(law, "characteristic function", expected, found, std_err)

    def _count(self, law: str, states: Any, draws: Any) -> Any:
        index = {tuple(state): i for i, state in enumerate(states)}
        found = np.zeros(len(states))
        for state, count in zip(*np.unique(draws, axis=0, return_counts=True), strict=True):
            if tuple(state) not in index:
                self.fail(law, "a draw", f"one of {len(states)} states", state)
            found[index[tuple(state)]] = count / len(draws)
        return found


def check_retrace(kind: str, subject: Any, fn: Callable[..., Any], *arguments: PyTree) -> None:
    """Require that a deep copy of `subject` is equal, and that fn(copy, ...) compiles nothing new.

    Args:
      kind: what the subject is called.
      subject: a hashable value.
      fn: called with the subject, and with `arguments` and then with others of their shapes.
      *arguments: trees of arrays; those that are not keys are doubled for the second call.
    """
    rebuilt = copy.deepcopy(subject)
    if rebuilt != subject or hash(rebuilt) != hash(subject):
        what = f"law 'retrace' fails: expected {kind} {subject}, found a copy that differs"
        raise AssertionError(what)

    def call(*values: Any) -> Any:
        return fn(*values)

    call.__name__ = f"call_{next(_CALLS)}"  # chex counts by name and source
    traced = jax.jit(chex.assert_max_traces(call, n=1), static_argnums=0)
    try:
        traced.trace(subject, *arguments)
        traced.trace(rebuilt, *jax.tree.map(_other, arguments))
    except AssertionError as error:
        what = f"law 'retrace' fails: expected 1 trace, found 2: {kind} {subject}"
        raise AssertionError(what) from error


def rounding(*trees: PyTree) -> float:
    """Return 64 units in the last place of the floating dtype of the leaves."""
    return 64 * float(jnp.finfo(jnp.result_type(float, *jax.tree.leaves(trees))).eps)


def noisy(rng_key: Array, tree: PyTree, scale: float = 1.0) -> PyTree:
    """Return a tree plus normal noise, so that no term hides behind a zero."""
    vector, unflatten = ravel_pytree(tree)
    return unflatten(vector + scale * jax.random.normal(rng_key, vector.shape, vector.dtype))


def flat(tree: PyTree) -> Array:
    """Return all leaves as one vector."""
    return ravel_pytree(tree)[0]


def flat_rows(tree: PyTree, rows: tuple[int, ...] = ()) -> Any:
    """Return all leaves as vectors, [*rows, L]; keys count by their words."""
    leaves = [jnp.reshape(_numbers(leaf), (*rows, -1)) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate([jnp.zeros((*rows, 0)), *leaves], axis=-1)


def rows_of(tree: PyTree, index: Any) -> PyTree:
    """Return the rows `index` of all leaves."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _numbers(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _other(leaf: Any) -> Any:
    return 2 * leaf if jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating) else leaf


def _waves(y: Any) -> Any:
    """Return cosines and sines [..., K] of standardised points [..., L]."""
    size = y.shape[-1]
    if size <= 3:
        k = np.array([*itertools.product(range(3), repeat=size)][1:]).T
    else:  # each number, and each pair of neighbours
        k = np.concatenate([np.eye(size), 2 * np.eye(size), np.eye(size) + np.eye(size, k=1)]).T
    return np.concatenate([np.cos(y @ k), np.sin(y @ k)], axis=-1)


def _divergence(q: Any, p: Any) -> Any:
    """KL divergence of Bernoulli(q) from Bernoulli(p), 0 log 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        on, off = q * np.log(q / p), (1 - q) * np.log((1 - q) / np.maximum(1 - p, 0))
    return np.where(q > 0, on, 0.0) + np.where(q < 1, off, 0.0)
