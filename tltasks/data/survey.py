"""A look at a data set as it is found: its splits, its columns, and what each could be taken for."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

import datasets
import httpx2
import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from tltasks.config.data import Source
from tltasks.config.names import format_of, is_local_name
from tltasks.data.folders import SUFFIXES, sift, some, split_of_table
from tltasks.data.label_lists import DELIMITERS
from tltasks.data.loading import offline, open_source
from tltasks.data.local import Opened, in_order, open_files, open_media, tables_of_folder
from tltasks.data.splits import ROW_NAME
from tltasks.data.tables import UNREADABLE, Row, read_rows, why
from tltasks.errors import DataError, nearby

Kind = Literal["image", "audio", "text", "number", "list", "other"]
MOST_ROWS = 100_000
"""Rows that are looked at; the others are counted."""
MOST_VALUES = 20_000
"""Different values of a column that are told apart."""
ENGLISH = {
    "the", "of", "to", "and", "is", "you", "for", "that", "it", "this", "not", "are", "your", "was", "with", "be",
}  # fmt: skip
ENGLISH_SHARE = 0.08
"""Share of a text's words that they are: a quarter of the English prompts of `recipes/offline/voice_prompts`, none in a
thousand of the same prompts in Spanish, Italian and French."""
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b")
ANSWER_SECONDS = 5.0
"""Within which the Hub answers, or is taken to be out of reach."""
LISTED_SHARE = 0.8
"""Share of a folder's files that a list, or their own names, must tell something of."""


@dataclass
class Column:
    """A column, by a look at its cells."""

    name: str
    kinds: Counter[Kind] = field(default_factory=Counter)
    values: Counter[str] = field(default_factory=Counter)
    letters: int = 0
    missing: int = 0
    fractions: int = 0
    """Numbers that are no whole ones."""
    cells: list[int] = field(default_factory=list)
    """Hashes of texts and numbers, in order; of other cells 0."""

    def add(self, value: object, kind: Kind | None) -> None:
        self.cells.append(hash(str(value).strip()) if kind in ("text", "number") else 0)
        if kind is None:
            self.missing += 1
            return
        self.kinds[kind] += 1
        if kind in ("text", "number"):
            text = str(value).strip()
            self.letters += len(text)
            self.fractions += kind == "number" and not float(text).is_integer()
            self.count(text)
        for one in value if isinstance(value, list) else ():
            self.count(str(one))

    def count(self, text: str) -> None:
        if len(self.values) < MOST_VALUES or text in self.values:
            self.values[text] += 1

    @property
    def is_flag(self) -> bool:
        """True where each cell says yes or no."""
        return {value.lower() for value in self.values} in ({"0", "1"}, {"true", "false"}) and not self.missing

    def goes_with(self, classes: Column) -> bool:
        """True where rows of one value are of one class at least twice as often as by chance.

        So are several photos of one patient; and other names of the classes, of which there are no more.
        """
        n_rows, own = len(self.cells), np.unique(self.cells, return_inverse=True)[1]
        if len(classes.cells) != n_rows or len(self.values) < 2 * len(classes.values):
            return False
        theirs = np.unique(classes.cells, return_inverse=True)[1]
        by_chance = np.random.default_rng(0).permutation(theirs)
        n_more, n_by_chance = (len(np.unique(own * n_rows + of)) - own.max() - 1 for of in (theirs, by_chance))
        return bool(n_by_chance >= 10 and n_more <= n_by_chance / 2)

    def parted(self) -> tuple[str, Column] | None:
        """A delimiter that parts several classes in a cell, empty for lists that are written out; and the classes."""
        for delimiter in DELIMITERS if self.kind == "text" else ():
            parts, several = Counter[str](), 0
            for text, n in self.values.items():
                several += n * (delimiter in text)
                for part in text.split(delimiter):
                    parts[part.strip(" []'\"")] += n
            del parts[""]
            own = replace(self, values=parts, kinds=Counter({"list": self.rows}), letters=0)
            if several >= self.rows / 10 and own.repeats and len(parts) <= min(len(self.values), parts.total() / 3):
                return "" if all(text.startswith("[") for text in self.values) else delimiter, own
        return None

    @property
    def is_of_dates(self) -> bool:
        """True where every value begins as a date does."""
        return bool(self.values) and all(DATE.match(value) for value in self.values)

    @property
    def is_english(self) -> bool:
        """True for texts with as many of English's commonest words as English has."""
        words = [word for text in islice(self.values, 1000) for word in re.findall(r"[^\W\d_]+", text.lower())]
        return sum(word in ENGLISH for word in words) >= ENGLISH_SHARE * max(1, len(words))

    @property
    def rows(self) -> int:
        """Cells that hold something."""
        return self.kinds.total()

    @property
    def kind(self) -> Kind:
        """The kind of most of the cells."""
        return self.kinds.most_common(1)[0][0] if self.kinds else "other"

    @property
    def length(self) -> float:
        """Mean number of characters."""
        return self.letters / max(1, self.rows)

    @property
    def repeats(self) -> bool:
        """True where values come again, as classes do: on average twice, and few of them."""
        return 2 <= len(self.values) <= min(1000, self.rows / 2)


