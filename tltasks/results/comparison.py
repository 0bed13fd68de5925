"""Verdicts, all in one wording: which of two scores is better, by how much, and whether chance is ruled out.

One sign rule holds for all of them: a gain is above zero for the better, whichever way the metric goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tltasks.results.metric_names import metric_in_text
from tltasks.results.result import UNKNOWN, GroupScore, Interval, RunResult, Score, StageResult

OWN_SPLITS = {"train", "validation", "test"}
"""Splits of a stage's own data; its further test sets are those of other domains, or of what was learnt before."""
NAMES = {
    "chance": "guessing",
    "checkpoint": "the untouched checkpoint",
    "checkpoint_knn": "nearest neighbours by the untouched checkpoint's features",
    "majority_class": "always naming the most frequent class",
    "mean_patch": "predicting flat patches",
    "not_interpolated": "the fine-tuned weights before interpolation",
    "prevalence": "giving each class its share of the training rows",
    "token_frequencies": "guessing by how often each token comes up in these texts",
}
"""Baselines, of several tasks each, whose own name does not say what they are."""

SHORT_NAMES = {
    "checkpoint": "untouched checkpoint",
    "checkpoint_knn": "nearest neighbours",
    "not_interpolated": "before interpolation",
    "prevalence": "shares of classes",
    "tfidf": "words alone",
}
"""The same where there is little room."""

Verdict = Literal["better", "worse", "unclear"]


def verdict(gain: float, *, shown: bool) -> Verdict:
    """A verdict by the sign of a gain, where chance is ruled out.

    >>> verdict(0.1, shown=True), verdict(-0.1, shown=True), verdict(0.1, shown=False)
    ('better', 'worse', 'unclear')
    """
    return "unclear" if not shown or gain == 0 else "better" if gain > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """A score beside another: a baseline's on the same rows, or the model's own on another test set."""

    split: str
    against: str
    """Baseline, such as `majority_class` or `stage_pretrain`; or test set."""
    name: str
    """The same in a sentence."""
    ours: Score
    theirs: Score
    gain: float
    """NaN where a score is."""
    ci95: Interval
    """Of the gain; NaN where it was not computed."""

    @property
    def is_known(self) -> bool:
        """There is an interval."""
        return all(map(math.isfinite, self.ci95))

    @property
    def verdict(self) -> Verdict:
        low, high = self.ci95
        return verdict(low, shown=self.is_known and not low <= 0 <= high)

    @property
    def sentence(self) -> str:
        """The verdict in words, to follow `it is`; hides nothing that speaks against the model."""
        if not math.isfinite(self.gain):
            return f"not comparable with {self.name}: a score is not a number"
        if not self.is_known:
            return f"not shown to be better or worse than {self.name}: {signed(self.gain)}, without an interval"
        gain, low, high = signed_interval(self.gain, self.ci95)
        if self.verdict == "unclear":
            interval = f"95 % interval {low} to {high}, which contains zero"
            return f"not shown to be better or worse than {self.name}: {gain}, {interval}"
        ends = (low, high) if self.verdict == "better" else (high, low)
        by, nearest, farthest = (shown.lstrip("+−") for shown in (gain, *ends))
        return f"{self.verdict} than {self.name} by {by} (95 % interval {nearest} to {farthest})"


def compare_with_baselines(stage: StageResult) -> list[Comparison]:
    """A stage beside each of its baselines, on every split that both have been scored on."""
    return [
        _paired(stage, split, ours, name, by_split[split])
        for split, ours in stage.metrics.items()
        for name, by_split in stage.baselines.items()
        if split in by_split
    ]


@dataclass(frozen=True)
class GroupLine:
    """The model's score of a group of rows; and of each baseline its score, the gain over it and that's interval."""

    group: str
    ours: GroupScore
    beside: list[tuple[GroupScore, float, Interval]]


@dataclass(frozen=True)
class GroupTable:
    """Scores of the groups of a split's rows."""

    split: str
    by: str
    metric: str
    baselines: list[str]
    lines: list[GroupLine]


def compare_groups(stage: StageResult) -> list[GroupTable]:
    """Groups of each split's rows beside baselines that are scored by the same ones, where there are several."""
    tables = []
    for split, score in stage.metrics.items():
        for by, groups in score.groups.items():
            found = {name: it[split].groups.get(by, {}) for name, it in stage.baselines.items() if split in it}
            theirs = {name: of for name, of in found.items() if of.keys() == groups.keys()}
            lines = [
                GroupLine(group, ours, [(of[group], *_gain(stage, ours.value, of[group])) for of in theirs.values()])
                for group, ours in groups.items()
            ]
            tables.append(GroupTable(split, by, score.headline, list(theirs), lines))
    return [table for table in tables if len(table.lines) > 1]


def compare_headline(result: RunResult) -> list[Comparison]:
    """The run's headline beside its baselines."""
    return [it for it in compare_with_baselines(result.best) if it.split == result.headline.split]


def compare_test_sets(stage: StageResult, split: str) -> list[Comparison]:
    """Each further test set beside the split of the headline: other rows, so judged by whether intervals overlap."""
    found, theirs = [], stage.metrics[split]
    for name, ours in stage.metrics.items():
        if name not in OWN_SPLITS and name != split:
            # The widest difference that values within both intervals can have, either way.
            ends = ours.ci95[0] - theirs.ci95[1], ours.ci95[1] - theirs.ci95[0]
            found.append(_compare(stage, name, ours, split, theirs, ends))
    return found


