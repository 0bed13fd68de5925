"""Scores of rows that have any number of classes, what each row adds to them, and thresholds of answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tltasks.metrics.arrays import Floats, Ints
from tltasks.metrics.calibration import calibration
from tltasks.metrics.classification import class_parts, ranking_parts

FEWEST_ROWS = 20
"""Rows of a class from which it has a threshold of its own."""


def multi_label(
    probabilities: Floats, chosen: Ints, truth: Ints, class_names: list[str], thresholds: Floats
) -> tuple[dict[str, float], dict[str, object]]:
    """Scores of probabilities and of the classes that were chosen by them, all [rows, classes]; and a table of classes.

    Mean average precision and macro-F1 are over the classes that occur.
    """
    from sklearn.metrics import precision_recall_fscore_support  # a second to import

    probabilities = np.asarray(probabilities, np.float64)
    by_class = precision_recall_fscore_support(truth, chosen, average=None, zero_division=0.0)
    precisions = _precisions(probabilities, truth)
    names = ("micro_f1", "macro_f1", "subset_accuracy")
    values = {name: ratio(multi_label_row_scores(name, probabilities, chosen, truth)) for name in names}
    values = {"mean_average_precision": mean_average_precision(probabilities, truth), **values}
    found = calibration(probabilities, truth, several=True)
    values |= {"ece": found["ece"], "loss": found["loss"]}
    keys = ("class", "precision", "recall", "f1", "support", "average_precision", "threshold")
    own = np.asarray(thresholds, np.float64).tolist()
    rows = zip(class_names, *(column.tolist() for column in by_class), precisions, own, strict=True)
    return values, {"class_names": class_names, "per_class": [dict(zip(keys, row, strict=True)) for row in rows]}


def multi_label_row_scores(metric: str, probabilities: Floats, chosen: Ints, truth: Ints) -> NDArray[np.float64]:
    """Each row's part in a metric, [rows, 2]: a numerator and a denominator, of which the metric is the ratio of sums.

    Macro-F1 is no ratio over rows; there a row's part is the metric and its influence on it, as in `class_row_scores`.
    Average precision of few rows is more than that of many, so there it is a jackknife pseudo-value, by whose mean that
    is taken off (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, §11.5).
    """
    guess, true, one = np.asarray(chosen, np.float64), np.asarray(truth, np.float64), np.ones(len(truth))
    if metric == "subset_accuracy":
        return np.stack([(guess == true).all(1), one], axis=1).astype(np.float64)
    if metric == "micro_f1":
        return np.stack([2 * (guess * true).sum(1), (guess + true).sum(1)], axis=1)
    if metric == "macro_f1":
        return class_parts(2 * guess * true, guess + true)
    if metric == "auroc":
        return ranking_parts(probabilities, true)
    both = [average_precision(probabilities[:, i], true[:, i]) for i in np.flatnonzero(true.any(0))]
    parts = [len(true) * value - (len(true) - 1) * without for value, without in both]
    return np.stack([np.mean(parts, axis=0) if parts else np.full(len(true), np.nan), one], axis=1)


def mean_average_precision(scores: Floats, truth: Ints) -> float:
    """Mean over the classes that occur, of scores and truth [rows, classes]; NaN where none does."""
    known = [value for value in _precisions(scores, truth) if value == value]
    return float(np.mean(known)) if known else float("nan")


def _precisions(scores: Floats, truth: Ints) -> list[float]:
    columns = zip(scores.T, truth.T, strict=True)
    return [average_precision(s, y)[0] if y.any() else float("nan") for s, y in columns]


def ratio(row_scores: Floats) -> float:
    """The metric that rows have these parts of; NaN where there is none."""
    numerator, denominator = row_scores.sum(0)
    return float(numerator / denominator) if denominator else float("nan")


def average_precision(scores: Floats, truth: Floats) -> tuple[float, NDArray[np.float64]]:
    """Mean precision at the rows that have the class, of which there is one, by their scores; and without each row.

    Rows of one score stand at one place. Without the only row of the class, it is what it was.

    >>> value, without = average_precision(np.array([0.9, 0.8, 0.8, 0.1]), np.array([1.0, 0.0, 1.0, 0.0]))
    >>> round(value, 4), without.round(4).tolist()
    (0.8333, [0.5, 1.0, 1.0, 0.8333])
    """
    order = np.argsort(-scores, kind="stable")
    true, ordered = truth[order].astype(np.float64), scores[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    sizes = np.diff(np.append(starts, len(true)))
    at, first = np.repeat(starts + sizes, sizes), np.repeat(starts, sizes)  # rows of this score or a better one
    hits, n_hits, fewer = np.cumsum(true)[at - 1], true.sum(), np.maximum(at - 1, 1)
    better = np.append(0.0, np.cumsum(true * hits / at))  # rows whose precision stays
    later, each = (np.cumsum(part[::-1])[::-1] for part in (true * hits / fewer, true / fewer))
    own = true * (hits - 1) / fewer
    without = np.empty(len(true))
    without[order] = (better[first] + later[first] - true * each[first] - own) / np.maximum(n_hits - true, 1)
    value = float(better[-1] / n_hits)
    return value, without if n_hits > 1 else np.where(truth > 0, value, without)


def fit_thresholds(probabilities: Floats, truth: Ints) -> NDArray[np.float64]:
    """The probability from which each class [classes] is an answer, such that F1 on these rows is the largest.

    Classes of few rows share one threshold, by all classes together: one of their own would fit noise (Yang, A study of
    thresholding strategies for text categorization, https://doi.org/10.1145/383952.383975).
    """
    common = _best_threshold(probabilities.ravel(), truth.ravel())
    own = np.minimum(truth.sum(0), len(truth) - truth.sum(0)) >= FEWEST_ROWS
    return np.array([_best_threshold(probabilities[:, i], truth[:, i]) if own[i] else common for i in range(len(own))])


def _best_threshold(scores: Floats, truth: Ints) -> float:
    """Halfway between the last score that is an answer and the next one."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = np.asarray(scores, np.float64)[order], np.cumsum(truth[order])
    if not hits[-1]:
        return 0.5
    after = np.append(ordered[1:], 0.0)
    f1 = np.where(after < ordered, 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1]), 0.0)
    best = int(f1.argmax())
    return float((ordered[best] + after[best]) / 2)
