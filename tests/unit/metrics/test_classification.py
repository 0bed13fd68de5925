"""Scores against scikit-learn and cases worked by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_recall_fscore_support

from tltasks.metrics import classification, expected_calibration_error

# ---------------------------------------------------------------------------------------- classification


def drawn(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that lean to the right class, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True), labels


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    probabilities, labels = drawn(400, classes)
    values, details = classification(probabilities, labels, [f"c{i}" for i in range(classes)])
    chosen = probabilities.argmax(1)
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, chosen))
    assert values["macro_f1"] == pytest.approx(f1_score(labels, chosen, average="macro"))
    assert values["loss"] == pytest.approx(log_loss(labels, probabilities))
    assert ("top5_accuracy" in values) == (classes > 5)
    if classes > 5:
        top = np.argsort(-probabilities, axis=1)[:, :5]
        assert values["top5_accuracy"] == pytest.approx((top == labels[:, None]).any(1).mean())
        assert values["accuracy"] < values["top5_accuracy"] < 1
    theirs = precision_recall_fscore_support(labels, chosen)
    for i, key in enumerate(("precision", "recall", "f1", "support")):
        assert [row[key] for row in details["per_class"]] == pytest.approx(theirs[i].tolist())
    matrix = np.array(details["confusion_matrix"])
    assert matrix.sum(1).tolist() == np.bincount(labels, minlength=classes).tolist()
    assert matrix.trace() == (chosen == labels).sum()


def test_classes_that_never_occur_do_not_lower_macro_f1() -> None:
    probabilities = np.zeros((4, 7))
    probabilities[np.arange(4), [0, 0, 1, 1]] = 1.0
    values, details = classification(probabilities, np.array([0, 0, 1, 0]), list("abcdefg"))
    # class a: precision 1, recall 2/3, F1 0.8; class b: precision 1/2, recall 1, F1 2/3
    assert values["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert [row["support"] for row in details["per_class"]] == [3, 1, 0, 0, 0, 0, 0]


def test_a_class_that_is_only_predicted_lowers_macro_f1() -> None:
    probabilities = np.eye(3)[[0, 2]]
    assert classification(probabilities, np.array([0, 0]), list("abc"))[0]["macro_f1"] == pytest.approx(1 / 3)


def test_certain_and_wrong_has_a_finite_loss() -> None:
    values, _ = classification(np.array([[1.0, 0.0]]), np.array([1]), ["a", "b"])
    assert values["loss"] == pytest.approx(-np.log(1e-12))


# ------------------------------------------------------------------------------------------- calibration


def _error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    return expected_calibration_error(probabilities.max(1), probabilities.argmax(1) == labels, bins=bins)


def test_calibration_error_by_hand() -> None:
    """Two rows at 0.9, one right; two at 0.6, both right: gaps 0.4 and 0.4, each over half of the rows."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert _error(probabilities, np.array([0, 1, 0, 0])) == pytest.approx(0.4)


def test_gaps_of_one_bin_cancel_and_those_of_two_do_not() -> None:
    probabilities, labels = np.array([[0.95, 0.05], [0.55, 0.45]]), np.array([1, 0])
    assert _error(probabilities, labels, bins=1) == pytest.approx(0.25)
    assert _error(probabilities, labels, bins=2) == pytest.approx(0.25)  # one bin above one half
    assert _error(probabilities, labels, bins=10) == pytest.approx((0.95 + 0.45) / 2)


def test_bins_begin_at_zero_and_are_equally_wide() -> None:
    """0.62 and 0.65 are both between 0.6 and 0.7, where 0.58 is not."""
    together, apart = (np.array([[a, 1 - a], [0.65, 0.35]]) for a in (0.62, 0.58))
    assert _error(together, np.array([1, 0]), bins=10) == pytest.approx((0.62 + 0.65 - 1) / 2)
    assert _error(apart, np.array([1, 0]), bins=10) == pytest.approx((0.58 + 0.35) / 2)


def test_certainty_falls_into_the_last_bin() -> None:
    assert _error(np.eye(3), np.arange(3)) == 0.0
    assert _error(np.eye(3), np.array([1, 2, 0])) == 1.0


def test_calibrated_predictions_have_little_error_and_overconfident_ones_much() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1.0, 20_000)
    labels = (rng.random(20_000) > p).astype(int)  # class 0 with probability p
    assert _error(np.stack([p, 1 - p], 1), labels) < 0.02
    sure = np.full_like(p, 0.99)
    assert _error(np.stack([sure, 1 - sure], 1), labels) == pytest.approx(0.24, abs=0.02)
