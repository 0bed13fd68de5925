"""Leaks: rows that are scored and have near-duplicates among those trained on, in this stage or one before it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from accelerate import Accelerator

from tltasks.data.cache_keys import code_version
from tltasks.data.encoding import marked
from tltasks.data.near_duplicates import Found, find_alike
from tltasks.data.splits import FEW, EncodedSplit, row_title
from tltasks.errors import DataError
from tltasks.metrics import paired_difference
from tltasks.results.result import Leaks, ReportExample
from tltasks.runs.context import PreparedStage, Twin
from tltasks.runtime.files import write_json
from tltasks.tasks.base import Prediction, References, RowScores, TaskBase

SHOWN, LISTED = 12, 100
"""Pairs in a report, and in result.json."""


def look_for_leaks(accelerator: Accelerator, prepared: list[PreparedStage]) -> list[PreparedStage]:
    """The stages with what leaks noted, or left out of train, as their data say; raises DataError where that is asked.

    Rows are left out of train and not of what is scored, so that scores of all recipes are of the same rows.
    """
    stages, dropped = list(prepared), [set[int]() for _ in prepared]
    for i, stage in enumerate(prepared):
        if stage.plan.data.leaks == "off":
            continue
        twins: dict[str, dict[int, Twin]] = {}
        for trained in _trained_on(prepared, i):
            before, train = prepared[trained], prepared[trained].encoded["train"]
            for name, split in stage.evaluated.items():
                with accelerator.local_main_process_first():
                    of_train, of_split = _found(before.task, train, stage.task, split)
                if stage.plan.data.leaks == "drop":
                    dropped[trained] |= of_train.keys()
                mine = twins.setdefault(name, {})
                for row, other in sorted(of_split.items()):
                    mine.setdefault(row, Twin(before.plan.name, before.task.likeness, train.rows, other))
        notes = {name: _note(stage, name, mine) for name, mine in twins.items() if mine}
        if notes and stage.plan.data.leaks == "error":
            raise DataError("\n".join(f"{stage.encoded[name].where}: {note}" for name, note in notes.items()))
        told = {name: [*stage.split_notes.get(name, []), note] for name, note in notes.items()}
        stages[i] = dataclasses.replace(stage, twins=twins, split_notes=stage.split_notes | told)
    return [_without(stage, rows) if rows else stage for stage, rows in zip(stages, dropped, strict=True)]


def _trained_on(prepared: Sequence[PreparedStage], i: int) -> list[int]:
    """The stages whose training rows the weights of a stage have seen, its own first."""
    found = [i]
    while prepared[found[-1]].plan.continues:
        found.append(found[-1] - 1)
    return [n for n in found if prepared[n].plan.kind.trains and prepared[n].encoded["train"].marks is not None]


def _found(known_by: TaskBase, known: EncodedSplit, asked_by: TaskBase, asked: EncodedSplit) -> tuple[Found, Found]:
    """Rows of train and of a split that are nearly the same, by those of the other; from the cache, or put there."""
    parts = (known_by.cache_key, asked_by.cache_key, known.fingerprint, asked.fingerprint, code_version())
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    path = Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-leaks" / f"{name}.json"
    try:
        of_known, of_asked = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        both = marked(known, known_by.likeness), marked(asked, asked_by.likeness)
        of_known, of_asked = find_alike(*both) if type(both[0].likeness) is type(both[1].likeness) else ({}, {})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, [list(of_known.items()), list(of_asked.items())])
        return of_known, of_asked
    return dict(of_known), dict(of_asked)


def _note(stage: PreparedStage, name: str, twins: Mapping[int, Twin]) -> str:
    """A sentence on what leaks, and what becomes of it."""
    split, own = stage.encoded[name], stage.plan.name
    shown = [f"{row_title(split.rows, row)} is like {_title(twin, own)}" for row, twin in list(twins.items())[:FEW]]
    have = "rows has a near-duplicate" if len(twins) == 1 else "rows have near-duplicates"
    told = f"{len(twins):,} of {len(split.rows):,} {have} among those trained on: {'; '.join(shown)}"
    advice = {
        "note": "`data.leaks: drop` leaves these out of train, and a share by `group` holds out what belongs together",
        "drop": "these are left out of train",
        "error": "`data.leaks: drop` leaves these out of train",
    }
    return f"{told}{'; …' if len(twins) > FEW else '.'} {advice[stage.plan.data.leaks].capitalize()}."


def _title(twin: Twin, own: str) -> str:
    return f"{row_title(twin.rows, twin.row)} of train{'' if twin.stage == own else f' of stage {twin.stage}'}"


def _without(stage: PreparedStage, rows: set[int]) -> PreparedStage:
    """The stage without some of its training rows."""
    train = stage.encoded["train"]
    kept = np.setdiff1d(np.arange(len(train.rows)), sorted(rows))
    left = train.rows.select(kept)
    lost = _classes(train.rows) - _classes(left)
    if not len(left) or lost:
        what = f"{len(lost):,} classes have no row left" if lost else "no row is left"
        raise DataError(f"{train.where}: without near-duplicates of rows that are scored, {what}.")
    fingerprint = hashlib.sha256(train.fingerprint.encode() + kept.tobytes()).hexdigest()[:32]
    encoded = stage.encoded | {"train": dataclasses.replace(train, rows=left, fingerprint=fingerprint)}
    note = f"{len(rows):,} rows are left out, near-duplicates of rows that are scored"
    told = {**stage.split_notes, "train": [*stage.split_notes.get("train", []), note]}
    return dataclasses.replace(stage, task=stage.task.trained_on(left), encoded=encoded, split_notes=told)


def _classes(rows: datasets.Dataset) -> set[object]:
    """Classes that rows have, one each or any number."""
    labels = rows["label"] if "label" in rows.column_names else []
    return {one for label in labels for one in (label if isinstance(label, list) else [label])}


# ------------------------------------------------------------------------------------------ results


def summarise(
    stage: PreparedStage, name: str, predictions: list[Prediction], references: References, row_scores: RowScores
) -> Leaks | None:
    """A split's leaks, and its score without them; None where nobody asked."""
    twins, rows, own = stage.twins.get(name), stage.encoded[name].rows, stage.plan.name
    if twins is None:
        return None
    dropped = stage.plan.data.leaks == "drop"
    listed = {row_title(rows, row): _title(twin, own) for row, twin in list(twins.items())[:LISTED]}
    by_stage = dict(Counter(twin.stage for twin in twins.values()))
    found = Leaks(len(twins), by_stage, dropped, listed)
    kept = [i for i in range(len(rows)) if i not in twins]
    if dropped or not twins or len(kept) < stage.task.least_rows:
        return found
    task, others = stage.task, ([predictions[i] for i in kept], [references[i] for i in kept])
    without = np.zeros_like(row_scores)
    without[kept] = task.row_scores(*others)
    rest = task.score(*others, intervals=True)
    if math.isnan(rest.value):  # none of the rows that are left has a class
        return found
    interval = paired_difference(row_scores, without, most=task.top_score)
    return dataclasses.replace(found, value=rest.value, ci95=rest.ci95, difference_ci95=interval)


def twin_examples(stage: PreparedStage, name: str) -> list[ReportExample]:
    """Rows of a split and those trained on that they are like, in turn."""
    rows, likeness = stage.encoded[name].rows, stage.task.likeness
    shown: list[ReportExample] = []
    for row, twin in list(stage.twins.get(name, {}).items())[:SHOWN]:
        shown.append(ReportExample(likeness.kind, row_title(rows, row), name, likeness.show(rows[[row]]), twin=True))
        title = _title(twin, stage.plan.name)
        content = twin.likeness.show(twin.rows[[twin.row]])
        shown.append(ReportExample(likeness.kind, title, "", content, twin=True))
    return shown
