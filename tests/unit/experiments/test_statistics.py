"""Intervals hold what they promise: coverage on simulated data with known truth, false alarms on equal arms."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tltasks.experiments.analysis import few_seeds
from tltasks.experiments.statistics import combine, estimate, holm, linearised, moderated, transfer_verdict

TRIALS = 1000


def correct(
    rng: np.random.Generator, rows: NDArray[np.float64], shift: float, *, seeds: int = 3, spread: float, own: float
) -> NDArray[np.float64]:
    """Whether each seed of an arm is right on each row: a probit with effects of seeds and of rows.

    `own` is the spread of the arm's own effect of a row, beside the one of 1 that all arms share.
    """
    skill = shift + rng.normal(0, spread, (seeds, 1)) + rows + rng.normal(0, own, len(rows))
    return (rng.random(skill.shape) < stats.norm.cdf(skill)).astype(float)


def accuracy(shift: float, *, spread: float, own: float) -> float:
    """Of such an arm over all seeds and rows: the mean of cdf(shift + N(0, v)) is cdf(shift / √(1 + v))."""
    return float(stats.norm.cdf(shift / np.sqrt(2 + own**2 + spread**2)))


@pytest.mark.parametrize(
    ("seeds", "spread", "own", "most"),
    [(3, 0.3, 0.5, 0.97), (3, 0.1, 0.0, 0.97), (5, 0.1, 0.5, 0.97), (3, 0.0, 0.5, 0.98)],
)
def test_intervals_hold_the_truth_as_often_as_promised(seeds: int, spread: float, own: float, most: float) -> None:
    """The last is the worst case: both parts of the variance matter, and the interval is a little wide."""
    rng, kind = np.random.default_rng(1), {"spread": spread, "own": own}
    truth = accuracy(0.7, **kind) - accuracy(0.5, **kind)
    held = alarms = 0
    for _ in range(TRIALS):
        rows = rng.normal(0, 1, 117)
        base, better, equal = (correct(rng, rows, shift, seeds=seeds, **kind) for shift in (0.5, 0.7, 0.5))
        found = estimate(better - base)
        held += found.low <= truth <= found.high
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        null = estimate(equal - base)
        alarms += transfer_verdict(null.mean, null.p) == "worse"
    assert 0.93 <= held / TRIALS <= most
    assert 0.005 <= alarms / TRIALS <= 0.05


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("shift", [2.6, 3.6])
def test_scores_near_the_end_and_their_differences_hold_the_truth(shift: float, seeds: int) -> None:
    """Accuracies of 0.97 and 0.99; seeds vary where there are enough of them to tell."""
    kind, n_rows = {"spread": 0.2 if seeds > 2 else 0.0, "own": 0.3}, 60
    rng, truth = np.random.default_rng(8), accuracy(shift, **kind)
    gain, held, paired = truth - accuracy(shift - 0.6, **kind), 0, 0
    for _ in range(TRIALS // 4):
        rows = rng.normal(0, 1, n_rows)
        ours, theirs = (correct(rng, rows, one, seeds=seeds, **kind) for one in (shift, shift - 0.6))
        found, difference = estimate(ours, bounds=(0.0, 1.0)), estimate(ours - theirs, bounds=(-1.0, 1.0))
        held += found.low <= truth <= found.high
        paired += difference.low <= gain <= difference.high
        assert found.low < found.high
    assert held / (TRIALS // 4) >= 0.93 - 0.025
    assert paired / (TRIALS // 4) >= 0.93 - 0.025


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_rows_that_are_alike_are_no_certainty(seeds: int) -> None:
    for value in (0.0, 1.0):
        found = estimate(np.full((seeds, 12), value), bounds=(0.0, 1.0))
        assert (found.mean, found.low <= value <= found.high) == (value, True)
        assert 0.15 < found.high - found.low < 0.4
    found = estimate(np.ones((seeds, 12)), bounds=(-1.0, 1.0))
    assert 0.4 < found.low < found.high == 1.0
    same = estimate(np.zeros((seeds, 12)), bounds=(-1.0, 1.0))
    assert same.low == pytest.approx(-same.high)
    assert (same.high > 0.1, transfer_verdict(same.mean, same.p)) == (True, "unclear")


def test_two_seeds_have_the_interval_over_rows() -> None:
    values = np.random.default_rng(9).random((2, 40)) < 0.6
    both, pooled = (estimate(v.astype(float)) for v in (values, values.mean(0, keepdims=True)))
    assert (both.low, both.high, both.p) == (pooled.low, pooled.high, pooled.p)
    assert (both.seeds, pooled.seeds) == (2, 1)
    assert both.high - both.low < 0.4, "where Student's t of two seeds has 0 to 1"
    assert few_seeds(1).startswith("With one seed, ")
    assert few_seeds(2).startswith("With 2 seeds, ")
    assert few_seeds(3) == ""


def test_a_family_of_equal_arms_raises_an_alarm_in_one_of_twenty_experiments() -> None:
    """Four controls with six arms each, all equally good, some with seeds that differ twentyfold; any negative call is
    a false one."""
    rng, alarms = np.random.default_rng(2), 0
    for _ in range(100):
        tables = []
        for _ in range(4):
            rows = rng.normal(0, 1, 117)
            arms = [correct(rng, rows, 0.5, spread=0.5 * 10 ** -rng.uniform(0, 1.3), own=0.3) for _ in range(7)]
            tables += [arm - arms[0] for arm in arms[1:]]
        spreads = moderated(tables, contexts=4)
        found = [estimate(table, spread=spread) for table, spread in zip(tables, spreads, strict=True)]
        adjusted = holm([one.p for one in found])
        alarms += any(transfer_verdict(one.mean, p) == "worse" for one, p in zip(found, adjusted, strict=True))
    assert alarms / 100 <= 0.05


def test_many_comparisons_lend_each_other_what_two_seeds_cannot_know() -> None:
    rng = np.random.default_rng(7)
    tables = [rng.normal(0.3, 0.02, (2, 1)) + rng.normal(0, 0.1, (2, 50)) for _ in range(12)]
    little = [estimate(t, spread=spread) for t, spread in zip(tables, moderated(tables, contexts=2), strict=True)]
    lent = [estimate(t, spread=spread) for t, spread in zip(tables, moderated(tables, contexts=12), strict=True)]
    assert sum(p < 0.05 for p in holm([one.p for one in little])) < 6
    assert all(p < 0.05 for p in holm([one.p for one in lent]))
    spreads = moderated(tables, contexts=1)
    assert [s.variance for s in spreads if s] == pytest.approx([t.mean(1).var(ddof=1) for t in tables]), "none to lend"
    assert moderated([np.zeros((1, 5))], contexts=3) == [None]


def test_a_drop_between_test_sets_holds_the_truth_too() -> None:
    rng, held = np.random.default_rng(3), 0
    for _ in range(400):
        inside, outside = (
            correct(rng, rng.normal(0, 1, n), shift, spread=0.3, own=0.0) for n, shift in ((117, 0.9), (80, 0.3))
        )
        found = combine([inside, outside], [1.0, -1.0])
        truth = accuracy(0.9, spread=0.3, own=0.0) - accuracy(0.3, spread=0.3, own=0.0)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / 400 <= 0.99  # three parts that matter alike: wide


def test_one_seed_is_the_paired_test_over_rows() -> None:
    values = np.random.default_rng(4).normal(0.2, 1, (1, 50))
    found, known = estimate(values), stats.ttest_1samp(values[0], 0.0)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))
    assert found.p == pytest.approx(known.pvalue)


def test_seeds_that_differ_in_all_rows_alike_are_the_test_over_seeds() -> None:
    """Without an effect of rows, Student's test of the seeds' means is exact."""
    means = np.array([0.1, 0.3, 0.5])
    found, known = estimate(np.repeat(means[:, None], 40, axis=1)), stats.ttest_1samp(means, 0.0)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))
    assert (found.p, found.seed_share) == (pytest.approx(known.pvalue), 1.0)


def test_no_difference_at_all_is_certain() -> None:
    found = estimate(np.zeros((3, 20)))
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert transfer_verdict(found.mean, found.p) == "unclear"


def test_more_rows_do_not_narrow_what_seeds_make_wide() -> None:
    rng = np.random.default_rng(5)
    widths = []
    for n_rows in (1000, 100_000):
        found = estimate(np.array([[0.0], [0.2], [0.4]]) + rng.normal(0, 0.1, (3, n_rows)))
        widths.append(found.high - found.low)
    assert widths[1] > 0.97 * widths[0]


def test_a_ratio_of_sums_is_the_mean_of_its_linear_values() -> None:
    """Word errors: the interval over rows is that of the bootstrap."""
    rng = np.random.default_rng(6)
    words = rng.integers(5, 40, 400).astype(float)
    errors = rng.binomial(words.astype(int), 0.2).astype(float)
    scores = np.stack([errors, words], axis=1)
    values = linearised(scores)
    assert values.mean() == pytest.approx(errors.sum() / words.sum())
    drawn = rng.integers(0, 400, (4000, 400))
    low, high = np.quantile(errors[drawn].sum(1) / words[drawn].sum(1), [0.025, 0.975])
    found = estimate(values[None])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))
