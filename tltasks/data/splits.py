"""Splits of a data set: as loaded, and in the form that training reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

Columns = dict[str, list[Any]]
"""A batch of rows, by column."""


@dataclass(frozen=True)
class Split:
    """Rows of one split under the task's own column names, media not yet decoded."""

    name: str
    rows: datasets.Dataset
    origin: str
    """Data set and split as a person names them, e.g. `uoft-cs/cifar10 train[:95%]`."""
    folder: Path | None
    """What relative media paths in the rows are relative to."""
    place: str
    """Where the recipe names the split."""

    @property
    def where(self) -> str:
        """Place and origin, with which a message begins."""
        return f"{self.place}: {self.origin}"


@dataclass(frozen=True)
class EncodedSplit:
    """Rows in the form that training reads, in an Arrow file that is memory-mapped, not loaded."""

    name: str
    rows: datasets.Dataset
    origin: str
    skipped: dict[int, str]
    """Original row → why it was left out."""
    fingerprint: str
    """Digest of the encoded content: equal on every machine for equal data."""


def located(value: object, folder: Path | None) -> object:
    """A file's path, bytes or `{path, bytes}`, whose path is relative to the file of rows in `folder`."""
    path = value.get("path") if isinstance(value, dict) and not value.get("bytes") else value
    if isinstance(path, str) and folder is not None and not Path(path).is_absolute():
        return str(folder / path)
    return value
