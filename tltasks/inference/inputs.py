"""Inputs of predictions: files, folders, globs, tables, lists and URLs, as a stream that is never held as a whole."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tltasks.errors import DataError, RecipeError, first_line

if TYPE_CHECKING:  # arguments are checked before anything heavy is imported
    from tltasks.tasks.base import InputKind

STDIN = "-"
TABLES = (".parquet", ".csv", ".jsonl")
"""Suffixes of files that hold one input a row."""
MOST_BYTES = 256 * 2**20
"""Size of one file from the web; what is larger is no single picture, clip or document."""
TIMEOUT_SECONDS = 30.0
"""Without a byte."""
_UNREADABLE = (OSError, ValueError, pa.ArrowException, csv.Error)
"""Errors of a table that is none."""


class Address(str):
    """URL of a file on the web."""


@dataclass(frozen=True)
class Item:
    """One input: `value` is an Address, or whatever the task's kind of input is read from; None beside an `error`."""

    name: str = ""
    row: int | None = None
    """Row of a table, or line of a list of texts, from 0."""
    value: object = None
    error: str | None = None

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
        if kind.is_text:
            text = _read_text(value) if isinstance(value, (Path, bytes)) else str(value or "")
            return text.encode("utf-8", "replace").decode()  # JSON may hold halves of characters
        return str(value) if isinstance(value, Path) else value


def check_arguments(arguments: Sequence[str], *, fetches: bool) -> None:
    """Raise RecipeError for arguments that name nothing on this machine or, if it `fetches`, the web; all at once."""
    wrong = [f"  {argument}: {reason}" for argument in arguments if (reason := _fault(argument, fetches=fetches))]
    if arguments.count(STDIN) > 1:
        wrong.append(f"  {STDIN}: standard input can be read once")
    if wrong:
        raise RecipeError("\n".join(["predict: these inputs cannot be read.", *wrong]))


def _fault(argument: str, *, fetches: bool) -> str | None:
    if argument == STDIN:
        return None
    if is_url(argument):
        return _fault_of_url(argument, fetches=fetches)
    path = Path(argument).expanduser()
    if path.exists():
        return None
    if glob.has_magic(argument):
        found = next(glob.iglob(str(path), recursive=True), None)  # noqa: PTH207 - Path.glob takes no absolute pattern
        return None if found else "matches no file"
    return "not found"


class Inputs:
    """Iterator over what arguments name, in their order; `columns` of tables are looked for, the likeliest first.

    Raises RecipeError for a table without such a column, and for a folder without a file of the kind.
    """

    def __init__(
        self, arguments: Sequence[str], kind: InputKind, columns: Sequence[str], *, fetches: bool = False
    ) -> None:
        self.kind, self._arguments, self._fetches = kind, list(arguments), fetches
        self._local = [argument for argument in arguments if argument != STDIN and not is_url(argument)]
        self._columns = list(dict.fromkeys(columns))
        self._column_of = {path: self._find_column(path) for path in self._paths() if path.suffix.lower() in TABLES}
        for folder in (Path(argument).expanduser() for argument in self._local):
            if folder.is_dir() and next(_walk(folder, kind.suffixes), None) is None:
                raise RecipeError(f"predict {folder}: has no file that ends in {', '.join(sorted(kind.suffixes))}.")

    def count(self) -> int | None:
        """Number of inputs, if it can be told without reading them."""
        if STDIN in self._arguments or any(path.suffix.lower() != ".parquet" for path in self._column_of):
            return None
        tables: int = sum(pq.read_metadata(path).num_rows for path in self._column_of)
        files = sum(path not in self._column_of for path in self._paths())
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
                if path in self._column_of:
                    yield from self._rows(path, self._column_of[path])
                else:
                    yield Item(_printable(path), value=path)

    def _paths(self, *arguments: str) -> Iterator[Path]:
        for argument in arguments or self._local:
            path = Path(argument).expanduser()
            if path.is_dir():
                yield from _walk(path, self.kind.suffixes)
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
                except (ValueError, StopIteration):
                    value = text
            yield Item(STDIN, row, value)

    # ----------------------------------------------------------------------------------------- tables

    def _find_column(self, path: Path) -> str:
        try:
            names = _column_names(path)
        except _UNREADABLE as error:
            raise RecipeError(f"predict {path}: cannot be read as a table ({first_line(error)}).") from error
        for column in self._columns:
            if column in names:
                return column
        raise RecipeError(
            f"predict {path}: has no column `{self._columns[0]}`; name one with --column. It has: {', '.join(names)}."
        )

    def _rows(self, path: Path, column: str) -> Iterator[Item]:
        row, name = -1, _printable(path)
        try:
            for row, value in enumerate(_column_values(path, column)):
                if isinstance(value, DataError):
                    yield Item(name, row, error=str(value))
                elif self.kind.is_text or isinstance(value, bytes) or (isinstance(value, dict) and value.get("bytes")):
                    yield Item(name, row, value)
                else:
                    yield self._file(value.get("path") if isinstance(value, dict) else value, name, row, path.parent)
        except _UNREADABLE as error:
            yield Item(name, row + 1, error=f"the table cannot be read from here on ({first_line(error)})")

    def _file(self, value: object, name: str, row: int | None, folder: Path) -> Item:
        """A file that a list or table names, relative to where that is, or of the web."""
        if not isinstance(value, str) or not value:
            return Item(name, row, error=f"has no {self.kind.column}")
        if is_url(value):
            fault = _fault_of_url(value, fetches=self._fetches)
            return Item(name, row, error=fault) if fault else Item(name, row, Address(value))
        return Item(name, row, folder / Path(value).expanduser())