@dataclass(frozen=True)
class Survey:
    """A data set as it is known without a recipe."""

    source: dict[str, object]
    """Keys of `data` that name it."""
    splits: dict[str, int]
    """Rows by split, the training split first."""
    columns: dict[str, Column]
    """Of the training split."""
    notes: list[str] = field(default_factory=list)
    listing: list[dict[str, str]] = field(default_factory=list)
    """Rows that a table is to be written of, since no table or folder names what the files are."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """Columns by split."""
    files: dict[str, list[str]] = field(default_factory=dict)
    """Tables by split, where they are files of a folder."""

    def __post_init__(self) -> None:
        if not any(self.splits.values()):
            raise DataError("holds no row")

    def of_splits_with(self, columns: Iterable[str]) -> Survey:
        """The splits that have these columns, and notes on the others, which a recipe then does not name."""
        wanted = list(columns)
        lacks = {split: missing for split, names in self.names.items() if (missing := set(wanted) - set(names))}
        if not lacks:
            return self
        notes = [f"left out is the split {split}, which has no {some(sorted(lacks[split]))}" for split in lacks]
        files = {split: names for split, names in self.files.items() if split not in lacks}
        kind = {format_of(file) for names in files.values() for file in names}
        return replace(
            self,
            source={"name": kind.pop(), "files": files} if len(kind) == 1 else self.source,
            splits={split: n for split, n in self.splits.items() if split not in lacks},
            notes=[*self.notes, *notes],
        )


def survey(place: str) -> Survey:
    """Look at a folder, a table, a folder of `save_to_disk`, or a data set of the Hub.

    Raises DataError for what is none of these.
    """
    path = Path(place).expanduser()
    if not path.exists():
        if not is_local_name(place):
            return _of_hub(place)
        raise DataError(f"{place}: there is no such folder or file{nearby(path)}.")
    try:
        if path.is_file():
            if format_of(path.name) is None:
                packed = path.name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar"))
                way = "unpack it, and name the folder" if packed else "name a csv, JSON or parquet file, or a folder"
                raise DataError(f"is no table by its suffix; {way}")
            return _of_files({"name": str(path)}, {"train": [path]}, [])
        if any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
            return _of_tables({"name": str(path)}, open_source(Source(name=str(path)), {}, place=place))
        return _of_folder(path)
    except UNREADABLE as error:
        reason = str(error) if isinstance(error, DataError) else why(error)
        where = "" if path.is_file() and reason.startswith(path.name) else f"{place}: "
        raise DataError(f"{where}{reason}{'' if reason.endswith('.') else '.'}") from error


def _of_hub(name: str) -> Survey:
    """Look at a data set of the Hub, or in its cache; that it does not answer is told at once, not after retries."""
    answers = True
    try:
        HfApi().dataset_info(name, timeout=ANSWER_SECONDS)
    except (httpx2.ConnectError, httpx2.TimeoutException):
        answers = False
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError, ValueError):  # told below
        pass
    try:
        with nullcontext() if answers else offline():
            return _of_tables({"name": name}, open_source(Source(name=name), {}, place="data"))
    except DataError as error:
        if answers:
            raise
        raise DataError(
            f"{name}: the Hub could not be reached for data of that name, and there is no such folder or file"
            f"{nearby(Path(name))}."
        ) from error


def _of_folder(path: Path) -> Survey:
    found = {kind: [name for name, fault in sift(path, SUFFIXES[kind]) if fault is None] for kind in SUFFIXES}
    kind = max(found, key=lambda one: len(found[one]))
    source: dict[str, object] = {"name": str(path)}
    if not found[kind]:
        groups, notes = tables_of_folder(path, None)
        return _of_files(source, groups, notes)
    others = [
        f"{len(names)} {one} files beside them are left out" for one, names in found.items() if names and one != kind
    ]
    if tables := _tables_about(path, kind):
        if all(split_of_table(table.name) for table in tables):
            groups, notes = tables_of_folder(path, None)
            return _of_files(source, groups, [*others, *notes])
        one: dict[str, object] = {"name": str(tables[0])}
        if len(tables) > 1:
            one = {"name": "csv", "files": [*map(str, tables)]}
        return _of_files(one, {"train": tables}, others)
    opened = open_media(path, kind)
    first = opened.tables[next(iter(opened.tables))]
    if len(first.column_names) > 2:  # more than the file and its name: a class, or columns of a metadata file
        return _of_tables(source, opened, others)
    listing, note = _told_by_names(path, kind, found[kind])
    if listing:
        columns = _look(listing, Path())  # whose paths start where the folder's own does
        return Survey({}, {"train": len(listing)}, columns, [*others, note], listing)
    return _of_tables(source, opened, [*others, *(f"{split}: {hint}" for split, hint in opened.hints.items())])


def _tables_about(folder: Path, kind: str) -> list[Path]:
    """Tables just below a folder, one column of which names files of it."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and format_of(path.name) not in (None, "text") and not path.name.startswith("metadata."):
            rows = [row for _, row in islice(read_rows(path), 50) if not isinstance(row, DataError)]
            if any(column.kind == kind for column in _look(rows, folder).values()):
                found.append(path)
    return found


