"""Logistic regression with a cross-validated penalty, and how well it does on few labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
Rows = list[list[npt.NDArray[np.int64]]]


def fit(x: Floats, labels: Labels, penalties: Sequence[float], num_folds: int) -> Any:
    """Fit multinomial logistic regression to rows `x` [N, F]; returns what can `predict`.

    Args:
      x: features, on comparable scales.
      labels: classes, [N].
      penalties: inverse penalties C; the best in stratified cross-validation is used on all rows.
      num_folds: folds, at most the number of rows of the rarest class.
    """
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=0)
    model = LogisticRegression(max_iter=500, tol=1e-3)
    search = GridSearchCV(model, {"C": list(penalties)}, cv=folds)
    # Matrices this small are done sooner by one thread.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return search.fit(x, labels)


def path(
    x: Floats, labels: Labels, penalties: Sequence[float], max_steps: int
) -> Iterator[tuple[float, Any]]:
    """Fit by the mean loss + penalty / 2 · |w|², each penalty from where a larger one ended.

    Yields `(penalty, model)`, the largest penalty first; the model is the same object every time.
    """
    model = LogisticRegression(max_iter=max_steps, tol=1e-6, warm_start=True)
    for penalty in sorted(penalties, reverse=True):
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            yield penalty, model.set_params(C=1 / (penalty * len(x))).fit(x, labels)


def labelled_rows(labels: Labels, counts: Sequence[int], num_draws: int) -> Rows:
    """Draw rows of a pool, equally many of every class: `[counts][draws]` arrays of row numbers.

    Within a draw, fewer labels are a part of more.

    Raises:
      ValueError: if a class has fewer rows than the largest of `counts`.
    """
    most, classes = max(counts), np.unique(labels)
    if (smallest := min(int((labels == c).sum()) for c in classes)) < most:
        raise ValueError(f"labels_per_class: expected at most {smallest}, got {most}")
    draws = []
    for draw in range(num_draws):
        rng = np.random.default_rng(draw)
        draws.append(
            [rng.choice(np.flatnonzero(labels == c), most, replace=False) for c in classes]
        )
    return [[np.concatenate([own[:n] for own in draw]) for draw in draws] for n in counts]


def few_label_errors(
    pool: tuple[Floats, Labels],
    test: tuple[Floats, Labels],
    rows: Rows,
    penalties: Sequence[float],
    num_folds: int,
) -> npt.NDArray[np.float64]:
    """Return test errors of fits to the rows drawn, by number of labels and draw.

    The inverse penalties are divided by the number of features, as the variance of their weighted
    sum grows with it.
    """
    (x, labels), (x_test, test_labels) = pool, test
    scaled = [c / x.shape[1] for c in penalties]
    return np.array(
        [
            [
                np.mean(fit(x[n], labels[n], scaled, num_folds).predict(x_test) != test_labels)
                for n in draws
            ]
            for draws in rows
        ]
    )
