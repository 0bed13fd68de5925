"""Class names that belong to the numbers of one file, kept apart from those of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import datasets
import pyarrow as pa

from tltasks.data.label_lists import is_list, of_classes
from tltasks.data.splits import Columns
from tltasks.errors import DataError


def join_rows(parts: Mapping[str, datasets.Dataset], columns: Sequence[str]) -> datasets.Dataset:
    """Rows of all parts, one after another; where these number classes differently, by the classes' names.

    Raises DataError, with the parts' own names, for one of `columns` that holds names in one and numbers in another.
    """
    rows = list(parts.values())
    if len(rows) == 1:
        return rows[0]
    for column in columns:
        lacking = [name for name, part in parts.items() if column not in part.features]
        if 0 < len(lacking) < len(rows):
            raise DataError(f"{lacking[0]} has no column `{column}`, and others have it")
    for column in clashing({name: part.features for name, part in parts.items()}, columns):
        rows = [_named(part, column) for part in rows]
    try:
        shared = [name for name in rows[0].features if all(name in part.features for part in rows)]
        rows = [part if part.column_names == shared else part.select_columns(shared) for part in rows]
        typed = {
            name: next((part.features[name] for part in rows if not _is_null(part.features[name])), None)
            for name in shared
        }
        features = datasets.Features({name: feature or rows[0].features[name] for name, feature in typed.items()})
        return datasets.concatenate_datasets(
            [part if part.features == features else part.cast(features) for part in rows]
        )
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{' and '.join(list(parts)[:4])} have columns of different types: {error}") from error


def are_alike(features: Iterable[datasets.Features]) -> bool:
    """Return whether all parts have the same columns, and the same ones of them without any value."""
    return len({frozenset((name, _is_null(own[name])) for name in own) for own in features}) == 1


def _is_null(feature: object) -> bool:
    return getattr(feature, "dtype", None) == "null"


def clashing(features: Mapping[str, datasets.Features], columns: Sequence[str]) -> list[str]:
    """Columns whose numbers mean other classes in one part than in another; raises DataError as `join_rows` does."""
    found = []
    for column in columns:
        kinds = {name: _kind(own[column]) for name, own in features.items() if column in own}
        if len(set(kinds.values())) < 2:
            continue
        numbered = [name for name, kind in kinds.items() if kind == "numbers"]
        named = [name for name, kind in kinds.items() if kind == "names" or isinstance(kind, tuple)]
        if numbered and named:
            raise DataError(
                f"`{column}` holds numbers without names in {numbered[0]} and names of classes in {named[0]}; which "
                "number is which class cannot be told. Write names in both."
            )
        if any(isinstance(kind, tuple) for kind in kinds.values()):
            found.append(column)
    return found


def _kind(feature: object) -> str | tuple[str, ...]:
    feature = of_classes(feature)
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    dtype = str(getattr(feature, "dtype", ""))
    return "names" if "string" in dtype else "numbers" if dtype.startswith(("int", "uint")) else "other"


def _named(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """The rows with names of classes in place of their numbers; one that is no class has none."""
    feature, text = of_classes(rows.features[column]), datasets.Value("string")
    if not isinstance(feature, datasets.ClassLabel):
        return rows
    kind = datasets.List(text) if is_list(rows.features[column]) else text
    features = datasets.Features({**rows.features, column: kind})
    return rows.map(partial(_to_names, column, feature.names), batched=True, features=features)


def _to_names(column: str, names: list[str], batch: Columns) -> Columns:
    def name(n: object) -> object:
        if isinstance(n, list):
            return list(map(name, n))
        return names[n] if isinstance(n, int) and 0 <= n < len(names) else None

    return {column: list(map(name, batch[column]))}
