"""A folder of images or recordings as a data set on the Hub: looked through, described, written as parquet, published.

Parquet with the files inside is what the Hub shows, streams and checks; thousands of single files are slow in all that.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
import pyarrow.parquet as pq
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCardData
from rich.console import Console

from tltasks.config.tasks import task_of_folder
from tltasks.data.folders import METADATA, SUFFIXES, walk
from tltasks.data.local import open_media
from tltasks.data.splits import ROW_NAME
from tltasks.errors import DataError, printable
from tltasks.hub import client
from tltasks.hub.upload_plan import plan_dataset
from tltasks.reports.console import open_terminal
from tltasks.reports.templates import card_environment
from tltasks.tasks.image import decoding
from tltasks.tasks.speech import audio

Kind = Literal["image", "audio"]
TEXT_COLUMNS = ("text", "transcription", "sentence")
"""Names under which recordings have what is said in them, the likeliest first."""
SHOWN = 50
"""Files of a kind that are named."""
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
"""The Hub's categories of numbers of examples."""
ROWS_AT_ONCE = 100
"""Rows of a row group, as the Hub's viewer likes them."""
SHARD_BYTES = 500 * 10**6


@dataclass(frozen=True)
class SplitFacts:
    """A split in numbers, for its card."""

    examples: int
    classes: dict[str, int]
    """Examples by class."""
    sizes: tuple[int, int] | None = None
    """Smallest and largest side of images, in pixels."""
    seconds: tuple[float, float, float] | None = None
    """Seconds of the shortest recording, of the longest and of all together."""


@dataclass(frozen=True)
class MediaTables:
    """A folder whose files have all been looked at."""

    kind: Kind
    tables: dict[str, datasets.Dataset]
    """Rows by split, media undecoded."""
    facts: dict[str, SplitFacts]
    """By split."""
    bad: dict[str, str]
    """Reasons of files that cannot be read, by their names within the folder."""
    duplicates: dict[str, list[str]]
    """Files with the same content, by the first of them."""
    across: int
    """Number of contents that more than one split has."""
    notes: list[str]
    """Files that are left out, by their reasons."""

    @property
    def features(self) -> datasets.Features:
        """Columns, alike in every split."""
        return next(iter(self.tables.values())).features


def push_dataset(
    folder: Path,
    repo: str,
    *,
    license_id: str | None,
    language: list[str],
    private: bool,
    pull_request: bool,
    force: bool,
    skip_bad: bool,
    dry_run: bool,
) -> str | None:
    """Publish a folder of images or recordings and return the address; None after a dry run, which needs no login.

    Raises DataError before anything is sent for files that cannot be read, unless these are to be left out.
    """
    console = open_terminal()
    media = read_folder(folder)
    _show(console, media)
    if media.bad and not skip_bad:
        raise DataError(
            f"push-data {folder}: {len(media.bad)} files cannot be read (listed above); mend or remove them, or "
            "leave them out with --skip-bad. Nothing was sent."
        )
    card = render_card(media, repo, license_id=license_id, language=language)
    with tempfile.TemporaryDirectory(prefix="tltasks-") as scratch:
        plan = plan_dataset(write_parquet(media, folder, Path(scratch)), card)
        if dry_run:
            for file in plan.files:
                console.print(f"  {file.size:>14,}  {file.path}", soft_wrap=True)
            console.print(card, soft_wrap=True)
            return None
        return client.push(plan, repo, private=private, pull_request=pull_request, force=force).url


# --------------------------------------------------------------------------------------------- reading


def read_folder(folder: Path) -> MediaTables:
    """Look at every file; raises DataError for a folder that holds neither images nor recordings."""
    kind = _find_kind(folder)
    for path in (folder / name for name, fault in walk(folder) if fault is None and Path(name).name in METADATA):
        if not _stays_within(folder, path):
            raise DataError(f"push-data {path}: leads out of the folder. Put the file in its place. Nothing was sent.")
    try:
        opened = open_media(folder.resolve(), kind)
    except (DataError, OSError) as error:
        raise DataError(f"push-data {folder}: {error}") from error
    tables, notes = opened.tables, [*opened.notes]
    notes += [f"{split} has no classes: {why}" for split, why in opened.hints.items() if " lies " in why]
    alike = {split: ", ".join(name for name in rows.column_names if name != ROW_NAME) for split, rows in tables.items()}
    if len({repr(rows.features) for rows in tables.values()}) > 1:
        found = "; ".join(f"{split} has {columns}" for split, columns in alike.items())
        why = "".join(f" {split}: {hint}." for split, hint in opened.hints.items())
        raise DataError(f"push-data {folder}: the splits need the same columns, and {found}.{why}")
    bad: dict[str, str] = {}
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    """Split and name of files by the digest of their content."""
    facts = {}
    for split, rows in tables.items():
        measures: list[tuple[float, float]] = []
        for path in _paths(rows, kind):
            name = _name_within(folder, path)
            if not _stays_within(folder, path):
                bad[name] = "leads out of the folder"
                continue
            try:
                measures.append(_measure_image(path) if kind == "image" else _measure_recording(path))
            except DataError as error:
                bad[name] = str(error)
                if not path.is_file():
                    continue
            with path.open("rb") as file:
                places[hashlib.file_digest(file, "sha256").hexdigest()].append((split, name))
        facts[split] = _facts(rows, kind, measures)
    same = [found for found in places.values() if len(found) > 1]
    duplicates = {found[0][1]: [name for _, name in found[1:]] for found in same}
    across = sum(len({split for split, _ in found}) > 1 for found in same)
    plain = {split: rows.remove_columns(ROW_NAME) for split, rows in tables.items()}
    return MediaTables(kind, plain, facts, bad, duplicates, across, notes)


