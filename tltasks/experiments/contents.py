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
from tltasks.config.data import Data
from tltasks.config.document import dotted
from tltasks.config.names import format_of
from tltasks.config.recipe import Kind, Recipe, map_paths, recipe_sha256
from tltasks.config.section import KeyPath, Section
from tltasks.data.cache_keys import file_states, media_paths
from tltasks.data.loading import load_splits
from tltasks.errors import TltasksError
from tltasks.experiments.experiment import Trial
from tltasks.experiments.trials import PlannedTrial, read_record
from tltasks.runtime.files import write_json

CODE = ("torch", "transformers", "timm", "peft", "datasets", "accelerate")
"""Packages on whose versions numbers may depend, besides tltasks itself."""
MEDIA = ("image", "audio")
"""Columns of files."""
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

    Digests are kept in a file by size, times and inode, so that large data is read once, not for every plan.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, list[int | str]] = {}
        """Size, times in nanoseconds, inode and digest, by file; state and digest of the files that tables name."""
        self.media: dict[str, str | None] = {}
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
        for place, data in [
            ("data", recipe.data),
            *((f"stages.{i}.data", s.data) for i, s in enumerate(recipe.stages)),
        ]:
            if data is None:
                continue
            key = "\0".join(["media of", data.model_dump_json()])
            if key not in self.media:
                self.media[key] = self._media(data, key)
            if media := self.media[key]:
                found[f"{place}.media"] = media
        return found

    def _media(self, data: Data, key: str) -> str | None:
        """Digest of the files that a table's rows name, whose content the table's own does not tell."""
        named = getattr(data, "columns").model_dump()  # noqa: B009 (a key of every task's Data)
        column = next((key for key in MEDIA if named.get(key)), None)
        if column is None or not (data.files or format_of(data.name)):
            return None
        try:
            splits = load_splits(data, seed=0, label=None).values()
        except TltasksError:  # which the trial tells
            return None
        paths = sorted({path for split in splits for path in media_paths(split, column)})
        state = file_states(paths)
        known = self.files.get(key, [])
        if known[:1] != [state]:
            digest = hashlib.sha256()
            for path in paths:
                if Path(path).is_file():
                    with Path(path).open("rb") as content:
                        digest.update(hashlib.file_digest(content, "sha256").digest())
                else:
                    digest.update(b"absent")
            known = [state, digest.hexdigest()[:24]]
            self.files[key] = known
        return str(known[1])

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
            state = [at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino]
            if known[:-1] != state:
                with file.open("rb") as content:
                    known = [*state, hashlib.file_digest(content, "sha256").hexdigest()]
                self.files[str(file)] = known
            digest.update(f"{name}\0{known[-1]}\0".encode())
        return digest.hexdigest()[:24]


def _find_commit(kind: str, name: str, revision: str) -> str:
    """The commit that a revision stands for: by the Hub, or offline by the local cache, or else its own name."""
    try:
        return HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=10).sha or revision
    except (OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError):
        folder = repo_folder_name(repo_id=name, repo_type=kind)
        ref = Path(constants.HF_HUB_CACHE) / folder / "refs" / revision
        return ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
