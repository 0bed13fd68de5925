"""Agreement of two orders."""

import numpy as np
import pytest
from scipy import stats

from tltasks.experiments.ranking import mean_tau


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