def _of_files(source: dict[str, object], groups: Mapping[str, Sequence[Path]], notes: list[str]) -> Survey:
    """Tables on this machine, as they are written; parquet with the names of its classes."""
    if all(format_of(file.name) == "parquet" for files in groups.values() for file in files):
        return _of_tables(source, open_files(groups, {}, kind=None), notes)
    splits: dict[str, int] = {}
    columns: dict[str, Column] = {}
    names: dict[str, list[str]] = {}
    for split in in_order(groups):
        counted = 0

        def rows(files: Sequence[Path] = groups[split]) -> Iterator[Row]:
            nonlocal counted
            for file in files:
                for place, row in read_rows(file):
                    if isinstance(row, DataError):
                        raise DataError(f"{file.name}{place} {row}")
                    counted += 1
                    yield row

        left = rows()
        found = _look(islice(left, MOST_ROWS), groups[split][0].parent)
        for _ in left:
            pass
        splits[split], names[split] = counted, [*found]
        columns = columns or found
    files = {split: [str(file) for file in groups[split]] for split in splits}
    return Survey(
        source, splits, columns, notes, names=names, files=files if Path(str(source["name"])).is_dir() else {}
    )


def _of_tables(source: dict[str, object], opened: Opened, notes: Sequence[str] = ()) -> Survey:
    """Tables of the datasets library, whose media stay as they are."""
    splits = {split: len(opened.tables[split]) for split in in_order(opened.tables)}
    first = next(iter(splits))
    rows = opened.tables[first].select(range(min(splits[first], MOST_ROWS)))
    names = {column: f for column, f in rows.features.items() if isinstance(f, datasets.ClassLabel)}
    folder = opened.folders.get(first, Path())
    columns = {column: Column(column) for column in rows.column_names if column != ROW_NAME}
    large = [column for column in columns if _is_large(rows.features[column])]
    for column in large:
        feature = rows.features[column]
        found = (
            _media_of(feature)
            or _look(rows.select_columns([column]).select(range(min(20, len(rows)))), folder)[column].kind
        )
        columns[column] = Column(column, Counter({found: len(rows)}))
    if small := [column for column in columns if column not in large]:

        def named() -> Iterator[Row]:
            for row in rows.select_columns(small):
                yield {c: names[c].int2str(v) if c in names and v is not None and v >= 0 else v for c, v in row.items()}

        columns |= _look(named(), folder)
    present = {split: opened.tables[split].column_names for split in splits}
    return Survey(source, splits, columns, [*opened.notes, *notes], names=present)


def _is_large(feature: object) -> bool:
    return (
        _media_of(feature) is not None or isinstance(feature, dict) or getattr(feature, "dtype", "").endswith("binary")
    )


