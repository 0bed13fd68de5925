"""Intervals against the coverage that they promise, over sizes, ends and ways of being unlike."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from tltasks.metrics import paired_difference, score_interval, wilson
from tltasks.metrics.classification import class_row_scores

Floats = NDArray[np.float64]
SIZES = (10, 20, 30, 60, 100, 300, 1000)
TRIALS = 400
SHORT_OF_93 = {(10, 0.7): 0.924, (20, 0.95): 0.925}
"""Sizes and shares where whole numbers allow no better."""


def ones(values: Floats) -> Floats:
    return np.stack([values, np.ones(len(values))], axis=1).astype(np.float64)


@pytest.mark.parametrize("n", SIZES)
def test_shares_hold_the_truth(n: int) -> None:
    """Exactly, by the binomial law."""
    intervals = np.array([score_interval(ones(np.arange(n) < right), most=1.0) for right in range(n + 1)])
    assert (intervals[:, 1] - intervals[:, 0] > 0).all(), "12 of 12 is no certainty"
    for p in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995):
        inside = (intervals[:, 0] <= p) & (p <= intervals[:, 1])
        coverage = float(stats.binom.pmf(np.arange(n + 1), n, p) @ inside)
        assert coverage >= SHORT_OF_93.get((n, p), 0.93) - 5e-4, (n, p)
        turned = (1 - intervals[::-1, 1] <= p) & (p <= 1 - intervals[::-1, 0])
        assert (turned == inside).all(), "right and wrong are treated alike"


def test_known_intervals_of_shares() -> None:
    """Wilson's own for a share inside, and where all rows are right."""
    assert wilson(1.0, 12) == (pytest.approx(12 / (12 + 1.959964**2)), 1.0)
    assert wilson(0.7, 100) == pytest.approx((0.604151, 0.781051), abs=1e-6)
    assert score_interval(ones(np.ones(1)), most=1.0) == (pytest.approx(0.2065, abs=1e-4), 1.0)
    assert score_interval(ones(np.zeros(60)), most=1.0) == (0.0, pytest.approx(0.0602, abs=1e-4))


@pytest.mark.parametrize("n", [10, 30, 100, 1000])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.7, 0.6), (0.9, 0.5), (0.97, 0.95), (0.99, 0.99), (0.995, 0.98)])
def test_paired_shares_hold_the_difference(n: int, shares: tuple[float, float]) -> None:
    ours, theirs = shares
    rng = np.random.default_rng(0)
    for together in (0.0, 0.5, 0.9):
        both = ours * theirs + together * (min(ours, theirs) - ours * theirs)
        cells = np.array([both, ours - both, theirs - both, 1 - ours - theirs + both])
        kinds, counts = np.unique(rng.multinomial(n, cells, size=TRIALS), axis=0, return_counts=True)
        held = 0
        for kind, count in zip(kinds, counts, strict=True):
            low, high = paired_difference(
                ones(np.repeat([1, 1, 0, 0], kind)), ones(np.repeat([1, 0, 1, 0], kind)), most=1.0
            )
            assert low < high
            held += count * (low <= ours - theirs <= high)
        assert held / TRIALS >= 0.93 - 1.65 * np.sqrt(0.93 * 0.07 / TRIALS), together


def word_errors(rng: np.random.Generator, n: int, rate: float) -> Floats:
    """Utterances of unlike length and difficulty."""
    words, own = rng.integers(2, 30, n), rng.beta(rate / 0.2, (1 - rate) / 0.2, n)
    return np.stack([rng.binomial(words, own), words], axis=1).astype(np.float64)


Draw = Callable[[np.random.Generator, int], Floats]
MEANS: dict[str, tuple[Draw, float, float | None]] = {
    "word errors": (lambda rng, n: word_errors(rng, n, 0.3), 0.3, 1.0),
    "few word errors": (lambda rng, n: word_errors(rng, n, 0.1), 0.1, 1.0),
    "ROUGE": (lambda rng, n: ones(100 * rng.beta(3, 7, n)), 30.0, 100.0),
    "high ROUGE": (lambda rng, n: ones(100 * rng.beta(9, 1, n)), 90.0, 100.0),
    "precision, mostly whole": (
        lambda rng, n: ones(np.where(rng.random(n) < 0.8, 1.0, rng.beta(1, 2, n))),
        0.8 + 0.2 / 3,
        1.0,
    ),
    "losses": (lambda rng, n: ones(rng.lognormal(0, 0.5, n)), float(np.exp(0.125)), None),
}


