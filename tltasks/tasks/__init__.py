"""Tasks by their Hub pipeline tag. An adapter is imported when a recipe names it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from tltasks.config.tasks import TASKS
from tltasks.tasks.base import TaskBase


def tasks_of(architectures: Iterable[str]) -> list[str]:
    """The tasks that a checkpoint of these classes serves.

    >>> tasks_of(["ViTForImageClassification"]), tasks_of(["WhisperForConditionalGeneration"]), tasks_of(["ViTModel"])
    (['image-classification'], ['automatic-speech-recognition'], [])
    """
    lists = importlib.import_module("transformers.models.auto.modeling_auto")
    wanted, found = set(architectures), []
    for tag, spec in TASKS.items():
        classes = [value for name in spec.auto_mappings for value in getattr(lists, name).values()]
        known = {one for value in classes for one in ([value] if isinstance(value, str) else value)}
        if wanted & (known | spec.own_models):
            found.append(tag)
    return found


def load_adapter(tag: str) -> type[TaskBase]:
    """The adapter of a task."""
    module, name = TASKS[tag].adapter.split(":")
    adapter: type[TaskBase] = getattr(importlib.import_module(module), name)
    return adapter