def _media_of(feature: object) -> Kind | None:
    if isinstance(feature, datasets.Image):
        return "image"
    return "audio" if isinstance(feature, datasets.Audio) else None


def _look(rows: Iterable[Mapping[str, object]], folder: Path) -> dict[str, Column]:
    """Columns of some rows, whose paths start in a folder."""
    columns: dict[str, Column] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, Column(name)).add(value, _kind_of(value, folder))
    return columns


_MAGIC: dict[bytes, Kind] = {
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*"), "image"),
    **dict.fromkeys((b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"FORM"), "audio"),
}


def _kind_of(value: object, folder: Path) -> Kind | None:
    """The kind of a cell; None for an empty one."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):  # no number
        return None
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        if value[:4] == b"RIFF":
            return "audio" if value[8:12] == b"WAVE" else "image"
        return next((kind for magic, kind in _MAGIC.items() if value.startswith(magic)), "other")
    if isinstance(value, str):
        suffix = PurePosixPath(value.lower()).suffix
        media: Kind | None = (
            "image" if suffix in SUFFIXES["image"] else "audio" if suffix in SUFFIXES["audio"] else None
        )
        if media and os.path.exists(os.path.join(folder, value.replace("\\", "/"))):  # noqa: PTH110, PTH118
            return media
        return "number" if re.fullmatch(r"-?\d+(\.\d+)?", value.strip()) else "text"
    if isinstance(value, bool):
        return "text"
    if isinstance(value, int | float):
        return "number"
    return "list" if isinstance(value, list) else "other"


# ------------------------------------------------------------------------------- files that tell by their names


def _told_by_names(folder: Path, kind: str, files: list[str]) -> tuple[list[dict[str, str]], str]:
    """Rows of files whose content a text beside each, a list of `name: text`, or their own names tell; and how."""
    ways = (
        _texts_beside(folder, files),
        _listed_texts(folder, files),
        ("label", _labels_in_names(files), "their names"),
    )
    for column, texts, how in ways:
        if len(texts) >= LISTED_SHARE * len(files):
            note = f"{column} of {len(texts):,} of {len(files):,} files from {how}"
            without = [name for name in files if name not in texts]
            note += f"; left out, as nothing tells theirs: {some(without)}" if without else ""
            return [{kind: str(folder / name), column: texts[name]} for name in files if name in texts], note
    return [], ""


def _texts_beside(folder: Path, files: list[str]) -> tuple[str, dict[str, str], str]:
    """Texts in a file of the same name that ends in .txt."""
    found = {}
    for name in files:
        beside = (folder / name).with_suffix(".txt")
        if beside.is_file() and (text := beside.read_text(encoding="utf-8-sig").strip()):
            found[name] = " ".join(text.split())
    return "text", found, "the .txt file beside each"


_LISTED = re.compile(r"\s*(?P<name>[^:|\t]+?)\s*[:|\t]\s*(?P<text>[^|\t]+?)\s*")


def _listed_texts(folder: Path, files: list[str]) -> tuple[str, dict[str, str], str]:
    """Texts of a file whose lines are `name: text`, with the suffixes of the names or without."""
    by_name: dict[str, list[str]] = {}
    for name in files:
        path = PurePosixPath(name)
        for key in {path.name, path.stem, name, str(path.with_suffix(""))}:
            by_name.setdefault(key, []).append(name)
    best: dict[str, str] = {}
    list_of = ""
    for candidate in sorted(
        path for path in folder.iterdir() if path.suffix.lower() in (".txt", ".tsv", ".lst", ".csv", "")
    ):
        if not candidate.is_file():
            continue
        try:
            lines = candidate.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            continue
        matches = [match for line in lines if (match := _LISTED.fullmatch(line))]
        found = {by_name[m["name"]][0]: m["text"] for m in matches if len(by_name.get(m["name"], [])) == 1}
        if len(found) > len(best):
            best, list_of = found, candidate.name
    return "text", best, list_of


def _labels_in_names(files: list[str]) -> dict[str, str]:
    """Classes by the words that names begin with, before a number: `cat_001.jpg`, `dog.2.jpg`."""
    found = {}
    for name in files:
        if match := re.fullmatch(r"(.*?[^\W\d_])[ _.-]*\(?\d+\)?", PurePosixPath(name).stem):
            found[name] = match[1]
    counts = Counter(found.values())
    return found if 2 <= len(counts) <= len(found) / 2 and min(counts.values()) >= 2 else {}
