"""Findings of an experiment from the records of its finished trials: scores, differences, verdicts, drops, ranks."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tltasks.errors import DataError
from tltasks.experiments import statistics
from tltasks.experiments.experiment import Experiment, Levels
from tltasks.experiments.trials import TargetScore, TrialRecord, trial_folder
from tltasks.metrics.classification import class_parts, class_row_scores
from tltasks.reports.formatting import show_gain, show_interval, show_number
from tltasks.results.comparison import Verdict, counted
from tltasks.results.metric_names import metric_in_text
from tltasks.results.result import UNKNOWN

Floats = NDArray[np.float64]
MOST_ANSWERS = 3
"""Test sets that the sentence on top of a report is about."""


@dataclass(frozen=True)
class ControlComparison:
    """A cell against a control on the same seeds and test rows; above zero is better, whichever way the metric goes."""

    control: str
    gain: statistics.Estimate
    p_adjusted: float
    verdict: Verdict
    """Than the control."""
    examples_needed: float | None
    """Training examples with which the control would reach the cell's score, between its own measured points; None
    where no number of them that was tried reaches it."""
    tried: tuple[int, int]
    """The fewest and the most that the control was tried with."""


@dataclass(frozen=True)
class CellScore:
    """Score of one combination of levels on one test set, over its seeds."""

    levels: Levels
    target: str
    in_domain: bool | None
    """Whether it was trained on the test set's own domain; None where the experiment names no domains."""
    score: statistics.Estimate
    by_seed: dict[int, float]
    missing: list[int]
    """Seeds without a finished trial."""
    train_examples: float
    trained_parameters: int
    training_seconds: float
    comparisons: list[ControlComparison] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Than the first control; nothing where there is none."""
        return self.comparisons[0].verdict if self.comparisons else ""


@dataclass(frozen=True)
class Drop:
    """Loss of a cell on another domain's test set against that of its own; above zero is worse."""

    levels: Levels
    target: str
    loss: statistics.Estimate


@dataclass(frozen=True)
class Findings:
    """Scores of all cells, and what they show."""

    metric: str
    higher_is_better: bool
    cells: list[CellScore]
    drops: list[Drop]
    ranks: dict[str, float]
    """Mean rank of each level of the contrast over the contexts in which all were measured; 1 is the best."""
    contexts: int
    families: dict[str, int]
    """Comparisons that were adjusted together, by control."""
    leaks: dict[str, int] = field(default_factory=dict)
    """Most rows of a test set whose near-duplicates a trial was trained on, by test set."""

    def to_pandas(self) -> pd.DataFrame:
        """A row for each cell and test set, with its comparison with each control."""
        rows = []
        for cell in self.cells:
            score = cell.score
            row: dict[str, object] = {**cell.levels, "target": cell.target, "in_domain": cell.in_domain}
            row |= {"seeds": score.seeds, "rows": score.rows, self.metric: score.mean, "low": score.low}
            row |= {"high": score.high, "train_examples": cell.train_examples}
            row |= {"trained_parameters": cell.trained_parameters, "training_seconds": cell.training_seconds}
            for control in self.families:
                one = next((one for one in cell.comparisons if one.control == control), None)
                gain = (one.gain.mean, one.gain.low, one.gain.high, one.p_adjusted, one.verdict) if one else [None] * 5
                names = ("gain_over", "low_over", "high_over", "p_holm", "verdict_against")
                row |= {f"{name}_{control}": value for name, value in zip(names, gain, strict=True)}
            rows.append(row)
        return pd.DataFrame(rows)

    def sentences(self) -> list[tuple[str, str]]:
        """Summary of the experiment, its answer first: a kind (`better`, `worse`, `unclear`) and a sentence each."""
        said = [*self._answers()]
        for control, n in self.families.items():
            if n == 1 and len(said) == 1:  # which has said it
                continue
            counts = Counter(c.verdict for cell in self.cells for c in cell.comparisons if c.control == control)
            kind = "worse" if counts["worse"] else "better" if counts["better"] else "unclear"
            parts = f"{counts['better']} better, {counts['worse']} worse, {counts['unclear']} not shown to be either"
            text = f"Of {counted(n, 'comparison')} with {control.replace('_', ' ')}, judged together: {parts}."
            said.append((kind, text))
        if self.contexts > 1:
            order = sorted(self.ranks.items(), key=lambda item: item[1])
            ranks = ", ".join(f"{name.replace('_', ' ')} {rank:.1f}" for name, rank in order)
            said.append(("unclear", f"Mean place over {self.contexts} comparisons of all (1 is the best): {ranks}."))
        if self.drops:
            worse = sum(drop.loss.low > 0 for drop in self.drops)
            text = f"Tested on another domain than its own, {worse} of {len(self.drops)} do worse, beyond chance."
            said.append(("worse" if worse else "better", text))
        for target, n in self.leaks.items():
            have = f"{counted(n, 'row')} of {target} {'has a near-duplicate' if n == 1 else 'have near-duplicates'}"
            text = f"Up to {have} among those trained on: the report of each trial"
            said.append(("unclear", f"{text} has its score without them, and `data.leaks: drop` trains without these."))
        if few := few_seeds(min(cell.score.seeds for cell in self.cells)):
            said.append(("unclear", few))
        return said

    def _answers(self) -> Iterator[tuple[str, str]]:
        """The best cell of each test set, and if chance is ruled out."""
        varied = [axis for axis in self.cells[0].levels if len({cell.levels[axis] for cell in self.cells}) > 1]

        def name(cell: CellScore) -> str:
            return " · ".join(cell.levels[axis] for axis in varied) or "the recipe"

        for target in list(dict.fromkeys(cell.target for cell in self.cells))[:MOST_ANSWERS]:
            cells = [cell for cell in self.cells if cell.target == target]
            first, *others = sorted(cells, key=lambda cell: cell.score.mean, reverse=self.higher_is_better)
            score = f"{show_number(first.score.mean)} ({show_interval((first.score.low, first.score.high))})"
            text, shown = f"On {target}, {name(first)} scores best: {metric_in_text(self.metric)} {score}", False
            second = others[0] if others else first
            changed = [level for axis, level in first.levels.items() if level != second.levels[axis]]
            mirrored = [one for one in second.comparisons if [one.control] == changed]
            if second is not first and second.score.mean == first.score.mean:
                text = text.replace(" scores best:", f" and {name(second)} score the same:")
            elif first.comparisons or mirrored:
                sign, one = (1, first.comparisons[0]) if first.comparisons else (-1, mirrored[0])
                other, shown = one.control if sign > 0 else name(second), one.verdict == ("better", "worse")[sign < 0]
                low, high = sorted((sign * one.gain.low, sign * one.gain.high))
                gain = show_gain(sign * one.gain.mean, (low, high))
                text += f", {'better' if shown else 'not shown to be better'} than {other}: {gain}"
            elif others:
                shown = max(first.score.low - second.score.high, second.score.low - first.score.high) > 0
                chance = "their intervals are apart" if shown else "their intervals overlap: it may be chance"
                text += f", then {name(second)} with {show_number(second.score.mean)} ({chance})"
            yield "better" if shown else "unclear", f"{text.replace('_', ' ')}."


