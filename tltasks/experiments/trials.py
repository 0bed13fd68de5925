"""Trials: each known by its content, and found again by the record of its results."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import TypeAdapter

from tltasks.errors import DataError
from tltasks.experiments.experiment import Levels, Trial
from tltasks.results.result import DEFERRED, Interval, Number
from tltasks.runtime.files import is_occupied, locked

SEARCH_JOURNAL = "trials.jsonl"
"""File of Optuna's in the results folder of a search."""


@dataclass(frozen=True)
class TargetScore:
    """Score of a trial on one test set."""

    value: Number
    ci95: Interval
    rows: int
    fingerprint: str
    """Of the rows: scores with the same one can be compared row by row."""
    values: dict[str, Number]
    """All metrics."""
    leaks: int = 0
    """Rows whose near-duplicates were trained on."""


@dataclass(frozen=True)
class TrialRecord:
    """Record of a finished trial: its scores by test set, what was trained on what, what computed it."""

    __pydantic_config__: ClassVar = DEFERRED

    id: str
    recipe_sha256: str
    levels: Levels
    seed: int
    inputs: dict[str, str]
    metric: str
    higher_is_better: bool
    row_scores: str
    """File of numerators and denominators [rows, 2] by test set, relative to the folder of trials."""
    targets: dict[str, TargetScore]
    train_examples: int
    trained_parameters: int
    total_parameters: int
    training_seconds: float
    seconds: float
    versions: dict[str, str]
    hardware: dict[str, str | int]
    fold: int | None = None


_RECORD = TypeAdapter(TrialRecord)


@dataclass(frozen=True)
class Failure:
    """Why a trial could not be carried out."""

    id: str
    levels: Levels
    seed: int
    message: str


Outcome = TrialRecord | Failure


@dataclass(frozen=True)
class PlannedTrial:
    """A trial, its identity, and its record where it is finished."""

    trial: Trial
    id: str
    kind: str
    """Trials of the same model and stages are of one kind: a step takes them about the same time."""
    inputs: dict[str, str]
    record: TrialRecord | None

    def failure(self, message: str) -> Failure:
        return Failure(self.id, self.trial.levels, self.trial.seed, message)


@contextmanager
def results_folder(output: Path, what: Literal["experiment", "search"]) -> Iterator[None]:
    """Lock the results folder of an experiment or a search; DataError for one that holds something else."""
    with locked(output):
        journal, trials = output / SEARCH_JOURNAL, output / "trials"
        begun = journal.exists() == (what == "search") and (trials.is_dir() or what == "search")
        if not begun and is_occupied(output):
            raise DataError(f"output {output}: is not empty and holds no {what}; name another folder with --output.")
        if what == "search":
            journal.touch()
        trials.mkdir(exist_ok=True)
        yield


def trial_folder(output: Path, name: str) -> Path:
    """The results folder of a trial's run."""
    return output / "trials" / name


def read_record(output: Path, name: str) -> TrialRecord | None:
    """The record of a finished trial; it appears as a whole when the trial is finished."""
    try:
        return _RECORD.validate_json((output / "trials" / f"{name}.json").read_bytes())
    except FileNotFoundError:
        return None


def to_do(planned: Iterable[PlannedTrial]) -> list[PlannedTrial]:
    """The trials that are to be carried out, each once however many combinations of levels come to the same recipe."""
    return list({item.id: item for item in planned if item.record is None}.values())


def finished(planned: Iterable[PlannedTrial]) -> list[TrialRecord]:
    """Records of finished trials, one for each combination of levels that comes to the same recipe."""
    return [
        replace(item.record, levels=item.trial.levels, seed=item.trial.seed, fold=item.trial.fold)
        for item in planned
        if item.record is not None
    ]


def estimate_seconds(planned: list[PlannedTrial], measured: dict[str, float]) -> float | None:
    """Seconds that the trials to be carried out will take: by finished ones of the same levels, or of the same kind,
    or by `measured` seconds of that kind; None while nothing is known of some."""
    known: dict[str, list[float]] = defaultdict(list, {kind: [seconds] for kind, seconds in measured.items()})
    by_kind, by_levels = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for item in planned:
        if item.record is not None:
            by_levels[str(item.trial.levels)].append(item.record.seconds)
            by_kind[item.kind].append(item.record.seconds)
    seconds = [by_levels[str(item.trial.levels)] or by_kind[item.kind] or known[item.kind] for item in to_do(planned)]
    return sum(sum(some) / len(some) for some in seconds) if all(seconds) else None


def write_journal(output: Path, name: str, event: str, **more: object) -> None:
    """A line for each thing that befalls a trial, so that it can be counted what was carried out how often."""
    with (output / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"trial": name, "event": event, **more}, ensure_ascii=False) + "\n")
