"""Identity of a trial by what it is computed from: digests of files, commits of repositories, versions of code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name

from tltasks import __version__
from tltasks.config.data import BUILDERS, Data, Source
from tltasks.config.recipe import RunPlan, plan_run
from tltasks.experiments.trials import PlannedTrial, Trial, read_record
from tltasks.runtime.files import write_json

CODE = ("torch", "transformers", "timm", "peft", "datasets", "accelerate")
"""Packages on whose versions numbers may depend, besides tltasks itself."""


def code_versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"tltasks": __version__}
    for package in CODE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass
class Contents:
    """Digests of files and commits of repositories, each looked up once.

    Digests are kept in a file by size and time of change, so that large data is read once, not for every plan.
    """

    path: Path
    files: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """Size, time of change in nanoseconds and digest, by file."""
    found: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """Digest or commit, by kind of repository, name and revision."""

    def __post_init__(self) -> None:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            known = {}
        self.files = {path: (size, changed, digest) for path, (size, changed, digest) in known.items()}

    def save(self) -> None:
        """Keep the digests for the next plan; nothing is written beside no trials, as in a dry run."""
        if (self.path.parent / "trials").is_dir():
            write_json(self.path, self.files)

    def of(self, run: RunPlan) -> dict[str, str]:
        """What a recipe names, and the digest or commit of each."""
        inputs: dict[str, str] = {}
        for plan in run.stages:
            if not plan.continues:
                model = plan.model
                inputs[f"model {_shown(model.name)}"] = self._one("model", model.name, model.revision)
            for metric in plan.stage.metrics:
                inputs[f"metric {_shown(metric.name)}"] = self._one("space", metric.name, metric.revision or "main")
            for name, source in _sources(plan.data):
                for kind, what, revision in _parts(source):
                    key = f"{name} {_shown(what)}"  # which several files may share
                    inputs[key] = inputs.get(key, "") + self._one(kind, what, revision)
        return inputs

    def _one(self, kind: str, what: str, revision: str) -> str:
        key = (kind, what, revision)
        if key not in self.found:
            self.found[key] = self._digest(Path(what)) if Path(what).is_absolute() else _commit(*key)
        return self.found[key]

    def _digest(self, path: Path) -> str:
        """Digest of a file, or of all files of a folder with their names."""
        digest = hashlib.sha256()
        for file in sorted(_files(path)):
            name = file.relative_to(path) if path.is_dir() else file.name
            digest.update(f"{name}\0{self._file(file)}\0".encode())
        return digest.hexdigest()[:24]

    def _file(self, path: Path) -> str:
        at = path.stat()
        known = self.files.get(str(path))
        if known is None or known[:2] != (at.st_size, at.st_mtime_ns):
            with path.open("rb") as file:
                known = at.st_size, at.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()
            self.files[str(path)] = known
        return known[2]


def _commit(kind: str, name: str, revision: str) -> str:
    """The commit that a revision stands for: by the Hub, or offline by the local cache, or else its own name."""
    try:
        return HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=10).sha or revision
    except (OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError):
        folder = repo_folder_name(repo_id=name, repo_type=kind)
        ref = Path(constants.HF_HUB_CACHE) / folder / "refs" / revision
        return ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision


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


def plan_trials(trials: Iterable[Trial], output: Path) -> list[PlannedTrial]:
    """Identify every trial by its content and look it up among those that are finished."""
    contents, code = Contents(output / "contents.json"), code_versions()
    planned = []
    for trial in trials:
        plan = plan_run(trial.recipe)
        inputs = contents.of(plan)
        name = _digest([plan.sha256, inputs, code])[:24]
        parts = [trial.recipe.model, *trial.recipe.stages]
        kind = _digest([part.model_dump(mode="json") if part is not None else None for part in parts])[:16]
        planned.append(PlannedTrial(trial, name, kind, inputs, read_record(output, name)))
    contents.save()
    return planned


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
