"""Files on this machine as tables: rows of tables as they are written, files of folders, each stored once in Arrow."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard
from pyarrow.dataset import ParquetFragmentScanOptions
from yaml import YAMLError

from tltasks.config.names import PACKED, TABLE_FORMATS, format_of
from tltasks.data.cache_keys import file_states
from tltasks.data.class_names import are_alike, clashing, join_rows
from tltasks.data.folders import (
    OTHER,
    SPLITS,
    SUFFIXES,
    MediaFolder,
    instead,
    media_folder,
    sift,
    some,
    split_folders,
    split_of_table,
    told,
)
from tltasks.data.label_lists import FLAG, as_flag
from tltasks.data.splits import BY, ROW_NAME
from tltasks.data.tables import UNREADABLE, Row, as_json, as_label, as_path, as_text, as_value, read_rows, why
from tltasks.errors import DataError
from tltasks.runtime.files import whole_file

Tables = dict[str, datasets.Dataset]
ROWS_AT_ONCE = 1000
READER = 3
"""Part of the key of stored tables: to be raised when rows are read in another way."""


@dataclass(frozen=True)
class Opened:
    """Splits of a source, and notes on it."""

    tables: Tables
    notes: list[str] = field(default_factory=list)
    """News for its user, such as files that are left out."""
    hints: dict[str, str] = field(default_factory=dict)
    """Why a split lacks a column that it might have, by split."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Folders that paths in the rows start in, by split."""


def conversion(key: str) -> Callable[[object], object]:
    """How a cell is read that a task takes for `key`."""
    if key == "label":
        return as_label
    if key.startswith(FLAG):
        return as_flag
    if key.startswith(BY):
        return as_value
    return as_path if key in SUFFIXES else as_json if key == "segments" else as_text


# ---------------------------------------------------------------------------------------------- tables


def open_files(groups: Mapping[str, Sequence[Path]], columns: Mapping[str, str], *, kind: str | None) -> Opened:
    """Tables by the files of each split; of csv and JSON the named columns, by what a task takes them for."""
    tables = {split: _open_split(files, columns, kind) for split, files in groups.items()}
    return Opened(tables, folders={split: files[0].parent for split, files in groups.items()})


def _open_split(files: Sequence[Path], columns: Mapping[str, str], kind: str | None) -> datasets.Dataset:
    kinds = {kind or format_of(file.name) for file in files}
    if unknown := [file.name for file in files if not (kind or format_of(file.name))]:
        raise DataError(
            f"{some(unknown)}: no table by the suffix; tables end in {', '.join(TABLE_FORMATS)}, or these and .gz"
        )
    if kinds == {"parquet"}:
        found = {file.name: datasets.Features.from_arrow_schema(pq.read_schema(file)) for file in files}
        # Of several files datasets (5.2, parquet.py) takes the first one's columns and class names for those of all.
        if clashing(found, list(columns.values())) or not are_alike(found.values()):
            return join_rows({file.name: _read_parquet([file]) for file in files}, list(columns.values()))
        return _read_parquet(files)
    if "parquet" in kinds:
        raise DataError(f"{some([file.name for file in files])}: one split is in parquet and in other formats")
    if kinds == {"text"}:
        columns = {"text": "text"}

    def rows() -> Iterator[Row]:
        for file in files:
            yield from _converted(file, columns, kind)

    label = columns.get("label")
    many, kind_of_label = _label_type(row[label] for row in rows()) if label else (False, str)

    def alike() -> Iterator[Row]:
        for row in rows():
            value = row[label] if label else None
            each = value if isinstance(value, list) else [value]
            if value is not None and (isinstance(value, list) is not many or {*map(type, each)} - {kind_of_label}):
                usual = "a whole number" if kind_of_label is int else "a name"
                usual = f"a list, each class {usual}" if many else usual
                raise DataError(f"{row[ROW_NAME]} `{label}` is {value!r}, and in the rows before {usual}")
            yield row

    types = {name: datasets.Value("string") for name in dict.fromkeys([*columns.values(), ROW_NAME])}
    if label:
        inner = datasets.Value("int64" if kind_of_label is int else "string")
        types[label] = datasets.List(inner) if many else inner
    states = [*map(str, files), file_states(files)]
    return store(alike(), datasets.Features(types), repr((states, sorted(columns.items()), kind)))


