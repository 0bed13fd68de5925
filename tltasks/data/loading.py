"""Load a recipe's splits, from the Hub or from disk, and encode them once into an Arrow cache."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from pyarrow.dataset import ParquetFragmentScanOptions

from tltasks.config.data import Data, Source
from tltasks.errors import DataError, did_you_mean, first_line

ENCODING_VERSION = 1  # part of every cache key: raise it when encoded rows change


@dataclass(frozen=True)
class Split:
    """Rows of one split under the task's own column names, media not yet decoded."""

    name: str
    rows: datasets.Dataset
    origin: str
    """Data set and split as a person names them, e.g. `uoft-cs/cifar10 train[:95%]`."""
    folder: Path | None
    """What relative media paths in the rows are relative to."""
    place: str
    """Where the recipe names the split."""

    @property
    def where(self) -> str:
        """Place and origin, with which a message begins."""
        return f"{self.place}: {self.origin}"


Tables = dict[str, datasets.Dataset]
Locate = Callable[[str], str]
"""Where the recipe says a key below `data`, such as `columns.label`: `recipe.yaml:5:3  data.columns.label`."""


def load_splits(
    data: Data, *, seed: int, label: str | None, train: bool = True, locate: Locate = "data.{}".format
) -> dict[str, Split]:
    """Every split that the recipe names: train, validation, test, and each extra test set.

    `label` is the task's column by which held-out shares are stratified. Raises DataError for all that is missing,
    with what there is instead.
    """
    named: dict[str, str | None] = getattr(data, "columns").model_dump()  # noqa: B009 (a key of every task's Data)
    columns = {key: column for key, column in named.items() if column is not None}
    wanted = data.splits
    shares = {n: s for n, s in (("validation", wanted.validation), ("test", wanted.test)) if isinstance(s, float)}
    specs: dict[str, str | float | None] = {"train": wanted.train} if train or shares else {}
    specs |= {"validation": wanted.validation, "test": wanted.test}
    splits: dict[str, Split] = {}
    mistakes: dict[str, None] = {}  # in order, and a column that all splits lack once

    def take(name: str, source: Source, tables: Tables, spec: str, key: str) -> None:
        place = locate(key)
        try:
            rows = _slice(tables, spec, place=place, source=_describe(source))
            rows = _select_columns(rows, columns, source=_describe(source), locate=locate)
            if not len(rows):
                raise DataError(f"{place}: {_describe(source)} {spec} has no rows; name another split.")
            splits[name] = Split(name, rows, f"{_describe(source)} {spec}", _media_folder(source), place)
        except DataError as error:
            mistakes[str(error)] = None

    tables = _load_tables(data, place=locate("name"))
    for name, spec in specs.items():
        if isinstance(spec, str):
            take(name, data, tables, spec, f"splits.{name}")
    for name, extra in data.extra_test.items():
        source, key = data.source_of(extra), f"extra_test.{name}"
        try:
            theirs = _load_tables(source, place=locate(key))
        except DataError as error:
            mistakes[str(error)] = None
            continue
        chosen = extra.split or (next(iter(theirs)) if len(theirs) == 1 else wanted.test)
        if isinstance(chosen, str):
            take(name, source, theirs, chosen, f"{key}.split")
        else:
            mistakes[f"{locate(key)}: has the splits {', '.join(theirs)}; name one with `split`."] = None
    if mistakes:
        raise DataError("\n".join(mistakes))
    n_rows = len(splits["train"].rows) if shares else 0
    for name, share in shares.items():
        n_held = max(1, round(n_rows * share))
        held = _hold_out(splits["train"], n_held, locate(f"splits.{name}"), seed=seed, label=label)
        splits["train"], splits[name] = held[0], dataclasses.replace(held[1], name=name)
    if data.shots is not None and "train" in splits:
        splits["train"] = _draw_shots(splits["train"], data.shots, seed=seed, label=label)
    return splits


