"""Scores of rows with any number of classes, against scikit-learn, by simulation and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from tltasks.metrics import score_interval
from tltasks.metrics.multi_label import (
    average_precision,
    fit_thresholds,
    mean_average_precision,
    multi_label,
    multi_label_row_scores,
    ratio,
)
from tltasks.metrics.neighbours import nearest_neighbours

METRICS = ("mean_average_precision", "micro_f1", "macro_f1", "subset_accuracy")


def drawn(n: int, shares: list[float], seed: int = 0, digits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties that lean to the truth, and the truth, [rows, classes]."""
    random = np.random.default_rng(seed)
    truth = (random.random((n, len(shares))) < shares).astype(np.int64)
    logits = random.normal(size=truth.shape) + 2 * truth - 1
    return np.round(1 / (1 + np.exp(-logits)), digits), truth


def test_scores_are_those_of_scikit_learn() -> None:
    p, truth = drawn(200, [0.5, 0.2, 0.05, 0.0])
    chosen = (p >= 0.5).astype(np.int64)
    values, details = multi_label(p, chosen, truth, list("abcd"), np.full(4, 0.5))
    assert values["mean_average_precision"] == pytest.approx(average_precision_score(truth[:, :3], p[:, :3]))
    for average in ("micro", "macro"):
        expected = f1_score(truth, chosen, average=average, zero_division=0)
        assert values[f"{average}_f1"] == pytest.approx(expected)
    assert values["subset_accuracy"] == (truth == chosen).all(1).mean()
    theirs = precision_recall_fscore_support(truth, chosen, zero_division=0)
    for i, key in enumerate(("precision", "recall", "f1", "support")):
        assert [row[key] for row in details["per_class"]] == pytest.approx(theirs[i].tolist())
    assert np.isnan(details["per_class"][3]["average_precision"])


def test_average_precision_without_a_row_is_that_of_the_others() -> None:
    p, truth = drawn(60, [0.3], digits=1)
    value, without = average_precision(p[:, 0], truth[:, 0])
    assert value == pytest.approx(average_precision_score(truth, p))
    expected = [average_precision_score(np.delete(truth, row, 0), np.delete(p, row, 0)) for row in range(60)]
    assert without == pytest.approx(np.array(expected))


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_hold_what_they_say(metric: str) -> None:
    shares = [0.5, 0.3, 0.1]
    p, truth = drawn(200_000, shares, digits=6)
    value = ratio(multi_label_row_scores(metric, p, p >= 0.5, truth))
    held = 0
    for seed in range(200):
        p, truth = drawn(300, shares, seed + 1, digits=6)
        low, high = score_interval(multi_label_row_scores(metric, p, p >= 0.5, truth), most=1.0)
        held += low <= value <= high
    assert 180 <= held <= 199


def test_few_rows_of_a_class_do_not_flatter_the_interval() -> None:
    """The average precision of four rows is above that of many, and so would be an interval around it."""
    held, means = 0, []
    p, truth = drawn(200_000, [0.02] * 5, digits=6)
    value = mean_average_precision(p, truth)
    for seed in range(100):
        p, truth = drawn(200, [0.02] * 5, seed + 1, digits=6)
        rows = multi_label_row_scores("mean_average_precision", p, truth, truth)
        low, high = score_interval(rows, most=1.0)
        held += low <= value <= high
        means.append((mean_average_precision(p, truth) - value, ratio(rows) - value))
    assert held >= 80
    plain, corrected = np.mean(means, axis=0)
    assert plain > 0.05
    assert abs(corrected) < 0.6 * plain


def test_a_perfect_order_has_an_interval() -> None:
    truth = np.array([[1, 0], [0, 1], [0, 0], [1, 1]])
    rows = multi_label_row_scores("mean_average_precision", truth.astype(float), truth, truth)
    low, high = score_interval(rows, most=1.0)
    assert (ratio(rows), high) == pytest.approx((1.0, 1.0))
    assert 0.3 < low < 0.9


def f1(truth: np.ndarray, chosen: np.ndarray) -> float:
    return float(2 * (truth * chosen).sum() / max(1, truth.sum() + chosen.sum()))


def test_thresholds_make_f1_the_largest_and_rare_classes_share_one() -> None:
    p, truth = drawn(300, [0.5, 0.3, 0.01], digits=6)
    found = fit_thresholds(p, truth)
    for i in (0, 1):
        best = max(f1(truth[:, i], p[:, i] >= t) for t in p[:, i])
        assert f1(truth[:, i], p[:, i] >= found[i]) == pytest.approx(best)
    best = max(f1(truth.ravel(), p.ravel() >= t) for t in np.quantile(p, np.linspace(0, 1, 400)))
    assert f1(truth.ravel(), p.ravel() >= found[2]) >= best - 0.005
    assert fit_thresholds(p, np.zeros_like(truth)).tolist() == [0.5, 0.5, 0.5]
    ties = fit_thresholds(np.full((20, 1), 0.3), np.repeat([[0], [1]], 10, axis=0))
    assert 0 < ties[0] < 0.3, "all rows of one score are answers, or none"


def test_neighbours_vote_on_each_class() -> None:
    features = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], np.float32)
    truth = np.array([[1, 1], [1, 0], [0, 1]])
    votes = nearest_neighbours(features, truth, features[:1], n_classes=2, k=2)
    assert votes[0, 0] == pytest.approx(1.0)
    assert 0.4 < votes[0, 1] < 0.6
