"""Intervals by resampling against the coverage that they promise."""

import numpy as np
import pytest

from tltasks.metrics import bootstrap_interval, paired_difference

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
