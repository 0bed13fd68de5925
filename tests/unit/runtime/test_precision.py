"""Which number format is chosen on which device; the devices' abilities are made up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AutoModelForImageClassification,
    BeitForImageClassification,
    DeiTForImageClassification,
    Dinov2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from tltasks.errors import RecipeError
from tltasks.models import writing
from tltasks.runtime import precision as precisions
from tltasks.runtime.precision import choose_attention, choose_precision, fast_formats, hold_cast


def able(monkeypatch: pytest.MonkeyPatch, device: str, *, bf16: bool) -> torch.device:
    """A device of a kind, with or without hardware for bf16."""

    def supported(including_emulation: bool = True) -> bool:
        assert not including_emulation, "emulated bf16 is slower than fp32"
        return bf16

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return torch.device(device)


@pytest.mark.parametrize(
    ("device", "bf16", "formats", "auto"),
    [
        ("cuda", True, ["bf16", "fp16"], "bf16"),
        ("cuda", False, ["fp16"], "fp32"),
        ("mps", False, ["bf16", "fp16"], "bf16"),
        ("xpu", False, ["bf16"], "bf16"),
        ("cpu", True, ["bf16"], "bf16"),
        ("cpu", False, [], "fp32"),
    ],
)
def test_auto_is_bf16_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, device: str, bf16: bool, formats: list[str], auto: str
) -> None:
    found = able(monkeypatch, device, bf16=bf16)
    assert fast_formats(found) == formats
    assert choose_precision("auto", found) == auto


def test_amx_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    device = able(monkeypatch, "cpu", bf16=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert fast_formats(device) == ["bf16"]


@pytest.mark.parametrize("requested", ["fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "xpu"])
def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch, device: str, requested: str) -> None:
    assert choose_precision(requested, able(monkeypatch, device, bf16=False)) == requested


@pytest.mark.parametrize(("device", "allowed"), [("cuda", True), ("mps", True), ("cpu", False), ("xpu", False)])
def test_fp16_needs_hardware(monkeypatch: pytest.MonkeyPatch, device: str, allowed: bool) -> None:
    found: Any = able(monkeypatch, device, bf16=True)
    if allowed:
        assert choose_precision("fp16", found) == "fp16"
    else:
        with pytest.raises(RecipeError, match=f"found {device}. Use `auto`"):
            choose_precision("fp16", found)


def test_this_machine_is_asked_by_names_that_exist() -> None:
    """The private names that torch may drop."""
    assert set(fast_formats(torch.device("cpu"))) <= {"bf16"}


ATTENTIVE = {
    "vit": ViTForImageClassification,
    "deit": DeiTForImageClassification,
    "dinov2": Dinov2ForImageClassification,
    "beit": BeitForImageClassification,
}


@pytest.mark.parametrize("family", ATTENTIVE)
def test_plain_attention_says_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = AttentionInterface._global_mapping["plain_16_bit"], []

    def counted(*arguments: Any, **more: Any) -> Any:
        calls.append(plain(*arguments, **more))
        return calls[-1]

    monkeypatch.setitem(AttentionInterface._global_mapping, "plain_16_bit", counted)
    monkeypatch.setattr(precisions, "multiplies_in_16_bits", lambda: True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = ATTENTIVE[family](ATTENTIVE[family].config_class(**sizes, image_size=32, patch_size=8, num_labels=3)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    cpu = torch.device("cpu")
    with torch.inference_mode():
        before = model(pixel_values=pixels).logits
        for tokens, precision in ((16, "fp32"), (1000, "bf16"), (None, "bf16")):
            choose_attention(model, tokens=tokens, device=cpu, precision=precision)
            assert model.config._attn_implementation == "sdpa"
        choose_attention(model, tokens=16, device=cpu, precision="bf16")
        assert model.config._attn_implementation == "plain_16_bit"
        after = model(pixel_values=pixels).logits
    assert torch.allclose(before, after, atol=1e-5)
    assert len(calls) == sizes["num_hidden_layers"]
    assert before.abs().max() > 0


def test_a_processor_without_products_in_16_bits_keeps_torchs_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would multiply number by number, several times as slow in training and twenty times in answers."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModelForImageClassification.from_config(ViTConfig(**sizes, image_size=16, patch_size=8))
    asked: list[str] = []
    monkeypatch.setattr(writing, "sdpa_attention_forward", lambda *_, **__: asked.append("torch"))
    queries = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16)
    for kernels, ways in ((False, ["sdpa", "torch"]), (True, ["plain_16_bit"])):
        monkeypatch.setattr(precisions, "multiplies_in_16_bits", lambda kernels=kernels: kernels)
        choose_attention(model, tokens=4, device=torch.device("cpu"), precision="bf16")
        with torch.no_grad():
            writing._attend(model, queries, queries, queries, None, is_causal=False, products=kernels)
        assert [model.config._attn_implementation, *asked] == ways
        asked.clear()


def test_plain_attention_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "multiplies_in_16_bits", lambda: True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModelForImageClassification.from_config(ViTConfig(**sizes, image_size=16, patch_size=8))
    choose_attention(model, tokens=4, device=torch.device("cpu"), precision="bf16")
    model.save_pretrained(tmp_path)
    assert "plain" not in (tmp_path / "config.json").read_text()
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"


def test_weights_held_as_autocast_casts_them_give_the_same_bits() -> None:
    torch.manual_seed(0)
    embedding, head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(16, 16), nn.LayerNorm(16), head).eval()
    ids = torch.arange(20)[None]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        before = model(ids)
        hold_cast(model, "bf16")
        after = model(ids)
    assert [p.dtype for p in model.parameters()].count(torch.bfloat16) == 2
    assert embedding.weight.dtype == torch.float32
    assert torch.equal(before, after)
    hold_cast(model, "fp32")
    assert torch.equal(before, after)
