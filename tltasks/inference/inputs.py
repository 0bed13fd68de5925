"""What is to be predicted: files, folders, globs, tables and lists, as a stream that is never held as a whole."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tltasks.errors import DataError, RecipeError, first_line
from tltasks.inference.fetching import Address, fetch, is_url, is_web
from tltasks.tasks.base import InputKind

STDIN = "-"
TABLES = (".parquet", ".csv", ".jsonl")
"""Suffixes of files that hold one input a row."""


@dataclass(frozen=True)
class Item:
    """One input: `value` is a path, encoded bytes, `{bytes, path}`, a text or an Address; None beside an `error`."""

    name: str
    row: int | None = None
    """Row of a table, or line of a list of texts, from 0."""
    value: Any = None
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

    def read(self, kind: InputKind) -> Any:
        """The value as a task encodes it; raises DataError for what cannot be."""
        if self.error is not None:
            raise DataError(self.error)
        value = fetch(self.value) if isinstance(self.value, Address) else self.value
        if kind.is_text:
            text = _text_of(value) if isinstance(value, (Path, bytes)) else str(value or "")
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


def _fault_of_url(url: str, *, fetches: bool) -> str | None:
    if not is_web(url):
        return "is a URL that is not of the web; download it and name the file"
    return None if fetches else "is a URL, and nothing is fetched from outside without --fetch"


class Inputs:
    """The inputs that arguments name, in their order; `columns` are names to look for in tables, the likeliest first.

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
        """How many there are, where that can be told without reading them."""
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
                    yield Item(_shown(path), value=path)

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
            value: Any = text
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
        except (OSError, ValueError, pa.ArrowException, csv.Error) as error:
            raise RecipeError(f"predict {path}: cannot be read as a table ({first_line(error)}).") from error
        for column in self._columns:
            if column in names:
                return column
        raise RecipeError(
            f"predict {path}: has no column `{self._columns[0]}`; name one with --column. It has: {', '.join(names)}."
        )

    def _rows(self, path: Path, column: str) -> Iterator[Item]:
        row, name = -1, _shown(path)
        try:
            for row, value in enumerate(_column_values(path, column)):
                if isinstance(value, _Fault):
                    yield Item(name, row, error=str(value))
                elif self.kind.is_text or isinstance(value, bytes):
                    yield Item(name, row, value)
                elif isinstance(value, dict) and not value.get("bytes"):
                    yield self._file(value.get("path"), name, row, path.parent)
                elif isinstance(value, dict):
                    yield Item(name, row, value)
                else:
                    yield self._file(value, name, row, path.parent)
        except (OSError, ValueError, pa.ArrowException, csv.Error) as error:
            yield Item(name, row + 1, error=f"the table cannot be read from here on ({first_line(error)})")

    def _file(self, value: Any, name: str, row: int | None, folder: Path) -> Item:
        """A file that a list or table names, relative to where that is, or of the web."""
        if not isinstance(value, str) or not value:
            return Item(name, row, error=f"has no {self.kind.column}")
        if is_url(value):
            fault = _fault_of_url(value, fetches=self._fetches)
            return Item(name, row, error=fault) if fault else Item(name, row, Address(value))
        return Item(name, row, folder / Path(value).expanduser())


def _shown(path: Path) -> str:
    """A name that any file can hold, of a file whose name need not be text."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class _Fault(str):
    """Why a row of a table has no value."""


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


def _column_values(path: Path, column: str) -> Iterator[Any]:
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


def _json_value(line: str, column: str) -> Any:
    try:
        found = json.loads(line)
    except ValueError as error:
        return _Fault(f"is not JSON ({error})")
    return found[column] if isinstance(found, dict) and column in found else _Fault(f"has no `{column}`")


def _walk(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Files of the kind in a folder and those below it, in order of names; hidden ones are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(root) / name


def _text_of(file: Path | bytes) -> str:
    try:
        content = file.read_bytes() if isinstance(file, Path) else file
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte 0x{error.object[error.start]:02x} at {error.start:,})") from error
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}") from error
