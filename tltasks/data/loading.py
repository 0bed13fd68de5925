"""Load a recipe's splits, from the Hub or from disk."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import datasets
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.csv.csv import CsvConfig
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from pyarrow.dataset import ParquetFragmentScanOptions

from tltasks.config.data import BUILDERS, ClassData, Data, ExtraTest, Files, Source, Splits
from tltasks.config.names import format_of, is_local_name
from tltasks.data import local
from tltasks.data.cache_keys import file_states
from tltasks.data.class_names import join_rows
from tltasks.data.folders import SUFFIXES, fault_of, sift, split_of_table, told
from tltasks.data.held_out import draw_shots, hold_out
from tltasks.data.label_lists import FLAG, in_lists, of_classes
from tltasks.data.relabel import relabel
from tltasks.data.splits import BY, LANGUAGE, ROW_NAME, SOURCE, Columns, Split, located
from tltasks.data.streaming import FORMATS, Stream, open_shards, rows_in, undecoded
from tltasks.data.tables import as_label, as_text
from tltasks.errors import DataError, did_you_mean, first_line, nearby, siblings
from tltasks.runtime.files import content_of

TEXT_TYPES = ("string", "large_string", "string_view")
FIRST_BYTES = 2**26
"""Of the first rows of a stream, for what is told by rows as they lie in the shards."""
SOURCE_FAULTS = (DataError, FileNotFoundError, ConnectionError, ValueError, HfHubHTTPError, DatasetsError)
"""Raised by a source that cannot be opened."""
Locate = Callable[[str], str]
"""Where the recipe says a key below `data`, such as `columns.label`: `recipe.yaml:5:3  data.columns.label`."""


def load_splits(
    data: Data, *, seed: int, label: str | None, train: bool = True, locate: Locate = "data.{}".format
) -> dict[str, Split]:
    """Load every split that the recipe names: train, validation, test, and each extra test set.

    `label` is the task's column by which held-out shares are stratified. Raises DataError for all that is missing,
    with what there is instead.
    """
    wanted, shares = data.splits, data.splits.shares
    holds = (train or shares) and not data.streaming
    specs = {"train": wanted.train if holds else None, "validation": wanted.validation, "test": wanted.test}
    splits: dict[str, Split] = {}
    mistakes: dict[str, None] = {}  # in order, and a column that all splits lack once
    columns = _columns(data)
    held_by = [rows.column for rows in wanted.held_by.values() if rows.column is not None]
    by = {f"{BY}{column}": column for column in held_by if column not in columns.values()}
    if data.streaming:
        opened, splits = _open_stream(data, columns, seed=seed, train=train, locate=locate)
    else:
        opened = open_source(data, columns | by, place=locate("name"))
    for name, spec in specs.items():
        if isinstance(spec, str):
            with _noted(mistakes):
                taken = columns | by if name == "train" else columns
                splits[name] = _take(name, taken, data, opened, spec, key=f"splits.{name}", locate=locate)
                known = specs["train"] if train and name != "train" and "train" in splits else None
                if isinstance(known, str) and (shared := _shared_rows(opened.tables, known, spec)):
                    note = f"{shared:,} rows of `{spec}`, the {name} split, are in train (`{known}`), too"
                    splits[name] = dataclasses.replace(splits[name], notes=(*splits[name].notes, note))
    for name, extra in data.extra_test.items():
        with _noted(mistakes):
            splits[name] = _extra_test(name, data, extra, locate=locate)
    if mistakes:
        raise DataError("\n".join(mistakes))
    further = _further_sources(data, locate=locate) if train else {}
    if isinstance(data, ClassData):
        whole = in_lists(splits | further, data, locate)
        splits, further = ({name: whole[name] for name in part} for part in (splits, further))
    if isinstance(data, ClassData) and data.relabel is not None:
        splits = relabel(splits, Path(data.relabel), locate("relabel"), class_names=data.class_names)
    n_rows = len(splits["train"].rows) if shares else 0
    for name, share in sorted(shares.items(), key=lambda item: _is_fold(wanted, item[0]), reverse=True):
        n_held = max(1, round(n_rows * share))
        drawn_with = seed if wanted.seed is None else wanted.seed
        rows = wanted.held_by.get(name)
        key = next((key for key, column in (columns | by).items() if rows and column == rows.column), None)
        place = locate(f"splits.{name}")
        held = hold_out(splits["train"], n_held, place, seed=drawn_with, label=label, by=rows, key=key)
        splits["train"], splits[name] = held[0], dataclasses.replace(held[1], name=name)
    if wanted.set_aside is not None:
        splits.pop("test")
    for name, split in splits.items():
        splits[name] = dataclasses.replace(
            split, rows=split.rows.remove_columns(sorted(by.keys() & set(split.rows.column_names)))
        )
    if data.shots is not None and "train" in splits:
        splits["train"] = draw_shots(splits["train"], data.shots, seed=seed, label=label)
    if further:
        splits["train"] = _with_further_rows(splits["train"], data, further, locate=locate)
    return splits


def _open_stream(
    data: Data, columns: dict[str, str], *, seed: int, train: bool, locate: Locate
) -> tuple[local.Opened, dict[str, Split]]:
    """The splits that are scored, held as ever, and the one to `train` on, whose rows are a stream."""
    place, spec = locate("name"), str(data.splits.train)
    try:
        if _is_local(data):
            kind, groups = _local_shards(data)
            features, count = None, None
        else:
            builder = _hub_builder(data)
            kind, features, groups = builder.name, builder.info.features, builder.config.data_files or {}
            groups = {str(split): list(files) for split, files in groups.items()}
            count = builder.info.splits[spec].num_examples if spec in (builder.info.splits or {}) else None
        if kind not in FORMATS:
            raise DataError(f"is in {kind}, and `streaming` reads {', '.join(FORMATS)}")
        if not (files := groups.pop(spec, [])):
            raise DataError(f"has no split `{spec}`{did_you_mean(spec, groups) or '.'} It has: {', '.join(groups)}")
        rows = open_shards(kind, files, features)
        if _is_local(data):
            count = rows_in(kind, files)
    except SOURCE_FAULTS as error:
        raise DataError(f"{place}: {describe(data)}: {_why_not(data, error, place)}") from error
    asked = [one for one in (data.splits.validation, data.splits.test) if isinstance(one, str)]
    scored = {split: own for split, own in groups.items() if any(split in one for one in asked)}
    source = Source(name=kind, files={split: list(own) for split, own in scored.items()})
    opened = open_source(source, columns, place=place) if scored else local.Opened({})
    digest = hashlib.sha256(repr((kind, files, file_states(files))).encode()).hexdigest()[:32]
    prepare = partial(_select_columns, columns=columns, source=describe(data), locate=locate, hint="")
    stream = Stream(rows, tuple(files), prepare, count, digest, content_of(files), data.shuffle_buffer, seed)
    return opened, {"train": _first_rows(stream, data, locate)} if train else {}


def _local_shards(data: Source) -> tuple[str, dict[str, list[str]]]:
    """The format of local shards, and the files of each split."""
    kind = data.name if data.name in BUILDERS else None
    root = Path(data.dir or str(data.name))
    files = data.files or (str(root) if root.is_file() else local.declared_files(root, data.config))
    groups = _named_files(files)[0] if files else local.tables_of_folder(root, kind)[0]
    kinds = {kind or format_of(file.name) or "webdataset" for own in groups.values() for file in own}
    return " and ".join(sorted(kinds)), {split: [str(file) for file in own] for split, own in groups.items()}


def _first_rows(stream: Stream, data: Data, locate: Locate) -> Split:
    """The rows of a stream that its buffer holds first, which stand for all where something is told by rows."""
    origin, place, held = f"{describe(data)} {data.splits.train}", locate("splits.train"), list[datasets.Dataset]()
    for rows, *_ in stream.read(0, 0, 0):
        held.append(rows)
        if sum(map(len, held)) >= stream.buffer or sum(part.data.nbytes for part in held) > FIRST_BYTES:
            break
    if not held:
        raise DataError(f"{place}: {origin} has no rows; name another split.")
    first = datasets.concatenate_datasets(held).select(range(min(stream.buffer, sum(map(len, held)))))
    label = of_classes(first.features["label"]) if "label" in first.features else None
    if label is not None and not isinstance(label, datasets.ClassLabel) and not getattr(data, "class_names", None):
        raise DataError(
            f"{locate('columns.label')}: {origin}: which classes there are is told by all rows at once, and "
            "`streaming` reads them as they come. List them: `class_names: [...]` under `data`."
        )
    note = (
        f"streamed, {'rows unknown' if stream.count is None else f'{stream.count:,} rows'} in "
        f"{len(stream.files):,} shards: what is told of it by rows, and what baselines know of it, is of the first "
        f"{stream.buffer:,} at most; near-duplicates of scored rows are not looked for"
    )
    folder = _media_folder(data)
    return Split("train", first, origin, folder, place, notes=(note,), stream=stream)


def _further_sources(data: Data, *, locate: Locate) -> dict[str, Split]:
    """The further sources to train on, by their keys."""
    found, columns = dict[str, Split](), _columns(data)
    for name, extra in data.extra_train.items():
        source, key = data.source_of(extra), f"extra_train.{name}"
        opened = open_source(source, columns, place=locate(key))
        spec = extra.split or (next(iter(opened.tables)) if len(opened.tables) == 1 else str(data.splits.train))
        found[key] = _take(name, columns, source, opened, spec, key=f"{key}.split", locate=locate)
    return found


def _with_further_rows(train: Split, data: Data, further: dict[str, Split], *, locate: Locate) -> Split:
    """The training rows with those of the further sources after them, told apart by the column SOURCE."""
    columns, parts, notes = _columns(data), {train.origin: _numbered(train.rows, 0)}, list(train.notes)
    for number, (name, extra) in enumerate(data.extra_train.items(), start=1):
        split = further[f"extra_train.{name}"]
        parts[f"{name} ({split.origin})"] = _numbered(_beside_others(split, name), number)
        weight = "" if extra.weight == 1 else f", each met {extra.weight:g} times as often as one of the data's own"
        notes += [f"{name} adds {len(split.rows):,} rows to train on{weight}", *split.notes]
    try:
        rows = join_rows(parts, list(columns))
    except DataError as error:
        raise DataError(f"{locate('extra_train')}: {error}") from error
    return dataclasses.replace(train, rows=rows, origin=" + ".join(parts), notes=tuple(notes))


def _numbered(rows: datasets.Dataset, source: int) -> datasets.Dataset:
    return rows.add_column(SOURCE, [source] * len(rows))


def _beside_others(split: Split, name: str) -> datasets.Dataset:
    """The rows as they stand beside those of another folder: files by whole paths, rows by the source, too."""
    media = next((key for key in SUFFIXES if key in split.rows.column_names), None)
    folder = None if split.folder is None else split.folder.absolute()

    def changed(row: dict[str, object]) -> dict[str, object]:
        found: dict[str, object] = {ROW_NAME: f"{name}: {row[ROW_NAME]}"} if ROW_NAME in row else {}
        if media is not None and folder is not None:
            value, path = row[media], located(row[media], folder)
            found[media] = {**value, "path": path} if isinstance(value, dict) and isinstance(path, str) else path
        return found

    return split.rows.map(changed, features=split.rows.features, desc=f"finding {name}")


def _is_fold(splits: Splits, name: str) -> bool:
    """True for a part of all rows, which is the same whatever else is held out."""
    rows = splits.held_by.get(name)
    return rows is not None and rows.folds is not None


@contextmanager
def _noted(mistakes: dict[str, None]) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        mistakes[str(error)] = None


def _extra_test(name: str, data: Data, extra: ExtraTest, *, locate: Locate) -> Split:
    source, key = data.source_of(extra), f"extra_test.{name}"
    opened = open_source(source, _columns(data), place=locate(key))
    spec = extra.split or (next(iter(opened.tables)) if len(opened.tables) == 1 else data.splits.test)
    if not isinstance(spec, str):
        raise DataError(f"{locate(key)}: has the splits {', '.join(opened.tables)}; name one with `split`.")
    return _take(name, _columns(data), source, opened, spec, key=f"{key}.split", locate=locate)


def _columns(data: Data) -> dict[str, str]:
    """The data set's columns by what the task takes them for."""
    named: dict[str, str | list[str] | None] = getattr(data, "columns").model_dump()  # noqa: B009 (a key of every task's Data)
    found = {key: column for key, column in named.items() if isinstance(column, str)}
    by_class = named["label"] if isinstance(named.get("label"), list) else []
    return found | {f"{FLAG}{column}": column for column in by_class or []}


