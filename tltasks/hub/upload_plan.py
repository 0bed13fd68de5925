"""Plans of what a push publishes, and the manifest by which a later push knows its own files."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import SpaceCardData

from tltasks import __version__

MANIFEST = ".tltasks.json"
BESIDE_MODEL = ("README.md", "recipe.yaml", "result.json", "report.html", "metrics.jsonl")


@dataclass(frozen=True)
class PlannedFile:
    """A file to publish, by the two names that the Hub may know its content by."""

    path: str
    content: Path | bytes = field(repr=False)
    size: int
    sha256: str
    """Digest that the Hub compares for large files."""
    git: str
    """Git's blob id, which the Hub compares for all others."""

    @property
    def ids(self) -> set[str]:
        return {self.sha256, self.git}


RepoKind = Literal["model", "space", "dataset"]


@dataclass(frozen=True)
class UploadPlan:
    """Files that a push publishes, paths as in the repository; the manifest is the last."""

    files: tuple[PlannedFile, ...]
    kind: RepoKind
    advice: str
    """Last sentence of an error: how to go on from there."""
    recipe_sha256: str | None = None
    """Digest of the recipe whose results these are."""
    left: Mapping[str, str] = field(default_factory=dict)
    """Files beside these that are not published, and why."""

    def note(self) -> str | None:
        """A sentence about what is left, where there is anything."""
        named = ", ".join(f"{name} ({why})" for name, why in self.left.items())
        return f"not published, as it is not of the model: {named}" if named else None


def plan_space(model: str, options: Sequence[str]) -> UploadPlan:
    """Plan a Space that serves the demo of a model on the Hub, with these options of `tltasks demo`."""
    name = model.rsplit("/", 1)[-1]
    about = SpaceCardData(title=name, sdk="gradio", app_file="app.py", models=[model], tags=["tltasks"])
    app = f'''"""The page of {model}, as `tltasks demo` serves it."""

from tltasks.cli import main

main({json.dumps(["demo", model, *options])})
'''
    card = f"---\n{about.to_yaml()}\n---\n\nThe page of [{model}](https://huggingface.co/{model}).\n"
    texts = {"README.md": card, "app.py": app, "requirements.txt": f"tltasks[demo]=={__version__}\n"}
    advice = "Nothing else was changed; the same command can be tried again."
    return UploadPlan(with_manifest({path: text.encode() for path, text in texts.items()}), "space", advice)


def plan_dataset(files: dict[str, Path], card: str) -> UploadPlan:
    """Plan a data set of files by their paths in the repository, and its card."""
    advice = "The folder is as it was; the same command can be tried again."
    return UploadPlan(with_manifest({"README.md": card.encode(), **files}), "dataset", advice)


def with_manifest(sources: dict[str, Path | bytes], **about: str) -> tuple[PlannedFile, ...]:
    """Plan files by their paths in the repository, and the manifest that lists them."""
    files = [_planned(path, content) for path, content in sources.items()]
    written = {file.path: {"sha256": file.sha256, "git": file.git} for file in files}
    manifest = {"schema": 1, **about, "files": written}
    return (*files, _planned(MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()))


def _planned(path: str, content: Path | bytes) -> PlannedFile:
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        return PlannedFile(path, content, size, sha256, hashlib.file_digest(file, lambda: git).hexdigest())


def read_manifest(content: bytes) -> dict[str, set[str]]:
    """Read content ids by path. What is not a manifest of ours counts as somebody else's file."""
    try:
        files = json.loads(content)["files"]
        written = {str(path): {entry["sha256"], entry["git"]} for path, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return written | {MANIFEST: {_planned(MANIFEST, content).git}}
