"""Models whose weights FSDP 2 would gather, or whose gradients it would add up, wrongly and without a word."""

from typing import Any

import pytest
import transformers
from torch import nn

from tltasks.errors import RecipeError
from tltasks.runtime import sharding

ACCELERATOR: Any = None
_SIZES = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size"), 8)
_LAYERS = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)


def test_experts_of_which_processes_reach_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    sharding.refuse_rare(type("One", (), {"num_processes": 1})())  # type: ignore[arg-type]
    monkeypatch.setattr(sharding, "shares", lambda accelerator: True)
    with pytest.raises(RecipeError, match="experts"):
        sharding.refuse_rare(ACCELERATOR)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_layers_of_which_processes_pass_by_different_ones(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "shares", lambda accelerator: True)
    config = transformers.BartConfig(**_SIZES, **_LAYERS, **{f"{part}_layerdrop": 0.1})
    model = nn.Sequential(transformers.BartModel(config))
    with pytest.raises(RecipeError, match=f"dropped, by the model's {part}_layerdrop"):
        sharding.share_out(ACCELERATOR, model)
