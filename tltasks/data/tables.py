"""Tables in files, read row by row, with every cell as it is written: by runs and by predictions alike.

csv and tsv hold texts alone. JSON tells texts from numbers; a list of texts is joined by spaces where a text is wanted,
and anything else in its place is an error that names the row.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tltasks.config.names import format_of
from tltasks.data.folders import fault_of
from tltasks.errors import DataError, did_you_mean, first_line

Row = dict[str, object]
Rows = Iterator[tuple[str, Row | DataError]]
"""Each with its place in the file, as `:3` for a line or `[2]` for one of a list; wanted cells, or their fault."""

_OPENERS: dict[str, Callable[[Path], object]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: pa.input_stream(str(path), compression="zstd"),
}
"""How a compressed file is opened, by its suffix."""
UNREADABLE = (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, csv.Error, DataError)
"""Errors of a table that is none."""
_DELIMITERS = (",", ";", "\t", "|")


def read_rows(
    path: Path, wanted: Sequence[str] | None = None, *, kind: str | None = None, any_of: bool = False
) -> Rows:
    """Rows of a table, the wanted cells of each: all of these, or the first of them that the table has if `any_of`.

    Empty cells of csv are None. Raises DataError, or one of UNREADABLE, where nothing can be read from there on.
    """
    if fault := fault_of(path):
        raise DataError(f"is {fault}")
    kind = kind or format_of(path.name) or "text"
    if kind == "parquet":
        yield from _parquet_rows(path, wanted, any_of=any_of)
        return
    with _binary(path) as content:
        encoding = "utf-16" if content.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with _binary(path) as content:
        file = io.TextIOWrapper(content, encoding=encoding, newline="" if kind == "csv" else None)
        if kind == "csv":
            yield from _csv_rows(file, path, wanted, any_of=any_of)
        elif kind == "json":
            yield from _json_rows(file, wanted, any_of=any_of)
        else:
            for i, line in enumerate(file):
                yield f":{i + 1}", {"text": line.rstrip("\r\n")}


def _binary(path: Path) -> BinaryIO:
    opener: Callable[[Path], object] = _OPENERS.get(path.suffix.lower(), lambda plain: plain.open("rb"))
    return cast(BinaryIO, opener(path))


def _chosen(names: Sequence[str], wanted: Sequence[str] | None, *, any_of: bool) -> list[str]:
    """The wanted columns among those that there are; raises DataError for one that is not there, or twice."""
    present = [name for name in (names if wanted is None else wanted) if name in names][: 1 if any_of else None]
    missing = [] if any_of and present else [name for name in wanted or () if name not in names]
    if missing:
        lacks = " It ".join(f"has no column `{name}`{did_you_mean(name, names) or '.'}" for name in missing)
        raise DataError(f"{lacks} It has: {', '.join(names) or 'none'}.")
    if twice := [name for name in present if list(names).count(name) > 1]:
        raise DataError(f"has several columns called `{twice[0]}`; which of them is meant cannot be told.")
    return present


# ------------------------------------------------------------------------------------------------- csv


def _csv_rows(file: TextIO, path: Path, wanted: Sequence[str] | None, *, any_of: bool) -> Rows:
    csv.field_size_limit(2**31 - 1)
    skipped, first = 0, ""
    for first in file:
        if first.strip():
            break
        skipped += 1

    def columns(delimiter: str) -> list[str]:
        return next(csv.reader([first], delimiter=delimiter), [])

    enough = any if any_of else all
    delimiters = [d for d in _DELIMITERS if wanted is not None and enough(name in columns(d) for name in wanted)]
    default = "\t" if ".tsv" in path.name.lower() else ","
    if wanted is None:
        delimiters = sorted([default, *_DELIMITERS], key=lambda d: -len(columns(d)))
    reader = csv.reader(itertools.chain([first], file), delimiter=(delimiters or [default])[0], strict=True)
    names = next(reader, [])
    while names and not names[-1].strip():  # a delimiter ends each line
        names.pop()
    places = {name: names.index(name) for name in _chosen(names, wanted, any_of=any_of)}
    line = reader.line_num
    try:
        for cells in reader:
            start, line = line + 1 + skipped, reader.line_num
            if (len(cells) < len(names) and cells) or any(cells[len(names) :]):
                yield f":{start}", DataError(f"has {len(cells)} cells, where the header has {len(names)}")
            elif cells:
                yield f":{start}", {name: cells[i] or None for name, i in places.items()}
    except csv.Error as error:
        raise DataError(
            f"line {line + 1 + skipped} cannot be read ({error}): a quotation mark within a cell is written twice, and "
            "such a cell is in quotation marks"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not UTF-8 behind line {line + skipped} (byte 0x{error.object[error.start]:02x})"
        ) from error


# ------------------------------------------------------------------------------------------------ JSON


def _json_rows(file: TextIO, wanted: Sequence[str] | None, *, any_of: bool) -> Rows:
    known: dict[str, None] = {}
    chosen: list[str] = []
    rows = _json_objects(file)
    start = list(itertools.islice(rows, 2))
    if len(start) == 1 and isinstance(found := start[0][1], dict) and _is_by_column(found):
        raise DataError("holds one object with a list for each column; write a list of objects, or one in each line")
    for place, item in itertools.chain(start, rows):
        if isinstance(item, DataError):
            yield place, item
            continue
        known.update(dict.fromkeys(item))
        if any_of:
            chosen = chosen or _chosen(list(item), wanted, any_of=True)
        if chosen and chosen[0] not in item:
            yield place, DataError(f"has no `{chosen[0]}`")
        else:
            yield place, item if wanted is None else {name: item.get(name) for name in chosen or wanted}
    if known and not any_of:
        _chosen(list(known), wanted, any_of=False)


def _is_by_column(found: Row) -> bool:
    sizes = [len(value) if isinstance(value, list) else 0 for value in found.values()]
    return len(sizes) > 1 and min(sizes) > 1 and len(set(sizes)) == 1


def _json_objects(file: TextIO) -> Iterator[tuple[str, Row | DataError]]:
    """Objects of a list, in a line each, or one after another."""
    lines = enumerate(file, 1)
    number, first = next(((i, line) for i, line in lines if line.strip()), (1, ""))
    if not first:
        return
    if first.lstrip().startswith("["):
        whole = _loaded(first + file.read())
        if isinstance(whole, DataError):
            raise whole
        items = cast(list[object], whole)
        yield from ((f"[{i}]", _as_object({"text": v} if isinstance(v, str) else v)) for i, v in enumerate(items))
        return
    if first.strip() == "{" or isinstance(_loaded(first), DataError):
        rest = file.read()
        if (found := _one_after_another(first + rest)) is not None:
            yield from ((f"[{i}]", _as_object(value)) for i, value in enumerate(found))
            return
        lines = enumerate(rest.split("\n"), number + 1)
    for i, line in itertools.chain([(number, first)], lines):
        if line.strip():
            yield f":{i}", _as_object(_loaded(line))


def _one_after_another(text: str) -> list[object] | None:
    """Values that stand one after another, over as many lines as they take; None where the text is something else."""
    decoder, found = json.JSONDecoder(), []
    blank = re.compile(r"\s*")
    at, end = 0, len(text.rstrip())
    try:
        while at < end:
            space = blank.match(text, at)
            value, at = decoder.raw_decode(text, space.end() if space else at)
            found.append(value)
    except (ValueError, RecursionError):
        return None
    return found


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        return DataError(f"is not JSON ({error})")
    except RecursionError:
        return DataError("is not read: its JSON is nested hundreds of levels deep")


def _as_object(value: object) -> Row | DataError:
    if isinstance(value, (dict, DataError)):
        return value
    return DataError(f"is {described(value)}, where an object with the columns is expected")


# --------------------------------------------------------------------------------------------- parquet


def _parquet_rows(path: Path, wanted: Sequence[str] | None, *, any_of: bool) -> Rows:
    with pq.ParquetFile(path) as table:
        names = _chosen(table.schema_arrow.names, wanted, any_of=any_of)
        batches = table.iter_batches(batch_size=64, columns=names)
        for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
            yield f"[{number}]", row


# ----------------------------------------------------------------------------------------------- cells


def as_text(value: object) -> str | None:
    """A cell that is to be a text: a list of texts joined by spaces; raises DataError for anything else."""
    if isinstance(value, list) and all(part is None or isinstance(part, str) for part in value):
        value = " ".join(part.strip() for part in value if part and part.strip())
    if value is None or isinstance(value, str):
        # JSON may hold halves of characters, which nothing else can.
        return value if value is None or value.isascii() else value.encode("utf-8", "replace").decode()
    raise DataError(f"holds {described(value)}, where a text is wanted")


def as_label(value: object) -> str | int | list[str | int | None] | None:
    """A cell that is to be a class: a text, a whole number, or `true` and `false` as they are written; or several."""
    if isinstance(value, list) and not any(isinstance(one, list) for one in value):
        return [one for one in map(as_label, value) if not isinstance(one, list)]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value != value:  # as pandas writes blanks, and numbers beside them as floats
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, list):
        raise DataError(f"holds {described(value)}; a class is a name or a whole number")
    try:
        return as_text(value)
    except DataError as error:
        raise DataError(f"holds {described(value)}; a class is a name or a whole number") from error


def as_value(value: object) -> str | None:
    """A cell of which it matters alone which others it equals, or comes before."""
    if isinstance(value, float) and value.is_integer():  # as pandas writes whole numbers beside blanks
        value = int(value)
    return None if value is None or value == "" or value != value else str(value)


def as_path(value: object) -> str | None:
    """A cell that is to be a file's path, itself or as `path` of an object."""
    if isinstance(value, dict) and not value.get("bytes"):
        value = value.get("path")
    if value is None or isinstance(value, str):
        return value or None
    raise DataError(f"holds {described(value)}, where the path of a file is wanted")


def as_json(value: object) -> str | None:
    """Any other cell."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def described(value: object) -> str:
    """A value as a message names it.

    >>> described(2.5), described({}), described(["a"])
    ('the number 2.5', 'an object ({})', "a list (['a'])")
    """
    match value:
        case bool():
            return f"`{str(value).lower()}`"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value[:40]!r}"
        case bytes():
            return "bytes"
        case dict() | list():
            return f"{'an object' if isinstance(value, dict) else 'a list'} ({str(value)[:40]})"
        case None:
            return "nothing (null)"
    return f"a {type(value).__name__} ({str(value)[:40]})"


def why(error: BaseException) -> str:
    """The words of an error of UNREADABLE, as the end of a message."""
    if isinstance(error, DataError):
        return str(error).rstrip(".")
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 (byte 0x{error.object[error.start]:02x})"
    return f"cannot be read ({getattr(error, 'strerror', None) or first_line(error)})"
