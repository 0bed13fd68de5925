"""Splits of a data set: as loaded, and in the form that training reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from tltasks.data.streaming import Place, Stream

FEW = 3
"""Rows that are named in a sentence."""
Columns = dict[str, list[Any]]
"""A batch of rows, by column."""
ROW_NAME = "tltasks:row"
"""Column with what a person calls a row: its file below the folder of a data set, or its table and line."""

WriteWindow = Callable[[Path, Place], Place]
"""Writes the encoded rows of the window that begins at a place into an Arrow file, and gives the place after it."""
LANGUAGE = "language"
"""Column with the language of a row, where the recipe names one."""
PROMPT = "prompt"
"""Column with the text before a row, where the recipe names one."""
SOURCE = "tltasks:source"
"""Column with the number of the source that a training row is of, where there are several."""
BY = "tltasks:by "
"""Begins the names of columns by which rows are held out."""


@dataclass(frozen=True)
class Split:
    """Rows of one split under the task's own column names, media not yet decoded."""

    name: str
    rows: datasets.Dataset
    origin: str
    """Data set and split as a person names them, e.g. `uoft-cs/cifar10 train`."""
    folder: Path | None
    """What relative media paths in the rows are relative to."""
    place: str
    """Where the recipe names the split."""
    notes: tuple[str, ...] = ()
    """News of its source for the user, such as files that are left out."""
    stream: Stream | None = None
    """All rows of a split that is streamed; `rows` are the first of them."""

    @property
    def where(self) -> str:
        """Place and origin, with which a message begins."""
        return f"{self.place}: {self.origin}"

    def called(self, row: int) -> str:
        """A row in a message: its number, and its name where it has one."""
        name = self.rows[ROW_NAME][row] if ROW_NAME in self.rows.column_names else None
        return f"row {row} ({name})" if name else f"row {row}"


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
    place: str = ""
    """Where the recipe names the split."""
    marks: datasets.Dataset | None = None
    """Column `mark`, by which rows that are nearly the same are found; None where nobody asks."""
    stream: Stream | None = None
    """All rows of a split that is streamed; `rows` are the first window of them."""
    windows: WriteWindow | None = None

    @property
    def n_rows(self) -> int:
        """All of its rows, as far as they are counted."""
        return len(self.rows) if self.stream is None or self.stream.count is None else self.stream.count

    @property
    def where(self) -> str:
        """Place and origin, with which a message begins."""
        return f"{self.place}: {self.origin}"

    @property
    def left_out(self) -> str | None:
        """A sentence on the rows that are left out, the first of them by name."""
        if not self.skipped:
            return None
        shown = "; ".join(f"row {row}: {reason}" for row, reason in list(self.skipped.items())[:FEW])
        more = f"; … and {len(self.skipped) - FEW:,} more" if len(self.skipped) > FEW else ""
        n_rows = f"{len(self.skipped):,} rows" if len(self.skipped) > 1 else "1 row"
        return f"{n_rows} cannot be used, left out: {shown}{more}"


def located(value: object, folder: Path | None) -> object:
    """A file's path, bytes or `{path, bytes}`, whose path is relative to the file of rows in `folder`."""
    path = value.get("path") if isinstance(value, dict) and not value.get("bytes") else value
    if isinstance(path, str) and folder is not None and not Path(path).is_absolute():
        return str(folder / path)
    return value


def row_path(example: Mapping[str, object], media: str | None, folder: Path | None = None) -> str | None:
    """File that an example has in its column `media`, below `folder`, or else its name."""
    value, name = example.get(media) if media is not None else None, example.get(ROW_NAME)
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, (str, Path)):
        return None if name is None else str(name)
    if name is not None and str(path).endswith(f"/{name}"):  # a file of a folder, which its name is the end of
        return str(name)
    below = str(path).removeprefix(f"{folder}/")
    return Path(below).name if Path(below).is_absolute() else below  # folders of this machine say nothing elsewhere


def row_words(example: Mapping[str, object], media: str | None, folder: Path | None = None) -> str | None:
    """An example as a message names it: its table and line, and what it is found by."""
    path, name = row_path(example, media, folder), example.get(ROW_NAME)
    return path if name is None or path == name else f"{name} ({path})"


def row_title(rows: datasets.Dataset, index: int) -> str:
    """An encoded row in a caption: its number, and what it is found by, where it has a name."""
    path = rows["path"][index] if "path" in rows.column_names else None
    return f"row {rows['row'][index]}{f' · {path}' if path else ''}"
