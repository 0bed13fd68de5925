"""Predictions as a file that is valid at every moment: JSON lines, CSV or parquet, by its suffix."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tltasks.errors import RecipeError, escaped
from tltasks.inference import subtitles
from tltasks.inference.arguments import EACH, SUBTITLES, check_file
from tltasks.runtime.files import append_to, beside, flush, lock, write_json, write_text

if TYPE_CHECKING:
    from tltasks.inference.predictor import SpokenWord

Row = Mapping[str, object]
"""`input`, `row` where it is one of a table, and what was predicted or `error`."""
Flags = Mapping[str, object]
"""What rows depend on beside their inputs, as a message names it."""
FLAGS = ".flags.json"
"""Of the hidden file beside an output that holds these."""


class PredictionWriter(Protocol):
    """A file that takes predictions, a few at a time."""

    done: set[int]
    """Keys of inputs that an earlier run has written."""

    def write(self, rows: list[Row]) -> None: ...

    def close(self) -> None:
        """Leave a valid file, whether or not all was written."""
        ...


def key(name: object, row: object) -> int:
    """A number for an input among those that are done, which takes little memory.

    >>> key("a.csv", 1) == key("a.csv", 1) != key("a.csv", 2)
    True
    """
    return hash((name, row))


def open_writer(path: Path | None, schema: pa.Schema, *, resume: bool, flags: Flags) -> PredictionWriter:
    """Open a file, or standard output. Raises RecipeError for one that is there, unless it is resumed and has rows of
    the same flags, and for one that another process writes."""
    if path is None:
        return _Lines(sys.stdout.buffer, set(), _json_lines)
    check_output(path, resume=resume, flags=flags)
    path = path.resolve()  # what a link leads to is written, whatever its name
    known = _known(path)
    release = lock(beside(known, ".lock"), f"--output {path}: another predict is writing to it; wait for its end.")
    try:
        check_output(path, resume=resume, flags=flags)  # by now it may have been begun and ended
        if known.suffix.lower() not in SUBTITLES:
            write_json(beside(known, FLAGS), flags)
        opener = _SubtitlesOfEach if EACH in path.name else _OPENERS[path.suffix.lower()]
        return _Held(opener(path, schema), release)
    except BaseException as error:
        release()
        if isinstance(error, OSError):
            raise RecipeError(f"--output {path}: cannot be written to ({error.strerror}).") from error
        if isinstance(error, ValueError | KeyError | TypeError | AttributeError | pa.ArrowException | csv.Error):
            raise RecipeError(
                f"--output {path}: holds something else than predictions of this task; name another file."
            ) from error
        raise


def check_output(path: Path, *, resume: bool, flags: Flags) -> None:
    """Raise RecipeError for a suffix that says no format, and for a file that must not be touched, such as one whose
    rows were predicted with other flags."""
    check_file(path)
    known = _known(path)
    if known.exists() and not resume:
        raise RecipeError(f"--output {path}: is there already. Complete it with --resume, or name another file.")
    if known.exists() and known.stat().st_size and known.suffix.lower() not in SUBTITLES:
        _check_flags(known, flags)


def _known(path: Path) -> Path:
    """The file that tells what has been predicted: the output, or beside those of each recording one of their names."""
    return beside(path.with_name(path.name.replace(EACH, "each")), ".jsonl") if EACH in path.name else path


def _check_flags(path: Path, flags: Flags) -> None:
    """Compare flags with those that the rows of a file were predicted with."""
    about = beside(path.resolve(), FLAGS)
    try:
        earlier = json.loads(about.read_text(encoding="utf-8"))
        others = [(name, earlier[name], now) for name, now in flags.items() if earlier[name] != now]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RecipeError(
            f"--output {path}: holds something else than predictions, or was moved without {about.name}, which tells "
            "what they were made with. Name another file."
        ) from error
    if others:
        told = [name if name == "another model" else f"{name} {then} (now {now})" for name, then, now in others]
        raise RecipeError(
            f"--resume: {path} was predicted with {', '.join(told)}. Give the same flags, or name another file."
        )


Records = Iterator[tuple[int | None, int]]
"""Whole records of a file: the key of each, None where it is no prediction, and the byte behind it."""


class _Held:
    """A file that no other process writes until it is closed."""

    def __init__(self, writer: PredictionWriter, release: Callable[[], None]) -> None:
        self.writer, self.release, self.done, self.write = writer, release, writer.done, writer.write

    def close(self) -> None:
        try:
            self.writer.close()
        finally:
            self.release()


def _open_behind(path: Path, records: Callable[[BinaryIO], Records], begin: bytes) -> tuple[BinaryIO, set[int]]:
    """Open a file behind its last whole record, and tell the keys it has; ValueError where it has other content.

    One without a whole record may `begin` like one, which a kill has cut off.
    """
    done, end = set(), 0
    with path.open("a+b") as file:
        file.seek(0)
        for found, behind in records(file):
            end = behind
            if found is not None:
                done.add(found)
        file.seek(0)
        if end == 0 and (start := file.read(len(begin))) != begin[: len(start)]:
            raise ValueError("no whole record")
        file.truncate(end)
    return path.open("ab", buffering=0), done


class _Lines:
    """Rows as text, behind those that are there."""

    def __init__(self, file: BinaryIO, done: set[int], encode: Callable[[list[Row]], str]) -> None:
        self.file, self.done, self.encode = file, done, encode

    def write(self, rows: list[Row]) -> None:
        content = self.encode(rows).encode("utf-8", errors="surrogateescape")
        if self.file is sys.stdout.buffer:
            self.file.write(content)
            self.file.flush()
        else:
            append_to(self.file.fileno(), content)

    def close(self) -> None:
        if self.file is not sys.stdout.buffer:
            os.fsync(self.file.fileno())  # which tells of what a network's file system could not write
            self.file.close()


def _json_lines(rows: list[Row]) -> str:
    kept = ({name: value for name, value in row.items() if value is not None} for row in rows)
    return "".join(f"{escaped(json.dumps(row, ensure_ascii=False))}\n" for row in kept)


def _open_json(path: Path, schema: pa.Schema) -> PredictionWriter:
    def records(file: BinaryIO) -> Records:
        end = 0
        for line in file:
            if line.endswith(b"\n"):
                row, end = json.loads(line), end + len(line)
                yield key(row["input"], row.get("row")), end

    return _Lines(*_open_behind(path, records, b'{"input": '), _json_lines)


def _open_csv(path: Path, schema: pa.Schema) -> PredictionWriter:
    """Lists are JSON within their cell."""
    names: list[str] = schema.names

    def records(file: BinaryIO) -> Records:
        for i, (row, end) in enumerate(_csv_rows(file, len(names))):
            if i == 0 and row != names:
                raise ValueError("another header")
            yield key(row[0], int(row[1]) if row[1] else None) if i else None, end

    def encode(rows: list[Row]) -> str:
        text = io.StringIO()
        csv.writer(text).writerows([_cell(row.get(name)) for name in names] for row in rows)
        return text.getvalue()

    header: list[Row] = [{name: name for name in names}]
    writer = _Lines(*_open_behind(path, records, encode(header).encode()), encode)
    if not path.stat().st_size:
        writer.write(header)
    return writer


def _csv_rows(file: BinaryIO, width: int) -> Iterator[tuple[list[str], int]]:
    """Whole rows, which may have line breaks within their cells, and where in the file each ends."""
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


def _cell(value: object) -> str:
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict, bool)) else str(value)


class _Parquet:
    """Not valid before its end, so it takes its place, and that of an earlier part, when it is closed.

    Where a write fails it does not: the earlier part stays as it was.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema, self.done, self.whole = path, schema, set[int](), False
        self.temporary = beside(path, ".tmp")
        if path.exists() and not pq.read_schema(path).equals(schema):
            raise ValueError("other columns")
        self.writer = pq.ParquetWriter(self.temporary, schema, compression="zstd")
        try:
            for batch in self._earlier():
                self.writer.write_batch(batch)
                names, rows = batch.column("input").to_pylist(), batch.column("row").to_pylist()
                self.done.update(map(key, names, rows))
        except BaseException:
            self._discard()
            raise
        self.whole = True

    def write(self, rows: list[Row]) -> None:
        self.whole = False
        self.writer.write_table(pa.Table.from_pylist(rows, self.schema))
        self.whole = True

    def close(self) -> None:
        if not self.whole:
            self._discard()
            return
        try:
            self.writer.close()
            flush(self.temporary)
            self.temporary.replace(self.path)
        except BaseException:
            self._discard()
            raise

    def _earlier(self) -> Iterator[pa.RecordBatch]:
        if self.path.exists():
            with pq.ParquetFile(self.path) as earlier:
                yield from earlier.iter_batches(batch_size=1024)

    def _discard(self) -> None:
        with contextlib.suppress(OSError, pa.ArrowException):
            self.writer.close()
        self.temporary.unlink(missing_ok=True)