def _label_type(labels: Iterable[object]) -> tuple[bool, type]:
    """True where labels are lists, by the first one; and the type of the first class."""
    many = False
    for label in labels:
        many = many or isinstance(label, list)
        for one in label if isinstance(label, list) else [label]:
            if one is not None:
                return many, type(one)
    return many, str


def _read_parquet(files: Sequence[Path]) -> datasets.Dataset:
    # Read ahead, a file is held in memory as a whole (pyarrow 26, ParquetFragmentScanOptions.pre_buffer).
    options = ParquetFragmentScanOptions(pre_buffer=False)
    # By itself datasets finds a file again by its name and modification time alone (5.2, data_files.py).
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-parquet" / file_states(files)[:32]
    names = [glob.escape(str(file)) for file in files]
    return datasets.Dataset.from_parquet(names, cache_dir=str(cache), fragment_scan_options=options)


def _converted(file: Path, columns: Mapping[str, str], kind: str | None) -> Iterator[Row]:
    """Rows of a table, each with its place; raises DataError that names the first that holds something else."""
    with naming(file.name):
        for place, row in read_rows(file, list(dict.fromkeys(columns.values())), kind=kind):
            found = converted(row, columns, place)
            for column in (column for key, column in columns.items() if key in SUFFIXES):
                found[column] = found[column] and _path_of(str(found[column]), file.parent)
            yield found | {ROW_NAME: f"{file.name}{place}"}


def _path_of(path: str, folder: Path) -> str:
    """A path of a table in `folder`, also one that was written on Windows."""
    found = os.path.join(folder, path)  # noqa: PTH118
    return os.path.join(folder, path.replace("\\", "/")) if "\\" in path and not os.path.exists(found) else found  # noqa: PTH110, PTH118


def converted(row: Row | DataError, columns: Mapping[str, str], place: str) -> Row:
    """Cells of a row as a task takes its columns; raises DataError for a row that has something else there."""
    if isinstance(row, DataError):
        raise DataError(f"{place} {row}")
    found = dict(row)
    for key, column in columns.items():
        try:
            found[column] = conversion(key)(row[column])
        except DataError as error:
            raise DataError(f"{place} `{column}` {error}") from error
    return found


@contextmanager
def naming(table: str) -> Iterator[None]:
    """Errors of a table as DataError that begins with its name."""
    try:
        yield
    except UNREADABLE as error:
        reason = why(error)
        raise DataError(f"{table}{'' if reason.startswith((':', '[')) else ' '}{reason}.") from error