def compare_with_before(result: RunResult, stage: StageResult) -> Iterator[Comparison]:
    """Each further test set of a stage beside its score before the stage; none for a stage of another task."""
    if stage.task != result.best.task or stage.training is None:
        return
    came_from = stage.lineage[-1].stage if stage.weights.start == "previous" and stage.lineage else None
    name = "checkpoint" if came_from is None else f"stage_{came_from}"
    for split, before in stage.baselines.get(name, {}).items():
        if split not in OWN_SPLITS and split in stage.metrics:
            found = _paired(stage, split, stage.metrics[split], name, before)
            if found.is_known:
                yield found


def describe_forgetting(comparison: Comparison) -> str:
    """Say whether something was forgotten or learnt on a test set that is not a stage's own."""
    said = {
        "worse": "Something was forgotten",
        "better": "Nothing was forgotten, more was learnt",
        "unclear": "Nothing is shown to be forgotten or learnt",
    }[comparison.verdict]
    metric, before, after = metric_in_text(comparison.ours.headline), comparison.theirs.value, comparison.ours.value
    digits = decimals(comparison.gain, *comparison.ci95)
    values = f"{metric} was {before:.{digits}f} and is {after:.{digits}f} after this stage"
    return f"{said} on {comparison.split}: {comparison.sentence}; {values}."


def describe_leaks(stage: StageResult, split: str) -> str | None:
    """Say what a score is without the examples whose near-duplicates were trained on; None where there are none."""
    leaks = stage.data[split].leaks if split in stage.data else None
    if leaks is None or leaks.value is None:
        return None
    ours, all_but = stage.metrics[split], leaks.value
    change, interval = ours.value - all_but, leaks.difference_ci95 or UNKNOWN
    digits = min(4, decimals(change, *interval))
    difference, low, high = (signed(one, digits) for one in (change, *interval))
    ends = " to ".join(f"{end:.{digits}f}" for end in leaks.ci95 or UNKNOWN)
    have = "has" if leaks.examples == 1 else "have"
    return (
        f"Without the {leaks.examples:,} of {stage.data[split].examples:,} examples of {split} that {have} "
        f"near-duplicates among the rows trained on, {metric_in_text(ours.headline)} is {all_but:.{digits}f} (95 % "
        f"interval {ends}), a difference of {difference} ({low} to {high})."
    )


def _paired(stage: StageResult, split: str, ours: Score, against: str, theirs: Score) -> Comparison:
    return _compare(stage, split, ours, against, theirs, theirs.difference_ci95 or UNKNOWN)


def _compare(
    stage: StageResult, split: str, ours: Score, against: str, theirs: Score, difference: Interval
) -> Comparison:
    name = stage.baseline_names.get(against) or baseline_name(against)
    gain, ends = _signed(stage, ours.value - theirs.values.get(ours.headline, float("nan")), difference)
    return Comparison(split, against, name, ours, theirs, gain, ends)


def _gain(stage: StageResult, ours: float, theirs: GroupScore) -> tuple[float, Interval]:
    return _signed(stage, ours - theirs.value, theirs.difference_ci95 or UNKNOWN)


def _signed(stage: StageResult, difference: float, ends: Interval) -> tuple[float, Interval]:
    """A difference of scores and its interval, above zero for the better."""
    sign = 1 if stage.higher_is_better else -1
    low, high = sorted(sign * end for end in ends)
    return sign * difference, (low, high)


# ----------------------------------------------------------------------------------------------- wording


def baseline_name(name: str) -> str:
    """
    >>> baseline_name("majority_class"), baseline_name("lead_3"), baseline_name("stage_first_one")
    ('always naming the most frequent class', 'lead 3', 'stage first_one')
    """
    if name.startswith("stage_"):
        return f"stage {name.removeprefix('stage_')}"
    return NAMES.get(name, name.replace("_", " "))


def short_name(name: str) -> str:
    """
    >>> short_name("checkpoint_knn"), short_name("majority_class")
    ('nearest neighbours', 'majority class')
    """
    return SHORT_NAMES.get(name, name.replace("_", " "))


def counted(count: float, noun: str) -> str:
    """
    >>> counted(1, "error"), counted(1234, "word")
    ('1 error', '1,234 words')
    """
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def signed(value: float, digits: int = 3) -> str:
    """
    >>> signed(0.5), signed(-0.25, 2), signed(-0.001, 2)
    ('+0.500', '−0.25', '0.00')
    """
    shown = f"{abs(value):,.{digits}f}"
    return shown if not shown.strip("0.,") else f"{'−' if value < 0 else '+'}{shown}"


def signed_interval(value: float, interval: Interval) -> tuple[str, str, str]:
    """A difference and the ends of its interval, such that they show on which side of zero they are.

    >>> signed_interval(0.005, (0.0001, 0.0092)), signed_interval(-0.00172, (-0.011071, -0.000003))
    (('+0.0050', '+0.0001', '+0.0092'), ('−0.0017', '−0.0111', '−3e-06'))
    """
    digits = decimals(value, *interval)
    shown, low, high = (
        f"{one:+.0e}".replace("-", "−", one < 0) if LEAST < abs(one) < 0.5 / 10**digits else signed(one, digits)
        for one in (value, *interval)
    )
    return shown, low, high


LEAST = 1e-12
"""What floats leave of a difference that is zero."""


def decimals(*values: float) -> int:
    """Digits after the point by which no value that is not zero looks like zero: three, or as many more as it takes.

    They are no more than four or, where that is more, show two figures of the largest value.

    >>> decimals(0.5, 0.46, 0.54), decimals(0.01, 0.0004, 0.02), decimals(0.002, 0.000003, 0.011), decimals(0.00003)
    (3, 4, 4, 5)
    """
    known = [abs(value) for value in values if math.isfinite(value) and abs(value) > LEAST] or [1.0]
    most = max(4, math.ceil(-math.log10(max(known))) + 1)
    return max(3, min(most, math.ceil(-math.log10(2 * min(known)))))
