"""Intervals by resampling rows.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

import numpy as np

from tltasks.metrics.arrays import Floats

MOST_KINDS = 1000
"""Kinds of rows up to which all rows of a kind are drawn together."""


def bootstrap_interval(row_scores: Floats, *, seed: int, samples: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval over rows of a ratio of sums.

    `row_scores` [rows, 2] holds each row's numerator and denominator (for accuracy: correct, 1).
    """
    return _central_95(_resampled_ratios(row_scores, seed=seed, samples=samples)[:, 0])


def paired_difference(ours: Floats, theirs: Floats, *, seed: int, samples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of ours − theirs on the same rows; both [rows, 2]."""
    drawn = _resampled_ratios(np.concatenate([ours, theirs], axis=1), seed=seed, samples=samples)
    return _central_95(drawn[:, 0] - drawn[:, 1])


def _central_95(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _resampled_ratios(row_scores: Floats, *, seed: int, samples: int) -> Floats:
    """The ratio of each pair of columns in each bootstrap sample, [samples, pairs]."""
    rng = np.random.default_rng(seed)
    n_rows = len(row_scores)
    # Equal rows are drawn together, by how often each kind comes up: exact, and independent of the number of rows.
    kinds, counts = np.unique(row_scores, axis=0, return_counts=True)
    if len(kinds) <= MOST_KINDS:
        drawn = rng.multinomial(n_rows, counts / n_rows, size=samples).astype(np.float64) @ kinds
    else:
        drawn = np.stack([row_scores[rng.integers(0, n_rows, n_rows)].sum(0) for _ in range(samples)])
    return np.asarray(drawn[:, 0::2] / np.maximum(drawn[:, 1::2], 1e-12))
