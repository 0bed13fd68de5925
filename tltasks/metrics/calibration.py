"""Probabilities that mean what they say: how far they do, the temperature that mends them, and what abstaining wins.

Source: Guo et al., https://arxiv.org/abs/1706.04599.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import minimize_scalar

from tltasks.metrics.arrays import Floats, Ints
from tltasks.metrics.intervals import score_interval

BINS = 15
LEAST = float(np.finfo(np.float32).smallest_subnormal)
LARGEST_LOG = 3.0
"""Bound of a temperature's logarithm, to both sides."""
WORTH = 1.0
"""Log-likelihood of the validation rows that a temperature other than 1 must win (Akaike's criterion)."""
POINTS = 20


def tempered(probabilities: Floats, temperature: float) -> NDArray[np.float32]:
    """Probabilities [rows, classes] after the logits behind them are divided by the temperature; their order stays.

    >>> tempered(np.array([[0.9, 0.1]]), 2.0).round(3).tolist()
    [[0.75, 0.25]]
    """
    return np.asarray(special.softmax(_logits(probabilities) / temperature, axis=1), np.float32)


def _logits(probabilities: Floats) -> Floats:
    found: Floats = np.log(np.maximum(np.asarray(probabilities, np.float64), LEAST))
    return found


def fit_temperature(probabilities: Floats, truth: Ints) -> float:
    """The temperature whose probabilities make the classes [rows] of these rows likeliest; 1 where that wins nothing.

    As if one row more were wrong, so that no finite number of right answers makes them certain (Platt, Probabilistic
    outputs for support vector machines, 1999, §2.2).
    """
    logits, wrong = _logits(probabilities), 1 / (len(truth) + 2)
    right = np.eye(logits.shape[1])[truth]
    guarded = right * (1 - wrong) + (1 - right) * wrong / (logits.shape[1] - 1)

    def loss(log_temperature: float, targets: Floats) -> float:
        found = logits * np.exp(-log_temperature)
        return float(special.logsumexp(found, axis=1).sum() - (targets * found).sum())

    best = minimize_scalar(loss, bounds=(-LARGEST_LOG, LARGEST_LOG), args=(guarded,), method="bounded").x
    return float(f"{np.exp(best):.6g}") if loss(0.0, right) - loss(best, right) > WORTH else 1.0


def calibration(probabilities: Floats, truth: Ints, *, several: bool = False) -> dict[str, float]:
    """How far probabilities are from what they say: calibration error, log loss and Brier's score, each 0 at best.

    `truth` is each row's class, [rows], or of `several` 0 and 1, [rows, classes]. The calibration error is the mean
    gap, over bins, between the likeliest class's probability and how often it is right; of `several`, between each
    class's probability and how often rows have it. Brier's score is the squared distance to the truth, summed over
    classes, or their mean of `several`.
    """
    found = np.asarray(probabilities, np.float64)
    if several:
        likelihood, squares = np.where(truth, found, 1 - found), np.square(found - truth).mean(1)
        error = expected_calibration_error(found.ravel(), truth.ravel() > 0)
    else:
        rows = np.arange(len(truth))
        likelihood, squares = found[rows, truth], np.square(found - np.eye(found.shape[1])[truth]).sum(1)
        error = expected_calibration_error(found.max(1), found.argmax(1) == truth)
    loss = float(-np.log(np.clip(likelihood, 1e-12, None)).mean())
    return {"ece": error, "loss": loss, "brier": float(squares.mean())}


def expected_calibration_error(confidence: Floats, right: NDArray[np.bool_], *, bins: int = BINS) -> float:
    """Mean gap between confidence and the share that is right over equal-width bins of confidence, in [0, 1].

    Source: Guo et al., equation 3.

    >>> expected_calibration_error(np.array([0.8, 0.8]), np.array([True, False]))
    0.30000000000000004
    """
    bin_of_row = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.abs(np.bincount(bin_of_row, confidence, bins) - np.bincount(bin_of_row, right, bins))
    return float(gaps.sum() / len(right))


def answered(confidence: Floats, right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Accuracy, with its 95 % interval, of the rows whose confidence is at least `threshold`, by their share of all.

    Rows of one confidence are answered together or not at all. Source: El-Yaniv and Wiener,
    https://jmlr.org/papers/v11/el-yaniv10a.html (the curve of risk and coverage, its other way round).
    """
    ordered, points = np.sort(np.asarray(confidence, np.float64))[::-1], []
    for threshold in np.unique([ordered[-(-len(ordered) * i // POINTS) - 1] for i in range(1, POINTS + 1)])[::-1]:
        some = right[confidence >= threshold]
        low, high = score_interval(np.stack([some, np.ones(len(some))], axis=1).astype(np.float64), most=1.0)
        at = {"threshold": float(threshold), "coverage": len(some) / len(right), "accuracy": float(some.mean())}
        points.append(at | {"low": low, "high": high})
    return points
