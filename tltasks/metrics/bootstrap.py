"""Intervals by resampling rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


def bootstrap_interval(row_scores: Floats, *, seed: int, samples: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval over rows of a ratio of sums.

    `row_scores` [rows, 2] holds each row's numerator and denominator (for accuracy: correct, 1).
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    low, high = np.quantile(_resampled(row_scores, seed=seed, samples=samples), [0.025, 0.975])
    return float(low), float(high)


def paired_difference(ours: Floats, theirs: Floats, *, seed: int, samples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of ours − theirs on the same rows; both [rows, 2]."""
    both = np.concatenate([ours, theirs], axis=1)
    drawn = _resampled(both, seed=seed, samples=samples, pairs=2)
    low, high = np.quantile(drawn[:, 0] - drawn[:, 1], [0.025, 0.975])
    return float(low), float(high)


def _resampled(row_scores: Floats, *, seed: int, samples: int, pairs: int = 1) -> Floats:
    """The metric in each bootstrap sample, [samples] or [samples, pairs]."""
    rng = np.random.default_rng(seed)
    n_rows = len(row_scores)
    # Equal rows are drawn together, by how often each kind comes up: exact, and independent of the number of rows.
    kinds, counts = np.unique(row_scores, axis=0, return_counts=True)
    if len(kinds) <= 1000:
        drawn = rng.multinomial(n_rows, counts / n_rows, size=samples).astype(np.float64) @ kinds
    else:
        drawn = np.stack([row_scores[rng.integers(0, n_rows, n_rows)].sum(0) for _ in range(samples)])
    ratios = drawn[:, 0::2] / np.maximum(drawn[:, 1::2], 1e-12)
    return ratios if pairs > 1 else ratios[:, 0]


# ------------------------------------------------------------------------------------------ baselines
