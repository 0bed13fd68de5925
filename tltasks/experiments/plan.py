"""The plan of an experiment: what each cell is, by its content, and which cells are there already."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name

from tltasks import __version__
from tltasks.config.data import BUILDERS, Data, Source
from tltasks.config.loading import located, recipe_sha256
from tltasks.config.plan import plan_stages
from tltasks.experiments.experiment import Cell
from tltasks.runtime.files import write_json

CODE = ("torch", "transformers", "timm", "peft", "datasets", "accelerate")
"""Packages on whose versions numbers may depend, besides tltasks itself."""
Record = dict[str, Any]
"""What is kept of a finished cell."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell, its identity, and its record where it is finished."""

    cell: Cell
    id: str
    kind: str
    """Cells of the same model and stages are of one kind: a step takes them about the same time."""
    inputs: dict[str, str]
    record: Record | None


def plan_cells(cells: Iterable[Cell], output: Path) -> list[PlannedCell]:
    """Identify every cell by its content and look it up among those that are finished."""
    contents = Contents(output / "contents.json")
    code = code_versions()
    planned = []
    for cell in cells:
        inputs = contents.of(cell)
        digest = hashlib.sha256(json.dumps([recipe_sha256(cell.recipe), inputs, code], sort_keys=True).encode())
        name = digest.hexdigest()[:24]
        planned.append(PlannedCell(cell, name, _kind(cell), inputs, read_record(output, name)))
    contents.save()
    return planned


def _kind(cell: Cell) -> str:
    parts = [cell.recipe.model, *cell.recipe.stages]
    text = json.dumps([part.model_dump(mode="json") if part is not None else None for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"tltasks": __version__}
    for package in CODE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cell_folder(output: Path, name: str) -> Path:
    """The results folder of a cell's run."""
    return output / "cells" / name


def read_record(output: Path, name: str) -> Record | None:
    """The record of a finished cell; it appears as a whole when the cell is finished."""
    try:
        record: Record = json.loads((output / "cells" / f"{name}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return record


def to_do(planned: Iterable[PlannedCell]) -> list[PlannedCell]:
    """The cells that are to be carried out, each once however many combinations of levels come to the same recipe."""
    unique = {item.id: item for item in planned if item.record is None}
    return list(unique.values())


# -------------------------------------------------------------------------------------------- inputs


@dataclass
class Contents:
    """Digests of files and commits of repositories, each looked up once.

    Digests are kept in a file by size and time of change, so that large data is read once, not for every plan.
    """

    path: Path
    known: dict[str, list[Any]] = field(default_factory=dict)
    """Size, time of change and digest, by file."""
    commits: dict[tuple[str, str, str], str] = field(default_factory=dict)
    found: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.known = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            self.known = {}

    def save(self) -> None:
        if (self.path.parent / "cells").is_dir():  # a dry run writes nothing
            write_json(self.path, self.known)

    def of(self, cell: Cell) -> dict[str, str]:
        """What a cell's recipe names, and the digest or commit of each."""
        inputs: dict[str, str] = {}
        for plan in plan_stages(located(cell.recipe)):
            if plan.stage.start == "checkpoint":
                model = plan.model
                inputs[f"model {_shown(model.name)}"] = self._one("model", model.name, model.revision)
            for name, source in _sources(plan.data):
                for kind, what, revision in _parts(source):
                    key = f"{name} {_shown(what)}"  # which several files may share
                    inputs[key] = inputs.get(key, "") + self._one(kind, what, revision)
        return inputs

    def _one(self, kind: str, what: str, revision: str) -> str:
        path = Path(what)
        if not path.is_absolute():
            return self._commit(kind, what, revision)
        key = (what, "")
        if key not in self.found:
            files = sorted(_files(path))
            digest = hashlib.sha256()
            for file in files:
                digest.update(
                    f"{file.relative_to(path) if path.is_dir() else file.name}\0{self._file(file)}\0".encode()
                )
            self.found[key] = digest.hexdigest()[:24]
        return self.found[key]

    def _file(self, path: Path) -> str:
        at = path.stat()
        known = self.known.get(str(path))
        if known is not None and known[:2] == [at.st_size, at.st_mtime_ns]:
            return str(known[2])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.known[str(path)] = [at.st_size, at.st_mtime_ns, digest]
        return digest

    def _commit(self, kind: str, name: str, revision: str) -> str:
        """The commit that a revision stands for: by the Hub, or offline by the local cache, or else its own name."""
        key = (kind, name, revision)
        if key not in self.commits:
            try:
                commit = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=10).sha
            except (OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError):
                folder = repo_folder_name(repo_id=name, repo_type=kind)
                ref = Path(constants.HF_HUB_CACHE) / folder / "refs" / revision
                commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else None
            self.commits[key] = commit or revision
        return self.commits[key]


def _sources(data: Data) -> Iterator[tuple[str, Source]]:
    yield "data", data
    for name, extra in data.extra_test.items():
        yield f"extra_test.{name}", data.source_of(extra)


def _parts(source: Source) -> Iterator[tuple[str, str, str]]:
    """Kind, name and revision of all that a data set is read from."""
    if source.name is not None and source.name not in BUILDERS:
        yield "dataset", source.name, source.revision or "main"
    if source.dir:
        yield "dataset", source.dir, ""
    named = source.files.values() if isinstance(source.files, dict) else [source.files or []]
    for group in named:
        for name in [group] if isinstance(group, str) else group:
            yield "dataset", name, source.revision or ""


def _files(path: Path) -> list[Path]:
    """The files at a path: itself, those below a folder, or those that it fits as a pattern."""
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file() and ".cache" not in file.parts]
    if path.is_file():
        return [path]
    return [file for file in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if file.is_file()]


def _shown(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name


# ------------------------------------------------------------------------------------------ estimates


def estimate_seconds(planned: list[PlannedCell], measured: dict[str, float]) -> float | None:
    """Seconds that the cells to be carried out will take: by finished ones of the same levels, or of the same kind,
    or by `measured` seconds of that kind; None while nothing is known of some."""
    by_levels: dict[Any, list[float]] = defaultdict(list)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for item in planned:
        if item.record is not None:
            by_levels[tuple(item.cell.levels.items())].append(item.record["seconds"])
            by_kind[item.kind].append(item.record["seconds"])
    total = 0.0
    for item in to_do(planned):
        seconds = by_levels.get(tuple(item.cell.levels.items())) or by_kind.get(item.kind)
        if seconds:
            total += sum(seconds) / len(seconds)
        elif item.kind in measured:
            total += measured[item.kind]
        else:
            return None
    return total
