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
