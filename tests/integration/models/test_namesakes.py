"""Modules that are called as the head is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tltasks.config.adaptation import Adapt
from tltasks.models.adapters import adapt


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21
def test_an_adapter_trains_the_head_and_no_namesake_of_it() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=20))
    model.bert.classifier = nn.Linear(8, 8)  # as ModernVBERT's `model.vision_model.head` beside its `head`
    adapted = adapt(
        model,
        Adapt.model_validate({"lora": {"rank": 2}}),
        new_head=True,
        head=["classifier"],
        targets=["query"],
        display_name="base",
        revision="main",
    )
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == {f"base_model.model.classifier.modules_to_save.default.{part}" for part in ("weight", "bias")}
