"""Trained models: a run's results folder, a repository on the Hub, or any folder with a model; to use or go on from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx2
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled
from torch import nn
from transformers.utils.peft_utils import find_adapter_config_file

from tltasks.config.answers import Asked
from tltasks.config.loading import load_recipe
from tltasks.config.model import Checkpoint
from tltasks.config.names import HUB_ID, check_holds_model, folder_of_weights, holds_model
from tltasks.config.recipe import Recipe, is_on_hub, plan_run
from tltasks.config.stage import STAGES, StagePlan
from tltasks.config.tasks import TASKS, supervised_tasks
from tltasks.data.splits import LANGUAGE, PROMPT
from tltasks.errors import CheckpointError, RecipeError
from tltasks.hub import client
from tltasks.models.adapters import unwrap_model
from tltasks.models.exported import Export
from tltasks.results.result import Ancestor, lineage_after, load_result
from tltasks.runtime.files import content_of
from tltasks.runtime.precision import choose_attention, fast_formats, hold_cast
from tltasks.tasks import load_adapter, tasks_of
from tltasks.tasks.base import TaskBase

NOTHING_ASKED = Asked()
MERGED = Path(constants.HF_HOME) / "tltasks" / "merged"
"""Adapters with their bases, by content."""
_OF_MODELS = (".safetensors", ".json", ".onnx", ".data", ".bin", ".model", ".txt")
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class SavedModel:
    """A model that has been found to be in order; its weights are not loaded yet."""

    task: TaskBase
    base: Checkpoint | None
    """Checkpoint under an adapter: its folder, and under `display_name` and `revision` what the adapter names."""
    folder: Path
    recipe: Recipe | None
    """Recipe of the run that trained it, if it is there."""
    columns: tuple[str, ...]
    """Names of the input's column in tables, the likeliest first."""
    language_column: str | None
    """That of rows' languages in the run's data."""
    prompt_column: str | None
    """That of the text before each row in the run's data."""
    plan: StagePlan
    """Plan of the run's stage that the model is of, or what stands for it; as used, with its weights as they are."""
    origin: Checkpoint | None
    """Checkpoint that its first training began with, not fetched yet; None where that is not known."""
    run: Path | None
    """Folder with the run's recipe and result."""
    export: Export | None = None
    """What it is, where it is not transformers' own any more."""

    def digest(self) -> str:
        """Digest of its weights, configurations and processors; of an adapter with those of its base."""
        base, export = [Path(self.base.name)] if self.base else [], [self.export.folder] if self.export else []
        folders = dict.fromkeys([self.folder, *base, *export])
        found = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in _OF_MODELS]
        return content_of(path for path in found if path.is_file() and path.name[0] != ".")

    def precision(self, device: torch.device) -> str:
        """The precision of the run, as far as this device has it; an export has its own."""
        if self.export is not None:
            return "fp32"
        asked = self.recipe.precision if self.recipe else "auto"
        return "auto" if asked == "fp16" and "fp16" not in fast_formats(device) else asked

    def build(self, *, device: torch.device, precision: str) -> tuple[Self, nn.Module]:
        """Load the weights; the model attends as the run's own did, and the task is as the model allows it."""
        model: nn.Module
        if self.export is not None:
            return self, self.export.open(self.task.config)
        if self.base is None:
            built = self.task.build(STAGES["zero_shot"])
            task, model = built.task, built.model
        else:
            model = self.task.starting_from(self.base).reload(self.folder)
            task = self.task.tried(unwrap_model(model))
        choose_attention(unwrap_model(model), tokens=self.task.sequence_length, device=device, precision=precision)
        hold_cast(model, precision)
        return dataclasses.replace(self, task=task), model