def few_seeds(n_seeds: int) -> str:
    """A sentence on seeds that are too few to tell how they vary; nothing where there are enough."""
    having = "one seed" if n_seeds == 1 else f"{n_seeds} seeds"
    return (
        ""
        if n_seeds > 2
        else f"With {having}, scores have intervals over test rows alone: three seeds tell how they vary."
    )


@dataclass(frozen=True)
class _Rows:
    """Scores of a trial on a test set, whose mean is the metric, and which rows they are of."""

    values: Floats
    fingerprint: str
    bounded: bool
    """Whether each is between 0 and 1."""


Place = tuple[tuple[str, ...], str]
"""A combination of levels, and the name that its trials know a test set by."""
Cells = dict[Place, CellScore]
Scores = dict[Place, dict[int, _Rows]]
"""By place and seed."""


def analyse(experiment: Experiment, records: Iterable[TrialRecord], output: Path) -> Findings:
    """Compare the scores of finished trials. Raises DataError where they cannot be compared, or there are none."""
    by_levels: dict[tuple[str, ...], dict[int, TrialRecord]] = defaultdict(dict)
    scores: Scores = defaultdict(dict)
    for record, row_scores in _whole(records, experiment.folds, output):
        levels = tuple(record.levels.values())
        by_levels[levels][record.seed] = record
        for target, found in row_scores.items():
            bounded = bool(np.all((found[:, 0] >= 0) & (found[:, 0] <= found[:, 1])))
            rows = _Rows(statistics.linearised(found), record.targets[target].fingerprint, bounded)
            scores[levels, target][record.seed] = rows
    kinds = {(one.metric, one.higher_is_better) for by_seed in by_levels.values() for one in by_seed.values()}
    if not kinds:
        raise DataError("no trial is finished, so there is nothing to say; the logs of those that failed tell why.")
    if len(kinds) > 1:
        raise DataError(f"the trials are judged by different metrics ({', '.join(sorted(name for name, _ in kinds))}).")
    metric, higher_is_better = kinds.pop()
    sign = 1.0 if higher_is_better else -1.0
    ordered = sorted(scores, key=lambda at: list(by_levels).index(at[0]))
    cells = {at: _score(experiment, at, scores[at], by_levels[at[0]]) for at in ordered}
    controls = experiment.contrast.controls if experiment.contrast is not None else []
    families = {control: _compare(experiment, control, cells, scores, sign) for control in controls}
    ranks, contexts = _ranks(experiment, cells, higher_is_better=higher_is_better)
    drops, leaks = list(_drops(cells, scores, sign)), dict[str, int]()
    for (levels, target), by_seed in scores.items():
        n_leaks = max(by_levels[levels][seed].targets[target].leaks for seed in by_seed)
        if n_leaks > leaks.get(target, 0):
            leaks[target] = n_leaks
    return Findings(metric, higher_is_better, list(cells.values()), drops, ranks, contexts, families, leaks)