def _find_kind(folder: Path) -> Kind:
    counts = Counter(Path(name).suffix.lower() for name, fault in walk(folder) if fault is None)
    kinds: tuple[Kind, ...] = ("image", "audio")
    found = {kind: sum(counts[suffix] for suffix in SUFFIXES[kind]) for kind in kinds}
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


def _name_within(folder: Path, path: Path) -> str:
    top = folder.resolve()
    return path.relative_to(top).as_posix() if path.is_relative_to(top) else path.name


def _stays_within(folder: Path, path: Path) -> bool:
    """False for what lies elsewhere, by a link or by its name: it is not published unseen."""
    return path.resolve().is_relative_to(folder.resolve())


def _measure_image(path: Path) -> tuple[float, float]:
    size = decoding.decode_image(str(path)).size
    return min(size), max(size)


def _measure_recording(path: Path) -> tuple[float, float]:
    hz = 16_000
    seconds = len(audio.decode_audio(str(path), hz)) / hz
    return seconds, seconds


def _facts(rows: datasets.Dataset, kind: Kind, measures: list[tuple[float, float]]) -> SplitFacts:
    """Facts of a split whose readable files have these smallest and largest sides, or lengths in seconds."""
    label, classes = rows.features.get("label"), {}
    if isinstance(label, datasets.ClassLabel):
        counts = Counter(rows["label"])
        classes = {name: counts[i] for i, name in enumerate(label.names)}
    if not measures:
        return SplitFacts(len(rows), classes)
    low, high = min(small for small, _ in measures), max(large for _, large in measures)
    if kind == "image":
        return SplitFacts(len(rows), classes, sizes=(int(low), int(high)))
    return SplitFacts(len(rows), classes, seconds=(low, high, sum(seconds for seconds, _ in measures)))


# --------------------------------------------------------------------------------------------- showing


def _show(console: Console, media: MediaTables) -> None:
    for split, it in media.facts.items():
        classes = f" in {len(it.classes)} classes" if it.classes else ""
        console.print(f"{split}: {it.examples:,} examples{classes}", soft_wrap=True)
    bad = [f"cannot be read: {name} ({reason})" for name, reason in media.bad.items()]
    for lines in (
        media.notes,
        bad,
        [f"same content: {name} and {', '.join(o)}" for name, o in media.duplicates.items()],
    ):
        for line in lines[:SHOWN]:
            console.print(printable(line, lines=False), soft_wrap=True)
        if len(lines) > SHOWN:
            console.print(f"… and {len(lines) - SHOWN:,} more")
    if media.across:
        console.print(f"{media.across:,} contents are in more than one split: a test on these is no test")


def render_card(media: MediaTables, repo: str, *, license_id: str | None, language: list[str]) -> str:
    """README.md of the data set: front matter and text."""
    classes = list(next(iter(media.facts.values())).classes)
    total = sum(it.examples for it in media.facts.values()) - len(media.bad)
    text = next((name for name in TEXT_COLUMNS if name in media.features), None)
    task = task_of_folder(media.kind, {name for name, found in (("classes", classes), ("text", text)) if found})
    title = repo.rsplit("/", 1)[-1]
    files = [{"split": split, "path": f"data/{split}-*"} for split in media.facts]
    about = DatasetCardData(
        pretty_name=title,
        license=license_id,
        language=language or None,
        task_categories=[task] if task else None,
        size_categories=next((name for most, name in SIZES if total < most), "n>1M"),
        tags=["tltasks"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    page = (
        card_environment()
        .get_template("dataset.md.jinja")
        .render(
            title=title,
            repo=repo,
            kind=media.kind,
            total=total,
            facts=media.facts,
            classes=classes,
            columns={name: type(feature).__name__ for name, feature in media.features.items()},
            text=text if media.kind == "audio" and text != "text" else None,
            left_out=len(media.bad),
            duplicates=len(media.duplicates),
            across=media.across,
            license=license_id,
        )
    )
    return f"---\n{about.to_yaml()}\n---\n\n{page.strip()}\n"


# --------------------------------------------------------------------------------------------- writing


def write_parquet(media: MediaTables, folder: Path, target: Path) -> dict[str, Path]:
    """Write every split, its files inside and bad ones left out, and return the files by their paths on the Hub."""
    written: dict[str, Path] = {}
    for split, rows in media.tables.items():
        kept = [i for i, p in enumerate(_paths(rows, media.kind)) if _name_within(folder, p) not in media.bad]
        chosen = rows.select(kept)
        n_shards = max(1, -(-sum(path.stat().st_size for path in _paths(chosen, media.kind)) // SHARD_BYTES))
        for i in range(n_shards):
            name = f"data/{split}-{i:05d}-of-{n_shards:05d}.parquet"
            written[name] = target / name
            written[name].parent.mkdir(parents=True, exist_ok=True)
            _write_shard(chosen.shard(n_shards, i, contiguous=True), media.kind, written[name])
    return written


def _write_shard(rows: datasets.Dataset, kind: Kind, path: Path) -> None:
    decoded = datasets.Image() if kind == "image" else datasets.Audio()
    features = datasets.Features({**rows.features, kind: decoded})  # so that whoever loads it gets images and sound
    metadata = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    schema = rows.features.arrow_schema.with_metadata(metadata)
    plain = rows.with_format("arrow")
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            table = embed_table_storage(plain[start : start + ROWS_AT_ONCE])
            writer.write_table(table.replace_schema_metadata(metadata))
