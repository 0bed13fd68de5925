"""Robustness to test examples of lower quality: each kind of corruption at each level, on the same rows."""

from __future__ import annotations

from collections import defaultdict

import datasets
import numpy as np
from torch import nn

from tltasks.config.data import Corruptions
from tltasks.data.splits import EncodedSplit
from tltasks.metrics import paired_difference
from tltasks.results.result import CorruptedScore, Robustness
from tltasks.tasks.base import Corrupts, Prediction, TaskBase
from tltasks.training.evaluation import Predict, drawn_rows

ROWS_AT_ONCE = 256
"""Corrupted rows are held in memory, and nowhere else."""


def measure_robustness(
    task: TaskBase,
    model: nn.Module,
    split: EncodedSplit,
    clean: list[Prediction],
    keys: Corruptions,
    predict: Predict,
    *,
    seed: int,
) -> Robustness:
    """The headline metric for every kind and level, with the interval of the paired difference to the clean rows.

    `clean` are the predictions for all rows of the split.
    """
    assert isinstance(task, Corrupts)
    chosen = drawn_rows(len(split.rows), keys.rows, seed=seed)
    rows = split.rows.select(chosen)
    references = task.references(rows)
    before = [clean[i] for i in chosen]
    score = task.score(before, references, intervals=True)
    table: list[CorruptedScore] = []
    for kind, level in keys.chosen:
        after = _predict_corrupted(task, model, rows, predict, kind, level, seed=seed)
        worse = task.score(after, references, intervals=True)
        ours, theirs = task.row_scores(after, references), task.row_scores(before, references)
        table.append(
            CorruptedScore(
                kind=kind,
                level=level,
                value=worse.value,
                ci95=worse.ci95,
                difference=worse.value - score.value,
                difference_ci95=paired_difference(ours, theirs, most=task.top_score),
            )
        )
    by_kind = defaultdict(list)
    for line in table:
        by_kind[line.kind].append(line.value)
    means = {kind: float(np.mean(values)) for kind, values in by_kind.items()}
    return Robustness(
        split=split.name,
        rows=len(rows),
        metric=score.headline,
        level=keys.level,
        clean=score.value,
        clean_ci95=score.ci95,
        table=table,
        mean_by_kind=means,
        mean=float(np.mean(list(means.values()))),
    )


def _predict_corrupted(
    task: TaskBase, model: nn.Module, rows: datasets.Dataset, predict: Predict, kind: str, level: float, *, seed: int
) -> list[Prediction]:
    assert isinstance(task, Corrupts)
    found: list[Prediction] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        changed = task.corrupt(part, kind, level, seed=seed)
        features = datasets.Features({name: rows.features[name] for name in changed})
        found += predict(model, datasets.Dataset.from_dict(changed, features=features))
    return found
