"""Agreement of two orders."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from tltasks.experiments.ranking import CandidateEstimates, mean_tau, name_winner


def test_tau_is_scipy_s_over_targets() -> None:
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(6, 2)) for _ in range(3)]
    expected = np.mean([stats.weightedtau(t[:, 0], t[:, 1], rank=None).statistic for t in tables])
    tau, low, high = mean_tau(tables)
    assert tau == pytest.approx(expected)
    assert low < tau < high
    ordered = np.arange(12.0).reshape(6, 2)
    tau, low, high = mean_tau([ordered])
    assert (tau, high) == (1.0, 1.0)
    assert -0.2 < low < 0.5, "six candidates in order are no certainty"
    alike = np.array([[9 - 1e-12 * i, i] for i in range(6)])
    assert mean_tau([alike])[0] == 0.0, "an estimator that tells nothing apart"


def estimated(candidate: str, **estimates: float | None) -> CandidateEstimates:
    return CandidateEstimates({"target": "own_photos"}, candidate, dict(estimates), 30, 1.0, {})


def test_the_winner_is_named_and_by_how_much() -> None:
    won = name_winner([estimated("a", log_me=0.1, probe=0.7), estimated("b", log_me=0.15, probe=0.6)])
    assert (won.candidate, won.verdict) == ("b", "unclear")
    assert won.sentence == (
        "On own photos, b comes first: LogME 0.150, 0.050 ahead of a; 1 of 2 estimates put it first."
    )
    alike = [estimated("a", h_score=0.9999999, leep=None, probe=0.6), estimated("b", h_score=1.0, leep=None, probe=0.7)]
    won = name_winner([dataclasses.replace(one, measured={"fine-tuning": -0.3}) for one in alike])
    assert (won.candidate, won.verdict, won.estimator) == ("b", "better", "probe"), (
        "what tells nothing apart is not asked"
    )
    measured = [
        dataclasses.replace(one, measured={"full": value}) for one, value in zip(alike, (0.8, 0.7), strict=True)
    ]
    assert name_winner(measured).sentence.endswith(
        "1 of 1 estimates put it first. After training by full a was better."
    )
    assert name_winner([estimated("a", leep=None)]).candidate is None
