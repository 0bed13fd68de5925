"""Checkpoints behind a recipe's model where that is an earlier run, or an adapter on its base."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers.utils.peft_utils import find_adapter_config_file

from tltasks.config.model import Checkpoint
from tltasks.hub import client
from tltasks.hub.saved_model import SavedModel, load_saved_model, write_merged
from tltasks.results.result import Ancestor, lineage_after, load_result

MERGED = Path(constants.HF_HOME) / "tltasks" / "merged"
"""Adapters with their bases, by content."""


@dataclass(frozen=True)
class ResolvedCheckpoint:
    """A checkpoint that transformers can load, and where it comes from."""

    checkpoint: Checkpoint
    lineage: list[Ancestor]
    """Of the run that it is of, as far as its results are beside it."""
    notes: list[str]
    """What its user should know of it."""


def resolve_checkpoint(source: Checkpoint, *, tag: str) -> ResolvedCheckpoint:
    """Resolve a recipe's model to the checkpoint in a results folder, or to an adapter merged into its base.

    An adapter goes on from the base at the commit that it was trained on; raises a TltasksError where that is gone.
    """
    place = Path(source.name)
    run = place / "model"
    if place.is_dir() and (place / "recipe.yaml").is_file() and run.is_dir():
        source = dataclasses.replace(source, name=str(run))
    elif not place.is_dir() and not _is_adapter(source):
        return ResolvedCheckpoint(source, [], [])
    if not place.is_dir():
        place = client.pull(source.name, revision=source.revision, trust_remote_code=source.trust_remote_code)
        source = dataclasses.replace(source, name=str(place))
    lineage = _lineage(Path(source.name))
    if not (Path(source.name) / "adapter_config.json").is_file():
        return ResolvedCheckpoint(source, lineage, [])
    saved = load_saved_model(source.name, tag=tag, trust_remote_code=source.trust_remote_code)
    merged = dataclasses.replace(source, name=str(_merge(saved)))
    return ResolvedCheckpoint(merged, lineage, _note_moved_base(saved, source.display_name))


def _is_adapter(source: Checkpoint) -> bool:
    """Look for an adapter in a repository; in one that cannot be read there is none, and opening it says why."""
    try:
        return find_adapter_config_file(source.name, revision=source.revision) is not None
    except (httpx2.HTTPError, OSError, ValueError):
        return False


def _lineage(model: Path) -> list[Ancestor]:
    for folder in (model, model.parent):
        if (folder / "recipe.yaml").is_file() and (folder / "result.json").is_file():
            result = load_result(folder / "result.json")
            return lineage_after(result.best, result.recipe_sha256)
    return []


def _merge(saved: SavedModel) -> Path:
    """Write the adapter's whole model into the cache, where it is not there yet, and return its folder."""
    assert saved.base is not None
    digest = hashlib.sha256(os.path.realpath(saved.base.name).encode())
    for path in sorted(saved.folder.glob("adapter_*")):
        digest.update(path.read_bytes())
    folder = MERGED / digest.hexdigest()[:32]
    if not folder.is_dir():
        MERGED.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=MERGED) as scratch:
            write_merged(saved, Path(scratch) / "model")
            shutil.move(Path(scratch) / "model", folder)  # whole or not at all
    return folder


def _note_moved_base(saved: SavedModel, shown: str) -> list[str]:
    """Say so where the base has another commit now than the one that the adapter was trained on."""
    base = saved.base
    if base is None or len(base.revision) < 40 or Path(base.display_name).is_dir():
        return []
    try:
        now = HfApi().model_info(base.display_name, timeout=10).sha
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError):
        return []
    if now == base.revision:
        return []
    return [
        f"{shown} goes on from {base.display_name} as it was at {base.revision[:8]}; the Hub has {str(now)[:8]} by now."
    ]
