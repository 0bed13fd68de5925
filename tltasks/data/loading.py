"""Load a recipe's splits, from the Hub or from disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets.exceptions import DatasetsError
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from pyarrow.dataset import ParquetFragmentScanOptions

from tltasks.config.data import Data, ExtraTest, Source
from tltasks.data.held_out import draw_shots, hold_out
from tltasks.data.splits import Split
from tltasks.errors import DataError, did_you_mean, first_line

Tables = dict[str, datasets.Dataset]
Locate = Callable[[str], str]
"""Where the recipe says a key below `data`, such as `columns.label`: `recipe.yaml:5:3  data.columns.label`."""


def load_splits(
    data: Data, *, seed: int, label: str | None, train: bool = True, locate: Locate = "data.{}".format
) -> dict[str, Split]:
    """Load every split that the recipe names: train, validation, test, and each extra test set.

    `label` is the task's column by which held-out shares are stratified. Raises DataError for all that is missing,
    with what there is instead.
    """
    wanted = data.splits
    shares = {n: s for n, s in (("validation", wanted.validation), ("test", wanted.test)) if isinstance(s, float)}
    specs = {"train": wanted.train if train or shares else None, "validation": wanted.validation, "test": wanted.test}
    splits: dict[str, Split] = {}
    mistakes: dict[str, None] = {}  # in order, and a column that all splits lack once
    tables = _load_tables(data, place=locate("name"))
    for name, spec in specs.items():
        if isinstance(spec, str):
            with _noted(mistakes):
                splits[name] = _take(name, data, data, tables, spec, key=f"splits.{name}", locate=locate)
    for name, extra in data.extra_test.items():
        with _noted(mistakes):
            splits[name] = _extra_test(name, data, extra, locate=locate)
    if mistakes:
        raise DataError("\n".join(mistakes))
    n_rows = len(splits["train"].rows) if shares else 0
    for name, share in shares.items():
        n_held = max(1, round(n_rows * share))
        held = hold_out(splits["train"], n_held, locate(f"splits.{name}"), seed=seed, label=label)
        splits["train"], splits[name] = held[0], dataclasses.replace(held[1], name=name)
    if data.shots is not None and "train" in splits:
        splits["train"] = draw_shots(splits["train"], data.shots, seed=seed, label=label)
    return splits


@contextmanager
def _noted(mistakes: dict[str, None]) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        mistakes[str(error)] = None


def _extra_test(name: str, data: Data, extra: ExtraTest, *, locate: Locate) -> Split:
    source, key = data.source_of(extra), f"extra_test.{name}"
    tables = _load_tables(source, place=locate(key))
    spec = extra.split or (next(iter(tables)) if len(tables) == 1 else data.splits.test)
    if not isinstance(spec, str):
        raise DataError(f"{locate(key)}: has the splits {', '.join(tables)}; name one with `split`.")
    return _take(name, data, source, tables, spec, key=f"{key}.split", locate=locate)


def _take(name: str, data: Data, source: Source, tables: Tables, spec: str, *, key: str, locate: Locate) -> Split:
    """The rows of a split specification, with the task's columns."""
    named: dict[str, str | None] = getattr(data, "columns").model_dump()  # noqa: B009 (a key of every task's Data)
    columns = {key: column for key, column in named.items() if column is not None}
    origin, place = describe(source), locate(key)
    rows = _select_columns(_slice(tables, spec, place=place, source=origin), columns, source=origin, locate=locate)
    if not len(rows):
        raise DataError(f"{place}: {origin} {spec} has no rows; name another split.")
    return Split(name, rows, f"{origin} {spec}", _media_folder(source), place)


# ------------------------------------------------------------------------------------------- tables


class _SoundPath(datasets.Audio):  # type: ignore[misc]
    """Sound files by their paths, to be decoded by soundfile.

    To note where one lies, datasets wants torchcodec and so a system's FFmpeg (datasets 5.2, features/audio.py,
    encode_example).
    """

    def encode_example(self, value: str | Path) -> dict[str, str | None]:
        return {"bytes": None, "path": str(value)}


def load_tables(name: str, config: str | None = None, **arguments: object) -> Tables:
    """All splits of a Hub data set, a folder or a builder, as `datasets.load_dataset` loads them; media undecoded."""
    builder = datasets.load_dataset_builder(name, config, **arguments)
    if getattr(builder, "BASE_FEATURE", None) is datasets.Audio:
        builder.BASE_FEATURE = _SoundPath
    builder.download_and_prepare()
    return {split: _undecoded(rows) for split, rows in builder.as_dataset().items()}


def _undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    for column, feature in rows.features.items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            rows = rows.cast_column(column, type(feature)(decode=False))
    return rows


def _load_tables(data: Source, *, place: str) -> Tables:
    """All splits of a source, media left undecoded so that one bad file cannot end the run."""
    assert data.name is not None
    folder = Path(data.name)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(data.name)
            tables = {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded
            return {name: _undecoded(rows) for name, rows in tables.items()}
        # Read ahead, a file is held in memory as a whole (pyarrow 26, ParquetFragmentScanOptions.pre_buffer). Files on
        # the Hub are shards, which bounds that.
        options = {"fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}
        return load_tables(
            data.name,
            data.config,
            data_dir=data.dir,
            data_files=data.files,
            revision=data.revision,
            **(options if data.name == "parquet" else {}),
        )
    except (FileNotFoundError, ConnectionError, ValueError, HfHubHTTPError, DatasetsError) as error:
        raise DataError(f"{place}: {describe(data)}: {_why_not(data, error)}") from error


def _why_not(data: Source, error: Exception) -> str:
    """Why a source could not be loaded, and what to do."""
    match error:
        case OfflineModeIsEnabled():
            return "not in the local cache, and offline mode is on (HF_HUB_OFFLINE)."
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
                f"not found ({first_line(error)}). Name a Hub id, an existing folder (./folder), or a builder "
                "(imagefolder, csv, json, parquet) with `dir` or `files`; private data needs `hf auth login`."
            )
        case ConnectionError():
            return f"the Hub could not be reached ({first_line(error)})."
    return f"could not be read: {first_line(error.__cause__ or error)}"


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
    present = rows.column_names
    missing = {key: column for key, column in columns.items() if column not in present}
    if missing:
        lines = [
            f"{locate(f'columns.{key}')}: {source} has no column `{column}`{did_you_mean(column, present) or '.'}"
            for key, column in missing.items()
        ]
        kinds = ", ".join(f"{name} ({_kind(feature)})" for name, feature in rows.features.items())
        hint = ""
        if missing.keys() == {"label"} and "image" in present:
            hint = " A metadata file in an image folder replaces the folder names as labels: add a label column to it."
        raise DataError("\n".join(lines) + f"\nIts columns: {kinds}.{hint}")
    rows = rows.select_columns(list(columns.values()))
    return rows.rename_columns({column: key for key, column in columns.items() if column != key})


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
