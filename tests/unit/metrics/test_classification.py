"""Scores against scikit-learn and cases worked by hand; intervals against the coverage that they promise."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_recall_fscore_support
from sklearn.neighbors import KNeighborsClassifier

from tltasks.metrics import (
    Classification,
    bootstrap_interval,
    classification,
    expected_calibration_error,
    nearest_neighbours,
    paired_difference,
)

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


def test_it_is_a_metric_of_evaluate() -> None:
    probabilities, labels = drawn(50, 6)
    metric = Classification(keep_in_memory=True)
    metric.add_batch(predictions=probabilities[:20], references=labels[:20])
    metric.add_batch(predictions=probabilities[20:], references=labels[20:])
    expected, _ = classification(probabilities, labels, list("abcdef"))
    assert metric.compute() == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------------------------------- calibration


def test_calibration_error_by_hand() -> None:
    """Two rows at 0.9, one right; two at 0.6, both right: gaps 0.4 and 0.4, each over half of the rows."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert expected_calibration_error(probabilities, np.array([0, 1, 0, 0])) == pytest.approx(0.4)


def test_gaps_of_one_bin_cancel_and_those_of_two_do_not() -> None:
    probabilities, labels = np.array([[0.95, 0.05], [0.55, 0.45]]), np.array([1, 0])
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(0.25)
    assert expected_calibration_error(probabilities, labels, bins=2) == pytest.approx(0.25)  # one bin above one half
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx((0.95 + 0.45) / 2)


def test_bins_begin_at_zero_and_are_equally_wide() -> None:
    """0.62 and 0.65 are both between 0.6 and 0.7, where 0.58 is not."""
    together, apart = (np.array([[a, 1 - a], [0.65, 0.35]]) for a in (0.62, 0.58))
    assert expected_calibration_error(together, np.array([1, 0]), bins=10) == pytest.approx((0.62 + 0.65 - 1) / 2)
    assert expected_calibration_error(apart, np.array([1, 0]), bins=10) == pytest.approx((0.58 + 0.35) / 2)


def test_certainty_falls_into_the_last_bin() -> None:
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0.0
    assert expected_calibration_error(np.eye(3), np.array([1, 2, 0])) == 1.0


def test_calibrated_predictions_have_little_error_and_overconfident_ones_much() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1.0, 20_000)
    labels = (rng.random(20_000) > p).astype(int)  # class 0 with probability p
    assert expected_calibration_error(np.stack([p, 1 - p], 1), labels) < 0.02
    sure = np.full_like(p, 0.99)
    assert expected_calibration_error(np.stack([sure, 1 - sure], 1), labels) == pytest.approx(0.24, abs=0.02)


# -------------------------------------------------------------------------------------------- intervals

TRIALS = 500


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(TRIALS):
        correct = (rng.random(300) < 0.7).astype(float)
        low, high = bootstrap_interval(np.stack([correct, np.ones(300)], 1), seed=trial, samples=1000)
        held += low <= 0.7 <= high
    assert 0.93 <= held / TRIALS <= 0.97


def test_the_interval_of_a_ratio_of_sums_holds_the_truth() -> None:
    """As for word error rates: errors of each row over its words, most rows unlike each other."""
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(TRIALS):
        words = rng.integers(1, 30, 200)
        errors = rng.binomial(words, 0.2)
        low, high = bootstrap_interval(np.stack([errors, words], 1).astype(float), seed=trial, samples=600)
        held += low <= 0.2 <= high
    assert 0.93 <= held / TRIALS <= 0.97


