"""Predictions as a file that is valid at every moment: JSON lines, CSV or parquet, by its suffix."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from tltasks.errors import RecipeError

Answer = dict[str, Any]
"""`input`, `row` where it is one of a table, and what was predicted or `error`."""


class PredictionWriter(Protocol):
    """Where answers go, a few at a time."""

    done: set[int]
    """Of `key`: inputs that an earlier run has written."""

    def write(self, answers: list[Answer]) -> None: ...

    def close(self) -> None:
        """Leave a valid file, whether or not all was written."""
        ...


def key(name: str, row: int | None) -> int:
    """Stands for an input among those that are done, in little memory."""
    return hash((name, row))


def open_answers(path: Path | None, schema: pa.Schema, *, resume: bool) -> PredictionWriter:
    """The file at `path`, or standard output. Raises RecipeError for one that is there, unless it is resumed."""
    if path is None:
        return _JsonLines(sys.stdout.buffer, set())
    kind = check_output(path, resume=resume)
    try:
        if kind is _Parquet:
            return _Parquet(path, schema)
        if kind is _Csv:
            return _Csv.opened(path, schema)
        return _JsonLines.opened(path)
    except OSError as error:
        raise RecipeError(f"--output {path}: cannot be written to ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, pa.ArrowException, csv.Error) as error:
        raise RecipeError(
            f"--output {path}: holds something else than predictions of this task; name another file."
        ) from error


def check_output(path: Path, *, resume: bool) -> type[PredictionWriter]:
    """How the file is written, by its suffix. Raises RecipeError for another, and for one that must not be touched."""
    if path.suffix.lower() not in _KINDS:
        raise RecipeError(f"--output {path}: name a file that ends in {', '.join(_KINDS)}.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise RecipeError(f"--output {path}: {'is a folder' if path.is_dir() else 'its folder is not there'}.")
    if path.exists() and not resume:
        raise RecipeError(f"--output {path}: is there already. Complete it with --resume, or name another file.")
    return _KINDS[path.suffix.lower()]


class _JsonLines:
    def __init__(self, file: BinaryIO, done: set[int]) -> None:
        self.file, self.done = file, done

    @classmethod
    def opened(cls, path: Path) -> _JsonLines:
        """Goes on behind the last whole line."""
        done, end = set(), 0
        with path.open("a+b") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                answer = json.loads(line)
                done.add(key(answer["input"], answer.get("row")))
                end += len(line)
            if end == 0 and file.tell():
                raise ValueError("no whole line")
            file.truncate(end)
        return cls(path.open("ab", buffering=0), done)

    def write(self, answers: list[Answer]) -> None:
        lines = (
            json.dumps({k: v for k, v in answer.items() if v is not None}, ensure_ascii=False) for answer in answers
        )
        self.file.write("".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogateescape"))
        self.file.flush()

    def close(self) -> None:
        if self.file is not sys.stdout.buffer:
            self.file.close()


class _Csv:
    """Lists are JSON within their cell."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, done: set[int]) -> None:
        self.file, self.names, self.done = file, schema.names, done

    @classmethod
    def opened(cls, path: Path, schema: pa.Schema) -> _Csv:
        """Goes on behind the last whole row, which may have line breaks within its cells."""
        done, end = set(), 0
        with path.open("a+b") as file:
            file.seek(0)
            for row, behind in _csv_rows(file, len(schema.names)):
                if end == 0 and row != schema.names:
                    raise ValueError("another header")
                if end:
                    done.add(key(row[0], int(row[1]) if row[1] else None))
                end = behind
            if end == 0 and file.tell():
                raise ValueError("no header")
            file.truncate(end)
        made = cls(path.open("ab", buffering=0), schema, done)
        if end == 0:
            made._write_rows([schema.names])
        return made

    def write(self, answers: list[Answer]) -> None:
        self._write_rows([[_cell(answer.get(name)) for name in self.names] for answer in answers])

    def _write_rows(self, rows: list[list[str]]) -> None:
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        self.file.write(text.getvalue().encode("utf-8", errors="surrogateescape"))

    def close(self) -> None:
        self.file.close()


def _csv_rows(file: BinaryIO, width: int) -> Iterator[tuple[list[str], int]]:
    """Whole rows and where in the file each ends."""
    behind = 0

    def lines() -> Iterator[str]:
        nonlocal behind
        for line in file:
            behind += len(line)
            if line.endswith(b"\n"):
                yield line.decode("utf-8", errors="surrogateescape")

    csv.field_size_limit(2**31 - 1)
    try:
        for row in csv.reader(lines(), strict=True):
            if len(row) != width:
                return
            yield row, behind
    except csv.Error:  # the file ends within quotes
        return


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict, bool)) else str(value)


class _Parquet:
    """Not valid before its end, so it takes its place, and that of an earlier part, when it is closed."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema, self.done = path, schema, set[int]()
        self.temporary = path.with_name(f".{path.name}.tmp")
        if path.exists() and not pq.read_schema(path).equals(schema):
            raise ValueError("other columns")
        self.writer = pq.ParquetWriter(self.temporary, schema, compression="zstd")
        if path.exists():
            with pq.ParquetFile(path) as earlier:
                for batch in earlier.iter_batches(batch_size=1024):
                    self.writer.write_batch(batch)
                    names, rows = batch.column("input").to_pylist(), batch.column("row").to_pylist()
                    self.done.update(key(name, row) for name, row in zip(names, rows, strict=True))

    def write(self, answers: list[Answer]) -> None:
        self.writer.write_table(pa.Table.from_pylist(answers, self.schema))

    def close(self) -> None:
        self.writer.close()
        self.temporary.replace(self.path)


_KINDS: dict[str, type[PredictionWriter]] = {".jsonl": _JsonLines, ".csv": _Csv, ".parquet": _Parquet}
