"""Encode a split once into an Arrow cache, in which the next run finds it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tarfile import TarError

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.arrow_writer import ArrowWriter
from datasets.exceptions import DatasetsError
from numpy.typing import NDArray

from tltasks.data.cache_keys import code_version, decoder_settings, rows_key
from tltasks.data.near_duplicates import Likeness, MarkedRows
from tltasks.data.splits import LANGUAGE, PROMPT, ROW_NAME, SOURCE, Columns, EncodedSplit, Split, row_path, row_words
from tltasks.data.streaming import START, Place
from tltasks.errors import DataError, first_line
from tltasks.runtime.files import whole_file
from tltasks.runtime.progress import Bar

ROWS_AT_ONCE, TEXTS_AT_ONCE = 64, 512
"""Rows that are encoded together: few of media, for memory; many of texts, most of whose time else goes by parts."""
FEWEST_ROWS = 512
"""Rows of each process that pay for starting it."""
MOST_SHOWN = 10
MARK = "mark"
OWN = {"row": datasets.Value("int64"), **dict.fromkeys(("path", "error"), datasets.Value("string"))}
"""Columns of every encoded row."""


def encode_split(
    split: Split,
    encode: Callable[[Columns], Columns],
    features: datasets.Features,
    *,
    key: str,
    max_bad_share: float,
    media: str | None = None,
    likeness: Likeness | None = None,
    processes: int | None = None,
    batch_size: int = 1,
) -> EncodedSplit:
    """Encode a split once; the next run with the same rows, files of its column `media` and `key` finds it cached.

    `encode` maps a batch of examples (with `row`, the row's number) to a batch with columns `features`; a row that
    cannot be read has its reason in the column `error`. With `likeness` rows are marked, so that near-duplicates can be
    found. Raises DataError when more than `max_bad_share` cannot be read. Of a split that is streamed the first window
    is encoded, which holds whole steps of `batch_size`.
    """
    if split.stream is not None:
        write = partial(WindowWriter, split, batch_size=batch_size, max_bad_share=max_bad_share)
        return _stream(split, encode, features, write, key=key, media=media)
    kept = _kept(split)
    processes = processes if processes and len(split.rows) >= FEWEST_ROWS * processes else None
    encode = encode if processes else _told(encode, split)
    encode_batch = _by_batch(split, encode, kept, media=media, likeness=likeness)
    parts = (key, code_version(), decoder_settings(), split.name == "train", rows_key(split, media), likeness is None)
    cached = _digest(*parts)
    file = Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-encoded" / f"{cached}.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)
    at_once = _at_once(media)
    marked = {} if likeness is None else {MARK: datasets.Value("binary")}
    encoded = split.rows.map(
        encode_batch,
        with_indices=True,
        batched=True,
        batch_size=at_once,
        writer_batch_size=at_once,
        remove_columns=split.rows.column_names,
        features=datasets.Features({**features, **kept, **OWN, **marked}),
        new_fingerprint=cached,
        cache_file_name=str(file),
        num_proc=processes,
        desc=f"encoding {split.name}",
    )
    if encoded.data.column("path").null_count == len(encoded):
        encoded = encoded.remove_columns("path")
    bad, skipped = _bad_rows(encoded, split, max_bad_share)
    if skipped:
        encoded = encoded.select(np.setdiff1d(np.arange(len(encoded)), bad))
    rows, marks = encoded.remove_columns(["error", *marked]), encoded.select_columns(list(marked)) if marked else None
    return EncodedSplit(split.name, rows, split.origin, skipped, _content_digest(encoded), split.place, marks)


def _at_once(media: str | None) -> int:
    return TEXTS_AT_ONCE if media is None else ROWS_AT_ONCE


def _kept(split: Split) -> dict[str, object]:
    return {name: split.rows.features[name] for name in (SOURCE, LANGUAGE, PROMPT) if name in split.rows.features}


def _by_batch(
    split: Split,
    encode: Callable[[Columns], Columns],
    kept: Mapping[str, object],
    *,
    media: str | None,
    likeness: Likeness | None = None,
) -> Callable[[Columns, list[int]], Columns]:
    """A function from a batch of rows and their numbers to all columns of encoded rows."""

    def encode_batch(batch: Columns, row: list[int]) -> Columns:
        found = encode({**batch, "row": row})
        numbered = {n: i for i, n in enumerate(row)}
        places = [numbered[n] for n in found["row"]]  # several may come from one example
        named = [{name: batch[name][i] for name in (media, ROW_NAME) if name in batch} for i in places]
        paths = [row_path(example, media, split.folder) if example else None for example in named]
        errors = [
            f"{error} ({words})" if error and (words := row_words(example, media, split.folder)) else error
            for example, error in zip(named, found["error"], strict=True)
        ]
        made = {**found, **{name: [batch[name][i] for i in places] for name in kept}, "path": paths, "error": errors}
        if likeness is None:
            return made
        whole = {name: [values[i] for i in places] for name, values in batch.items() if name not in found}
        return {**made, MARK: likeness.mark(whole | found)}

    return encode_batch


@dataclass(frozen=True)
class WindowWriter:
    """Writes the windows of a split that is streamed: rows of a buffer, encoded, less those that cannot be used."""

    split: Split
    encode: Callable[[Columns, list[int]], Columns]
    features: datasets.Features
    batch_size: int
    max_bad_share: float
    at_once: int
    """Rows that are read and encoded together."""

    def __call__(self, file: Path, place: Place) -> Place:
        """Write the window that begins at a place, in whole steps unless the epoch ends, and give the place after it.

        Raises DataError for shards that cannot be read, and more bad rows in the epoch than are allowed.
        """
        stream, reasons, ended = self.split.stream, list[str](), False
        assert stream is not None
        size, n_rows, after = max(1, stream.buffer // self.batch_size) * self.batch_size, 0, place.copy()
        try:
            with whole_file(file) as whole, ArrowWriter(features=self.features, path=str(whole)) as writer:
                at = place["epoch"], place["shard"], place["row"]
                for rows, numbers, shard, end in stream.read(*at, at_once=self.at_once):
                    start = 0
                    while start < len(rows) and n_rows < size:
                        stop = min(len(rows), start + size - n_rows)
                        n_rows += self._write(writer, rows[start:stop], numbers[start:stop], reasons)
                        start = stop
                    after |= {"shard": shard, "row": end - len(rows) + start}
                    if n_rows >= size:
                        break
                else:
                    ended = True
                writer.finalize()
        except (ValueError, OSError, pa.ArrowException, TarError, DatasetsError) as error:
            raise DataError(f"{self.split.where}: could not be read: {first_line(error.__cause__ or error)}") from error
        read, bad = place["read"] + n_rows + len(reasons), place["bad"] + len(reasons)
        if bad > self.max_bad_share * read:
            shown = "".join(f"\n  {reason}" for reason in reasons[:MOST_SHOWN])
            raise DataError(
                f"{self.split.where}: {bad} of the {read} examples read so far cannot be used "
                f"(data.max_bad_share allows {self.max_bad_share:.1%}):{shown}"
            )
        after |= {"step": place["step"] + -(-n_rows // self.batch_size)}
        if ended:
            return Place(
                **START | {"epoch": place["epoch"] + 1, "step": after["step"], "size": read - bad, "lost": bad}
            )
        return after | {"window": place["window"] + 1, "read": read, "bad": bad}

    def _write(self, writer: ArrowWriter, batch: Columns, numbers: list[int], reasons: list[str]) -> int:
        """Write the rows of a batch that can be used, whose number is returned; `reasons` for the others are added."""
        assert self.split.stream is not None
        made = self.encode(batch, numbers)
        for number, error in zip(made["row"], made["error"], strict=True):
            reasons += [] if error is None else [f"{self.split.stream.called(number)}: {error}"]
        good = [i for i, error in enumerate(made["error"]) if error is None]
        if good:
            writer.write_batch({name: [made[name][i] for i in good] for name in self.features})
        return len(good)


def _stream(
    split: Split,
    encode: Callable[[Columns], Columns],
    features: datasets.Features,
    make: Callable[..., WindowWriter],
    *,
    key: str,
    media: str | None,
) -> EncodedSplit:
    """A split that is streamed, with its first window encoded; the others are as training comes to them."""
    stream, kept = split.stream, _kept(split)
    assert stream is not None
    columns = datasets.Features({**features, **kept, **{name: kind for name, kind in OWN.items() if name != "error"}})
    windows = make(encode=_by_batch(split, encode, kept, media=media), features=columns, at_once=_at_once(media))
    drawn = (stream.buffer, stream.seed, windows.batch_size)
    cached = _digest(key, code_version(), decoder_settings(), stream.fingerprint, *drawn)
    file = Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-streamed" / f"{cached}.arrow"
    if not file.is_file():
        windows(file, START)
    rows = datasets.Dataset.from_file(str(file))
    # As of rows that are held, of what they are: neither of where they lie, nor of the code that has encoded them.
    fingerprint = _digest(stream.content, _content_digest(rows), *drawn)
    return EncodedSplit(split.name, rows, split.origin, {}, fingerprint, split.place, windows=windows, stream=stream)


def marked(split: EncodedSplit, likeness: Likeness) -> MarkedRows:
    """The rows of a split that was encoded with this likeness."""
    assert split.marks is not None
    return MarkedRows(likeness, split.rows, split.marks[MARK][:])


def _told(encode: Callable[[Columns], Columns], split: Split) -> Callable[[Columns], Columns]:
    """`encode` with lines of how far it is; on a terminal datasets draws a bar, also over several processes."""
    bar = Bar(f"encoding {split.name}", len(split.rows), "rows", on_terminal=False)

    def encode_and_tell(batch: Columns) -> Columns:
        found = encode(batch)
        bar.update(len(batch["row"]))
        return found

    return encode_and_tell


def _bad_rows(encoded: datasets.Dataset, split: Split, most: float) -> tuple[NDArray[np.int64], dict[int, str]]:
    """The rows that cannot be used, and the reasons by original row; raises DataError for more than this share."""
    errors, rows = encoded.data.column("error"), encoded.data.column("row")
    bad = np.flatnonzero(np.asarray(pc.is_valid(errors)))
    skipped = {rows[i].as_py(): str(errors[i].as_py()) for i in bad.tolist()}  # several may come from one example
    if len(bad) > most * len(encoded):
        shown = "\n".join(f"  row {row}: {reason}" for row, reason in list(skipped.items())[:MOST_SHOWN])
        more = f"\n  … and {len(skipped) - MOST_SHOWN} more" if len(skipped) > MOST_SHOWN else ""
        raise DataError(
            f"{split.where}: {len(bad)} of {len(encoded)} examples cannot be used "
            f"(data.max_bad_share allows {most:.1%}):\n{shown}{more}"
        )
    return bad, skipped


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _content_digest(rows: datasets.Dataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    content = rows.select_columns([name for name in rows.column_names if name not in ("path", MARK)])
    for batch in content.with_format("arrow").iter(256):
        for column in batch.columns:
            for value in column.to_pylist():
                digest.update(value if isinstance(value, bytes) else repr(value).encode())
    return digest.hexdigest()
