"""Labels that were looked at again: a table of rows and what they are, in place of what the data say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import datasets

from tltasks.data.folders import some
from tltasks.data.splits import ROW_NAME, Split
from tltasks.data.tables import UNREADABLE, read_rows, why
from tltasks.errors import DataError


def row_names(rows: datasets.Dataset) -> list[str]:
    """Names of rows: their files or lines of a table, or else their numbers."""
    if ROW_NAME in rows.column_names:
        return [str(name) for name in rows[ROW_NAME][:]]
    return [f"row {i}" for i in range(len(rows))]


def relabel(splits: dict[str, Split], table: Path, place: str) -> dict[str, Split]:
    """The splits with the labels of a table of the columns `path` and `label`, from which `notes` count the changes.

    Raises DataError for a table that names other rows, or a row without a label.
    """
    try:
        given: dict[str, object] = {}
        for line, row in read_rows(table, ["path", "label"]):
            if isinstance(row, DataError):
                raise DataError(f"{line} {row}")
            given[str(row["path"])] = row["label"]
    except UNREADABLE as error:
        raise DataError(f"{place}: {table.name}: {error if isinstance(error, DataError) else why(error)}") from error
    if empty := [name for name, label in given.items() if label is None or not str(label).strip()]:
        raise DataError(f"{place}: {table.name}: gives no label to {some(empty)}; fill it in, or leave the row out.")
    unknown, found = set(given), dict(splits)
    for name, split in splits.items():
        named = ROW_NAME in split.rows.column_names
        if "label" not in split.rows.column_names or not (named or name == "train"):  # others have the same numbers
            continue
        feature, labels, changed = split.rows.features["label"], [], 0
        for called, label in zip(row_names(split.rows), split.rows["label"][:], strict=True):
            known = label is not None and isinstance(feature, datasets.ClassLabel) and label >= 0
            old = feature.int2str(label) if known else label
            labels.append(str(given.get(called, old)) if old is not None or called in given else None)
            changed += called in given and str(given[called]) != str(old)
            unknown.discard(called)
        columns = split.rows.features | {"label": datasets.Value("string")}
        rows = split.rows.remove_columns("label").add_column("label", labels, feature=datasets.Value("string"))
        rows = rows.select_columns(list(columns))
        note = f"{changed:,} rows have another label by {table.name}"
        found[name] = dataclasses.replace(split, rows=rows, notes=(*split.notes, note))
    if unknown:
        raise DataError(f"{place}: {table.name}: names rows that the data have not: {some(sorted(unknown))}.")
    return found
