"""Tasks by their Hub pipeline tag. An adapter is imported when a recipe names it."""

from __future__ import annotations

import importlib

from tltasks.tasks.base import Task

ADAPTERS = {
    "image-classification": "tltasks.tasks.image_classification:ImageClassification",
    "masked-image-modeling": "tltasks.tasks.masked_image_modeling:MaskedImageModeling",
    "summarization": "tltasks.tasks.summarization:Summarization",
    "automatic-speech-recognition": "tltasks.tasks.speech_recognition:SpeechRecognition",
}


def load_adapter(tag: str) -> type[Task]:
    """The adapter of a task; `recipe.TASKS` has the same keys."""
    module, name = ADAPTERS[tag].split(":")
    adapter: type[Task] = getattr(importlib.import_module(module), name)
    return adapter