class _Subtitles:
    """The words of one recording as subtitles; the file is there when it is whole."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        if path.exists():
            raise RecipeError(f"--output {path}: is there, and whole: subtitles are written at once.")
        self.path, self.done = path, set[int]()
        _check_spoken(path, schema)

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            _write_subtitles(self.path, row)

    def close(self) -> None:
        pass


class _SubtitlesOfEach:
    """The words of each recording as subtitles in a file of its name, and which have been written, as JSON lines."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        _check_spoken(path, schema)
        self.path, self.written = path, _open_json(_known(path), schema)
        self.done = self.written.done

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            _write_subtitles(self._place(row), row)
            self.written.write([{name: row.get(name) for name in ("input", "row", "error")}])

    def close(self) -> None:
        self.written.close()

    def _place(self, row: Row) -> Path:
        """A file that is not there yet: recordings in several folders may have one name."""
        name, number = PurePath(str(row["input"])).stem, row.get("row")
        name = name if number is None else f"{name}-{number}"
        for more in itertools.chain([""], map("-{}".format, itertools.count(2))):
            place = self.path.with_name(self.path.name.replace(EACH, f"{name}{more}"))
            if not place.exists():
                break
        return place


def _check_spoken(path: Path, schema: pa.Schema) -> None:
    if "words" not in schema.names:
        raise RecipeError(f"--output {path}: subtitles are of speech recognition.")


def _write_subtitles(path: Path, row: Row) -> None:
    if row.get("error") is None:
        text, words = str(row["prediction"]), cast("list[SpokenWord]", row["words"])
        write_text(path, subtitles.write(text, words, path.suffix.lower()))


_OPENERS: dict[str, Callable[[Path, pa.Schema], PredictionWriter]] = {
    ".jsonl": _open_json,
    ".csv": _open_csv,
    ".parquet": _Parquet,
    ".srt": _Subtitles,
    ".vtt": _Subtitles,
}
