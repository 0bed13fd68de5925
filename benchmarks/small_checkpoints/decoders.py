"""Small checkpoints of every entry of transformers' mapping for causal language models, as summarisers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.small_checkpoints import Small
from benchmarks.small_checkpoints.shrinking import smaller
from tests.tiny.texts import CORPUS

# ----------------------------------------------------------------------------------------- other tasks

_ENCODER = "an encoder: it reads what comes after a word, and has not learnt to write"
_BOTH = "its checkpoints are encoder-decoders, and opened as such"
OTHER_TASKS: dict[str, str] = {
    **dict.fromkeys(("bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"), _ENCODER),
    **dict.fromkeys(("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xmod"), _ENCODER),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl"), _ENCODER),
    **dict.fromkeys(("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp"), _BOTH),
    **dict.fromkeys(("pegasus", "plbart", "prophetnet"), _BOTH),
    "xlnet": "learns words in an order that is drawn, and reads all others; it does not write from left to right",
    "cpmant": "fills in a text that it sees whole, by instructions of its own",
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"), "drafts for a larger model, whose states it reads"
    ),
    **dict.fromkeys(("moshi", "musicgen", "musicgen_melody"), "writes sound, not text"),
    **dict.fromkeys(("whisper", "moss_transcribe_diarize"), "writes what is said in a recording"),
    **dict.fromkeys(("git", "got_ocr2", "trocr"), "writes what an image shows"),
}
"""Entries that are no summarisers, and why."""

# ------------------------------------------------------------------------------------------ tokenizers

VOCABULARY = 420
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = "<|im_start|>system\nToday: {{ strftime_now('%d %B %Y') }}<|im_end|>\n" + CHAT
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system') }}{% endif %}" + CHAT
)
TEMPLATES = (None, CHAT, DATED, NO_SYSTEM)
"""Of a model without a chat, of chats like Qwen's and Llama's, and of one like Gemma's."""