@pytest.mark.parametrize("kind", MEANS)
def test_means_hold_the_truth(kind: str) -> None:
    """Word errors of ten utterances are held in 92 of 100 cases, all else in 93 or more."""
    draw, truth, most = MEANS[kind]
    for n in (10, 30, 100, 300):
        rng = np.random.default_rng(n)
        intervals = np.array([score_interval(draw(rng, n), most=most) for _ in range(TRIALS)])
        coverage = float(((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean())
        promised = 0.92 if n == 10 and "errors" in kind else 0.93
        assert coverage >= promised - 1.65 * np.sqrt(0.93 * 0.07 / TRIALS), (n, coverage)


def test_differences_of_which_most_are_none_hold_the_truth() -> None:
    """One summary in ten is another, and as good on average; of a hundred rows it is 92 of 100 cases."""
    for n in (30, 100, 300):
        rng, held = np.random.default_rng(n), 0
        for _ in range(TRIALS):
            theirs = rng.beta(3, 7, n)
            ours = np.where(rng.random(n) < 0.1, rng.beta(3, 7, n), theirs)
            low, high = paired_difference(ones(100 * ours), ones(100 * theirs), most=100.0)
            held += low <= 0 <= high
        assert held / TRIALS >= (0.92 if n == 100 else 0.93) - 1.65 * np.sqrt(0.93 * 0.07 / TRIALS)


def test_pairs_are_narrower_than_what_is_apart() -> None:
    """Two models that err on the same hard rows."""
    hard = np.random.default_rng(2).random(300)
    ours, theirs = ones(hard > 0.25), ones(hard > 0.30)
    low, high = paired_difference(ours, theirs, most=1.0)
    apart = [np.ptp(score_interval(one, most=1.0)) for one in (ours, theirs)]
    assert 0 < low < 0.05 < high
    assert high - low < 0.6 * np.hypot(*apart)


@pytest.mark.parametrize("most", [1.0, 100.0])
@pytest.mark.parametrize("rows", [1, 2, 12, 500])
def test_equal_models_do_not_differ_and_rows_that_are_alike_are_no_certainty(most: float, rows: int) -> None:
    for value in (0.0, 0.4 * most, most):
        alike = ones(np.full(rows, value))
        low, high = score_interval(alike, most=most)
        assert 0 <= low < high <= most
        assert low <= value <= high
        low, high = paired_difference(alike, alike, most=most)
        assert -most <= low < 0 < high <= most
        assert low == pytest.approx(-high)


def test_swapping_turns_the_sign() -> None:
    rng = np.random.default_rng(0)
    whole = ones(rng.random(80) < 0.9), ones(rng.random(80) < 0.4)
    words = rng.integers(2, 20, 80)
    rates = tuple(np.stack([rng.binomial(words, rate), words], axis=1).astype(np.float64) for rate in (0.1, 0.3))
    for ours, theirs in (whole, rates):
        low, high = paired_difference(ours, theirs, most=1.0)
        assert low < high
        assert low * high > 0
        assert paired_difference(theirs, ours, most=1.0) == pytest.approx((-high, -low))


def test_the_ends_are_scores_that_there_can_be() -> None:
    """More errors than words are possible, fewer than none are not; losses have no largest value."""
    more = np.array([[3.0, 1.0], [0.0, 9.0], [1.0, 4.0]])
    low, high = score_interval(more, most=1.0)
    assert low == 0.0
    assert high > 1.0
    assert score_interval(ones(np.array([0.1, 9.0, 0.2])), most=None)[1] > 9
    low, high = paired_difference(ones(np.ones(12)), ones(np.zeros(12)), most=1.0)
    assert (0.5 < low < 0.7, high) == (True, 1.0)


def test_where_rows_cannot_tell_there_is_no_interval() -> None:
    """No words at all, one loss, losses that are all alike."""
    nothing = np.zeros((3, 2))
    for found in (
        score_interval(nothing, most=1.0),
        paired_difference(nothing, nothing, most=1.0),
        score_interval(ones(np.array([2.0])), most=None),
        score_interval(ones(np.full(9, 2.0)), most=None),
        paired_difference(ones(np.full(9, 2.0)), ones(np.full(9, 2.0)), most=None),
    ):
        assert np.isnan(found).all()


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy"])
@pytest.mark.parametrize("shares", [(0.4, 0.3, 0.3), (0.9, 0.06, 0.04)])
def test_metrics_that_are_no_means_have_intervals_that_hold_them(metric: str, shares: tuple[float, ...]) -> None:
    """95 % of 400 samples of 200 rows, give or take; a class of four rows alone would have 85 %."""
    rng, right = np.random.default_rng(0), np.array([[0.9, 0.06, 0.04], [0.3, 0.6, 0.1], [0.3, 0.1, 0.6]])
    whole = np.array(shares)[:, None] * right
    f1 = np.mean([2 * whole[i, i] / (whole[i].sum() + whole[:, i].sum()) for i in range(3)])
    true = f1 if metric == "macro_f1" else right.diagonal().mean()
    held = 0
    for _ in range(400):
        references = rng.choice(3, 200, p=shares)
        chosen = (rng.random((200, 1)) > right.cumsum(1)[references]).sum(1)
        rows = class_row_scores(metric, chosen, references)
        sklearn = f1_score if metric == "macro_f1" else balanced_accuracy_score
        keys = {"average": "macro"} if metric == "macro_f1" else {}
        assert rows[:, 0].mean() == pytest.approx(sklearn(references, chosen, **keys))
        low, high = score_interval(rows, most=1.0)
        held += low <= true <= high
    assert 0.92 <= held / 400 <= 0.98


def test_area_under_the_roc_curve_is_that_of_sklearn_and_its_interval_holds_the_true_one() -> None:
    """Two normal scores that lie 1 apart: an area of Φ(1/√2)."""
    rng, true, held = np.random.default_rng(0), 0.5 * (1 + math.erf(0.5)), 0
    for _ in range(400):
        references = (rng.random(150) < 0.2).astype(int)
        scores = np.round(rng.normal(size=150) + references, 1)  # with ties
        probabilities = np.stack([-scores, scores], axis=1)
        rows = class_row_scores("auroc", references, references, probabilities)
        assert rows[:, 0].mean() == pytest.approx(roc_auc_score(references, scores))
        low, high = score_interval(rows, most=1.0)
        held += low <= true <= high
    assert 0.92 <= held / 400 <= 0.98


def test_area_under_the_roc_curve_of_several_classes() -> None:
    rng = np.random.default_rng(0)
    references, scores = rng.integers(0, 3, 60), rng.random((60, 4))
    scores /= scores.sum(1, keepdims=True)
    of_three = np.mean([roc_auc_score(references == i, scores[:, i]) for i in range(3)])  # no row has the fourth
    assert class_row_scores("auroc", references, references, scores)[:, 0].mean() == pytest.approx(of_three)
    assert np.isnan(class_row_scores("auroc", references[:1], references[:1], scores[:1])).any()
