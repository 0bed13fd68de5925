"""Identity of a trial by what it is computed from: digests of files, commits of repositories, versions of code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name

from tltasks import __version__
from tltasks.config.document import dotted
from tltasks.config.recipe import Kind, Recipe, map_paths, recipe_sha256
from tltasks.config.section import KeyPath, Section
from tltasks.experiments.trials import PlannedTrial, Trial, read_record
from tltasks.runtime.files import write_json

CODE = ("torch", "transformers", "timm", "peft", "datasets", "accelerate")
"""Packages on whose versions numbers may depend, besides tltasks itself."""
REPOSITORIES = {"model": "model", "metrics": "space"}
"""Kind of Hub repository by the recipe's key; all others are data sets."""


def plan_trials(trials: Iterable[Trial], output: Path) -> list[PlannedTrial]:
    """Identify every trial by its content and look it up among those that are finished."""
    contents = Contents(output / "contents.json")
    code = {"tltasks": __version__, **{package: version(package) for package in CODE}}
    planned = []
    for trial in trials:
        inputs = contents.of(trial.recipe)
        name = _digest([recipe_sha256(trial.recipe), inputs, code])[:24]
        parts = [trial.recipe.model, *trial.recipe.stages]
        kind = _digest([part.model_dump(mode="json") if part is not None else None for part in parts])[:16]
        planned.append(PlannedTrial(trial, name, kind, inputs, read_record(output, name)))
    contents.save()
    return planned


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Contents:
    """Digests of files and commits of repositories, each looked up once.

    Digests are kept in a file by size and time of change, so that large data is read once, not for every plan.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, list[int | str]] = {}
        """Size, time of change in nanoseconds and digest, by file."""
        if path.is_file():
            self.files = json.loads(path.read_text(encoding="utf-8"))
        self.digest, self.commit = cache(self._read), cache(_find_commit)

    def save(self) -> None:
        """Keep the digests for the next plan; nothing is written beside no trials, as in a dry run."""
        if (self.path.parent / "trials").is_dir():
            write_json(self.path, self.files)

    def of(self, recipe: Recipe) -> dict[str, str]:
        """Digests of the files and folders that a recipe names and commits of its repositories, by key."""
        found: dict[str, str] = {}

        def look_up(name: str, keys: KeyPath, kind: Kind) -> str:
            if Path(name).is_absolute():
                found[dotted(keys)] = self.digest(Path(name))
            elif kind == "repository":
                section: Any = recipe
                for key in keys[:-1]:
                    section = getattr(section, str(key)) if isinstance(section, Section) else section[key]
                repository = next((REPOSITORIES[str(key)] for key in keys if key in REPOSITORIES), "dataset")
                found[dotted(keys)] = self.commit(repository, name, getattr(section, "revision", None) or "main")
            return name

        map_paths(recipe, look_up)
        return found

    def _read(self, path: Path) -> str:
        """Digest of a file, of all files of a folder with their names, or of those that a pattern fits."""
        if path.is_dir():
            files = [file for file in path.rglob("*") if file.is_file() and ".cache" not in file.parts]
        elif path.is_file():
            files = [path]
        else:
            files = [file for file in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if file.is_file()]
        digest = hashlib.sha256()
        for file in sorted(files):
            name, at = file.relative_to(path) if path.is_dir() else file.name, file.stat()
            known = self.files.get(str(file), [])
            if known[:2] != [at.st_size, at.st_mtime_ns]:
                with file.open("rb") as content:
                    known = [at.st_size, at.st_mtime_ns, hashlib.file_digest(content, "sha256").hexdigest()]
                self.files[str(file)] = known
            digest.update(f"{name}\0{known[2]}\0".encode())
        return digest.hexdigest()[:24]


def _find_commit(kind: str, name: str, revision: str) -> str:
    """The commit that a revision stands for: by the Hub, or offline by the local cache, or else its own name."""
    try:
        return HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=10).sha or revision
    except (OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError):
        folder = repo_folder_name(repo_id=name, repo_type=kind)
        ref = Path(constants.HF_HUB_CACHE) / folder / "refs" / revision
        return ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