def save_tokenizer(folder: Path, *, template: str | None, pad: bool) -> PreTrainedTokenizerFast:
    """Bytes as GPT-2 has them, with a template for chats and a token for padding, or without."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    core.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        **({"pad_token": "<|pad|>"} if pad else {}),
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


# --------------------------------------------------------------------------------------- configurations

LAYERS = 4
"""As many as show the kinds of layers of those that have several."""
WIDTHS: dict[str, Any] = {
    # width
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim_model", "emb_dim", "embedding_dim", "embedding_size"), 64
    ),
    **dict.fromkeys(("word_embed_proj_dim", "lru_width", "attention_hidden_size", "input_embedding_size"), 64),
    "output_embedding_size": 64,
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "dff", "dim_ff", "d_inner"), 96
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("expert_ffn_hidden_size", "intermediate_size_mlp", "dense_intermediate_size"), 48),
    **dict.fromkeys(("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("ffn_hidden_size", "feed_forward_size"), 96),
    # heads
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads", "num_query_groups"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "attention_head_dim", "swa_head_dim", "attention_head_size", "dim_head", "d_head"), 16
    ),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "index_head_dim", "kv_channels"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    "qk_head_dim": 24,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "gated_norm_rank", "loop_gate_rank"), 16),
    **dict.fromkeys(("hc_lowrank", "laurel_rank", "adapter_rank", "router_hidden_size", "d_rel"), 16),
    "query_pre_attn_scalar": 16,
    # depth
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), LAYERS
    ),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "num_blocks", "max_window_layers"), LAYERS),
    # experts
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "zero_expert_num"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "first_k_dense_replace", "num_dense_layers"), 1),
    # windows, shorter than the documents
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "local_attention"), 24),
    **dict.fromkeys(("sliding_window_size", "attention_chunk_size", "keep_window_size", "rel_extent"), 24),
    **dict.fromkeys(("index_topk", "floor_scale"), 24),
    # states
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(
        ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "linear_num_value_heads", "linear_num_heads"), 4
    ),
    **dict.fromkeys(("linear_num_key_heads", "n_groups", "mamba_n_groups", "mamba_ngroups"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 8),
    # lengths
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 128),
}
"""Keys of configurations that make a model small, each where an architecture has it."""
HEADS = {"head_dim": 16, "num_key_value_heads": 2}
"""What some configurations leave open, and all checkpoints say."""
_GEMMA3N = {
    "num_hidden_layers": 4,
    "intermediate_size": [96] * 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
}
_DOTS3 = {
    "num_key_value_heads": 4,
    "head_dim": 24,
    "layer_types": ["indexed_attention", "sliding_attention"] * 2,
    "per_layer_config": {},
}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 100,
    "split_ngram_parts": 2,
}
_BLT: dict[str, Any] = {
    "encoder_hash_byte_group_vocab": 100,
    **{
        f"{part}_config": {"vocab_size": VOCABULARY, "hidden_size_global": 64, "encoder_cross_output_size": 128}
        for part in ("patcher", "encoder", "decoder", "global")
    },
}
MORE: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3], "mamba_d_head": 32},
    "deepseek_v2": {"num_experts_per_tok": 2},
    # as it is released, as long as its positions: of more, equal tokens tie, and the length decides which are kept
    "doge": {"keep_window_size": 2048},
    "dory": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral", "nemotron"), HEADS),
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"head_dim": 32},
    "reformer": {
        "pad_token_id": 0,
        "is_decoder": True,
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 48],
        "num_hidden_layers": 2,
        "attn_layers": ["local", "lsh"],
    },
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "gemma3n_text": _GEMMA3N,
    "gemma3n": {"text_config": _GEMMA3N, "vision_config": {"architecture": "lcnet_050", "model_args": {}}},
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 16},
    "gemma4": {"text_config": {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 16}},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            key: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
            for key in ("sliding_attention", "full_attention")
        },
    },
    "dots3_note_text": _DOTS3,
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    **{
        key: {"unpadded_vocab_size": VOCABULARY, "vocab_size": VOCABULARY + 4}
        for key in ("inkling2_text", "inkling2_loop_text")
    },
    "qwen4_exp_text": _QWEN4,
    "qwen4_exp": {"text_config": _QWEN4},
    "xlstm": {"hidden_size": 64, "qk_dim_factor": 1.0, "head_dim": None},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "blt": _BLT,
    "emu3": {
        "vocabulary_map": {"<image>": 5, "<|extra_200|>": 6, "<|visual token 000000|>": 7},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "codebook_size": 16},
    },
    "bert-generation": {"is_decoder": True},
    "xlm": {"causal": True},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2, "mamba_d_head": 32},
}
"""What single architectures need besides."""


def small_config(model_type: str, *, ids: dict[str, Any]) -> PretrainedConfig:
    """The configuration of an architecture, its numbers made small."""
    config = AutoConfig.for_model(model_type)
    changes = smaller(config, sizes=WIDTHS, layers=LAYERS) | MORE.get(model_type, {})
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            text = {"vocab_size": VOCABULARY, **ids} if name == "text_config" else {}
            changes[name] = part.to_dict() | smaller(part, sizes=WIDTHS, layers=LAYERS) | text | changes.get(name, {})
    return AutoConfig.for_model(model_type, **{"vocab_size": VOCABULARY, **ids, **changes})


# ------------------------------------------------------------------------------------------ checkpoints

UNLABELLED = {
    *("bloom", "deepseek_v3", "falcon_h1", "gemma3", "gemma3_text", "gpt2", "gpt_neox", "llama", "mamba"),
    *("mistral", "olmoe", "opt", "qwen3", "qwen3_next", "rwkv"),
}
"""One of each kind, for the objective that all of them were made by."""


def save(folder: Path, model_type: str) -> None:
    """A checkpoint; which template, pad token and settings of generation it has is told by its name."""
    kind = zlib.crc32(model_type.encode())
    tokenizer = save_tokenizer(folder, template=TEMPLATES[kind % 4], pad=bool(kind // 4 % 2))
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    pad = tokenizer.pad_token_id
    if (
        pad is None
        and getattr(AutoConfig.for_model(model_type).get_text_config(decoder=True), "pad_token_id", None) is not None
    ):
        pad = tokenizer.eos_token_id  # as checkpoints without one for it say
    config = small_config(model_type, ids=ids | {"pad_token_id": pad})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    if type(model.config) is not type(config):  # of the part that reads texts: checkpoints hold the whole
        model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():  # scales of zero would hide the layers before them
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    _save_generation(folder, ("neither", "own file", "configuration")[kind // 8 % 3])


def _save_generation(folder: Path, place: str) -> None:
    """Settings of generation in generation_config.json, in config.json as older checkpoints have them, or nowhere."""
    own = folder / "generation_config.json"
    if place == "own file":
        sampled = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
        own.write_text(json.dumps(json.loads(own.read_text()) | sampled))
        return
    own.unlink()
    if place == "configuration":
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"no_repeat_ngram_size": 3, "num_beams": 2}))


def checkpoints() -> Iterator[Small]:
    """Every entry of the mapping, those of other tasks with the reason; some for an objective without labels, too."""
    for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        shown = f"transformers/{model_type}" + (f"/{name}" if OTHER_TASKS.get(model_type) == _BOTH else "")
        other = OTHER_TASKS.get(model_type, "")
        yield Small(shown, "summarization", partial(save, model_type=model_type), other_task=other)
        if model_type in UNLABELLED:
            yield Small(shown, "causal-language-modeling", partial(save, model_type=model_type))