def _load_tables(data: Source, *, place: str) -> Tables:
    """All splits of a source, media left undecoded so that one bad file cannot end the run."""
    assert data.name is not None
    place = f"{place}: {_describe(data)}"
    folder = Path(data.name)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(data.name)
        else:
            # Read ahead, a file is held in memory as a whole (pyarrow 26, ParquetFragmentScanOptions.pre_buffer). Files
            # on the Hub are shards, which bounds that.
            options = {"fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
            with media_by_path():
                loaded = datasets.load_dataset(
                    data.name,
                    data.config,
                    data_dir=data.dir,
                    data_files=data.files,
                    revision=data.revision,
                    **(options if data.name == "parquet" else {}),
                )
    except OfflineModeIsEnabled as error:
        raise DataError(f"{place}: not in the local cache, and offline mode is on (HF_HUB_OFFLINE).") from error
    except HfHubHTTPError as error:
        raise DataError(
            f"{place}: the Hub refused: {first_line(error)}. For gated data run `hf auth login`."
        ) from error
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, HFValidationError) as error:
        if "is a gated dataset" in str(error):  # all that datasets leaves of the Hub's answer (datasets 5.2, load.py)
            raise DataError(
                f"{place}: is gated: whoever wants it asks first. 1. Log in on the Hub's site and ask on "
                f"{constants.ENDPOINT}/datasets/{data.name}. 2. When access is granted: `hf auth login`, with a "
                "token that may read this repository. 3. Run the same command again."
            ) from error
        raise DataError(
            f"{place}: not found ({first_line(error)}). Name a Hub id, an existing folder (./folder), or a builder "
            "(imagefolder, csv, json, parquet) with `dir` or `files`; private data needs `hf auth login`."
        ) from error
    except ConnectionError as error:
        raise DataError(f"{place}: the Hub could not be reached ({first_line(error)}).") from error
    except (datasets.exceptions.DatasetsError, datasets.exceptions.DatasetGenerationError, ValueError) as error:
        cause = error.__cause__ or error
        raise DataError(f"{place}: could not be read: {first_line(cause)}") from error
    tables = {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
    return {name: _undecoded(rows) for name, rows in tables.items()}


@contextlib.contextmanager
def media_by_path() -> Iterator[None]:
    """Let datasets note where sound files lie, for which it wants torchcodec and so a system's FFmpeg (datasets 5.2,
    features/audio.py, encode_example). They are decoded by soundfile."""
    plain = datasets.Audio.encode_example

    def encode(self: datasets.Audio, value: Any) -> Any:
        is_path = isinstance(value, (str, Path))
        return {"bytes": None, "path": str(value)} if is_path else plain(self, value)

    datasets.Audio.encode_example = encode
    try:
        yield
    finally:
        datasets.Audio.encode_example = plain


def _undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    for column, feature in rows.features.items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            rows = rows.cast_column(column, type(feature)(decode=False))
    return rows


def _slice(tables: Tables, spec: str, *, place: str, source: str) -> datasets.Dataset:
    """Rows of a split specification such as `train[:95%]` or `train+test`."""
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute({k: len(v) for k, v in tables.items()})
    except (ValueError, AssertionError, AttributeError) as error:
        raise DataError(
            f"{place}: {source} has no split `{spec}`{did_you_mean(spec.split('[')[0], tables) or '.'} "
            f"It has: {', '.join(f'{k} ({len(v):,} rows)' for k, v in tables.items())}. "
            "Slices are written as `train[:95%]` or `train[100:200]`."
        ) from error
    # An empty range is none at all: datasets (5.2, arrow_dataset.py, _select_contiguous) refuses one behind the end.
    selected = [tables[p.splitname].select(range(p.from_ or 0, p.to or 0) or range(0)) for p in parts]
    return selected[0] if len(selected) == 1 else datasets.concatenate_datasets(selected)


def _select_columns(
    rows: datasets.Dataset, columns: dict[str, str], *, source: str, locate: Locate
) -> datasets.Dataset:
    """Keep the task's columns, under the task's names."""
    missing = {key: column for key, column in columns.items() if column not in rows.column_names}
    if missing:
        lines = [
            f"{locate(f'columns.{key}')}: {source} has no column `{column}`{did_you_mean(column, rows.column_names) or '.'}"
            for key, column in missing.items()
        ]
        kinds = ", ".join(f"{name} ({_kind(feature)})" for name, feature in rows.features.items())
        hint = ""
        if missing.keys() == {"label"} and "image" in rows.column_names:
            hint = " A metadata file in an image folder replaces the folder names as labels: add a label column to it."
        raise DataError("\n".join(lines) + f"\nIts columns: {kinds}.{hint}")
    rows = rows.select_columns(list(columns.values()))
    return rows.rename_columns({column: key for key, column in columns.items() if column != key})


def _hold_out(train: Split, n_held: int, place: str, *, seed: int, label: str | None) -> tuple[Split, Split]:
    """Move rows out of `train`, keeping each label's proportion where labels are not too few."""
    n_rows = len(train.rows)
    if n_held >= n_rows:
        raise DataError(f"{place}: {train.origin} has too few rows ({n_rows}) to hold {n_held} of them out.")
    labels = None
    if label is not None:
        _, labels = np.unique(np.array([str(v) for v in train.rows[label][:]]), return_inverse=True)
        counts = np.bincount(labels)
        if counts.min() < 2 or min(n_held, n_rows - n_held) < len(counts):
            labels = None
    from sklearn.model_selection import train_test_split  # a second to import

    kept, held = train_test_split(np.arange(n_rows), test_size=n_held, random_state=seed, stratify=labels)
    return (
        dataclasses.replace(train, rows=train.rows.select(np.sort(kept))),
        dataclasses.replace(
            train, rows=train.rows.select(np.sort(held)), origin=f"{train.origin} ({n_held:,} held out)", place=place
        ),
    )


def _draw_shots(train: Split, shots: int, *, seed: int, label: str | None) -> Split:
    """So many rows, or of each label; all rows of a label that has no more. More shots include those of fewer."""
    order = np.random.default_rng(seed).permutation(len(train.rows))
    kinds = [""] * len(order) if label is None else [str(value) for value in train.rows[label][:]]
    drawn: dict[str, list[int]] = {}
    for row in order.tolist():
        if len(taken := drawn.setdefault(kinds[row], [])) < shots:
            taken.append(row)
    chosen = sorted(row for rows in drawn.values() for row in rows)
    what = f"{shots:,} shots" if label is None else f"{shots:,} shots of each {label}"
    return dataclasses.replace(
        train, rows=train.rows.select(chosen), origin=f"{train.origin} ({what}: {len(chosen):,} rows)"
    )


@dataclass(frozen=True)
class EncodedSplit:
    """Rows in the form that training reads, in an Arrow file that is memory-mapped, not loaded."""

    name: str
    rows: datasets.Dataset
    origin: str
    skipped: dict[int, str]
    """Original row → why it was left out."""
    fingerprint: str
    """Digest of the encoded content: equal on every machine for equal data."""


def encode_split(
    split: Split,
    encode: Callable[[dict[str, list[Any]]], dict[str, list[Any]]],
    features: datasets.Features,
    *,
    key: str,
    max_bad_share: float,
    processes: int | None = None,
) -> EncodedSplit:
    """Encode a split once; the next run with the same rows and `key` finds it in the cache.

    `encode` maps a batch of examples (with `row`, the row's number) to a batch with columns `features`; a row that
    cannot be read has its reason in the column `error`. Raises DataError when more than `max_bad_share` have one.
    """
    digest = hashlib.sha256(f"{ENCODING_VERSION}|{split.rows._fingerprint}|{key}".encode()).hexdigest()[:32]

    def encode_batch(batch: dict[str, list[Any]], row: list[int]) -> dict[str, list[Any]]:
        return encode({**batch, "row": row})

    encoded = split.rows.map(
        encode_batch,
        with_indices=True,
        batched=True,
        batch_size=64,
        writer_batch_size=64,
        remove_columns=split.rows.column_names,
        features=datasets.Features({**features, "row": datasets.Value("int64"), "error": datasets.Value("string")}),
        new_fingerprint=digest,
        num_proc=processes if processes and len(split.rows) >= 512 * processes else None,
        desc=f"encoding {split.name}",
    )
    errors = encoded.data.column("error")
    bad = np.flatnonzero(np.asarray(pc.is_valid(errors)))
    rows = encoded.data.column("row")  # of which several may come from one example
    skipped = {rows[int(i)].as_py(): str(errors[int(i)].as_py()) for i in bad}
    if len(bad) > max_bad_share * len(encoded):
        shown = "\n".join(f"  row {row}: {reason}" for row, reason in list(skipped.items())[:10])
        more = f"\n  … and {len(skipped) - 10} more" if len(skipped) > 10 else ""
        raise DataError(
            f"{split.where}: {len(bad)} of {len(encoded)} examples cannot be used "
            f"(data.max_bad_share allows {max_bad_share:.1%}):\n{shown}{more}"
        )
    if skipped:
        encoded = encoded.select(np.setdiff1d(np.arange(len(encoded)), bad))
    return EncodedSplit(split.name, encoded.remove_columns("error"), split.origin, skipped, _content_digest(encoded))


def _content_digest(rows: datasets.Dataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for batch in rows.with_format("arrow").iter(256):
        for column in batch.columns:
            for value in column.to_pylist():
                digest.update(value if isinstance(value, bytes) else repr(value).encode())
    return digest.hexdigest()


def _media_folder(data: Source) -> Path | None:
    """Where relative paths in a csv or json file start: the folder of the file, or `dir`."""
    if data.dir and Path(data.dir).is_absolute():  # else a folder of a Hub repository
        return Path(data.dir)
    first = next(iter(_file_names(data)), "://")
    if "://" not in first:
        return Path(first).parent
    return Path(data.name) if data.name and Path(data.name).is_dir() else None


def _describe(data: Source) -> str:
    """The source as a person names it, without the folders of this machine."""
    parts = [Path(data.name).name if data.name and Path(data.name).is_absolute() else str(data.name)]
    if data.config:
        parts.append(data.config)
    if data.dir:
        parts.append(Path(data.dir).name)
    return " ".join(parts + [Path(n).name for n in _file_names(data)[:4]])


def _file_names(data: Source) -> list[str]:
    groups = data.files.values() if isinstance(data.files, dict) else [data.files or []]
    return [name for group in groups for name in ([group] if isinstance(group, str) else group)]


def _kind(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"{feature.num_classes} classes"
    return str(getattr(feature, "dtype", None) or type(feature).__name__)
