"""Data tables as people bring them, and what each function that takes data should make of them."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import poejax as pj
from poejax import mixtures, training

ROWS, COLUMNS = 40, 3
KEY = jax.random.key(0)
REAL, BINARY = pj.models.gaussian_rbm(COLUMNS, 2), pj.models.rbm(COLUMNS, 2)
_RULES = {model: pj.estimators.cd(model) for model in (REAL, BINARY)}
_SGD = optax.sgd(1e-3)

CONTAINERS: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy": lambda x: x,
    "fortran": np.asfortranarray,
    "reversed": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "jax": lambda x: jnp.asarray(x),
    "list": lambda x: x.tolist(),
}
if importlib.util.find_spec("pandas"):
    CONTAINERS["pandas"] = lambda x: __import__("pandas").DataFrame(x)
if importlib.util.find_spec("scipy"):
    # Sparse matrices of half precision do not exist.
    CONTAINERS["sparse"] = lambda x: (
        x if x.dtype == np.float16 else __import__("scipy.sparse").sparse.csr_matrix(x)
    )


class Table:
    """A table `given` to a function, and the same numbers in float64."""

    def __init__(self, given: Any, x: np.ndarray, about: str) -> None:
        self.given, self.x, self.about = given, x, about

    def __repr__(self) -> str:
        return f"Table({self.about})"


@st.composite
def real_tables(draw: st.DrawFn) -> Table:
    """Draw columns of a mean, a scale, a dtype, a layout, and sometimes a fault."""
    rng = np.random.default_rng(draw(st.integers(0, 10)))
    dtype = draw(
        st.sampled_from(["float64", "float32", "float16", "int64", "int32", "uint8", "bool"])
    )
    mean = draw(st.sampled_from([0.0, 300.0, -1013.0, 1e4, 1e6, 3e9, 1e20]))
    scale = draw(st.sampled_from([1.0, 1e-6, 1e-3, 30.0, 1e6, 1e-20, 1e18]))
    fault = draw(st.sampled_from(["none", "none", "constant", "duplicates", "nan", "fill"]))
    container = draw(st.sampled_from(sorted(CONTAINERS)))
    x = mean + scale * rng.normal(size=(ROWS, COLUMNS))
    if fault == "constant":
        x[:, 1] = mean + 0.1
    elif fault == "duplicates":
        x = x[rng.integers(0, 5, ROWS)]
    elif fault in ("nan", "fill"):
        x[7, 1] = np.nan if fault == "nan" else 9.96921e36
    with np.errstate(all="ignore"):
        if np.dtype(dtype).kind in "iub":
            x = np.nan_to_num(np.rint(x), nan=0.0)
            low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
            x = np.clip(x, low, min(high, 2**62))
        x = x.astype(dtype)
    return _packed(container, x, f"{dtype} {mean:g} +- {scale:g}, {fault}")


@st.composite
def binary_tables(draw: st.DrawFn) -> Table:
    """Draw zeros and ones, and sometimes something else among them."""
    rng = np.random.default_rng(draw(st.integers(0, 10)))
    dtype = draw(st.sampled_from(["float64", "float32", "float16", "int64", "uint8", "bool"]))
    fault = draw(st.sampled_from(["none", "none", "grey", "nine", "nan", "constant"]))
    container = draw(st.sampled_from(sorted(CONTAINERS)))
    x = (rng.random((ROWS, COLUMNS)) < 0.4).astype(float)
    if fault == "constant":
        x[:, 1] = 0
    elif fault != "none":
        x[7, 1] = {"grey": 0.5, "nine": 9.0, "nan": np.nan}[fault]
    with np.errstate(all="ignore"):
        x = x.astype(dtype)
    return _packed(container, x, f"{dtype}, {fault}")


def _packed(container: str, x: np.ndarray, about: str) -> Table:
    given = CONTAINERS[container](x)
    # What JAX itself made of it is what was given.
    x = np.asarray(given) if container == "jax" else x
    return Table(given, x.astype(np.float64), f"{about}, {container}")


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of data: its argument's names, a call, and whether what came back is right."""

    names: tuple[str, ...]
    call: Callable[[Any], Any]
    is_right: Callable[[np.ndarray, Any], bool]


def real_functions() -> Iterator[tuple[str, Function]]:
    """Yield every function that takes a batch of real events."""
    yield "kmeans", Function(("x",), lambda x: mixtures.kmeans(KEY, x, 2), _nearest)
    yield (
        "fit_em",
        Function(
            ("x", "ridge"), lambda x: mixtures.fit_em(KEY, x, 1, ridge=1e-9)[0], _one_gaussian
        ),
    )
    yield "init_from", Function(("data",), lambda x: REAL.init_from(KEY, x), _coordinates)
    yield (
        "base_rate",
        Function(("data",), lambda x: pj.evidence.base_rate(REAL, x, 1e-6).params, _field),
    )
    yield (
        "gaussian_base",
        Function(("data",), lambda x: pj.evidence.gaussian_base(REAL, x).params, _field),
    )
    yield (
        "log_likelihood",
        Function(
            ("x", "data"),
            lambda x: pj.evidence.log_likelihood(REAL, REAL.init_from(KEY, x), x, 0.0).values,
            _log_density,
        ),
    )
    yield (
        "rank",
        Function(
            ("x", "data"),
            lambda x: pj.inference.rank(REAL, REAL.init_from(KEY, x), x).log_density,
            _log_density,
        ),
    )
    yield "train", Function(("data",), lambda x: _train(REAL, x), _finite)
    yield "chains.init", Function(("x", "data"), _starts, _same)


