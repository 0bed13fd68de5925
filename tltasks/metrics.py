"""Scores, their uncertainty, and the baselines that need no training.

Classification scores are an `evaluate.Metric`, so that they can also be used from evaluate; its `load` would fetch a
script from the Hub, which fails offline.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


class Classification(evaluate.Metric):  # type: ignore[misc]
    """Accuracy, top-5 accuracy (above five classes), macro-F1, calibration error and log loss of probabilities."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        probabilities, labels = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        n_classes = probabilities.shape[1]
        chosen = probabilities.argmax(1)
        values = {
            "accuracy": float((chosen == labels).mean()),
            "macro_f1": float(_by_class(chosen, labels, n_classes)[2][_present(chosen, labels, n_classes)].mean()),
            "ece": expected_calibration_error(probabilities, labels),
            "loss": float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)).mean()),
        }
        if n_classes > 5:
            values["top5_accuracy"] = float(
                top_k_accuracy_score(labels, probabilities, k=5, labels=np.arange(n_classes))
            )
        return values


def classification(
    probabilities: Floats, references: Ints, class_names: list[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores of class probabilities [rows, classes], and the tables behind them."""
    metric = Classification(keep_in_memory=True)
    values = metric._compute(predictions=probabilities, references=references)
    chosen, n_classes = probabilities.argmax(1), len(class_names)
    precision, recall, f1, support = _by_class(chosen, references, n_classes)
    details = {
        "class_names": class_names,
        "per_class": [
            {
                "class": name,
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(class_names)
        ],
        "confusion_matrix": confusion_matrix(references, chosen, labels=np.arange(n_classes)).tolist(),
    }
    return values, details


def _by_class(chosen: Ints, labels: Ints, n_classes: int) -> tuple[Floats, Floats, Floats, Ints]:
    scores: tuple[Floats, Floats, Floats, Ints] = precision_recall_fscore_support(
        labels, chosen, labels=np.arange(n_classes), zero_division=0.0
    )
    return scores


def _present(chosen: Ints, labels: Ints, n_classes: int) -> NDArray[np.bool_]:
    """Classes that occur, as in scikit-learn's default: a kept head may have many that this data never shows."""
    return np.bincount(np.concatenate([chosen, labels]), minlength=n_classes) > 0


def expected_calibration_error(probabilities: Floats, labels: Ints, *, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, in [0, 1].

    Source: Guo et al., https://arxiv.org/abs/1706.04599, equation 3.

    >>> expected_calibration_error(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1]))
    0.30000000000000004
    """
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.abs(np.bincount(which, confidence, bins) - np.bincount(which, correct, bins))
    return float(gaps.sum() / len(labels))


# ------------------------------------------------------------------------------------------ intervals


def bootstrap_interval(row_scores: Floats, *, seed: int, samples: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval over rows of a ratio of sums.

    `row_scores` [rows, 2] holds each row's numerator and denominator (for accuracy: correct, 1).
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    low, high = np.quantile(_resampled(row_scores, seed=seed, samples=samples), [0.025, 0.975])
    return float(low), float(high)


def paired_difference(ours: Floats, theirs: Floats, *, seed: int, samples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of ours − theirs on the same rows; both [rows, 2]."""
    both = np.concatenate([ours, theirs], axis=1)
    drawn = _resampled(both, seed=seed, samples=samples, pairs=2)
    low, high = np.quantile(drawn[:, 0] - drawn[:, 1], [0.025, 0.975])
    return float(low), float(high)


def _resampled(row_scores: Floats, *, seed: int, samples: int, pairs: int = 1) -> Floats:
    """The metric in each bootstrap sample, [samples] or [samples, pairs]."""
    rng = np.random.default_rng(seed)
    n_rows = len(row_scores)
    # Equal rows are drawn together, by how often each kind comes up: exact, and independent of the number of rows.
    kinds, counts = np.unique(row_scores, axis=0, return_counts=True)
    if len(kinds) <= 1000:
        drawn = rng.multinomial(n_rows, counts / n_rows, size=samples).astype(np.float64) @ kinds
    else:
        drawn = np.stack([row_scores[rng.integers(0, n_rows, n_rows)].sum(0) for _ in range(samples)])
    ratios = drawn[:, 0::2] / np.maximum(drawn[:, 1::2], 1e-12)
    return ratios if pairs > 1 else ratios[:, 0]


# ------------------------------------------------------------------------------------------ baselines


def nearest_neighbours(
    train: Floats, labels: Ints, evaluated: Floats, *, n_classes: int, k: int = 20, temperature: float = 0.07
) -> NDArray[np.float32]:
    """Class probabilities [rows, classes] by a vote of the k most similar training rows, weighted by exp(cosine / T).

    Source: Wu et al., https://arxiv.org/abs/1805.01978, §3.4; k = 20 as in Caron et al., arXiv 2104.14294.
    """
    unit = train / np.maximum(np.linalg.norm(train, axis=1, keepdims=True), 1e-12)
    k = min(k, len(unit))
    votes = np.zeros((len(evaluated), n_classes), dtype=np.float64)
    for start in range(0, len(evaluated), 1024):
        block = evaluated[start : start + 1024]
        similarity = block @ unit.T / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.exp(np.take_along_axis(similarity, nearest, 1) / temperature)
        for column in range(k):
            rows = np.arange(start, start + len(block))
            np.add.at(votes, (rows, labels[nearest[:, column]]), weight[:, column])
    shares: NDArray[np.float32] = (votes / votes.sum(1, keepdims=True)).astype(np.float32)
    return shares


def left_out_neighbours(features: Floats, labels: list[str]) -> float:
    """Accuracy of `nearest_neighbours` where each row is judged by all others, [rows, width]."""
    names, numbers = np.unique(np.array(labels), return_inverse=True)
    correct = 0
    for row in range(len(features)):
        others = np.delete(np.arange(len(features)), row)
        votes = nearest_neighbours(features[others], numbers[others], features[[row]], n_classes=len(names))
        correct += int(votes[0].argmax() == numbers[row])
    return correct / len(features)


def feature_spread(features: Floats) -> float:
    """How far the directions of features [rows, width] spread: 0 when all are one, 1 when they are uniform.

    The mean standard deviation over rows of each coordinate of the unit vectors, times the root of the width.
    Source: Chen and He, https://arxiv.org/abs/2011.10566, §4.1.

    >>> feature_spread(np.ones((4, 3))), round(feature_spread(np.eye(64)), 2)
    (0.0, 0.99)
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return float(np.sqrt(features.shape[1]) * unit.std(0).mean())
