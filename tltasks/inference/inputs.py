"""Inputs of predictions: files, folders, globs, tables, lists and URLs, as a stream that is never held as a whole."""

from __future__ import annotations

import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from tltasks.data.folders import fault_of, shown_name, sift, told
from tltasks.data.tables import UNREADABLE, as_text, read_rows, why
from tltasks.errors import DataError, RecipeError
from tltasks.inference import web
from tltasks.inference.arguments import STDIN, fault_of_url, is_table, is_url

if TYPE_CHECKING:  # arguments are checked before anything heavy is imported
    from tltasks.tasks.base import InputKind

MOST_BYTES = 256 * 2**20
"""Size of one file from the web; what is larger is no single picture, clip or document."""


class Address(str):
    """URL of a file on the web."""

    known: frozenset[str] = frozenset()
    """Origins that the user has typed: these may be anywhere, all others are on the public web."""


@dataclass(frozen=True)
class Item:
    """One input: `value` is an Address, or whatever the task's kind of input is read from; None beside an `error`."""

    name: str = ""
    row: int | None = None
    """Row of a table, or line of a list of texts, from 0."""
    value: object = None
    error: str | None = None
    language: str | None = None
    """Name of its language, where that is told."""
    prompt: str | None = None
    """What was said before, where that is told."""

    @property
    def size(self) -> int:
        """Bytes, as far as they can be told without reading."""
        value = self.value
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, Path):
            try:
                return value.stat().st_size
            except OSError:
                return 0
        return len(value) if isinstance(value, (bytes, str)) else 0

    def read(self, kind: InputKind) -> object:
        """The value as a task encodes it; raises DataError for what cannot be."""
        if self.error is not None:
            raise DataError(self.error)
        value = fetch(self.value) if isinstance(self.value, Address) else self.value
        # os.path: an overlong name is no error
        if isinstance(value, Path) and os.path.exists(value) and (fault := fault_of(value)):  # noqa: PTH110
            raise DataError(fault if fault.startswith("cannot ") else f"is {fault}")
        if kind.is_text:
            return _read_text(value) if isinstance(value, (Path, bytes)) else as_text(value) or ""
        return str(value) if isinstance(value, Path) else value


