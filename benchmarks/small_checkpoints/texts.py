"""Text classifiers of every architecture that transformers has one of, small."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from benchmarks.small_checkpoints import Small
from benchmarks.small_checkpoints.shrinking import save_random, small_config
from benchmarks.small_checkpoints.vocabularies import save_tokenizer

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_HEADS = {"head_dim": 16, "num_key_value_heads": 2}
_TWO_KINDS = ["sliding_attention", "full_attention"]
MORE: dict[str, dict[str, Any]] = {
    "big_bird": {"block_size": 4, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 4, "num_random_blocks": 1},
    "cohere_compass_text": {"layer_types": _TWO_KINDS, "rope_parameters": dict.fromkeys(_TWO_KINDS, _ROPE)},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "esmc": {"num_key_value_heads": 4},
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS,
    "ministral": _HEADS,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "layoutlmv3": {"hidden_size": 96},
    "lilt": {"hidden_size": 96},
    "luke": {"entity_vocab_size": 4, "entity_emb_size": 16},
    "nemotron": _HEADS,
    "nystromformer": {"num_landmarks": 64},
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 48], "attn_layers": ["local", "lsh"]},
    "roc_bert": {
        "shape_vocab_size": 8,
        "pronunciation_vocab_size": 8,
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
    },
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
    },
}
"""What single architectures need besides."""
_PAGE = "reads words with their places on a page, and no plain texts"
TABLES_AND_PAGES = {
    "layoutlmv2": f"{_PAGE} (and needs detectron2)",
    "layoutlmv3": _PAGE,
    "markuplm": "reads web pages by the places of words in their markup, and no plain texts",
    "tapas": "reads tables with a question or a statement on them, and no plain texts",
}
"""Entries of mappings that do not read plain texts."""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The size of a vocabulary and the numbers of its special tokens, as configurations have them."""
    names = ("pad", "bos", "eos", "mask", "sep", "cls")
    return {
        "vocab_size": len(tokenizer),
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names},
    }


def save_text_model(folder: Path, model_type: str, architecture: str) -> None:
    """A checkpoint with its tokenizer."""
    tokenizer = save_tokenizer(folder, model_type)
    config = small_config(model_type, special_ids(tokenizer), MORE.get(model_type))
    torch.manual_seed(0)
    save_random(folder, getattr(transformers, architecture)(config), spread=0.1)


def checkpoints() -> Iterator[Small]:
    """As pretrained: with the head of masked words where there is one, which a classifier leaves behind."""
    for model_type, architecture in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.items():
        pretrained = MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(model_type, architecture)
        yield Small(
            f"transformers/{model_type}",
            "text-classification",
            partial(save_text_model, model_type=model_type, architecture=pretrained),
            other_task=TABLES_AND_PAGES.get(model_type, ""),
        )