def _take(
    name: str, columns: dict[str, str], source: Source, opened: local.Opened, spec: str, *, key: str, locate: Locate
) -> Split:
    """The rows of a split specification, with the task's columns."""
    origin, place = describe(source), locate(key)
    rows = _slice(opened.tables, spec, list(columns.values()), place=place, source=origin)
    first = spec.split("[")[0].split("+")[0].strip()
    rows = _select_columns(rows, columns, source=origin, locate=locate, hint=opened.hints.get(first, ""))
    if not len(rows):
        raise DataError(f"{place}: {origin} {spec} has no rows; name another split.")
    folder = opened.folders.get(first) or _media_folder(source)
    return Split(name, rows, f"{origin} {spec}", folder, place, tuple(opened.notes))


# ------------------------------------------------------------------------------------------- tables


class _SoundPath(datasets.Audio):  # type: ignore[misc]
    """Sound files by their paths, to be decoded by soundfile.

    To note where one lies, datasets wants torchcodec and so a system's FFmpeg (datasets 5.2, features/audio.py,
    encode_example).
    """

    def encode_example(self, value: str | Path) -> dict[str, str | None]:
        return {"bytes": None, "path": str(value)}


def _load_hub(data: Source, columns: dict[str, str]) -> local.Tables:
    """All splits of a Hub data set, or of a builder's files on the web, media undecoded."""
    options = {"fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)} if data.name == "parquet" else {}
    builder = _hub_builder(data, **options)
    if isinstance(builder.config, CsvConfig) and builder.info.features is None:
        # pandas guesses: 007 would be 7, and a class called NA a missing value
        as_written = {column: str for key, column in columns.items() if local.conversion(key) in (as_text, as_label)}
        builder = _hub_builder(data, converters=as_written, keep_default_na=False, na_values=[""])
    if getattr(builder, "BASE_FEATURE", None) is datasets.Audio:
        builder.BASE_FEATURE = _SoundPath
    builder.download_and_prepare()
    return {split: undecoded(rows) for split, rows in builder.as_dataset().items()}


def _hub_builder(data: Source, **options: object) -> datasets.DatasetBuilder:
    return datasets.load_dataset_builder(
        str(data.name), data.config, data_dir=data.dir, data_files=data.files, revision=data.revision, **options
    )


@contextmanager
def offline() -> Iterator[None]:
    """Ask the Hub's caches alone.

    Both libraries read the environment once (huggingface_hub 2.4, constants.py; datasets 5.2, config.py).
    """
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def open_source(data: Source, columns: dict[str, str], *, place: str) -> local.Opened:
    """All splits of a source, media left undecoded so that one bad file cannot end the run."""
    try:
        reads = _is_local(data) and data.name != "webdataset"
        found = _open_local(data, columns) if reads else local.Opened(_load_hub(data, columns))
        return dataclasses.replace(found, tables={name: undecoded(rows) for name, rows in found.tables.items()})
    except SOURCE_FAULTS as error:
        raise DataError(f"{place}: {describe(data)}: {_why_not(data, error, place)}") from error


def _is_local(data: Source) -> bool:
    """True for files of this machine, by their names: whatever cannot be a Hub id, or is there."""
    name = str(data.name)
    if any("://" in file for file in _file_names(data)):
        return False
    return name in BUILDERS or is_local_name(name) or Path(name).exists()


def _open_local(data: Source, columns: dict[str, str]) -> local.Opened:
    """Splits of a folder or of files, by the builder that the source names, or else by what is there."""
    name = str(data.name)
    kind = {"imagefolder": "image", "audiofolder": "audio"}.get(name, name) if name in BUILDERS else None
    root = Path(data.dir or name)
    media = next((key for key in columns if key in SUFFIXES), None) if kind is None else kind
    files = data.files or (str(root) if root.is_file() else local.declared_files(root, data.config))
    if data.config and kind is None and not files:
        root /= data.config
    if files:
        groups, notes = _named_files(files)
        opened = (
            local.open_media_files(groups, kind) if kind in SUFFIXES else local.open_files(groups, columns, kind=kind)
        )
        return dataclasses.replace(opened, notes=[*notes, *opened.notes])
    if root.exists() and (fault := fault_of(root)):
        raise DataError(f"{root.name} is {fault}")
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder or file {root.name}{nearby(root)}")
    if (root / "dataset_dict.json").is_file() or (root / "dataset_info.json").is_file():
        loaded = datasets.load_from_disk(str(root))
        return local.Opened({"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded))
    if media in SUFFIXES and (kind is not None or _holds_media(root, media)):
        return local.open_media(root, media, columns)
    tables, notes = local.tables_of_folder(root, kind)
    return dataclasses.replace(local.open_files(tables, columns, kind=kind), notes=notes)


def _holds_media(folder: Path, kind: str) -> bool:
    """True for a folder of images or sound, rather than one of tables that name them."""
    if any(split_of_table(entry.name) and format_of(entry.name) for entry in folder.iterdir()):
        return False
    return any(fault is None for _, fault in sift(folder, SUFFIXES[kind]))


def _named_files(files: Files) -> tuple[dict[str, list[Path]], list[str]]:
    """Files by split, of names and patterns, and notes; raises FileNotFoundError for one that fits none."""
    groups = files if isinstance(files, dict) else {"train": files or []}
    found: dict[str, list[Path]] = {}
    left_out: dict[str, str] = {}
    for split, names in groups.items():
        for name in [names] if isinstance(names, str) else names:
            fitting = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))  # noqa: PTH110, PTH207
            # once each, whichever way through links a pattern finds it
            once = {os.path.realpath(file): Path(file) for file in reversed(fitting) if not os.path.isdir(file)}  # noqa: PTH112
            if not once:
                raise FileNotFoundError(f"there is no file {Path(name).name}{nearby(Path(name))}")
            faults = {file: fault_of(file) for file in once.values()}
            left_out |= {file.name: fault for file, fault in faults.items() if fault}
            found.setdefault(split, []).extend(sorted((file for file, fault in faults.items() if not fault), key=str))
        if not found[split]:
            raise DataError(f"no file can be read; {'; '.join(told(left_out))}")
    return found, [f"left out, {line}" for line in told(left_out)]


def _why_not(data: Source, error: Exception, place: str) -> str:
    """Why a source could not be loaded, and what to do."""
    # `place` begins with the recipe's file, where that is known.
    beside = Path(place.split(":")[0]).parent.absolute() / str(data.name)
    close = "" if _is_local(data) else did_you_mean(beside.name, siblings(beside)).rstrip("?")
    here = f"; no folder of this name is here{close}" if close else ""
    match error:
        case DataError():
            return str(error)
        case OfflineModeIsEnabled():
            return f"not in the local cache, and offline mode is on (HF_HUB_OFFLINE){here}."
        case HfHubHTTPError():
            return f"the Hub refused: {first_line(error)}. For gated data run `hf auth login`."
        # all that datasets leaves of the Hub's answer (datasets 5.2, load.py)
        case FileNotFoundError() if "is a gated dataset" in str(error):
            return (
                "is gated: whoever wants it asks first. 1. Log in on the Hub's site and ask on "
                f"{constants.ENDPOINT}/datasets/{data.name}. 2. When access is granted: `hf auth login`, with a "
                "token that may read this repository. 3. Run the same command again."
            )
        case FileNotFoundError() | HFValidationError():
            return (
                f"not found ({first_line(error)}){here}. Name a Hub id, an existing folder (./folder), or a builder "
                "(imagefolder, csv, json, parquet) with `dir` or `files`; private data needs `hf auth login`."
            )
        case ConnectionError():
            return f"the Hub could not be reached ({first_line(error)}){here}."
    return f"could not be read: {first_line(error.__cause__ or error)}"


def _slice(tables: local.Tables, spec: str, columns: list[str], *, place: str, source: str) -> datasets.Dataset:
    """Rows of a split specification such as `train[:95%]` or `train+test`."""
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute({k: len(v) for k, v in tables.items()})
    except (ValueError, AssertionError, AttributeError) as error:
        raise DataError(
            f"{place}: {source} has no split `{spec}`{did_you_mean(spec.split('[')[0], tables) or '.'} "
            f"It has: {', '.join(f'{k} ({len(v):,} rows)' for k, v in tables.items())}. "
            "A share of train is held out, of each class in proportion, by a number: `test: 0.2`."
        ) from error
    # An empty range is none at all: datasets (5.2, arrow_dataset.py, _select_contiguous) refuses one behind the end.
    selected = {
        f"{p.splitname} ({i})": tables[p.splitname].select(range(p.from_ or 0, p.to or 0) or range(0))
        for i, p in enumerate(parts, start=1)
    }
    try:
        return join_rows(selected, columns)
    except DataError as error:
        raise DataError(f"{place}: {source}: {error}") from error


def _shared_rows(tables: local.Tables, one: str, other: str) -> int:
    """The number of rows that two specifications of splits, which fit the tables, have in common."""
    sizes = {name: len(rows) for name, rows in tables.items()}
    parts, others = (datasets.ReadInstruction.from_spec(spec).to_absolute(sizes) for spec in (one, other))
    pairs = [(a, b) for a in parts for b in others if a.splitname == b.splitname]
    return sum(max(0, min(a.to or 0, b.to or 0) - max(a.from_ or 0, b.from_ or 0)) for a, b in pairs)


def _select_columns(
    rows: datasets.Dataset, columns: dict[str, str], *, source: str, locate: Locate, hint: str
) -> datasets.Dataset:
    """Keep the task's columns, under the task's names, and texts as texts."""
    present = [name for name in rows.column_names if name != ROW_NAME]
    kinds = {name: _kind(feature) for name, feature in rows.features.items() if name != ROW_NAME}
    missing = {key: column for key, column in columns.items() if column not in present}
    if missing:
        lines = [
            f"{locate(_place_of(key))}: {source} has no column `{column}`{did_you_mean(column, present) or '.'}"
            for key, column in missing.items()
        ]
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise DataError("\n".join(lines) + f"\nIts columns: {listed}.{f' Why: {hint}.' if hint else ''}")
    rows = rows.select_columns([*columns.values(), *([ROW_NAME] if ROW_NAME in rows.column_names else [])])
    rows = rows.rename_columns({column: key for key, column in columns.items() if column != key})
    for key in (key for key in columns if local.conversion(key) is as_text):
        feature = rows.features[key]
        if isinstance(feature, datasets.ClassLabel) and key == LANGUAGE:
            named = partial(_by_name, key, feature)
            rows = rows.map(named, batched=True, features=_as_string(rows.features, key))
            feature = rows.features[key]
        inner = getattr(getattr(feature, "feature", None), "dtype", None)
        if inner in TEXT_TYPES:  # sentences, in a list
            rows = rows.map(partial(_join_texts, key), batched=True, features=_as_string(rows.features, key))
        elif getattr(feature, "dtype", None) == "null":
            rows = rows.cast(_as_string(rows.features, key))
        elif getattr(feature, "dtype", None) not in TEXT_TYPES:
            raise DataError(
                f"{locate(f'columns.{key}')}: {source}: `{columns[key]}` holds {kinds[columns[key]]} from row 0 on, "
                "where a text is wanted, or a list of texts"
            )
    return rows


def _place_of(key: str) -> str:
    """Key of a recipe that names the column which a task takes for `key`."""
    return "splits" if key.startswith(BY) else "columns.label" if key.startswith(FLAG) else f"columns.{key}"


def _join_texts(key: str, batch: Columns) -> Columns:
    return {key: [as_text(value) for value in batch[key]]}


def _by_name(key: str, feature: datasets.ClassLabel, batch: Columns) -> Columns:
    return {key: [None if value is None or value < 0 else feature.int2str(value) for value in batch[key]]}


def _as_string(features: datasets.Features, key: str) -> datasets.Features:
    return datasets.Features({**features, key: datasets.Value("string")})


# ------------------------------------------------------------------------------------------- wording


def _media_folder(data: Source) -> Path | None:
    """The folder that relative paths in a csv or json file start in: the file's, or `dir`."""
    if data.dir and Path(data.dir).is_absolute():  # else a folder of a Hub repository
        return Path(data.dir)
    first = next(iter(_file_names(data)), "://")
    if "://" not in first:
        return Path(first).parent
    return Path(data.name) if data.name and Path(data.name).is_dir() else None


def describe(data: Source) -> str:
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


def _kind(feature: object) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"{feature.num_classes} classes"
    return str(getattr(feature, "dtype", None) or type(feature).__name__)
