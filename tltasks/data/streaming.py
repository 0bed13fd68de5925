"""Training rows that fit no disk: read from their shards in an epoch's order, from any place on, by datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import TypedDict, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("parquet", "json", "webdataset")
"""Builders of datasets whose shards are read from any row on."""
INFERRED_FROM = 1000
"""Rows by which types are told where shards do not say them."""
AnyRows = TypeVar("AnyRows", datasets.Dataset, datasets.IterableDataset)


class Place(TypedDict):
    """A place in the stream of an epoch; a window of rows begins there."""

    epoch: int
    window: int
    step: int
    """Steps of the stage before it."""
    shard: int
    """Shards of the epoch's order that are read, and rows of the one after them."""
    row: int
    read: int
    """Rows of the epoch that are read, and those of them that cannot be used."""
    bad: int
    size: int
    """The same of a whole epoch, once one is read."""
    lost: int


START = Place(epoch=0, window=0, step=0, shard=0, row=0, read=0, bad=0, size=0, lost=0)


@dataclass(frozen=True)
class Stream:
    """A split's rows as they lie in its shards."""

    rows: datasets.IterableDataset
    files: tuple[str, ...]
    prepare: Callable[[datasets.Dataset], datasets.Dataset]
    """Keeps the task's columns, under its names."""
    count: int | None
    """Rows in all, bad ones too; None where only reading them would tell."""
    fingerprint: str
    """Digest of the files as they lie here."""
    content: str
    """Digest of the files wherever they lie: a run goes on with copies of them."""
    buffer: int
    """Rows that are shuffled together, and held on disk at a time."""
    seed: int

    def read(
        self, epoch: int, shard: int, row: int, *, at_once: int = 256
    ) -> Iterator[tuple[datasets.Dataset, list[int], int, int]]:
        """The rows of an epoch from a place on, so many at once, their numbers, and the place after: its shard and row.

        Shards come in an order drawn with (seed, epoch), and rows as they lie there; a row's number is its own in every
        epoch.
        """
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.files))
        info = datasets.DatasetInfo(features=self.rows.features)
        for place in range(shard, len(order)):
            number = int(order[place])
            done, skipped = 0, row if place == shard else 0
            for table in self._tables(number, at_once):
                part = table.slice(max(0, skipped - done))
                done += len(table)
                if len(part):
                    numbers = [number << 32 | n for n in range(done - len(part), done)]
                    table = datasets.table.InMemoryTable(part)  # not hashed, as datasets else would
                    yield self.prepare(datasets.Dataset(table, info=info, fingerprint="streamed")), numbers, place, done

    def _tables(self, shard: int, at_once: int) -> Iterator[pa.Table]:
        own = self.rows.shard(num_shards=len(self.files), index=shard)
        tables: Iterator[pa.Table] = own.with_format("arrow").iter(at_once)
        return tables

    def called(self, number: int) -> str:
        """A row in a message."""
        return f"{PurePosixPath(self.files[number >> 32]).name}: row {number & 0xFFFFFFFF}"


def open_shards(kind: str, files: list[str], features: datasets.Features | None) -> datasets.IterableDataset:
    """The rows of files of one format, one shard each, their media undecoded."""
    builder = datasets.load_dataset_builder(kind, data_files={"train": files}, features=features)
    rows = builder.as_streaming_dataset(split="train")
    if rows.features is None:
        first = list(islice(rows.with_format("arrow").iter(INFERRED_FROM), 1))
        rows = rows.cast(datasets.Features.from_arrow_schema(first[0].schema)) if first else rows
    if (
        rows.features is not None
    ):  # the last row of a tar has its columns in another order (datasets 5.2, webdataset.py)
        rows = rows.select_columns(list(rows.features))
    return undecoded(rows)


def undecoded(rows: AnyRows) -> AnyRows:
    """The rows with images and sound left as bytes and paths."""
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            rows = rows.cast_column(column, type(feature)(decode=False))
    return rows


def rows_in(kind: str, files: list[str]) -> int | None:
    """The number of rows of local files, where their ends tell it."""
    return sum(pq.read_metadata(file).num_rows for file in files) if kind == "parquet" else None