def test_the_paired_difference_holds_the_truth_and_is_narrower_than_unpaired() -> None:
    """Two models that err on the same hard rows: accuracies 0.75 and 0.70."""
    rng = np.random.default_rng(2)
    held, paired, unpaired = 0, [], []
    for trial in range(TRIALS):
        hard = rng.random(300)
        ours, theirs = (np.stack([hard > bound, np.ones(300)], 1).astype(float) for bound in (0.25, 0.30))
        theirs[rng.random(300) < 0.1, 0] = 1.0  # and 10 % of theirs are right by luck: 0.70 + 0.1 × 0.30 = 0.73
        low, high = paired_difference(ours, theirs, seed=trial, samples=600)
        held += low <= 0.02 <= high
        paired.append(high - low)
        a, b = bootstrap_interval(ours, seed=trial, samples=600), bootstrap_interval(theirs, seed=trial, samples=600)
        unpaired.append(np.hypot(a[1] - a[0], b[1] - b[0]))
    assert 0.93 <= held / TRIALS <= 0.97
    assert np.mean(paired) < 0.6 * np.mean(unpaired)


def test_equal_models_do_not_differ_and_swapping_turns_the_sign() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.stack([rng.random(80) < p, np.ones(80)], 1).astype(float) for p in (0.9, 0.4))
    assert paired_difference(a, a, seed=0) == (0.0, 0.0)
    low, high = paired_difference(a, b, seed=0)
    assert 0 < low < high
    assert paired_difference(b, a, seed=0) == pytest.approx((-high, -low), abs=0.02)


def test_both_ways_of_drawing_agree() -> None:
    """Above 1,000 kinds of rows, rows are drawn one by one."""
    rng = np.random.default_rng(0)
    words = rng.integers(5, 40, 1500)
    errors = rng.binomial(words, 0.3)
    counted = np.stack([errors, words], 1).astype(float)
    unlike = counted + rng.uniform(0, 1e-6, counted.shape)
    assert len(np.unique(counted, axis=0)) <= 1000 < len(np.unique(unlike, axis=0))
    few, many = bootstrap_interval(counted, seed=0), bootstrap_interval(unlike, seed=0)
    assert few == pytest.approx(many, abs=1e-3)
    assert few[1] - few[0] > 5e-3


def test_intervals_depend_on_the_seed_alone() -> None:
    rows = np.stack([np.arange(40) % 3 == 0, np.ones(40)], 1).astype(float)
    assert bootstrap_interval(rows, seed=1) == bootstrap_interval(rows[::-1], seed=1)
    assert bootstrap_interval(rows[:1], seed=1) == (1.0, 1.0)
    assert bootstrap_interval(rows * 0, seed=1) == (0.0, 0.0)  # no denominator, no division by zero


# ------------------------------------------------------------------------------------ nearest neighbours


def test_a_vote_by_hand() -> None:
    """Cosines 1, 0.6 and 0; k = 2 leaves the last out; the weights are exp(1 / 0.5) and exp(0.6 / 0.5)."""
    train = np.array([[2.0, 0.0], [0.6, 0.8], [0.0, 5.0]])
    shares = nearest_neighbours(train, np.array([0, 1, 2]), np.array([[3.0, 0.0]]), n_classes=4, k=2, temperature=0.5)
    near, far = np.exp(2), np.exp(1.2)
    assert shares[0] == pytest.approx([near / (near + far), far / (near + far), 0, 0])


def test_the_vote_is_that_of_scikit_learn_with_the_same_weights() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 16))
    labels = rng.integers(0, 6, 500)
    train = centres[labels] + rng.normal(size=(500, 16))
    evaluated = centres[rng.integers(0, 6, 1500)] + rng.normal(size=(1500, 16))  # more than one block of rows
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(train, labels)
    ours = nearest_neighbours(train, labels, evaluated, n_classes=6)
    np.testing.assert_allclose(ours, theirs.predict_proba(evaluated), atol=1e-5)
    assert len(np.unique(ours.argmax(1))) == 6


def test_few_rows_and_vectors_of_zeros() -> None:
    train, labels = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([1, 0])
    shares = nearest_neighbours(train, labels, np.array([[0.0, 0.0], [1.0, 1.0]]), n_classes=2)
    assert shares[0] == pytest.approx([0.5, 0.5])
    assert shares[1].argmax() == 1
    assert shares.sum(1) == pytest.approx([1, 1])