def load_saved_model(
    name: str,
    *,
    tag: str | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    language: str | None = None,
    asked: Asked = NOTHING_ASKED,
) -> SavedModel:
    """Find a model, fetch it where it is on the Hub, and open its task; raises a TltasksError.

    `tag` names the task where the checkpoint does not tell, `language` that of all inputs, and `asked` what is wanted
    of answers.
    """
    if export := Export.find(Path(name).expanduser()):
        folder, run, tag = export.setup, None, tag or export.task
    else:
        folder, run = _locate(name, revision=revision, trust_remote_code=trust_remote_code)
    base = _find_base(folder, display_name=name, trust_remote_code=trust_remote_code)
    setup = folder if (folder / "config.json").is_file() or base is None else Path(base.name)
    recipe, plan, origin = _read_run(run) if run else (None, None, None)
    tag = tag or (plan.task if plan else _find_task(setup, name))
    spec, adapter = TASKS[tag], load_adapter(tag)
    kind, stage = STAGES["zero_shot"], spec.stage(stage="zero_shot")
    if plan is None or plan.task != tag:
        plan = StagePlan(0, "predict", kind, tag, spec.model(name=name), spec.data(name=name), stage)
    if language is not None and not hasattr(plan.model, "language"):
        raise RecipeError(f"language {language}: {tag} takes none.")
    model = plan.model if language is None else plan.model.model_copy(update={"language": language})
    plan = dataclasses.replace(plan, kind=kind, stage=stage, model=model)
    source = Checkpoint(str(setup), trust_remote_code=trust_remote_code, display_name=name)
    task = adapter.open(plan, {}, source, seed=0).answering(asked)
    own = adapter.input_kind.column
    named: str = getattr(getattr(plan.data, "columns"), own)  # noqa: B009 (a key of every task's Data)
    if base is not None:
        origin = dataclasses.replace(base, display_name=_display_name(base.display_name))
    elif origin is not None and run == folder and not is_on_hub(origin.name):  # beside the weights, as a push puts it
        origin = None  # the recipe may be anybody's, and names no folder of this machine
    elif origin is not None:  # a recipe from the Hub does not decide what code is run here
        origin = dataclasses.replace(origin, trust_remote_code=trust_remote_code)
    spoken, said = (getattr(getattr(plan.data, "columns"), key, None) for key in (LANGUAGE, PROMPT))  # noqa: B009
    inputs: tuple[str, ...] = (named, own)
    if export is not None:
        inputs, spoken, said = export.columns, export.language_column, export.prompt_column
    return SavedModel(task, base, folder, recipe, inputs, spoken, said, plan, origin, run, export)


def write_merged(saved: SavedModel, folder: Path) -> None:
    """Write an adapter merged into its base, in fp32, with all that a checkpoint has beside its weights."""
    assert saved.base is not None, "the caller looks"
    task = saved.task.starting_from(saved.base)
    task.save(folder, task.reload(saved.folder), adapter=False)


def _locate(name: str, *, revision: str, trust_remote_code: bool) -> tuple[Path, Path | None]:
    """The folder with the weights, and that with the run's recipe and result, where there is one."""
    folder = folder_of_weights(name)
    if folder is None:
        folder = run = client.pull(name, revision=revision, trust_remote_code=trust_remote_code)
        check_holds_model(folder, name)
    else:
        run = folder.parent if "model" in (folder.name, folder.resolve().name) else folder
    is_run = all((run / file).is_file() for file in ("recipe.yaml", "result.json"))
    return folder, run if is_run else None


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _find_base(folder: Path, *, display_name: str, trust_remote_code: bool) -> Checkpoint | None:
    """The checkpoint that an adapter was trained on, at the revision that it had then."""
    if not _is_adapter(folder):
        return None
    config = _read_json(folder / "adapter_config.json", display_name)
    name, revision = config.get("base_model_name_or_path"), str(config.get("revision") or "main")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"model {display_name}: its adapter_config.json names no base model.")
    place = Path(name)
    if not place.is_dir() or folder.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):
        # what comes from the Hub names no folder of this machine
        if not HUB_ID.fullmatch(name):
            raise CheckpointError(f"model {display_name}: is an adapter for {name}, which is not there.")
        place = client.pull(name, revision=revision, trust_remote_code=trust_remote_code)
    if not (folder / "adapter_model.safetensors").is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        held = "in adapter_model.bin, a pickle, which could run code and is not opened" if pickled else "missing"
        raise CheckpointError(
            f"model {display_name}: the weights of its adapter are {held}; adapter_model.safetensors is read. PEFT's "
            "`save_pretrained` writes it."
        )
    return Checkpoint(str(place), revision, trust_remote_code, display_name=name)


