"""Scores of class probabilities, and the tables behind them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tltasks.metrics.arrays import Floats, Ints
from tltasks.metrics.calibration import calibration

LARGEST_MATRIX = 100
"""Classes up to which a confusion matrix is kept as a whole."""
MOST_CONFUSED = 1000
"""Pairs of confused classes that are kept of more."""


def classification(
    probabilities: Floats, references: Ints, class_names: list[str]
) -> tuple[dict[str, float], dict[str, object]]:
    """Scores of class probabilities [rows, classes], and the tables behind them.

    Accuracy, macro-F1 over the classes that occur, calibration error, log loss, and above five classes top-5 accuracy;
    `class_names`, scores `per_class` and what `confusions` gives.
    """
    # sklearn takes a second to import, and only training and evaluation need it
    from sklearn.metrics import precision_recall_fscore_support, top_k_accuracy_score

    probabilities, classes = np.asarray(probabilities, dtype=np.float64), np.arange(len(class_names))
    chosen = probabilities.argmax(1)
    by_class = precision_recall_fscore_support(references, chosen, labels=classes, zero_division=0.0)
    # As in sklearn's default, since a kept head may have many classes that this data never shows.
    occurs = np.bincount(np.concatenate([chosen, references]), minlength=len(classes)) > 0
    values = {
        "accuracy": float((chosen == references).mean()),
        "macro_f1": float(by_class[2][occurs].mean()),
    }
    found = calibration(probabilities, references)
    values |= {"ece": found["ece"], "loss": found["loss"]}
    if len(classes) > 5:
        values["top5_accuracy"] = float(top_k_accuracy_score(references, probabilities, k=5, labels=classes))
    rows = zip(class_names, *(column.tolist() for column in by_class), strict=True)
    details = {
        "class_names": class_names,
        "per_class": [dict(zip(("class", "precision", "recall", "f1", "support"), row, strict=True)) for row in rows],
        **confusions(chosen, references, class_names),
    }
    return values, details


def class_row_scores(
    metric: str, chosen: Ints, references: Ints, probabilities: Floats | None = None
) -> NDArray[np.float64]:
    """Each row's part in a metric, [rows, 2]: a numerator and 1, whose mean over rows is the metric.

    Macro-F1 and balanced accuracy are no means over rows; there a row's part is the metric and the row's influence on
    it, whose spread is that of the metric (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, §22.6).
    Macro-F1 is over the classes that occur, balanced accuracy over those that rows have; AUROC, which asks for the
    `probabilities` [rows, classes], is the mean over classes of one against the rest.

    >>> chosen, references = np.array([0, 0, 0, 1, 0]), np.array([0, 0, 0, 1, 1])
    >>> [class_row_scores(m, chosen, references).mean(0).round(3).tolist() for m in ("balanced_accuracy", "macro_f1")]
    [[0.75, 1.0], [0.762, 1.0]]
    """
    n_rows, right = len(references), chosen == references
    if metric == "accuracy":
        return np.stack([right.astype(np.float64), np.ones(n_rows)], axis=1)
    if metric == "auroc":
        assert probabilities is not None
        return ranking_parts(probabilities, np.eye(probabilities.shape[1])[references])
    occur, at = np.unique(np.concatenate([chosen, references]), return_inverse=True)
    guess, true = (np.eye(len(occur))[part] for part in (at[:n_rows], at[n_rows:]))
    both = guess * true
    return class_parts(both, true) if metric == "balanced_accuracy" else class_parts(2 * both, guess + true)


def class_parts(hits: Floats, sizes: Floats) -> NDArray[np.float64]:
    """Each row's part in the mean over classes of hits / sizes, both [rows, classes], as in `class_row_scores`."""
    has_rows = sizes.sum(0) > 0
    if not has_rows.any():
        return np.full((len(hits), 2), [np.nan, 1.0])
    shares = hits.sum(0)[has_rows] / sizes.sum(0)[has_rows]
    influence = (hits[:, has_rows] - shares * sizes[:, has_rows]) / sizes[:, has_rows].mean(0)
    return np.stack([shares.mean() + influence.mean(1), np.ones(len(hits))], axis=1)


def ranking_parts(scores: Floats, truth: Floats) -> NDArray[np.float64]:
    """Each row's part in the area under the ROC curve, the mean over classes, of scores and truth [rows, classes].

    A class that all rows have, or none, says nothing and is left out; NaN where no other is there. A row's influence is
    by its place among the rows of the other kind (DeLong, DeLong and Clarke-Pearson, https://doi.org/10.2307/2531595).

    >>> ranking_parts(np.array([[0.1], [0.4], [0.35], [0.8]]), np.array([[0], [0], [1], [1]])).mean(0).tolist()
    [0.75, 1.0]
    """
    from scipy.stats import rankdata

    parts = []
    for own, has in zip(np.asarray(scores, np.float64).T, truth.T > 0, strict=True):
        n_with, n_without = int(has.sum()), int((~has).sum())
        if not n_with or not n_without:
            continue
        ranks, place = rankdata(own), np.empty(len(own))
        place[has] = (ranks[has] - rankdata(own[has])) / n_without  # the share of the others that it is above
        place[~has] = 1 - (ranks[~has] - rankdata(own[~has])) / n_with
        area = place[has].mean()
        parts.append(area + (place - area) * np.where(has, len(own) / n_with, len(own) / n_without))
    return np.stack([np.mean(parts, axis=0) if parts else np.full(len(truth), np.nan), np.ones(len(truth))], axis=1)


def confusions(chosen: Ints, references: Ints, class_names: list[str]) -> dict[str, object]:
    """The `confusion_matrix` [true, predicted] of all classes, of the `matrix_classes` that occur, or the commonest
    `confused` pairs (true, predicted, rows) alone: never more than LARGEST_MATRIX² or MOST_CONFUSED numbers.

    >>> confusions(np.array([0, 1, 1]), np.array([0, 0, 1]), ["a", "b"])
    {'confusion_matrix': [[1, 1], [0, 1]]}
    """
    from sklearn.metrics import confusion_matrix

    occurring, n_classes = np.union1d(chosen, references), len(class_names)
    if n_classes <= LARGEST_MATRIX:
        return {"confusion_matrix": confusion_matrix(references, chosen, labels=np.arange(n_classes)).tolist()}
    if len(occurring) <= LARGEST_MATRIX:
        return {
            "matrix_classes": [class_names[i] for i in occurring],
            "confusion_matrix": confusion_matrix(references, chosen, labels=occurring).tolist(),
        }
    wrong = chosen != references
    pairs, rows = np.unique(np.stack([references[wrong], chosen[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-rows, kind="stable")[:MOST_CONFUSED]
    return {
        "confused": [
            [class_names[i], class_names[j], n]
            for (i, j), n in zip(pairs[order].tolist(), rows[order].tolist(), strict=True)
        ]
    }
