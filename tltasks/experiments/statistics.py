"""Intervals and tests over seeds and test rows at once.

A cell's score is a mean over seeds, drawn from all that there could be, and over test rows, drawn from all that
there could be; every seed is tested on the same rows. Both vary, so an interval has to hold both. It is the design of
readers × cases in diagnostic radiology (Dorfman, Berbaum and Metz, Investigative Radiology 27 (1992) 723–731),

    value[seed, row] = mean + seed + row + rest,

where the variance of the mean of S seeds and R rows has two parts, estimated by the mean squares:

    from seeds  V_s = MS_seeds / (S·R)                    S − 1 degrees of freedom
    from rows   V_r = max(MS_rows − MS_rest, 0) / (S·R)   R − 1 degrees of freedom

The half width of the interval is √(t²(S − 1)·V_s + t²(R − 1)·V_r), with the quantiles of Student's t: exact where one
part prevails, and a little wide between (Banerjee, Sankhyā 22 (1960) 357–358). Differences between two cells are
analysed in the same way, row by row and seed by seed, which is what pairs them.

A bootstrap over three seeds would be too narrow: it takes the variance between seeds for two thirds of what it is, and
does not know how uncertain that is. Two seeds say nothing of it: Student's t would have every score between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from tltasks.metrics.intervals import influences
from tltasks.results.comparison import Verdict, verdict

Floats = NDArray[np.float64]
Bounds = tuple[float, float]
LEVEL = 0.05
FEWEST_DEGREES = 2.0
"""Degrees of freedom below which nothing is known of seeds, and intervals are over rows alone: those of two seeds."""
MOST_LENT = 4.0
"""Degrees of freedom that other comparisons may add to what a comparison's own seeds say of their spread."""
SMALLEST_POWER = -12
"""Of ten: a smaller probability than this is not told from it."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, and the two-sided probability of one so far from zero if there were nothing.

    With one seed or two, both are over rows alone: how another seed would do is not known then.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    rows: int
    seed_share: float
    """Part of the variance that comes from seeds; more test rows would only lessen the rest."""


def linearised(row_scores: Floats) -> Floats:
    """Values [rows] whose mean is the metric, and whose spread is that of the metric; from numerators and denominators.

    For a ratio of sums, such as a word error rate, it is the ratio and each row's influence on it; for a mean over
    rows, such as accuracy, just each row's score.

    >>> linearised(np.array([[1.0, 1.0], [0.0, 1.0]]))
    array([1., 0.])
    """
    values: Floats = row_scores[:, 0].sum() / row_scores[:, 1].sum() + influences(row_scores)
    return values


@dataclass(frozen=True)
class Spread:
    """Variance between the means of seeds, and the degrees of freedom that it is known by."""

    variance: float
    degrees: float


def estimate(values: Floats, *, bounds: Bounds | None = None, spread: Spread | None = None) -> Estimate:
    """The mean of values [seeds, rows] over all seeds and rows that there could be; `bounds` clip the interval.

    `spread` is what is known of the seeds; unset, it is what these values say of it.
    """
    more = added_rows(values, bounds) if bounds is not None else ()
    return combine([values], [1.0], bounds=bounds, spread=spread, more=more)


def added_rows(values: Floats, bounds: Bounds) -> Sequence[float]:
    """Rows that are added at the ends where all are at one, or all alike: such rows hide how they vary.

    Two more of either for scores (Agresti and Coull, The American Statistician 52 (1998) 119–126), one more for
    differences (Bonett and Price, Journal of Educational and Behavioral Statistics 37 (2012) 479–488).
    """
    whole = np.isin(np.round(values, 9), [0.0, *bounds]).all() or np.ptp(values) < 1e-12
    return () if not whole else bounds if bounds[0] < 0 else 2 * bounds


def combine(
    parts: Sequence[Floats],
    weights: Sequence[float],
    *,
    bounds: Bounds | None = None,
    spread: Spread | None = None,
    more: Sequence[float] = (),
) -> Estimate:
    """A weighted sum of means over several test sets, each [seeds, rows], that the same seeds were tested on.

    `more` are rows to be added to each where their spread is computed.
    """
    by_seed = np.sum([weight * values.mean(1) for weight, values in zip(weights, parts, strict=True)], axis=0)
    n_seeds, mean = len(by_seed), float(by_seed.mean())
    if spread is None and n_seeds > 1:
        spread = Spread(float(by_seed.var(ddof=1)), n_seeds - 1)
    if spread is not None and spread.degrees < FEWEST_DEGREES:
        spread, parts = None, [values.mean(0, keepdims=True) for values in parts]
    padded = [np.hstack([values, np.tile(more, (len(values), 1))]) for values in parts]
    centre = float(sum(weight * values.mean() for weight, values in zip(weights, padded, strict=True)))
    variances = [spread.variance / n_seeds] if spread is not None else []
    degrees = [spread.degrees] if spread is not None else []
    for weight, values in zip(weights, padded, strict=True):
        if values.shape[1] > 1:
            variances.append(weight**2 * _row_variance(values))
            degrees.append(values.shape[1] - 1)
    total = sum(variances)

    def half_width(level: float) -> float:
        quantiles = stats.t.isf(level / 2, degrees)
        return float(np.sqrt(np.square(quantiles) @ np.array(variances)))

    low, high, p = centre, centre, float(mean == 0)
    if total > 0:
        low, high, p = centre - half_width(LEVEL), centre + half_width(LEVEL), 1.0
        if centre:
            p = 10.0**SMALLEST_POWER
            if half_width(p) > abs(centre):
                p = _power_of_ten(lambda p: half_width(p) - abs(centre), SMALLEST_POWER, 0)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    share = variances[0] / total if total > 0 and spread is not None else 0.0
    return Estimate(mean, low, high, p, n_seeds, sum(values.shape[1] for values in parts), share)


def _row_variance(values: Floats) -> float:
    """The part of the variance of the mean of values [seeds, rows] that comes from which rows were drawn."""
    n_seeds, n_rows = values.shape
    if n_rows < 2:
        return 0.0
    by_row = values.mean(0)
    if n_seeds == 1:
        return float(by_row.var(ddof=1) / n_rows)
    rest = values - values.mean(1, keepdims=True) - by_row + values.mean()
    ms_rest = float(np.square(rest).sum()) / ((n_seeds - 1) * (n_rows - 1))
    ms_rows = n_seeds * float(by_row.var(ddof=1))
    return float(max(ms_rows - ms_rest, 0.0) / (n_seeds * n_rows))


def moderated(tables: Sequence[Floats], *, contexts: int) -> list[Spread | None]:
    """Spreads between seeds of many differences [seeds, rows], each drawn towards what they have in common.

    Two or three seeds say little of their own spread: alone, Student's t would need an enormous difference, the more
    so the more comparisons there are. The variances are taken as draws from one scaled inverse χ² distribution, whose
    parameters are fitted to them; each is replaced by its posterior mean, with the degrees of freedom of both.

    Differences from the same control are not independent of each other, so what is lent is at most what the controls of
    other `contexts` have, and at most `MOST_LENT`, which kept false calls of a family below 5 % in simulations where
    the spreads of cells differ up to twentyfold. None for a table of one seed.
    Source: Smyth, Statistical Applications in Genetics and Molecular Biology 3 (2004) 3, §§4 and 6.2.
    """
    own = [Spread(float(table.mean(1).var(ddof=1)), len(table) - 1) if len(table) > 1 else None for table in tables]
    known = [spread for spread in own if spread is not None]
    positive = [spread.variance for spread in known if spread.variance > 0]
    if len(positive) < 2:
        return own
    # Equal cells have no variance at all; the logarithm takes the least that others have.
    logs = np.log([max(spread.variance, min(positive)) for spread in known])
    half = np.array([spread.degrees for spread in known]) / 2
    centred = logs - special.digamma(half) + np.log(half)
    beyond = float(centred.var(ddof=1) - special.polygamma(1, half).mean())
    prior = 2 * _inverse_trigamma(beyond) if beyond > 0 else np.inf
    common = float(np.exp(centred.mean()))
    if np.isfinite(prior):
        common *= float(np.exp(special.digamma(prior / 2) - np.log(prior / 2)))

    def moderate(own: Spread) -> Spread:
        lent = min(prior, MOST_LENT, own.degrees * (contexts - 1))
        variance = (lent * common + own.degrees * own.variance) / (lent + own.degrees)
        return Spread(variance, lent + own.degrees)

    return [None if spread is None else moderate(spread) for spread in own]


def _inverse_trigamma(value: float) -> float:
    value = min(max(value, 1e-5), 1e10)
    return _power_of_ten(lambda x: float(special.polygamma(1, x)) - value, -6, 6)


def _power_of_ten(function: Callable[[float], float], low: int, high: int) -> float:
    """Root of a function between two powers of ten."""
    power = optimize.brentq(lambda power: function(10**power), float(low), float(high))
    return float(10.0 ** float(power))


def holm(p_values: Sequence[float]) -> list[float]:
    """Probabilities adjusted so that of all calls below 0.05 together, one or more is false in at most 5 % of cases.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65–70.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    scaled = np.minimum(1.0, np.arange(len(order), 0, -1) * np.asarray(p_values)[order])
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted.tolist()


def transfer_verdict(gain: float, p_adjusted: float) -> Verdict:
    """`better` or `worse` than the control where chance is ruled out, otherwise `unclear`."""
    return verdict(gain, shown=p_adjusted < LEVEL)


def examples_to_reach(score: float, curve: Sequence[tuple[float, float]], *, higher_is_better: bool) -> float | None:
    """Training examples with which a curve of (examples, score) reaches a score, between its points by their logarithm.

    None where it does not reach it: more examples than any that were tried.

    >>> examples_to_reach(0.5, [(10, 0.4), (1000, 0.6)], higher_is_better=True)
    100.0
    >>> examples_to_reach(0.7, [(10, 0.4), (1000, 0.6)], higher_is_better=True) is None
    True
    """
    sign = 1 if higher_is_better else -1
    before: tuple[float, float] | None = None
    for examples, value in sorted(curve):
        if sign * value >= sign * score:
            if before is None or value == before[1]:
                return float(examples)
            share = (score - before[1]) / (value - before[1])
            low, high = np.log10(before[0]), np.log10(examples)
            return round(float(10 ** (low + share * (high - low))), 6)
        before = examples, value
    return None
