"""Labels that were looked at again: a table of rows and what they are, in place of what the data say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import datasets

from tltasks.data.folders import some
from tltasks.data.label_lists import is_list
from tltasks.data.splits import ROW_NAME, Split
from tltasks.data.tables import UNREADABLE, read_rows, why
from tltasks.errors import DataError, did_you_mean


def row_names(rows: datasets.Dataset) -> list[str]:
    """Names of rows: their files or lines of a table, or else their numbers."""
    if ROW_NAME in rows.column_names:
        return [str(name) for name in rows[ROW_NAME][:]]
    return [f"row {i}" for i in range(len(rows))]


def _labels(rows: datasets.Dataset) -> list[str | None]:
    """Labels as texts, of numbered classes their names; None for none."""
    feature, labels = rows.features["label"], rows["label"][:]
    if isinstance(feature, datasets.ClassLabel):
        return [None if label is None or label < 0 else feature.int2str(label) for label in labels]
    return [None if label is None else str(label) for label in labels]


def relabel(
    splits: dict[str, Split], table: Path, place: str, *, class_names: Sequence[str] | None
) -> dict[str, Split]:
    """The splits with the labels of a table of the columns `path` and `label`, from which `notes` count the changes.

    Raises DataError for a table that names other rows, a row without a label, or a label that no row has.
    """
    try:
        given: dict[str, object] = {}
        for line, row in read_rows(table, ["path", "label"]):
            if isinstance(row, DataError):
                raise DataError(f"{line} {row}")
            if str(row["path"]) in given:
                raise DataError(f"{line} is about {row['path']} again")
            given[str(row["path"])] = row["label"]
    except UNREADABLE as error:
        raise DataError(f"{place}: {table.name}: {error if isinstance(error, DataError) else why(error)}") from error
    if empty := [name for name, label in given.items() if label is None or not str(label).strip()]:
        raise DataError(f"{place}: {table.name}: gives no label to {some(empty)}; fill it in, or leave the row out.")
    unknown, found, known = set(given), dict(splits), set(class_names or ())
    for name, split in splits.items():
        named = ROW_NAME in split.rows.column_names
        if "label" not in split.rows.column_names or not (named or name == "train"):  # others have the same numbers
            continue
        if is_list(split.rows.features["label"]):
            raise DataError(f"{place}: is of rows with a class each, and those of {split.origin} have any number.")
        labels, called = _labels(split.rows), row_names(split.rows)
        known |= {label for label in labels if label is not None}
        new = [
            str(given.get(row, label)) if row in given or label is not None else None
            for row, label in zip(called, labels, strict=True)
        ]
        rows = split.rows.remove_columns("label").add_column("label", new, feature=datasets.Value("string"))
        note = f"{sum(a != b for a, b in zip(labels, new, strict=True)):,} rows have another label by {table.name}"
        rows = rows.select_columns(split.rows.column_names)
        found[name] = dataclasses.replace(split, rows=rows, notes=(*split.notes, note))
        unknown -= set(called)
    if odd := sorted({str(label) for label in given.values()} - known):
        raise DataError(
            f"{place}: {table.name}: gives labels that no row of the data has: {some(odd)}{did_you_mean(odd[0], known)}"
        )
    if unknown:
        raise DataError(f"{place}: {table.name}: names rows that the data have not: {some(sorted(unknown))}.")
    return found
