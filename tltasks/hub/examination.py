"""Examination of a model of the Hub, of a folder or of a run, without its weights."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers.utils.peft_utils import find_adapter_config_file

from tltasks.config.model import Checkpoint
from tltasks.config.names import is_folder
from tltasks.errors import CheckpointError
from tltasks.tasks.examination import CheckpointFacts, examine_checkpoint


def examine(
    name: str,
    *,
    task: str | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    micro_batch: int = 8,
) -> CheckpointFacts:
    """Find out what can be done with a model; of one on the Hub, its configuration and tokenizer alone are fetched.

    `task` looks at one task, whether or not the model is of it; memory is of `micro_batch` examples at a time. Raises
    a TltasksError for what is no model, or cannot be read.
    """
    place = Path(name).expanduser()
    if is_folder(name) and (place / "recipe.yaml").is_file() and (place / "model").is_dir():
        place = place / "model"
    source = Checkpoint(str(place) if is_folder(name) else name, revision, trust_remote_code, name)
    notes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)  # of libraries, about what is said here in other words
        try:
            if adapter := find_adapter_config_file(source.name, revision=revision):
                source, note = _base_of(Path(adapter), source)
                notes.append(note)
            facts = examine_checkpoint(source, tag=task, rows=micro_batch)
        except (httpx2.HTTPError, OSError, ValueError) as error:
            raise CheckpointError(f"model {name}: cannot be read ({error}).") from error
        finally:
            logging.disable(logging.NOTSET)
    if fault := _fault_of_weights(source):
        tasks = [dataclasses.replace(it, refused=it.refused or fault, methods=[]) for it in facts.tasks]
        facts = dataclasses.replace(facts, tasks=tasks)
    return dataclasses.replace(facts, name=name, notes=[*notes, *facts.notes])


def _base_of(config: Path, source: Checkpoint) -> tuple[Checkpoint, str]:
    """The checkpoint under an adapter, and a sentence on that."""
    keys = json.loads(config.read_bytes())
    base = keys.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"model {source.display_name}: its adapter_config.json names no base model.")
    note = f"It is an adapter ({keys.get('peft_type')}) for {base}; what is said here is of that, and of going on."
    return dataclasses.replace(source, name=base, revision=str(keys.get("revision") or "main")), note


def _fault_of_weights(source: Checkpoint) -> str | None:
    """The reason for which no weights could be read, as far as the names of the checkpoint's files tell."""
    place = Path(source.name)
    try:
        if place.is_dir():
            files = [path.name for path in place.iterdir()]
        else:
            files = HfApi().list_repo_files(source.name, revision=source.revision)
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError):
        return None
    if any(name.endswith(".safetensors") for name in files):
        return None
    if pickles := [name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
        return (
            f"its weights are in {pickles[0]}, a pickle, which could run code and is not opened. Convert them: "
            "https://huggingface.co/spaces/safetensors/convert"
        )
    return "holds no weights in safetensors."
