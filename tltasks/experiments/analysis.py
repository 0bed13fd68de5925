"""From the records of finished cells to what an experiment says: scores, differences, verdicts, drops, ranks."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tltasks.errors import DataError
from tltasks.experiments.experiment import Experiment, Levels
from tltasks.experiments.plan import PlannedCell, Record
from tltasks.experiments.statistics import (
    Estimate,
    combine,
    estimate,
    examples_to_reach,
    holm,
    linearised,
    mean_ranks,
    moderated,
    verdict,
)

Floats = NDArray[np.float64]
Key = tuple[tuple[str, str], ...]
"""Levels as something that can be looked up by."""


@dataclass(frozen=True)
class Comparison:
    """An arm against a control on the same seeds and test rows; above zero is better, whichever way the metric goes."""

    control: str
    gain: Estimate
    p_adjusted: float
    verdict: str
    """`positive`, `neutral` or `negative` transfer."""
    examples_needed: float | None
    """Training examples with which the control would reach the arm's score, between its own measured points; None
    where no number of them that was tried reaches it."""
    tried: tuple[int, int]
    """The fewest and the most that the control was tried with."""


@dataclass(frozen=True)
class Arm:
    """What one combination of levels scores on one test set, over its seeds."""

    levels: Levels
    target: str
    in_domain: bool | None
    """Whether it was trained on the test set's own domain; None where the experiment names no domains."""
    score: Estimate
    by_seed: dict[int, float]
    missing: list[int]
    """Seeds without a finished cell."""
    train_examples: float
    trained_parameters: int
    training_seconds: float
    comparisons: list[Comparison] = field(default_factory=list)


@dataclass(frozen=True)
class Drop:
    """How much worse an arm is on another domain's test set than on that of its own; above zero is a loss."""

    levels: Levels
    target: str
    loss: Estimate


@dataclass(frozen=True)
class Findings:
    """All that an experiment says."""

    metric: str
    higher_is_better: bool
    arms: list[Arm]
    drops: list[Drop]
    ranks: dict[str, float]
    """Mean rank of each level of the contrast over the contexts in which all were measured; 1 is the best."""
    contexts: int
    families: dict[str, int]
    """Comparisons that were adjusted together, by control."""


@dataclass(frozen=True)
class _Scores:
    """An arm's scores by test set: for each seed the rows' values, and which rows they are."""

    records: dict[int, Record]
    values: dict[str, dict[int, Floats]]
    bounded: dict[str, bool]

    def rows(self, target: str, seed: int) -> str:
        return str(self.records[seed]["targets"][target]["fingerprint"])


def analyse(experiment: Experiment, planned: Iterable[PlannedCell], output: Path) -> Findings:
    """What the finished cells say. Raises DataError where they cannot be compared, or there are none."""
    by_levels: dict[Key, dict[int, Record]] = defaultdict(dict)
    for item in planned:
        if item.record is not None:
            by_levels[_key(item.cell.levels)][item.cell.seed] = item.record
    records = [record for by_seed in by_levels.values() for record in by_seed.values()]
    if not records:
        raise DataError("no cell is finished, so there is nothing to say; the logs of those that failed tell why.")
    kinds = {(record["metric"], record["higher_is_better"]) for record in records}
    if len(kinds) > 1:
        raise DataError(f"the cells are judged by different metrics ({', '.join(sorted(name for name, _ in kinds))}).")
    metric, higher_is_better = kinds.pop()
    scores = {key: _read(by_seed, output) for key, by_seed in by_levels.items()}
    arms = {
        (key, target): _arm(experiment, dict(key), target, one) for key, one in scores.items() for target in one.values
    }
    sign = 1.0 if higher_is_better else -1.0
    families: dict[str, int] = {}
    for control in experiment.contrast.controls if experiment.contrast is not None else []:
        families[control] = _compare(experiment, control, arms, scores, sign)
    ranks, contexts = _ranks(experiment, arms, higher_is_better=higher_is_better)
    drops = list(_drops(experiment, arms, scores, sign))
    return Findings(metric, higher_is_better, list(arms.values()), drops, ranks, contexts, families)


def _key(levels: Levels) -> Key:
    return tuple(levels.items())


def _read(by_seed: dict[int, Record], output: Path) -> _Scores:
    values: dict[str, dict[int, Floats]] = defaultdict(dict)
    bounded: dict[str, bool] = {}
    for seed, record in by_seed.items():
        row_scores = load_file(output / "cells" / record["row_scores"])
        targets = [name for name in record["targets"] if name != "validation"] or list(record["targets"])
        for target in targets:
            scores = row_scores[target]
            values[target][seed] = linearised(scores)
            within = bool(np.all((scores[:, 0] >= 0) & (scores[:, 0] <= scores[:, 1])))
            bounded[target] = bounded.get(target, True) and within
    return _Scores(by_seed, dict(values), bounded)