def _whole(
    records: Iterable[TrialRecord], n_folds: int | None, output: Path
) -> Iterator[tuple[TrialRecord, dict[str, Floats]]]:
    """Records with the scores of their rows, [rows, 2], by test set; of folds one for all, where all are finished."""
    folds: dict[tuple[object, ...], list[TrialRecord]] = defaultdict(list)
    for record in records:
        folds[(*record.levels.items(), record.seed)].append(record)
    for group in folds.values():
        if len(group) < (n_folds or 1):
            continue
        read = [_read(record, output) for record in group]
        yield (group[0], read[0]) if len(group) == 1 else _together(group, read, output)


def _together(
    folds: list[TrialRecord], read: list[dict[str, Floats]], output: Path
) -> tuple[TrialRecord, dict[str, Floats]]:
    """One record of all folds: the rows of their test sets in a row; of one that all share, their mean."""
    scores: dict[str, Floats] = {}
    targets: dict[str, TargetScore] = {}
    for name in read[0]:
        parts, told = [part[name] for part in read], [record.targets[name].fingerprint for record in folds]
        shared = len(set(told)) == 1
        if shared:
            scores[name] = np.mean(parts, axis=0)
        elif folds[0].metric in ("macro_f1", "balanced_accuracy"):  # of all rows, it is no mean of those of the folds
            scores[name] = _by_classes(folds, name, output)
        else:
            scores[name] = np.concatenate(parts)
        value = float(scores[name][:, 0].sum() / scores[name][:, 1].sum())
        fingerprint = told[0] if shared else " ".join(told)
        leaks = (max if shared else sum)(record.targets[name].leaks for record in folds)
        targets[name] = TargetScore(value, UNKNOWN, len(scores[name]), fingerprint, {folds[0].metric: value}, leaks)
    whole = dataclasses.replace(
        folds[0],
        targets=targets,
        train_examples=round(float(np.mean([record.train_examples for record in folds]))),
        training_seconds=float(np.mean([record.training_seconds for record in folds])),
        fold=None,
    )
    return whole, scores


def _by_classes(folds: list[TrialRecord], name: str, output: Path) -> Floats:
    """Each row's part in a metric over classes, by the predictions of all folds."""
    files = [
        trial_folder(output, record.id) / "predictions" / f"{Path(record.row_scores).parts[-2]}-{name}.parquet"
        for record in folds
    ]
    table = pd.concat([pd.read_parquet(file, columns=["prediction", "reference"]) for file in files])
    if not isinstance(table["reference"].iloc[0], str):  # any number of classes each
        names = sorted({name for column in table.columns for row in table[column] for name in row})
        guess, true = (
            np.array([[name in row for name in names] for row in table[column].map(set)], np.float64)
            for column in ("prediction", "reference")
        )
        return class_parts(2 * guess * true, guess + true)
    numbers = np.unique(table.to_numpy(str), return_inverse=True)[1].reshape(table.shape)
    return class_row_scores(folds[0].metric, numbers[:, 0], numbers[:, 1])


def _read(record: TrialRecord, output: Path) -> dict[str, Floats]:
    """Scores by test set; by validation split where there is no other."""
    row_scores = load_file(output / "trials" / record.row_scores)
    names = [name for name in record.targets if name != "validation"] or list(record.targets)
    return {name: row_scores[name] for name in names}


def _score(experiment: Experiment, at: Place, rows: dict[int, _Rows], records: dict[int, TrialRecord]) -> CellScore:
    levels, target = dict(zip(experiment.axes, at[0], strict=True)), at[1]
    own = levels[experiment.domains] if experiment.domains is not None else None
    name = own if own is not None and target == "test" else target
    return CellScore(
        levels=levels,
        target=name,
        in_domain=None if own is None else name == own,
        score=statistics.estimate(_table(rows, list(rows)), bounds=(0.0, 1.0) if _bounded(rows) else None),
        by_seed={seed: records[seed].targets[target].value for seed in rows},
        missing=[seed for seed in experiment.seeds if seed not in rows],
        train_examples=float(np.mean([record.train_examples for record in records.values()])),
        trained_parameters=max(record.trained_parameters for record in records.values()),
        training_seconds=float(np.mean([record.training_seconds for record in records.values()])),
    )


