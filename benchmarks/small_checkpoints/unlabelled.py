"""Small checkpoints for the objectives that need no labels: of texts, pictures and sound."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_PRETRAINING_MAPPING_NAMES,
)

from benchmarks.small_checkpoints import Small, images, speech, summaries
from benchmarks.small_checkpoints.shrinking import save_random
from benchmarks.small_checkpoints.texts import TABLES_AND_PAGES, save_text_model

_PAIR = "an encoder-decoder, whose objective is text-denoising"
NOT_MASKED_WORDS = {
    **TABLES_AND_PAGES,
    **dict.fromkeys(("bart", "mbart", "mvp"), _PAIR),
    **dict.fromkeys(("esm", "esmc"), "reads proteins: its vocabulary is of amino acids, and has no words"),
}
"""Entries of the mapping that are no models of masked words in plain texts, and why."""
DENOISERS = (
    *("bart", "bigbird_pegasus", "led", "longt5", "mbart", "mt5", "mvp", "pegasus", "pegasus_x", "plbart"),
    *("prophetnet", "switch_transformers", "t5", "t5gemma", "umt5"),
)
"""Types that were pretrained by filling in what is hidden of a text."""
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "image_size": 32,
    "patch_size": 4,
    "decoder_hidden_size": 32,
    "decoder_num_attention_heads": 2,
    "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 64,
}
_WINDOWS = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "encoder_stride": 8}
PICTURES: dict[str, dict[str, Any]] = {
    "vit": {"encoder_stride": 4},
    "deit": {"encoder_stride": 4},
    "focalnet": {
        "embed_dim": 16,
        "depths": [1, 1],
        "hidden_sizes": [16, 32],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
        "encoder_stride": 8,
    },
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "hiera": {
        "embed_dim": 16,
        "image_size": [224, 224],
        "patch_size": [7, 7],
        "depths": [1, 1, 1, 1],
        "decoder_hidden_size": 32,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
        "mask_ratio": 0.6,
    },
}
"""What single architectures need besides."""
MASKED_PICTURES = {**MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES} | {
    name: MODEL_FOR_PRETRAINING_MAPPING_NAMES[name]
    for name in ("vit_mae", "hiera")
    if name in MODEL_FOR_PRETRAINING_MAPPING_NAMES
}
VIDEO = {"videomae": "hides parts of videos, and is given no pictures"}
SPOKEN = ("wav2vec2", "wav2vec2-conformer", "unispeech", "unispeech-sat")
"""Types that transformers has a model of an objective without text for."""


def checkpoints() -> Iterator[Small]:
    """Masked words, denoising, masked pictures, contrastive pictures, and speech."""
    for model_type, architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES.items():
        yield Small(
            f"transformers/{model_type}",
            "masked-language-modeling",
            partial(save_text_model, model_type=model_type, architecture=architecture),
            other_task=NOT_MASKED_WORDS.get(model_type, ""),
        )
    for small in summaries.checkpoints():
        if small.name.split("/")[1] in DENOISERS and not small.other_task:
            yield dataclasses.replace(small, task="text-denoising", data_keys={})
    for model_type, architecture in MASKED_PICTURES.items():
        save = partial(_save_masked_pictures, model_type=model_type, architecture=architecture)
        yield Small(f"transformers/{model_type}", "masked-image-modeling", save)
    for model_type, why in VIDEO.items():
        yield Small(f"transformers/{model_type}", "masked-image-modeling", _save_nothing, other_task=why)
    for small in images.checkpoints():
        yield dataclasses.replace(small, task="contrastive-image")
    for model_type in SPOKEN:
        yield Small(f"transformers/{model_type}", "speech-pretraining", partial(_save_speech, model_type=model_type))


def _save_masked_pictures(folder: Path, model_type: str, architecture: str) -> None:
    config = AutoConfig.for_model(model_type)
    known = config.to_dict()
    changes = {name: value for name, value in SIZES.items() if name in known} | PICTURES.get(model_type, {})
    config = AutoConfig.for_model(model_type, **changes)
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    torch.manual_seed(0)
    save_random(folder, getattr(transformers, architecture)(config))


def _save_speech(folder: Path, model_type: str) -> None:
    config: PretrainedConfig = speech.shrink(
        AutoConfig.for_model(model_type), num_codevectors_per_group=8, codevector_dim=16, proj_codevector_dim=16
    )
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    torch.manual_seed(0)
    save_random(folder, getattr(transformers, MODEL_FOR_PRETRAINING_MAPPING_NAMES[model_type])(config))


def _save_nothing(_folder: Path) -> None:
    """For what is not of a task."""