def binary_functions() -> Iterator[tuple[str, Function]]:
    """Yield every function that takes a batch of bits."""
    yield (
        "fit_em_bernoulli",
        Function(
            ("x",), lambda x: mixtures.fit_em_bernoulli(KEY, x, 1, smoothing=1e-6)[0].logits, _rates
        ),
    )
    yield (
        "base_rate",
        Function(
            ("data",),
            lambda x: pj.evidence.base_rate(BINARY, x, 1e-6).params["bias"]["field"],
            _rates,
        ),
    )
    yield (
        "init_from",
        Function(("data",), lambda x: BINARY.init_from(KEY, x)["bias"]["field"], _smoothed_rates),
    )
    yield (
        "log_likelihood",
        Function(
            ("x",),
            lambda x: pj.evidence.log_likelihood(BINARY, _binary_params(), x, 0.0).values,
            _binary_density,
        ),
    )
    yield (
        "rank",
        Function(
            ("x",),
            lambda x: pj.inference.rank(BINARY, _binary_params(), x).log_density,
            _binary_density,
        ),
    )
    yield "train", Function(("data",), lambda x: _train(BINARY, x), _finite)


def _train(model: pj.Product, x: Any) -> Any:
    rule, params = _RULES[model], model.init_from(KEY, x)
    state = training.init(KEY, model, rule, _SGD, x, params=params)
    state, _ = training.train_steps(rule, _SGD, state, x, batch_size=10, num_steps=4)
    return state.params


def _starts(x: Any) -> Any:
    kernel = pj.kernels.block_gibbs(REAL)
    return pj.chains.init(KEY, kernel, REAL.init_from(KEY, x), ROWS, x).x


def _close(found: Any, expected: Any, allowed: Any) -> bool:
    found = np.asarray(found, np.float64)
    return bool(np.isfinite(found).all() and (np.abs(found - expected) <= allowed).all())


def _nearest(x: np.ndarray, found: mixtures.Clusters) -> bool:
    centroids = np.asarray(found.centroids, np.float64)
    distance = np.linalg.norm(x[:, None] - centroids, axis=-1)
    chosen = distance[np.arange(len(x)), np.asarray(found.assignments)]
    # Centroids are float32 numbers, each off by half a unit in the last place.
    rounding = 1e-6 * np.abs(x).max() + 1e-3 * x.std()
    return bool(np.isfinite(centroids).all() and (chosen <= distance.min(1) + rounding).all())


def _one_gaussian(x: np.ndarray, found: mixtures.MixtureParams) -> bool:
    spread = x.std(axis=0)
    mean = _close(found.means[0], x.mean(0), 0.02 * spread + 1e-7 * np.abs(x.mean(0)))
    variance = np.asarray(found.covariances[0], np.float64)
    variance = variance if variance.ndim == 1 else np.diagonal(variance)
    return mean and _close(variance, spread**2, 0.02 * spread**2 + 1e-8)


def _coordinates(x: np.ndarray, params: Any) -> bool:
    spread, found = x.std(axis=0), params["coordinates"]
    return _close(found["origin"], x.mean(0), 0.02 * spread) and _close(
        found["scale"], spread, 0.02 * spread
    )


def _field(x: np.ndarray, params: Any) -> bool:
    spread, field = x.std(axis=0), params["bias"]["field"]
    precision = np.exp(np.asarray(field["log_precision"], np.float64))
    mean = np.asarray(field["linear"], np.float64) / precision
    return _close(mean, x.mean(0), 0.1 * spread) and _close(precision**-0.5, spread, 0.02 * spread)


def _log_density(x: np.ndarray, found: Any) -> bool:
    y = (x - x.mean(0)) / x.std(0)
    expected = -0.5 * (y**2).sum(1) / 1.01 - np.log(x.std(0)).sum()
    expected += 2 * np.log(2)  # two hidden units of hardly any weight
    return _close(found, expected, 0.03 * (1 + (y**2).sum(1)))


def _finite(x: np.ndarray, params: Any) -> bool:
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))


def _same(x: np.ndarray, found: Any) -> bool:
    return _close(found, x, 0.02 * x.std(axis=0))


def _rates(x: np.ndarray, logits: Any) -> bool:
    return _close(1 / (1 + np.exp(-np.asarray(logits, np.float64).reshape(-1))), x.mean(0), 1e-4)


def _smoothed_rates(x: np.ndarray, logits: Any) -> bool:
    return _rates(0.99 * x + 0.005, logits)


def _binary_params() -> Any:
    return jax.tree.map(lambda leaf: leaf + 0.3, BINARY.init(KEY))


def _binary_density(x: np.ndarray, found: Any) -> bool:
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), _binary_params())
    pre = params["hidden"]["b"] + x @ params["hidden"]["w"]
    expected = x @ params["bias"]["field"] + np.logaddexp(0, pre).sum(1)
    return _close(found, expected, 1e-4)
