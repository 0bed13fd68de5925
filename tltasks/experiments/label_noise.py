"""Labels that may be wrong: those of which models that have not seen the row are the least confident."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tltasks.experiments.trials import TrialRecord, trial_folder


def suspected_labels(records: Iterable[TrialRecord], output: Path) -> pd.DataFrame | None:
    """Rows of an experiment in folds, the least confident of their own label first; None of rows without a class each.

    Columns: `path`, the `label` that is given, `confidence` in it by models of the other folds (the mean over levels
    and seeds), the class that is `suggested` instead, and the confidence in that. Source: Northcutt, Jiang and Chuang,
    https://arxiv.org/abs/1911.00068 (self-confidence, out of sample).
    """
    found: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    labels: dict[str, str] = {}
    names: list[str] = []
    for record in records:
        stage = Path(record.row_scores).parts[-2]
        folder = trial_folder(output, record.id)
        table = pq.read_table(folder / "predictions" / f"{stage}-test.parquet")
        one_each = pa.types.is_string(table.schema.field("reference").type)
        if not ({"path", "probabilities"} <= set(table.column_names) and one_each):
            return None
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        (judged,) = (one for one in result["stages"] if one["name"] == stage)
        own = judged["metrics"]["test"]["details"]["class_names"]
        names = names or own
        order = [own.index(name) for name in names] if set(own) == set(names) else None
        if order is None:
            return None
        for row in table.select(["path", "reference", "probabilities"]).to_pylist():
            labels[row["path"]] = row["reference"]
            found[row["path"]].append(np.asarray(row["probabilities"], np.float64)[order])
    rows = []
    for path, label in labels.items():
        mean = np.mean(found[path], axis=0)
        best = int(mean.argmax())
        rows.append((path, label, mean[names.index(label)], names[best], mean[best]))
    columns = ["path", "label", "confidence", "suggested", "confidence_in_suggested"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(["confidence", "path"], kind="stable", ignore_index=True)
