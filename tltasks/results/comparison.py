"""What a stage has cost on tests that are not its own: the score before it and after it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tltasks.results.result import RunResult, StageResult

OWN = {"train", "validation", "test"}
"""Splits of a stage's own data; its further test sets are those of other domains, or of what was learnt before."""


@dataclass(frozen=True)
class Change:
    """One further test set, before and after a stage, on the same rows."""

    split: str
    before_name: str
    """A stage, or `the checkpoint`."""
    metric: str
    before: float
    after: float
    gain: float
    """Above zero for the better, whichever way the metric goes."""
    ci95: tuple[float, float]
    """Of `gain`, which excludes zero where something is shown to be lost or won."""

    @property
    def verdict(self) -> str:
        """`worse`, `better` or `unclear`."""
        return "worse" if self.ci95[1] < 0 else "better" if self.ci95[0] > 0 else "unclear"

    @property
    def sentence(self) -> str:
        gain, low, high = (f"{value:+.3f}".replace("-", "−") for value in (self.gain, *self.ci95))
        before = f"{self.metric.replace('_', ' ')} was {self.before:.3f} with {self.before_name}"
        change = f"change for the better {gain}, 95 % interval {low} to {high}"
        said = {
            "worse": "Something was forgotten",
            "better": "Nothing was forgotten, more was learnt",
            "unclear": "Nothing is shown to be forgotten or learnt",
        }[self.verdict]
        return f"{said} on {self.split}: {before} and is {self.after:.3f} after this stage ({change})."


def changes(result: RunResult, stage: StageResult) -> Iterator[Change]:
    """Each further test set of a stage whose score before it is known; none for a stage of another task."""
    if stage.task != result.best.task or not stage.training:
        return
    came_from = stage.lineage[-1].stage if stage.weights.start == "previous" and stage.lineage else None
    arm, name = ("checkpoint", "the checkpoint") if came_from is None else (f"stage_{came_from}", f"stage {came_from}")
    sign = 1 if result.headline.higher_is_better else -1
    for split, before in stage.baselines.get(arm, {}).items():
        interval = before.difference_ci95
        if split in OWN or split not in stage.metrics or interval is None or not all(map(math.isfinite, interval)):
            continue
        was, now = before.value, stage.metrics[split].values[before.headline]
        low, high = sorted(sign * end for end in interval)
        yield Change(split, name, before.headline, was, now, sign * (now - was), (low, high))
