"""A folder of images or recordings as a data set for the Hub: looked through, described, and written as parquet.

Parquet with the files inside is what the Hub shows, streams and checks; thousands of single files are slow in all that.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import embed_table_storage

from tltasks.data.loading import load_tables
from tltasks.errors import DataError, first_line
from tltasks.tasks.image import decoding
from tltasks.tasks.speech import audio

Kind = Literal["image", "audio"]
SUFFIXES: dict[Kind, frozenset[str]] = {"image": decoding.SUFFIXES, "audio": audio.SUFFIXES}
ROWS_AT_ONCE = 100
"""Of a row group, as the Hub's viewer likes them."""
SHARD_BYTES = 500 * 10**6


@dataclass(frozen=True)
class Described:
    """What is in a folder."""

    kind: Kind
    tables: dict[str, datasets.Dataset]
    """Rows by split, media undecoded."""
    bad: dict[str, str]
    """Files that cannot be read, and why."""
    duplicates: dict[str, list[str]]
    """Files with the same content, by the first of them."""
    across: int
    """Of those, contents that more than one split has."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of each split: `examples`, `classes` (examples by name), and `sizes` (smallest and largest side, in pixels) or
    `seconds` (shortest, longest and all)."""

    @property
    def columns(self) -> dict[str, Any]:
        return dict(next(iter(self.tables.values())).features)


def describe_folder(folder: Path) -> Described:
    """Look at every file; raises DataError for a folder that holds neither images nor recordings."""
    if not folder.is_dir():
        raise DataError(f"push-data {folder}: not a folder.")
    kind = _kind(folder)
    builder = f"{kind}folder"
    try:
        tables = load_tables(builder, data_dir=str(folder))
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        raise DataError(f"push-data {folder}: could not be read as {builder}: {first_line(cause)}") from error
    bad: dict[str, str] = {}
    seen: dict[str, list[tuple[str, str]]] = defaultdict(list)
    facts = {}
    for split, rows in tables.items():
        measure = _Images() if kind == "image" else _Clips()
        for path in _paths(rows, kind):
            shown = (
                path.relative_to(folder.resolve()).as_posix() if path.is_relative_to(folder.resolve()) else path.name
            )
            try:
                measure.take(path)
            except DataError as error:
                bad[shown] = str(error)
            with path.open("rb") as file:
                seen[hashlib.file_digest(file, "sha256").hexdigest()].append((split, shown))
        facts[split] = {"examples": len(rows), "classes": _classes(rows), **measure.found()}
    same = [places for places in seen.values() if len(places) > 1]
    return Described(
        kind,
        tables,
        bad,
        {places[0][1]: [shown for _, shown in places[1:]] for places in same},
        sum(len({split for split, _ in places}) > 1 for places in same),
        facts,
    )


def _kind(folder: Path) -> Kind:
    counts = Counter(path.suffix.lower() for path in folder.rglob("*") if path.is_file())
    found: dict[Kind, int] = {kind: sum(counts[s] for s in suffixes) for kind, suffixes in SUFFIXES.items()}
    best = max(found, key=lambda kind: found[kind])
    if not found[best]:
        raise DataError(
            f"push-data {folder}: holds neither images nor recordings. They lie in a folder for each class, or beside "
            "a metadata.csv or metadata.jsonl with the column `file_name`; above these may be folders train, "
            "validation and test."
        )
    return best


def _paths(rows: datasets.Dataset, column: str) -> Iterator[Path]:
    for start in range(0, len(rows), 1000):
        for value in rows[start : start + 1000][column]:
            yield Path(value["path"])


def _classes(rows: datasets.Dataset) -> dict[str, int]:
    feature = rows.features.get("label")
    if not isinstance(feature, datasets.ClassLabel):
        return {}
    counts = Counter(rows["label"])
    return {name: counts[i] for i, name in enumerate(feature.names)}


class _Images:
    def __init__(self) -> None:
        self.sides: list[int] = []

    def take(self, path: Path) -> None:
        image = decoding.decode_image(str(path))
        self.sides += [min(image.size), max(image.size)]

    def found(self) -> dict[str, Any]:
        return {"sizes": [min(self.sides), max(self.sides)] if self.sides else None}


class _Clips:
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def take(self, path: Path) -> None:
        hz = 16_000
        self.seconds.append(len(audio.decode_audio(str(path), hz)) / hz)

    def found(self) -> dict[str, Any]:
        known = self.seconds
        return {"seconds": [min(known), max(known), sum(known)] if known else None}


def write_parquet(described: Described, folder: Path, *, leave_out: Callable[[str], bool]) -> dict[str, Path]:
    """Every split as parquet with its files inside, by the path that it has in the repository.

    `leave_out` says of a file's path whether its row is left out.
    """
    written: dict[str, Path] = {}
    for split, rows in described.tables.items():
        kept = [i for i, path in enumerate(_paths(rows, described.kind)) if not leave_out(str(path))]
        chosen = rows.select(kept)
        n_shards = max(1, -(-sum(Path(p).stat().st_size for p in _paths(chosen, described.kind)) // SHARD_BYTES))
        for i in range(n_shards):
            name = f"data/{split}-{i:05d}-of-{n_shards:05d}.parquet"
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_shard(chosen.shard(n_shards, i, contiguous=True), described.kind, path)
            written[name] = path
    return written


def _write_shard(rows: datasets.Dataset, kind: Kind, path: Path) -> None:
    decoded = datasets.Image() if kind == "image" else datasets.Audio()
    features = datasets.Features({**rows.features, kind: decoded})  # so that whoever loads it gets images and sound
    metadata = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    writer: pq.ParquetWriter | None = None
    plain = rows.with_format("arrow")
    for start in range(0, len(rows), ROWS_AT_ONCE):
        table: pa.Table = embed_table_storage(plain[start : start + ROWS_AT_ONCE])
        table = table.replace_schema_metadata(metadata)
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema, compression="snappy")
        writer.write_table(table)
    if writer is not None:
        writer.close()