def _arm(experiment: Experiment, levels: Levels, target: str, scores: _Scores) -> Arm:
    records, values = scores.records, scores.values[target]
    own = levels[experiment.domains] if experiment.domains is not None else None
    name = own if own is not None and target == "test" else target
    return Arm(
        levels=levels,
        target=name,
        in_domain=None if own is None else name == own,
        score=estimate(_table(scores, target, list(values)), bounds=(0.0, 1.0) if scores.bounded[target] else None),
        by_seed={seed: records[seed]["targets"][target]["value"] for seed in values},
        missing=[seed for seed in experiment.seeds if seed not in values],
        train_examples=float(np.mean([record["train_examples"] for record in records.values()])),
        trained_parameters=max(record["trained_parameters"] for record in records.values()),
        training_seconds=float(np.mean([record["training_seconds"] for record in records.values()])),
    )


def _table(scores: _Scores, target: str, seeds: list[int], less: _Scores | None = None) -> Floats:
    """Values [seeds, rows], less another arm's. Where each seed has rows of its own, just their means in two columns:
    all that varies is between seeds then."""
    by_seed = [scores.values[target][seed] - (0.0 if less is None else less.values[target][seed]) for seed in seeds]
    if len({scores.rows(target, seed) for seed in seeds}) == 1:
        return np.stack(by_seed)
    return np.repeat([[values.mean()] for values in by_seed], 2, axis=1)


# ---------------------------------------------------------------------------------------- comparisons


def _compare(
    experiment: Experiment, control: str, arms: dict[tuple[Key, str], Arm], scores: dict[Key, _Scores], sign: float
) -> int:
    """Add to every arm its comparison with a control, and return how many there are.

    A control is compared with those that come before it in the list, not with those after it: that is the same
    difference the other way round.
    """
    assert experiment.contrast is not None
    axis, controls = experiment.contrast.axis, experiment.contrast.controls
    later = set(controls[: controls.index(control) + 1])
    tables: list[Floats] = []
    found: list[tuple[tuple[Key, str], bool, Arm]] = []
    for (key, target), arm in arms.items():
        other = _key({**arm.levels, axis: control})
        if arm.levels[axis] in later or (other, target) not in arms:
            continue
        ours, theirs = scores[key], scores[other]
        seeds = [
            seed
            for seed in ours.values[target]
            if seed in theirs.values[target] and ours.rows(target, seed) == theirs.rows(target, seed)
        ]
        if seeds:
            tables.append(sign * _table(ours, target, seeds, less=theirs))
            found.append(((key, target), ours.bounded[target] and theirs.bounded[target], arms[other, target]))
    spreads = moderated(tables, contexts=len({_key(other.levels) for _, _, other in found}))
    gains = [
        estimate(table, bounds=(-1.0, 1.0) if bounded else None, spread=spread)
        for table, spread, (_, bounded, _) in zip(tables, spreads, found, strict=True)
    ]
    adjusted = holm([gain.p for gain in gains])
    for (at, _, other_arm), gain, p in zip(found, gains, adjusted, strict=True):
        arm = arms[at]
        curve = _curve(experiment, other_arm, arms)
        needed = examples_to_reach(arm.score.mean, curve, higher_is_better=sign > 0)
        examples = [round(n) for n, _ in curve]
        comparison = Comparison(control, gain, p, verdict(gain.mean, p), needed, (min(examples), max(examples)))
        arms[at] = dataclasses.replace(arm, comparisons=[*arm.comparisons, comparison])
    return len(found)


def _curve(experiment: Experiment, arm: Arm, arms: dict[tuple[Key, str], Arm]) -> list[tuple[float, float]]:
    """Training examples and scores of an arm and of those that differ from it in the axis of the curve alone."""
    axis = experiment.curve
    alike = [
        other
        for other in arms.values()
        if other.target == arm.target
        and all(other.levels[name] == arm.levels[name] for name in arm.levels if name != axis)
    ]
    return [(other.train_examples, other.score.mean) for other in alike]


def _drops(
    experiment: Experiment, arms: dict[tuple[Key, str], Arm], scores: dict[Key, _Scores], sign: float
) -> Iterable[Drop]:
    for key, one in scores.items():
        inside = [target for target in one.values if arms[key, target].in_domain]
        for target in one.values:
            if not inside or arms[key, target].in_domain:
                continue
            seeds = [seed for seed in one.values[target] if seed in one.values[inside[0]]]
            if seeds:
                parts = [_table(one, name, seeds) for name in (inside[0], target)]
                yield Drop(dict(key), arms[key, target].target, combine(parts, [sign, -sign]))


def _ranks(
    experiment: Experiment, arms: dict[tuple[Key, str], Arm], *, higher_is_better: bool
) -> tuple[dict[str, float], int]:
    if experiment.contrast is None:
        return {}, 0
    axis = experiment.contrast.axis
    contexts: dict[Any, dict[str, float]] = defaultdict(dict)
    for (key, target), arm in arms.items():
        context = tuple(pair for pair in key if pair[0] != axis), target
        contexts[context][arm.levels[axis]] = arm.score.mean
    levels = [level for level in experiment.axes[axis] if any(level in one for one in contexts.values())]
    table = [[one[level] for level in levels] for one in contexts.values() if len(one) == len(levels)]
    if not table:
        return {}, 0
    ranks = mean_ranks(np.array(table), higher_is_better=higher_is_better)
    return dict(zip(levels, map(float, ranks), strict=True)), len(table)
