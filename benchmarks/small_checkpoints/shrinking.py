"""Configurations of transformers made small: widths, depth, experts and windows by the names of their keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

LAYERS = 2
"""Layers, or one of each kind where there are more kinds."""
SIZES: dict[str, Any] = {
    # width
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim_model", "emb_dim", "embedding_dim", "embedding_size"), 64
    ),
    **dict.fromkeys(("word_embed_proj_dim", "lru_width", "attention_hidden_size", "input_embedding_size"), 64),
    **dict.fromkeys(("output_embedding_size", "dim", "pooler_hidden_size", "prediction_head_size", "d_latents"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "dff", "dim_ff"), 96),
    **dict.fromkeys(("d_inner", "d_ff", "hidden_dim", "ffn_hidden_size", "feed_forward_size"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("expert_ffn_hidden_size", "intermediate_size_mlp", "dense_intermediate_size"), 48),
    **dict.fromkeys(("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 48),
    # heads
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads", "num_query_groups"), 4),
    **dict.fromkeys(("num_self_attention_heads", "num_cross_attention_heads", "index_n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "swa_head_dim", "attention_head_size", "dim_head"), 16),
    **dict.fromkeys(("d_head", "d_kv", "qk_nope_head_dim", "v_head_dim", "index_head_dim", "kv_channels"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    "qk_head_dim": 24,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "gated_norm_rank", "loop_gate_rank"), 16),
    **dict.fromkeys(("hc_lowrank", "laurel_rank", "adapter_rank", "router_hidden_size", "d_rel"), 16),
    **dict.fromkeys(("query_pre_attn_scalar", "embedding_rank"), 16),
    # depth
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("decoder_layers", "num_encoder_layers", "num_decoder_layers", "max_window_layers"), LAYERS),
    **dict.fromkeys(("num_blocks", "num_self_attends_per_block"), LAYERS),
    # experts
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "first_k_dense_replace", "num_dense_layers", "zero_expert_num"), 1),
    # windows and landmarks, smaller than texts
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size", "local_attention"), 8),
    **dict.fromkeys(("sliding_window_size", "attention_chunk_size", "keep_window_size", "rel_extent"), 8),
    **dict.fromkeys(("index_topk", "floor_scale", "attention_window", "local_attn_chunk_length"), 8),
    **dict.fromkeys(("lsh_attn_chunk_length", "num_landmarks"), 8),
    # states
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("linear_num_key_heads", "n_groups", "mamba_n_groups", "mamba_ngroups"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 8),
    # lengths
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 128),
}
"""Keys of configurations that make a model small, each where an architecture has it."""
SEEING = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "depth": 1}
"""Sizes of what sees beside what reads: a smaller part of a model, as in real ones."""
STILL = ("dropout", "pdrop", "layerdrop", "dropout_p", "dropout_prob", "dropout_rate")
"""Ends of the names of rates of dropout."""
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")
"""Keys that say of each layer what it is."""
LATENT = {"num_key_value_heads": 4, "head_dim": 8}
"""Latent attention has as many keys as queries, and rotates a part of each."""


def small_config(model_type: str, ids: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """The configuration of an architecture, its numbers made small; `ids` (vocabulary, special tokens) are a text's."""
    config = AutoConfig.for_model(model_type)
    return AutoConfig.for_model(model_type, **small_parts(config, ids, more or {}))


def small_parts(config: PretrainedConfig, ids: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Changes that make a configuration and its parts small; those of parts that read text have its `ids`, too."""
    own = {name: value for name, value in ids.items() if value is not None or getattr(config, name, None) is None}
    changes = {**smaller(config), **own}
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            text = ids if name in ("text_config", "encoder", "decoder") else {}
            known = part.to_dict()
            changes[name] = {**known, **small_parts(part, text, more.get(name, {}))}
            if name == "vision_config":
                changes[name] |= {key: value for key, value in SEEING.items() if key in known}
    return changes | {name: value for name, value in more.items() if name not in config.sub_configs}


def smaller(config: PretrainedConfig, *, sizes: Mapping[str, Any] = SIZES, layers: int = LAYERS) -> dict[str, Any]:
    """Changes that make one configuration, without its parts, small: to `sizes`, and so many layers at the least."""
    known = config.to_dict()
    changes = _narrow(known, sizes)
    changes |= {key: 0.0 for key, value in known.items() if key.endswith(STILL) and isinstance(value, float)}
    if "kv_lora_rank" in known:
        changes |= LATENT
    depth = next((known[key] for key in ("num_hidden_layers", "num_layers") if key in known), 0)
    kinds = [known[key] for key in KINDS if isinstance(known.get(key), list) and len(known[key]) == depth]
    kept = _each_kind(list(zip(*kinds, strict=True)) or [()] * layers, layers)
    for key, value in known.items():
        if isinstance(value, list) and len(value) == depth > layers:
            changes[key] = [value[i] for i in kept]
        elif key == "per_layer_config" and value:
            own = {int(layer): _narrow(keys, sizes) for layer, keys in value.items()}
            changes[key] = {str(i): own[layer] for i, layer in enumerate(kept) if layer in own}
    return changes | {key: len(kept) for key in ("num_hidden_layers", "num_layers") if key in known}


def _narrow(known: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sizes.items() if known.get(key) is not None}


def _each_kind(kinds: list[tuple[Any, ...]], least: int) -> list[int]:
    """Places of the first layer of each kind, and of so many of the first that there are enough."""
    kept = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    return sorted([*kept, *[i for i in range(len(kinds)) if i not in kept][: max(0, least - len(kept))]])


def save_random(folder: Path, model: PreTrainedModel, *, spread: float = 0.02) -> None:
    """Save a random model whose every weight matters: scales, gates and biases of zero would hide layers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
