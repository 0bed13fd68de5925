"""Temperatures, calibration and abstention against cases worked by hand, and what guards them."""

import numpy as np
import pytest
from scipy import special

from tltasks.metrics.calibration import answered, calibration, fit_temperature, tempered


def drawn(rows: int, right: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are calibrated at the temperature `right`, and labels."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (rows, 5))
    labels = (special.softmax(logits, axis=1).cumsum(1) > random.random((rows, 1))).argmax(1)
    return special.softmax(logits * right, axis=1).astype(np.float32), labels


@pytest.mark.parametrize("right", [0.5, 1.8, 6.0])
def test_the_temperature_of_many_rows_is_the_right_one(right: float) -> None:
    probabilities, labels = drawn(4000, right)
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(right, rel=0.1)
    before, after = calibration(probabilities, labels), calibration(tempered(probabilities, found), labels)
    assert all(after[name] < before[name] for name in before)
    assert np.array_equal(tempered(probabilities, found).argmax(1), probabilities.argmax(1))


def test_where_nothing_is_won_it_is_one() -> None:
    assert [fit_temperature(*drawn(rows, 1.0, seed=rows)) for rows in (30, 200, 2000)] == [1.0, 1.0, 1.0]


def test_right_answers_make_nothing_certain() -> None:
    """Forty rows, all right at 0.6: they are surer than that, and not beyond what forty rows can tell."""
    probabilities = np.full((40, 5), 0.1)
    probabilities[:, 0] = 0.6
    told = tempered(probabilities, fit_temperature(probabilities, np.zeros(40, int)))
    assert told[:, 0].max() == pytest.approx(41 / 42, abs=1e-3)


def test_a_model_that_is_right_and_sure_stays_so() -> None:
    """What the guard adds is not counted as won."""
    probabilities = np.array([[1.0, 0.0, 0.0], [0.998, 0.001, 0.001]] * 8, np.float32)
    assert fit_temperature(probabilities, np.zeros(16, int)) == 1.0


def test_probabilities_that_have_vanished_stay_finite() -> None:
    told = tempered(np.array([[1.0, 0.0], [0.5, 0.5]], np.float32), 3.0)
    assert np.isfinite(told).all()
    assert told.sum(1) == pytest.approx([1, 1])
    assert told[0, 0] > 0.999
    assert np.isfinite(fit_temperature(np.array([[1.0, 0.0]] * 9, np.float32), np.ones(9, int)))


def test_calibration_by_hand() -> None:
    found = calibration(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1]))
    assert found["ece"] == pytest.approx(0.3)
    assert found["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.8**2) / 2)
    assert found["loss"] == pytest.approx(-(np.log(0.8) + np.log(0.2)) / 2)
    several = calibration(np.array([[0.9, 0.9, 0.1]]), np.array([[1, 0, 0]]), several=True)
    assert several["ece"] == pytest.approx((0.8 + 0.1) / 3)  # two at 0.9 of which one is there, and one at 0.1
    assert several["brier"] == pytest.approx((0.01 + 0.81 + 0.01) / 3)


def test_what_is_answered_by_hand() -> None:
    confidence, right = np.array([0.9, 0.8, 0.8, 0.5]), np.array([True, True, False, False])
    found = answered(confidence, right)
    told = [(point["threshold"], point["coverage"], round(point["accuracy"], 3)) for point in found]
    assert told == [(0.9, 0.25, 1.0), (0.8, 0.75, 0.667), (0.5, 1.0, 0.5)]  # rows of one confidence go together
    assert all(0 <= point["low"] <= point["accuracy"] <= point["high"] <= 1 for point in found)
    assert len(answered(np.full(7, 0.3), np.ones(7, bool))) == 1
