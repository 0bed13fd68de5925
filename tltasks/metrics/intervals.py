"""95 % intervals over rows, of scores and of paired differences, that hold what they say on few rows and near the ends.

A score is a ratio of sums over rows (errors over words; right answers over rows), so that each row's influence on it is
known, and its mean, spread and skewness stand for it. What was measured is in docs/experiments.md.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from tltasks.metrics.arrays import Floats

Ends = tuple[float, float]
LEVEL = 0.95
Z = float(special.ndtri((1 + LEVEL) / 2))
UNKNOWN = float("nan"), float("nan")


def score_interval(row_scores: Floats, *, most: float | None) -> Ends:
    """Interval of a ratio of sums over rows; NaN where rows cannot tell.

    `row_scores` [rows, 2] holds each row's numerator and denominator (for accuracy: correct, 1), and `most` is the
    largest ratio that a row can have, where there is one. Rows that are right or wrong have Wilson's interval; all
    others the mean of their influences, as `_skewed_mean`. Rows that are all alike say nothing of their spread: the
    largest that there can be is taken.
    """
    if row_scores[:, 1].sum() <= 0:
        return UNKNOWN
    ratio, influence = _ratio(row_scores), influences(row_scores)
    limits = _limits(row_scores, most)
    if most is not None and limits[1] == most and (_all_or_nothing(row_scores, most) or _alike(influence)):
        low, high = wilson(ratio / most, len(row_scores))
        return most * low, most * high
    low, high = _skewed_mean(influence)
    return max(ratio + low, limits[0]), min(ratio + high, limits[1])


def paired_difference(ours: Floats, theirs: Floats, *, most: float | None) -> Ends:
    """Interval of ours − theirs on the same rows, both [rows, 2]; NaN where rows cannot tell.

    Rows that are right or wrong have Bonett and Price's interval, and so have rows that all differ by as much; all
    others the mean of what their influences differ by. Source: Bonett and Price, Journal of Educational and Behavioral
    Statistics 37 (2012) 479–488: Wald's interval with one row more in favour of either.
    """
    if min(ours[:, 1].sum(), theirs[:, 1].sum()) <= 0:
        return UNKNOWN
    bounded = most is not None and _limits(ours, most)[1] == _limits(theirs, most)[1] == most
    gap, influence = _ratio(ours) - _ratio(theirs), influences(ours) - influences(theirs)
    whole = bounded and most is not None and _all_or_nothing(ours, most) and _all_or_nothing(theirs, most)
    if most is not None and bounded and (whole or _alike(influence)):
        rows = np.append(gap + influence, [most, -most])
        half = Z * float(rows.std()) / np.sqrt(len(rows))
        return max(float(rows.mean()) - half, -most), min(float(rows.mean()) + half, most)
    low, high = _skewed_mean(influence)
    ends = gap + low, gap + high
    return (max(ends[0], -most), min(ends[1], most)) if most is not None and bounded else ends


def wilson(share: float, n: int) -> Ends:
    """Interval of a share of n rows; where no more than three differ, with the wider end of Brown, Cai and DasGupta.

    Source: Wilson, Journal of the American Statistical Association 22 (1927) 209–212; Brown, Cai and DasGupta,
    Statistical Science 16 (2001) 101–133, §4.1.1.

    >>> [round(end, 3) for end in wilson(1.0, 12)], [round(end, 3) for end in wilson(58 / 60, 60)]
    ([0.758, 1.0], [0.886, 0.994])
    """
    return _wilson_low(share, n), 1.0 - _wilson_low(1.0 - share, n)


def _wilson_low(share: float, n: int) -> float:
    """The lower end; the upper one is that of what is left."""
    count = share * n
    if count < 1e-9:
        return 0.0
    if share < 0.5 and count <= (2 if n <= 50 else 3) + 1e-9:  # so few that Poisson's law fits them better
        return float(special.gammaincinv(count, 1 - LEVEL) / n)
    z2 = Z**2
    half = Z * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return float((share + z2 / (2 * n) - half) / (1 + z2 / n))


def influences(row_scores: Floats) -> Floats:
    """Differences that rows make to a ratio of sums: their spread is that of the ratio.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, §22.6 (the infinitesimal jackknife).
    """
    numerators, denominators = row_scores[:, 0], row_scores[:, 1]
    found: Floats = (numerators - _ratio(row_scores) * denominators) / denominators.mean()
    return found


def _ratio(row_scores: Floats) -> float:
    return float(row_scores[:, 0].sum() / row_scores[:, 1].sum())


def _limits(row_scores: Floats, most: float | None) -> Ends:
    """The smallest and the largest ratio that there can be, judging by the rows: some have more errors than words."""
    numerators, denominators = row_scores[:, 0], row_scores[:, 1]
    below = most is not None and bool(np.all(numerators <= most * denominators * (1 + 1e-12)))
    positive = bool(np.all(numerators >= 0))
    return 0.0 if positive else -np.inf, most if most is not None and below and positive else np.inf


def _all_or_nothing(row_scores: Floats, most: float) -> bool:
    """Rows count alike, and each has all that there is to have or nothing."""
    numerators, denominators = row_scores[:, 0], row_scores[:, 1]
    return bool(np.ptp(denominators) == 0 and np.isin(numerators, [0.0, most * denominators[0]]).all())


def _alike(values: Floats) -> bool:
    """There is no spread, but for rounding."""
    return bool(np.ptp(values) <= 1e-12)


def _skewed_mean(values: Floats) -> Ends:
    """Interval of a mean of values that may lean to one side or have a few far out, less the mean.

    Student's t, put through the cubic that takes away the skewness (Hall, Journal of the Royal Statistical Society B 54
    (1992) 221–228, equation 3), with as many degrees of freedom as a variance of such values is known by
    (Satterthwaite, Biometrics Bulletin 2 (1946) 110–114): fewer than rows, where most rows are alike.
    """
    n = len(values)
    if _alike(values):
        return UNKNOWN
    spread = float(values.std(ddof=1))
    standard = (values - values.mean()) / values.std()
    skewness, kurtosis = float((standard**3).mean()), float((standard**4).mean())
    degrees = max(min(n - 1, 2 * n / max(kurtosis - 1, 1e-9)), 1)
    quantile = float(special.stdtrit(degrees, (1 + LEVEL) / 2))

    def end(t: float) -> float:
        y = t / np.sqrt(n) - skewness / (6 * n)
        return -spread * float(y if abs(skewness) < 1e-6 else 3 / skewness * (np.cbrt(1 + skewness * y) - 1))

    return end(quantile), end(-quantile)