def _printable(path: Path) -> str:
    """A name that any file can hold, of a file whose name need not be text."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _column_names(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        return [str(name) for name in pq.read_schema(path).names]
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            return next(csv.reader(file), [])
        first = json.loads(next((line for line in file if line.strip()), "{}"))
    if not isinstance(first, dict):
        raise ValueError("its first line is not a JSON object")
    return list(first)


def _column_values(path: Path, column: str) -> Iterator[object]:
    """Values of a column, a DataError in place of one that a row does not have."""
    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=64, columns=[column]):
                yield from batch.column(0).to_pylist()
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            csv.field_size_limit(2**31 - 1)
            for row in csv.DictReader(file):
                yield row.get(column)
            return
        for line in file:
            if line.strip():
                yield _json_value(line, column)


def _json_value(line: str, column: str) -> object:
    try:
        found = json.loads(line)
    except ValueError as error:
        return DataError(f"is not JSON ({error})")
    return found[column] if isinstance(found, dict) and column in found else DataError(f"has no `{column}`")


def _walk(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Files of the kind in a folder and those below it, in order of names; hidden ones are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(root) / name


def _read_text(file: Path | bytes) -> str:
    try:
        content = file.read_bytes() if isinstance(file, Path) else file
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte 0x{error.object[error.start]:02x} at {error.start:,})") from error
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}") from error


# --------------------------------------------------------------------------------------------- the web


def is_url(name: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def _fault_of_url(url: str, *, fetches: bool) -> str | None:
    if not re.match(r"https?://", url, re.IGNORECASE):  # `file://` and `s3://` name what is not the web's
        return "is a URL that is not of the web; download it and name the file"
    return None if fetches else "is a URL, and nothing is fetched from outside without --fetch"


def fetch(address: Address) -> bytes:
    """Get a file from the web, without any login; raises DataError for what cannot be had."""
    import httpx2

    content = bytearray()
    try:
        with httpx2.stream("GET", str(address), follow_redirects=True, timeout=TIMEOUT_SECONDS) as answer:
            if answer.is_error:
                raise DataError(f"cannot be fetched: {answer.status_code} {answer.reason_phrase}".rstrip())
            for part in answer.iter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise DataError(f"is larger than {MOST_BYTES >> 20} MiB; download it and name the file")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise DataError(f"cannot be fetched: {first_line(error)}") from error
    return bytes(content)