def _bounded(*rows: dict[int, _Rows]) -> bool:
    return all(one.bounded for by_seed in rows for one in by_seed.values())


def _table(rows: dict[int, _Rows], seeds: list[int], less: dict[int, _Rows] | None = None) -> Floats:
    """Values [seeds, rows], less another cell's. Where each seed has rows of its own, just their means in two columns:
    all that varies is between seeds then."""
    by_seed = [rows[seed].values - (0.0 if less is None else less[seed].values) for seed in seeds]
    if len({rows[seed].fingerprint for seed in seeds}) == 1:
        return np.stack(by_seed)
    return np.repeat([[values.mean()] for values in by_seed], 2, axis=1)


# ---------------------------------------------------------------------------------------- comparisons


def _compare(experiment: Experiment, control: str, cells: Cells, scores: Scores, sign: float) -> int:
    """Add to every cell its comparison with a control, and return how many there are.

    A control is compared with those that come before it in the list, not with those after it: that is the same
    difference the other way round.
    """
    assert experiment.contrast is not None
    axis, controls = experiment.contrast.axis, experiment.contrast.controls
    later = set(controls[: controls.index(control) + 1])
    tables: dict[Place, Floats] = {}
    others: dict[Place, Place] = {}
    for at, cell in cells.items():
        other = tuple({**cell.levels, axis: control}.values()), at[1]
        if cell.levels[axis] in later or other not in cells:
            continue
        ours, theirs = scores[at], scores[other]
        seeds = [s for s, rows in ours.items() if s in theirs and rows.fingerprint == theirs[s].fingerprint]
        if seeds:
            tables[at], others[at] = sign * _table(ours, seeds, less=theirs), other
    spreads = statistics.moderated(list(tables.values()), contexts=len({levels for levels, _ in others.values()}))
    gains = [
        statistics.estimate(
            table, bounds=(-1.0, 1.0) if _bounded(scores[at], scores[others[at]]) else None, spread=spread
        )
        for (at, table), spread in zip(tables.items(), spreads, strict=True)
    ]
    for at, gain, p in zip(tables, gains, statistics.holm([gain.p for gain in gains]), strict=True):
        cell, curve = cells[at], _curve(experiment, cells[others[at]], cells)
        needed = statistics.examples_to_reach(cell.score.mean, curve, higher_is_better=sign > 0)
        tried = round(min(curve)[0]), round(max(curve)[0])
        comparison = ControlComparison(control, gain, p, statistics.transfer_verdict(gain.mean, p), needed, tried)
        cells[at] = dataclasses.replace(cell, comparisons=[*cell.comparisons, comparison])
    return len(tables)


def _curve(experiment: Experiment, cell: CellScore, cells: Cells) -> list[tuple[float, float]]:
    """Training examples and scores of a cell and of those that differ from it in the axis of the curve alone."""
    return [
        (other.train_examples, other.score.mean)
        for other in cells.values()
        if other.target == cell.target
        and all(other.levels[axis] == level for axis, level in cell.levels.items() if axis != experiment.curve)
    ]


def _drops(cells: Cells, scores: Scores, sign: float) -> Iterator[Drop]:
    own = {at[0]: scores[at] for at, cell in reversed(cells.items()) if cell.in_domain}
    for at, cell in cells.items():
        inside = own.get(at[0], {})
        if not cell.in_domain and (seeds := [seed for seed in scores[at] if seed in inside]):
            parts = [_table(inside, seeds), _table(scores[at], seeds)]
            bounded = _bounded(inside, scores[at])
            whole = bounded and all(statistics.added_rows(part, (0.0, 1.0)) for part in parts)
            loss = statistics.combine(
                parts, [sign, -sign], bounds=(-1.0, 1.0) if bounded else None, more=(0.0, 1.0) if whole else ()
            )
            yield Drop(cell.levels, cell.target, loss)


def _ranks(experiment: Experiment, cells: Cells, *, higher_is_better: bool) -> tuple[dict[str, float], int]:
    """Mean rank of each level of the contrast, ties sharing one, and the contexts that have all levels."""
    if experiment.contrast is None:
        return {}, 0
    axis = experiment.contrast.axis
    contexts: dict[object, dict[str, float]] = defaultdict(dict)
    for at, cell in cells.items():
        contexts[at[1], *({**cell.levels, axis: ""}.values())][cell.levels[axis]] = cell.score.mean
    table = pd.DataFrame(contexts.values(), columns=list(experiment.axes[axis])).dropna(axis="columns", how="all")
    ranks = table.dropna().rank(axis="columns", ascending=not higher_is_better)
    return {str(level): float(rank) for level, rank in ranks.mean().dropna().items()}, len(ranks)
