"""Tasks by their Hub pipeline tag. An adapter is imported when a recipe names it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from tltasks.tasks.base import Task

ADAPTERS = {
    "image-classification": "tltasks.tasks.image.classification:ImageClassification",
    "masked-image-modeling": "tltasks.tasks.image.masked_modeling:MaskedImageModeling",
    "summarization": "tltasks.tasks.text.summarization:Summarization",
    "automatic-speech-recognition": "tltasks.tasks.speech.asr:SpeechRecognition",
    "contrastive-image": "tltasks.tasks.image.contrastive:ContrastiveImage",
    "speech-pretraining": "tltasks.tasks.speech.pretraining:SpeechPretraining",
    "text-denoising": "tltasks.tasks.text.pretraining:TextDenoising",
    "masked-language-modeling": "tltasks.tasks.text.pretraining:MaskedLanguageModeling",
    "causal-language-modeling": "tltasks.tasks.text.pretraining:CausalLanguageModeling",
}

MODELS = {
    "image-classification": (
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    ),
    "summarization": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    "automatic-speech-recognition": (
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
        "MODEL_FOR_CTC_MAPPING_NAMES",
    ),
}
"""transformers' lists of the classes that serve each task."""


OWN_MODELS = {"image-classification": {"FrozenTransformerForImageClassification"}}
"""This package's classes that serve each task."""


def tasks_of(architectures: Iterable[str]) -> list[str]:
    """The tasks that a checkpoint of these classes serves.

    >>> tasks_of(["ViTForImageClassification"]), tasks_of(["WhisperForConditionalGeneration"]), tasks_of(["ViTModel"])
    (['image-classification'], ['automatic-speech-recognition'], [])
    """
    lists = importlib.import_module("transformers.models.auto.modeling_auto")
    wanted, found = set(architectures), []
    for tag, names in MODELS.items():
        classes = [value for name in names for value in getattr(lists, name).values()]
        known = {one for value in classes for one in ([value] if isinstance(value, str) else value)}
        if wanted & (known | OWN_MODELS.get(tag, set())):
            found.append(tag)
    return found


def load_adapter(tag: str) -> type[Task]:
    """The adapter of a task; `recipe.TASKS` has the same keys."""
    module, name = ADAPTERS[tag].split(":")
    adapter: type[Task] = getattr(importlib.import_module(module), name)
    return adapter
