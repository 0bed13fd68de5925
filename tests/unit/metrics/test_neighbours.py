"""Votes of nearest neighbours by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from tltasks.metrics import left_out_neighbours, nearest_neighbours
from tltasks.metrics.neighbours import BLOCK_ROWS


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


def test_left_out_rows_are_judged_by_all_others_and_never_by_themselves() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, BLOCK_ROWS + 60)  # more than one block
    features = rng.normal(size=(len(labels), 8)).astype(np.float32) + np.eye(3, 8, dtype=np.float32)[labels]
    left_out, correct = nearest_neighbours(features, labels, n_classes=3), []
    for row in rng.choice(len(labels), 60, replace=False):
        others = np.delete(np.arange(len(labels)), row)
        votes = nearest_neighbours(features[others], labels[others], features[[row]], n_classes=3)
        correct.append(votes[0].argmax() == labels[row])
        np.testing.assert_allclose(left_out[row], votes[0], atol=1e-4)
    assert 0.4 < np.mean(correct) < 0.9
    assert left_out_neighbours(features, [f"c{label}" for label in labels]) == pytest.approx(
        (left_out.argmax(1) == labels).mean()
    )


def test_fewer_rows_than_neighbours_are_all_asked() -> None:
    features = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert left_out_neighbours(features, ["a", "a", "b", "b"]) == 1.0
    assert left_out_neighbours(features, ["a", "b", "a", "b"]) == 0.0
