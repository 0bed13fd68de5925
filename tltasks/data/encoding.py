"""Encode a split once into an Arrow cache, in which the next run finds it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from tltasks.data.cache_keys import code_version, decoder_settings, rows_key
from tltasks.data.near_duplicates import Likeness, MarkedRows
from tltasks.data.splits import LANGUAGE, SOURCE, Columns, EncodedSplit, Split, row_path, row_words
from tltasks.errors import DataError
from tltasks.runtime.progress import Bar

ROWS_AT_ONCE = 64
FEWEST_ROWS = 512
"""Rows of each process that pay for starting it."""
MOST_SHOWN = 10
MARK = "mark"


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
) -> EncodedSplit:
    """Encode a split once; the next run with the same rows, files of its column `media` and `key` finds it cached.

    `encode` maps a batch of examples (with `row`, the row's number) to a batch with columns `features`; a row that
    cannot be read has its reason in the column `error`. With `likeness` rows are marked, so that near-duplicates can be
    found. Raises DataError when more than `max_bad_share` cannot be read.
    """
    kept = {name: split.rows.features[name] for name in (SOURCE, LANGUAGE) if name in split.rows.features}

    def encode_batch(batch: Columns, row: list[int]) -> Columns:
        found = encode({**batch, "row": row})
        examples = {n: {name: values[i] for name, values in batch.items()} for i, n in enumerate(row)}
        paths = [row_path(examples[n], media, split.folder) for n in found["row"]]
        words = [row_words(examples[n], media, split.folder) for n in found["row"]]
        errors = [f"{error} ({w})" if error and w else error for w, error in zip(words, found["error"], strict=True)]
        carried = {name: [examples[n][name] for n in found["row"]] for name in kept}
        made = {**found, **carried, "path": paths, "error": errors}
        if likeness is None:
            return made
        whole = {name: [examples[n][name] for n in found["row"]] for name in batch if name not in found}
        return {**made, MARK: likeness.mark(whole | found)}

    processes = processes if processes and len(split.rows) >= FEWEST_ROWS * processes else None
    encode = encode if processes else _told(encode, split)
    parts = (key, code_version(), decoder_settings(), split.name == "train", rows_key(split, media), likeness is None)
    cached = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    file = Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-encoded" / f"{cached}.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)
    own = {"row": datasets.Value("int64"), **dict.fromkeys(("path", "error"), datasets.Value("string"))}
    marked = {} if likeness is None else {MARK: datasets.Value("binary")}
    encoded = split.rows.map(
        encode_batch,
        with_indices=True,
        batched=True,
        batch_size=ROWS_AT_ONCE,
        writer_batch_size=ROWS_AT_ONCE,
        remove_columns=split.rows.column_names,
        features=datasets.Features({**features, **kept, **own, **marked}),
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


def _content_digest(rows: datasets.Dataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    content = rows.select_columns([name for name in rows.column_names if name not in ("path", MARK)])
    for batch in content.with_format("arrow").iter(256):
        for column in batch.columns:
            for value in column.to_pylist():
                digest.update(value if isinstance(value, bytes) else repr(value).encode())
    return digest.hexdigest()