def store(rows: Iterable[Row], features: datasets.Features, key: str) -> datasets.Dataset:
    """Rows in an Arrow file of datasets' cache, which is memory-mapped; one of the same key is taken as it is."""
    name = hashlib.sha256(repr((READER, features, key)).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    path = Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-tables" / f"{name}.arrow"
    if not path.is_file():
        schema, left = features.arrow_schema, iter(rows)
        with whole_file(path) as place, pa.OSFile(str(place), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            while some_rows := list(itertools.islice(left, ROWS_AT_ONCE)):
                writer.write_table(pa.Table.from_pylist(some_rows, schema=schema))
    return datasets.Dataset.from_file(str(path))


def tables_of_folder(folder: Path, kind: str | None) -> tuple[dict[str, list[Path]], list[str]]:
    """Tables of a folder by their splits, which folders just below it or else their names stand for; and notes."""
    found, left_out = [], {}
    for name, fault in sift(folder, {*TABLE_FORMATS, *PACKED}):
        known = format_of(name)
        if fault is None and known is not None and (known == kind or (kind is None and known != "text")):
            found.append(name)
        else:
            left_out[name] = fault or OTHER
    if not found:
        raise DataError(f"holds no table{f' in {kind}' if kind else ''}{instead(left_out)}")
    splits = split_folders(found)
    named = {name: split_of_table(posixpath.basename(name)) for name in found}
    groups: dict[str, list[Path]] = {}
    for name in found:
        top, slash, _ = name.partition("/")
        if splits and not (slash and top in splits):
            left_out[name] = f"beside the folders of the splits ({', '.join(splits)})"
            continue
        split = splits[top] if splits else named[name] or "train"
        if not splits and any(named.values()) and named[name] is None:
            split = posixpath.basename(name).split(".")[0]
        groups.setdefault(split, []).append(folder / name)
    if not splits and any(named.values()) and len({posixpath.dirname(name) for name in found}) > 1:
        raise DataError(f"has tables in several folders ({some(found)}); name one of these as `dir`, or the files")
    return {split: groups[split] for split in in_order(groups)}, told(
        {name: reason for name, reason in left_out.items() if reason != OTHER}
    )


def declared_files(folder: Path, config: str | None) -> dict[str, str | list[str]]:
    """Files by split where the card of a data set, its README.md, declares them; none where it does not."""
    try:
        declared = DatasetCard.load(folder / "README.md").data.to_dict().get("configs") or []
        configs = {str(one.get("config_name", "default")): one.get("data_files") for one in declared}
    except (OSError, ValueError, AttributeError, YAMLError):
        return {}
    name = config or ("default" if "default" in configs or len(configs) != 1 else next(iter(configs)))
    if len(configs) > 1 and name not in configs:
        raise DataError(f"its card declares the configurations {', '.join(configs)}; name one with `config`")
    groups: dict[str, str | list[str]] = {}
    files = configs.get(name) or []
    for item in [files] if isinstance(files, (str, dict)) else files:
        split, paths = (item["split"], item["path"]) if isinstance(item, dict) else ("train", item)
        places = [str(folder / path) for path in ([paths] if isinstance(paths, str) else paths)]
        groups[split] = [*groups.get(split, []), *places]
    return groups


# --------------------------------------------------------------------------------------- media folders


def open_media(folder: Path, kind: str, columns: Mapping[str, str] | None = None) -> Opened:
    """Images or recordings of a folder; with metadata, of its columns the named ones or all."""
    found = media_folder(folder, kind)
    listed = _metadata(found, columns or {}, every=columns is None)
    left_out, hints, again = dict(found.left_out), dict(found.unlabelled), list[str]()
    names = sorted({c for split, files in found.files.items() if split not in hints for _, c in files if c})
    tables: Tables = {}
    for split in in_order([*found.files, *listed]):
        files = found.files.get(split, [])
        if split in listed:
            known = Counter(str(row[ROW_NAME]) for row in listed[split])
            if twice := [name for name, times in known.items() if times > 1]:
                again.append(f"listed more than once in the metadata of {split}: {some(twice)}")
            left_out |= {name: "in no metadata file" for name, _ in files if name not in known}
            hints[split] = "a metadata file replaces the folder names as labels: add a label column to it"
            tables[split] = _store_listed(listed[split], folder, kind)
            continue
        if len(names) < 2:
            hints.setdefault(split, f"all its files lie in one folder, {', '.join(names)}")
        if listed:
            hints[split] = f"{', '.join(listed)} has a metadata file ({some(found.metadata)}), and {split} has none"
        labelled = files if split not in found.unlabelled and len(names) > 1 else [(name, None) for name, _ in files]
        tables[split] = _store_media(kind, [(folder / name, name, label) for name, label in labelled], names)
    notes = [*found.notes, *again, *(f"left out of {folder.name}, {line}" for line in told(left_out))]
    return Opened(tables, notes, hints)


def open_media_files(groups: Mapping[str, Sequence[Path]], kind: str) -> Opened:
    """Images or recordings that are named file by file; their classes are the folders that they lie in."""
    names = sorted({file.parent.name for files in groups.values() for file in files})
    tables, notes = {}, []
    for split, files in groups.items():
        fitting = [file for file in files if file.suffix.lower() in SUFFIXES[kind]]
        left_out = {file.name: OTHER for file in files if file.suffix.lower() not in SUFFIXES[kind]}
        notes += [f"left out of {split}, {line}" for line in told(left_out)]
        taken = [(file, f"{file.parent.name}/{file.name}", file.parent.name) for file in fitting]
        tables[split] = _store_media(kind, taken if len(names) > 1 else [(f, n, None) for f, n, _ in taken], names)
    return Opened(tables, notes)


def _store_media(kind: str, files: Sequence[tuple[Path, str, str | None]], names: list[str]) -> datasets.Dataset:
    """Files with their names and classes, of those called so; without a class where one of them has none."""
    features = datasets.Features({kind: _media_feature(kind), ROW_NAME: datasets.Value("string")})
    if all(label is not None for _, _, label in files):
        features["label"] = datasets.ClassLabel(names=names)
    numbers = {name: i for i, name in enumerate(names)}
    rows: Iterator[Row] = (
        {kind: {"bytes": None, "path": str(file)}, ROW_NAME: name, "label": numbers.get(label or "")}
        for file, name, label in files
    )
    return store(rows, features, repr([(str(file), name, label) for file, name, label in files]))


def _media_feature(kind: str) -> datasets.Image | datasets.Audio:
    return datasets.Image(decode=False) if kind == "image" else datasets.Audio(decode=False)


def _metadata(found: MediaFolder, columns: Mapping[str, str], *, every: bool) -> dict[str, list[Row]]:
    """Rows of metadata files by split, each with the path of its file below the folder as its name."""
    splits = split_folders([*(name for files in found.files.values() for name, _ in files), *found.metadata])
    rows: dict[str, list[Row]] = {}
    for table in found.metadata:
        with naming(table):
            for place, row in read_rows(found.root / table):
                wanted = (
                    {key: c for key, c in columns.items() if key != found.kind and c in row}
                    if isinstance(row, dict)
                    else {}
                )
                cells = converted(row, wanted, place)
                name = _listed_name(cells.pop("file_name", None), posixpath.dirname(table), place)
                top, slash, _ = name.partition("/")
                split = splits.get(top, "train") if slash else "train"
                kept = cells if every else {column: cells[column] for column in wanted.values()}
                rows.setdefault(split, []).append({**kept, ROW_NAME: name})
    return rows


def _listed_name(value: object, folder: str, place: str) -> str:
    """Path below the media folder of a file that a metadata file in `folder` lists."""
    if not isinstance(value, str) or not value:
        raise DataError(f"{place} has no file_name")
    name = posixpath.normpath(posixpath.join(folder, value.replace("\\", "/")))
    if "://" in value or name.startswith(("/", "../")):
        raise DataError(f"{place} file_name is {value}; files lie below the folder, and their paths are relative")
    return name


def _store_listed(rows: list[Row], folder: Path, kind: str) -> datasets.Dataset:
    """Rows of metadata with the files that they list, under types that fit every cell of a column."""
    fields = [pa.field(ROW_NAME, pa.string())]
    for column in dict.fromkeys(name for row in rows for name in row if name != ROW_NAME):
        try:
            found = pa.array([row.get(column) for row in rows]).type
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(f"column `{column}` of the metadata has values of several kinds ({error})") from error
        fields.append(pa.field(column, pa.string() if pa.types.is_null(found) else found))
    features = datasets.Features({kind: _media_feature(kind), **datasets.Features.from_arrow_schema(pa.schema(fields))})
    stored: Iterator[Row] = ({**row, kind: {"bytes": None, "path": str(folder / str(row[ROW_NAME]))}} for row in rows)
    return store(stored, features, json.dumps([str(folder), rows], default=str))


def in_order(splits: Iterable[str]) -> list[str]:
    """Splits once each: train, validation, test, and others as they come."""
    usual = [*dict.fromkeys(SPLITS.values())]
    return sorted(dict.fromkeys(splits), key=lambda name: usual.index(name) if name in usual else len(usual))
