"""Small copies have every kind of layer that the model has."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tltasks.models.shrinking import layer_kinds, pattern, small_copies, smaller_configs

SEQ2SEQ, CAUSAL = transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForCausalLM
ARCHITECTURES: dict[str, tuple[Any, transformers.PretrainedConfig]] = {
    "bart": (SEQ2SEQ, transformers.BartConfig()),
    "t5": (SEQ2SEQ, transformers.T5Config()),
    "llama": (CAUSAL, transformers.LlamaConfig(num_key_value_heads=8)),
    "gemma3": (CAUSAL, transformers.Gemma3TextConfig()),
    "jamba": (CAUSAL, transformers.JambaConfig(num_hidden_layers=32)),
    "deepseek": (CAUSAL, transformers.DeepseekV3Config(n_routed_experts=16)),
    "whisper": (transformers.AutoModelForSpeechSeq2Seq, transformers.WhisperConfig()),
    "wav2vec2": (transformers.AutoModelForCTC, transformers.Wav2Vec2Config()),
    "swin": (transformers.AutoModelForImageClassification, transformers.SwinConfig()),
    "clip": (transformers.AutoModelForImageClassification, transformers.CLIPConfig()),
}


def on_meta(auto: Any, config: transformers.PretrainedConfig) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = auto.from_config(config)
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_copy_is_far_smaller_and_has_all_kinds_of_layers(name: str) -> None:
    auto, config = ARCHITECTURES[name]
    whole, state = on_meta(auto, config), torch.get_rng_state()
    copy = next(small_copies(whole, config, auto.from_config))
    assert layer_kinds(copy) == layer_kinds(whole)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (copy, whole)]
    assert sizes[0] < sizes[1] / 4
    assert sizes[0] < 25e6
    assert torch.equal(torch.get_rng_state(), state), "the run's own draws stay as they were"
    assert config.to_dict() == ARCHITECTURES[name][1].to_dict()


def test_each_type_of_layer_is_kept() -> None:
    config = transformers.Gemma3TextConfig(num_hidden_layers=26)
    shallow = next(smaller_configs(config))
    assert set(shallow.layer_types) == set(config.layer_types)
    assert len(shallow.layer_types) == shallow.num_hidden_layers < 26


def test_layers_that_a_count_tells_of_are_kept() -> None:
    """Dense layers before the mixture of experts: with two layers there would be no expert."""
    config = transformers.DeepseekV3Config(n_routed_experts=16, first_k_dense_replace=3)
    shallow = next(smaller_configs(config))
    assert 3 < shallow.num_hidden_layers < config.num_hidden_layers


def test_a_copy_without_a_kind_of_layer_is_none() -> None:
    """Where a narrow model could be built, but not of the same layers, nothing is given."""
    config = transformers.BertConfig()
    whole = on_meta(CAUSAL, config)
    whole.extra = nn.Linear(2, 2)
    assert next(small_copies(whole, config, CAUSAL.from_config), None) is None


def test_patterns_leave_places_open() -> None:
    assert pattern("model.layers.12.mlp.experts.3.up_proj") == "model.layers.*.mlp.experts.*.up_proj"
    assert pattern("resnet.layer1.0.conv2") == "resnet.layer1.*.conv2"
