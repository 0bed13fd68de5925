"""Rows held out of a training split."""

from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from tltasks.data.held_out import draw_held

LABELS = {
    "one of a kind": ["a"] * 20 + ["b"] * 19 + ["rare"],
    "several of a kind": ["a"] * 10 + ["one"] + ["b"] * 10 + ["two", "three"],
    "pairs": ["a"] * 2 + ["b"] * 2 + ["c"] * 30,
    "more classes than are held out": [f"kind {i}" for i in range(10) for _ in range(3)],
    "blank": ["a"] * 9 + ["None"] + ["b"] * 9,
    "one class": ["a"] * 10,
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.7])
def test_no_label_loses_its_last_row_whatever_the_seed(name: str, share: float) -> None:
    labels = LABELS[name]
    n_held = min(max(1, round(len(labels) * share)), len(labels) - len(set(labels)))
    counts = Counter(labels)
    for seed in range(20):
        held = draw_held(labels, n_held, seed=seed)
        assert len(held) == n_held == len(set(held.tolist()))
        assert np.all(np.diff(held) > 0)
        taken = Counter(labels[i] for i in held)
        assert all(taken[label] < n for label, n in counts.items()), (seed, taken)
        large = [label for label, n in counts.items() if n >= 9]
        assert all(abs(taken[label] - n_held * counts[label] / len(labels)) <= 2 for label in large), (seed, taken)


def test_labels_that_are_many_enough_are_drawn_as_sklearn_does() -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    for seed in range(5):
        expected = train_test_split(np.arange(100), test_size=20, random_state=seed, stratify=labels)[1]
        assert draw_held(labels, 20, seed=seed).tolist() == sorted(expected)


def test_more_rows_than_can_be_spared_are_held_out_all_the_same() -> None:
    labels = ["a", "b", "c", "d"]
    assert {len(draw_held(labels, n, seed=0)) for n in (1, 2, 3)} == {1, 2, 3}
    assert {tuple(draw_held(labels, 1, seed=seed)) for seed in range(30)} == {(0,), (1,), (2,), (3,)}