class Inputs:
    """Iterator over what arguments name, in their order; `columns` of tables are looked for, the likeliest first;
    `told` are those with what is told of each row, by the field of its Item.

    Raises RecipeError for a table without such a column, and for a folder without a file of the kind.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        kind: InputKind,
        columns: Sequence[str],
        *,
        fetches: bool = False,
        told: Mapping[str, str] | None = None,
    ) -> None:
        self.kind, self._arguments, self._fetches = kind, list(arguments), fetches
        self._local = [argument for argument in arguments if argument != STDIN and not is_url(argument)]
        urls = [argument for argument in arguments if is_url(argument)]
        self._known = frozenset(web.origin(url) for url in urls if fault_of_url(url, fetches=fetches) is None)
        self._columns, self._told = list(dict.fromkeys(columns)), dict(told or {})
        self._left_out: dict[str, str] = {}
        self._tables = [path for path in self._paths() if is_table(path)]
        for path in self._tables:
            self._check(path)
        for folder in (Path(argument).expanduser() for argument in self._local):
            if folder.is_dir() and not is_table(folder) and next(self._walk(folder), None) is None:
                raise RecipeError(f"predict {folder}: has no file that ends in {', '.join(sorted(kind.suffixes))}.")

    @property
    def notes(self) -> list[str]:
        """Files in folders that were passed over, by the reason; hidden ones are not named."""
        return [f"left out, {line}" for line in told({k: v for k, v in self._left_out.items() if v != "hidden"})]

    def count(self) -> int | None:
        """Number of inputs, if it can be told without reading them."""
        if STDIN in self._arguments or any(path.suffix.lower() != ".parquet" or path.is_dir() for path in self._tables):
            return None
        tables: int = sum(pq.read_metadata(path).num_rows for path in self._tables)
        files = sum(not is_table(path) for path in self._paths())
        return tables + files + len(self._arguments) - len(self._local)

    def __iter__(self) -> Iterator[Item]:
        for argument in self._arguments:
            if argument == STDIN:
                yield from self._listed(sys.stdin.buffer)
                continue
            if is_url(argument):
                yield self._file(argument, argument, None, Path())
                continue
            for path in self._paths(argument):
                if is_table(path):
                    yield from self._rows(path)
                else:
                    yield Item(shown_name(path), value=path)

    def _paths(self, *arguments: str) -> Iterator[Path]:
        for argument in arguments or self._local:
            path = Path(argument).expanduser()
            if path.is_dir() and not is_table(path):
                yield from self._walk(path)
            elif path.exists():
                yield path
            else:
                for name in sorted(glob.iglob(str(path), recursive=True)):  # noqa: PTH207
                    yield from self._paths(name)

    # ------------------------------------------------------------------------------------------ lists

    def _listed(self, lines: Iterable[bytes]) -> Iterator[Item]:
        """Paths, or texts: plain, or in a JSON object."""
        for row, line in enumerate(lines):
            text = line.decode("utf-8", errors="replace").strip()
            if not text:
                continue
            if not self.kind.is_text:
                yield self._file(text, text, None, Path())
                continue
            value: object = text
            if text.startswith("{"):
                try:
                    found = json.loads(text)
                    value = next(found[column] for column in self._columns if column in found)
                except (ValueError, StopIteration, RecursionError):
                    value = text
            yield Item(STDIN, row, value)

    def _walk(self, folder: Path) -> Iterator[Path]:
        for name, fault in sift(folder, self.kind.suffixes):
            if fault is None:
                yield folder / name
            else:
                self._left_out[str(folder / name)] = fault

    # ----------------------------------------------------------------------------------------- tables

    def _check(self, path: Path) -> None:
        try:
            next(self._cells(path), None)
        except UNREADABLE as error:
            lacks = "has no column" in str(error)
            reason = f"{why(error)}. Name one with --column" if lacks else f"cannot be read as a table: {why(error)}"
            raise RecipeError(f"predict {path}: {reason}.") from error

    def _rows(self, path: Path) -> Iterator[Item]:
        row, name = -1, shown_name(path)
        try:
            for row, (value, beside) in enumerate(self._cells(path)):
                if isinstance(value, DataError):
                    yield Item(name, row, error=str(value))
                elif self.kind.is_text or isinstance(value, bytes) or (isinstance(value, dict) and value.get("bytes")):
                    yield Item(name, row, value, **beside)
                else:
                    file = self._file(value.get("path") if isinstance(value, dict) else value, name, row, path.parent)
                    yield replace(file, language=beside.get("language"), prompt=beside.get("prompt"))
        except UNREADABLE as error:
            yield Item(name, row + 1, error=f"the table cannot be read from here on ({why(error)})")

    def _cells(self, path: Path) -> Iterator[tuple[object, dict[str, str]]]:
        """Cells of a table's inputs, a DataError in place of one that a row lacks, each with what its row tells."""
        others = [_cells(path, [column]) for column in self._told.values()]
        for value, *beside in zip(_cells(path, self._columns), *others, strict=True):
            pairs = zip(self._told, beside, strict=True)
            yield value, {name: cell for name, cell in pairs if isinstance(cell, str)}

    def _file(self, value: object, name: str, row: int | None, folder: Path) -> Item:
        """A file that a list or table names, relative to where that is, or of the web."""
        if not isinstance(value, str) or not value:
            return Item(name, row, error=f"has no {self.kind.column}")
        if is_url(value):
            fault = fault_of_url(value, fetches=self._fetches)
            address = Address(value)
            address.known = self._known
            return Item(name, row, error=fault) if fault else Item(name, row, address)
        return Item(name, row, folder / Path(value).expanduser())


def _cells(path: Path, columns: Sequence[str]) -> Iterator[object]:
    """Cells of the first of some columns that a table has, a DataError in place of one that a row lacks."""
    if not path.is_dir():
        for _, row in read_rows(path, columns, any_of=True):
            yield row if isinstance(row, DataError) else next(iter(row.values()))
        return
    import datasets

    loaded = datasets.load_from_disk(str(path))
    for rows in [loaded] if isinstance(loaded, datasets.Dataset) else loaded.values():
        column = next((name for name in columns if name in rows.column_names), None)
        if column is None:
            raise DataError(f"has no column `{columns[0]}`. It has: {', '.join(rows.column_names)}.")
        for batch in rows.select_columns([column]).with_format("arrow").iter(64):
            yield from batch.column(0).to_pylist()


def _read_text(file: Path | bytes) -> str:
    try:
        content = file.read_bytes() if isinstance(file, Path) else file
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte 0x{error.object[error.start]:02x} at {error.start:,})") from error
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}") from error


# --------------------------------------------------------------------------------------------- the web


def fetch(address: Address) -> bytes:
    """Get a file from the web, without any login; raises DataError for what cannot be had."""
    content = bytearray()
    for part in web.read(address, address.known):
        content += part
        if len(content) > MOST_BYTES:
            raise DataError(f"is larger than {MOST_BYTES >> 20} MiB; download it and name the file")
    return bytes(content)
