"""Classes of rows that may have any number of them, however they are written, as lists."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import datasets

from tltasks.config.data import ClassData
from tltasks.data.splits import Columns, Split
from tltasks.errors import DataError

FLAG = "tltasks:flag "
"""Begins the names of columns that say of one class whether rows have it."""
DELIMITERS = (";", "|", ",")
_WRITTEN = re.compile(r"\s*\[.*\]\s*", re.DOTALL)
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def is_list(feature: object) -> bool:
    """True for the type of a column of lists."""
    return isinstance(feature, datasets.List | datasets.LargeList)


def of_classes(feature: object) -> object:
    """The type of the classes of a column, in lists or not."""
    return getattr(feature, "feature", feature) if is_list(feature) else feature


def as_flag(value: object) -> str | None:
    """A cell that says whether a row has a class; raises DataError for another than 0, 1 and their words."""
    if value is None or value == "" or value != value:
        return None
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    if text not in _FLAGS:
        raise DataError(f"holds {value!r}; a column for each class holds 0 and 1")
    return text


def in_lists(splits: Mapping[str, Split], data: ClassData, locate: Callable[[str], str]) -> dict[str, Split]:
    """The splits with each row's classes in a list, where rows may have any number; with one class each, as they are.

    Raises DataError for what can be read in several ways. A row whose classes are not known has no list.
    """
    found = {n: s for n, s in splits.items() if any(c == "label" or c.startswith(FLAG) for c in s.rows.column_names)}
    try:
        if found and (read := _reading([split.rows for split in found.values()], data)):
            found = {n: dataclasses.replace(split, rows=_mapped(split.rows, read)) for n, split in found.items()}
    except DataError as error:
        origins = ", ".join(dict.fromkeys(split.origin for split in found.values()))
        raise DataError(f"{locate('columns.label')}: {origins}: {error}") from error
    for split in found.values():
        if is_list(split.rows.features["label"]) and not any(split.rows["label"]):
            raise DataError(f"{split.where}: no row has a class; use another split, or hold out a share.")
    return {**splits, **found}


def _mapped(rows: datasets.Dataset, read: Callable[[Columns], Columns]) -> datasets.Dataset:
    feature = rows.features.get("label", datasets.Value("string"))
    if is_list(feature) and read is _as_they_are:
        return rows
    inner = of_classes(feature) if read is _as_they_are else datasets.Value("string")
    flags = [name for name in rows.column_names if name.startswith(FLAG)]
    kept = {name: own for name, own in rows.features.items() if name not in flags}
    features = datasets.Features({**kept, "label": datasets.List(inner)})
    return rows.map(read, batched=True, features=features, remove_columns=flags)


def _reading(parts: Sequence[datasets.Dataset], data: ClassData) -> Callable[[Columns], Columns] | None:
    """How the labels of all these rows become lists; None where each is one class."""
    if flags := [name for name in parts[0].column_names if name.startswith(FLAG)]:
        return partial(_by_column, flags)
    features, wanted = [rows.features["label"] for rows in parts], data.multi_label is True or data.label_delimiter
    lists = sum(map(is_list, features))
    if lists and data.multi_label is False:
        raise DataError("`label` holds lists, and `data.multi_label: false` has one class for each row.")
    if lists and lists < len(parts) and not wanted:
        raise DataError(
            "`label` holds lists in one split and single classes in another; `multi_label: true` reads both."
        )
    if all(isinstance(of_classes(feature), datasets.ClassLabel) for feature in features):
        return _as_they_are if lists or wanted else None
    labels = [value for rows in parts for value in rows["label"] if value is not None]
    if lists == len(parts):
        return partial(_of_places, data.class_names or range(n)) if (n := _width(labels, data)) else _as_they_are
    cells = [value for value in labels if isinstance(value, str) and value.strip()]
    if data.multi_label is not False and cells and all(map(_WRITTEN.fullmatch, cells)):
        return partial(_parted, None)
    return partial(_parted, data.label_delimiter or _delimiter(cells)) if wanted else None


def _as_they_are(batch: Columns) -> Columns:
    return {"label": [[] if value is None or value == -1 else [value] for value in batch["label"]]}


def _by_column(flags: Sequence[str], batch: Columns) -> Columns:
    names = [name.removeprefix(FLAG) for name in flags]
    try:
        rows = zip(*([as_flag(value) for value in batch[name]] for name in flags), strict=True)
        said = [None if None in row else [_FLAGS[str(value)] for value in row] for row in rows]
    except DataError as error:
        raise DataError(f"one of the columns {', '.join(names)} {error}") from error
    return _of_places(names, {"label": said})


def _of_places(names: Sequence[object], batch: Columns) -> Columns:
    """Rows that hold 0 or 1 for each class."""
    rows = batch["label"]
    return {"label": [row and [str(name) for name, has in zip(names, row, strict=True) if has] for row in rows]}


def _width(labels: Sequence[Sequence[object]], data: ClassData) -> int:
    """Classes of rows that hold 0 or 1 for each; 0 for rows that hold names, or numbers of classes.

    >>> _width([[0, 1, 0], [0, 0, 0]], None), _width([[0, 1], [1, 0]], None), _width([["a"]], None)
    (3, 0, 0)
    """
    sizes, repeats = {len(row) for row in labels}, any(len(set(row)) < len(row) for row in labels)
    if len(sizes) != 1 or not repeats or not {value for row in labels for value in row} <= {0, 1}:
        return 0
    n = sizes.pop()
    if data is not None and data.class_names and len(data.class_names) != n:
        raise DataError(f"`label` holds {n} zeros and ones a row, and `class_names` names {len(data.class_names)}.")
    return n


def _delimiter(cells: Sequence[str]) -> str:
    """The text that parts the classes of these cells; raises DataError where that could be one of several."""
    found = [one for one in DELIMITERS if any(one in cell for cell in cells)]
    if len(found) > 1:
        raise DataError(
            f"cells of `label` have {' and '.join(f'`{one}`' for one in found)} in them; `data.label_delimiter` says "
            "which of these parts classes."
        )
    return found[0] if found else DELIMITERS[0]


def _parted(delimiter: str | None, batch: Columns) -> Columns:
    """Classes in one cell; without a delimiter lists that are written out, as pandas and JSON do."""

    def read(value: object) -> list[str]:
        if isinstance(value, list):
            return value
        if value is None or (isinstance(value, str) and not value.strip()):
            return []
        try:
            parts = ast.literal_eval(str(value).strip()) if delimiter is None else str(value).split(delimiter)
        except (ValueError, SyntaxError) as error:
            raise DataError(f"{str(value)[:40]!r} is no list of texts or numbers.") from error
        return [part for one in parts if (part := str(one).strip())]

    return {"label": list(map(read, batch["label"]))}