def _read_run(run: Path) -> tuple[Recipe, StagePlan, Checkpoint | None]:
    """Read the recipe, the stage that the model is of, and the checkpoint that its first training began with."""
    recipe = load_recipe(run / "recipe.yaml", check_files=False, check_secrets=False)  # nothing is written
    try:
        result, plan = load_result(run / "result.json"), plan_run(recipe)
        last = plan.stage(result.headline.stage)
        first = plan.ancestry(last)[0]
        name, commit = first.model.name, result.stages[first.index].weights.commit
        known = first.kind.weights != "random" and (is_on_hub(name) or Path(name).is_dir())
        origin = Checkpoint(name, commit or first.model.revision, display_name=_display_name(name))
        return recipe, last, origin if known else None
    except (*_DAMAGED, StopIteration) as error:
        raise CheckpointError(f"{run / 'result.json'}: cannot be read ({error!r}).") from error


def _display_name(name: str) -> str:
    """A checkpoint's name without the folders of this machine."""
    return Path(name).name if Path(name).is_absolute() else name


def _find_task(folder: Path, display_name: str) -> str:
    named = _read_json(folder / "config.json", display_name).get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    found = tasks_of(architectures)
    if len(found) == 1:
        return found[0]
    kind = ", ".join(architectures) or "a model of unnamed class"
    raise RecipeError(
        f"model {display_name}: holds {kind}, which {'serves several tasks' if found else 'does not tell its task'}; "
        f"name it with --task: {', '.join(found or supervised_tasks())}."
    )


def _read_json(path: Path, display_name: str) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        reason = "not a JSON object"
    except _DAMAGED as error:
        reason = str(error)
    raise CheckpointError(f"model {display_name}: its {path.name} cannot be read ({reason}).")


# --------------------------------------------------------------------------------------- to go on from


@dataclass(frozen=True)
class ResolvedCheckpoint:
    """A checkpoint that transformers can load, and where it comes from."""

    checkpoint: Checkpoint
    lineage: list[Ancestor]
    """Ancestors of the run that it is of, as far as its results are beside it."""
    notes: list[str]
    """Sentences for its user."""


def resolve_checkpoint(source: Checkpoint, *, tag: str) -> ResolvedCheckpoint:
    """Resolve a recipe's model to the checkpoint in a results folder, or to an adapter merged into its base.

    An adapter goes on from the base at the commit that it was trained on; raises a TltasksError where that is gone.
    """
    place = Path(source.name)
    if Export.find(place) is not None:
        raise CheckpointError(f"model {source.display_name}: is an export, which cannot be trained; name its run.")
    if (place / "recipe.yaml").is_file() and not holds_model(place):
        source = dataclasses.replace(source, name=str(folder_of_weights(source.name)))
    elif not place.is_dir() and not _has_adapter(source):
        return ResolvedCheckpoint(source, [], [])
    if not place.is_dir():
        place = client.pull(source.name, revision=source.revision, trust_remote_code=source.trust_remote_code)
        source = dataclasses.replace(source, name=str(place))
    lineage = _lineage(Path(source.name))
    if not _is_adapter(Path(source.name)):
        return ResolvedCheckpoint(source, lineage, [])
    saved = load_saved_model(source.name, tag=tag, trust_remote_code=source.trust_remote_code)
    merged = dataclasses.replace(source, name=str(_merge(saved)))
    return ResolvedCheckpoint(merged, lineage, _note_moved_base(saved, source.display_name))


def _has_adapter(source: Checkpoint) -> bool:
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


def _note_moved_base(saved: SavedModel, display_name: str) -> list[str]:
    """Say so where the base has another commit now than the one that the adapter was trained on."""
    base = saved.base
    if base is None or len(base.revision) < 40 or Path(base.display_name).is_dir():
        return []
    try:
        now = str(HfApi().model_info(base.display_name, timeout=10).sha)
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError):
        return []
    then, moved = base.revision, now != base.revision
    note = f"{display_name} goes on from {base.display_name} as it was at {then[:8]}; the Hub has {now[:8]} by now."
    return [note] if moved else []
