"""Frozen weights held in 16 bits: loaded so, the same numbers where autocast casts anyway, and a fp32 model saved."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from tests.tiny import images, speech, texts, topics
from tests.tiny.runs import in_processes, largest_difference, run_recipe, weights
from tltasks.config.loading import load_recipe
from tltasks.errors import CheckpointError, RecipeError
from tltasks.models.held import Held, HeldEmbedding, HeldLinear, hold, loading_held, restore
from tltasks.runs import stage as stage_module

LORA = "{stage: STAGE, steps: 4, batch_size: 8, learning_rate: 5e-3, adapt: {lora: {rank: 4}}, KEYS}"
ROOMS: dict[str, Any] = {"t5": texts, "whisper": speech, "vit": images, "bert": topics, "gpt2": topics}


def written(folder: Path, name: str, keys: str, *, stage: str | None = None, **top: Any) -> Path:
    """A recipe of few steps in its own folder, over a model and data of the name."""
    room, model, data = ROOMS[name], folder / name, folder / "data"
    if not model.exists():
        (speech.save_whisper if name == "whisper" else lambda place: room.save_model(place, name))(model)
        room.save_data(data)
    kind = "finetune" if room in (texts, speech) else "transfer"
    text = (stage or LORA).replace("STAGE", kind).replace("KEYS", keys)
    more = {"model_keys": "language: en"} if room is speech else {}
    return room.write_recipe(folder / "recipe.yaml", model, data, stage=text, **more, **top)


def losses(output: Path) -> list[float]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "train"]


@pytest.mark.parametrize("name", ["t5", pytest.param("whisper", marks=pytest.mark.exhaustive), "vit", "bert", "gpt2"])
def test_auto_changes_no_number(tmp_path: Path, name: str) -> None:
    results = {
        base: run_recipe(written(tmp_path, name, f"base_dtype: {base}", precision="bf16"), tmp_path / base)
        for base in ("fp32", "auto")
    }
    assert results["auto"].stages[0].training.base_dtype == "bf16"
    assert losses(tmp_path / "auto") == losses(tmp_path / "fp32")
    assert largest_difference(weights(tmp_path / "auto"), weights(tmp_path / "fp32")) == 0
    scores = [re.sub("'real_time_factor': [0-9.e-]+", "", repr(it.stages[0].metrics)) for it in results.values()]
    assert scores[0] == scores[1]


def test_all_but_the_new_head_and_vectors_is_loaded_in_16_bits(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[nn.Module] = []
    loop = stage_module._loop

    def spied(context: Any, stage: Any, model: nn.Module, head: Any) -> Any:
        seen.append(model)
        formats = {name: p.dtype for name, p in model.named_parameters()}
        matrices = [n for n, p in model.named_parameters() if p.ndim == 2 and not p.requires_grad]
        odd = [n for n in matrices if formats[n] != torch.bfloat16]
        # What a checkpoint does not have is drawn in fp32, as ever; PEFT keeps the replaced head.
        assert all("pooler" in name or "original_module" in name for name in odd), odd
        assert all(formats[n] == torch.float32 for n, p in model.named_parameters() if p.requires_grad or p.ndim == 1)
        return loop(context, stage, model, head)

    monkeypatch.setattr(stage_module, "_loop", spied)
    result = run_recipe(written(tmp_path, "bert", "base_dtype: bf16"), tmp_path / "run")
    assert result.stages[0].training.base_dtype == "bf16"
    assert not any(isinstance(module, Held) for module in seen[0].modules())
    saved, base = weights(tmp_path / "run"), AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert")
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(saved[name], base.state_dict()[name])  # of the checkpoint, and not what was held of it


@pytest.mark.parametrize("keys", ["micro_batch: 1", "micro_batch: 3"])
def test_micro_batches_do_not_change_what_is_learnt_beside_held_weights(tmp_path: Path, keys: str) -> None:
    for name, more in (("whole", ""), ("cut", f", {keys}")):
        run_recipe(written(tmp_path, "bert", f"base_dtype: bf16{more}"), tmp_path / name)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=2e-5)


@pytest.mark.exhaustive
def test_two_processes_learn_the_same_beside_held_weights(tmp_path: Path) -> None:
    recipe = written(tmp_path, "bert", "base_dtype: bf16")
    run_recipe(recipe, tmp_path / "one")
    in_processes(2, recipe, tmp_path / "two")
    assert largest_difference(weights(tmp_path / "two"), weights(tmp_path / "one")) < 1e-5


def test_a_run_goes_on_exactly_beside_held_weights(tmp_path: Path) -> None:
    recipe = written(tmp_path, "t5", "base_dtype: bf16, checkpoint_every: 1")
    run_recipe(recipe, tmp_path / "whole")

    def fail(info: Any) -> None:
        if info.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "cut", on_step=fail)
    run_recipe(recipe, tmp_path / "cut", resume=True)
    assert largest_difference(weights(tmp_path / "cut"), weights(tmp_path / "whole")) == 0


@pytest.mark.parametrize("adapt", ["head", "bitfit", "ia3", "{full: {}}, freeze: ['bert.embeddings*']"])
def test_other_methods_that_freeze(tmp_path: Path, adapt: str) -> None:
    stage = f"{{stage: transfer, steps: 2, batch_size: 8, learning_rate: 5e-3, base_dtype: bf16, adapt: {adapt}}}"
    result = run_recipe(written(tmp_path, "bert", "", stage=stage), tmp_path / "run")
    assert result.stages[0].training.base_dtype == "bf16"
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert").state_dict()
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(weights(tmp_path / "run")[name], base[name])


def test_a_checkpoint_that_changes_meanwhile_is_told(tmp_path: Path) -> None:
    texts.save_model(tmp_path / "t5", "t5")
    with loading_held(torch.bfloat16, lambda model: [], exact=False):
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5", dtype=torch.float32)
    assert isinstance(model.shared, HeldEmbedding)
    original = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5", dtype=torch.float32)
    with torch.no_grad():
        original.decoder.block[0].layer[0].SelfAttention.q.weight[0, 0] += 0.1
    with pytest.raises(CheckpointError, match="no longer what training began with"):
        restore(model, original, display_name="t5")


@pytest.mark.parametrize("held", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_held_layer_answers_as_one_of_its_weight_in_fp32(held: torch.dtype, autocast: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6))
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight.to(held))
    plain = nn.Linear(8, 6)
    plain.load_state_dict(net[0].state_dict())
    net.requires_grad_(False)
    hold(net, held, exact=False)
    assert type(net[0]) is HeldLinear
    x, y = (torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = net(x), plain(y)
    (ours.float() ** 2).sum().backward()
    (theirs.float() ** 2).sum().backward()
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(x.grad, y.grad, rtol=2e-2 if autocast else 1e-5, atol=2e-2 if autocast else 1e-6)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("base_dtype: nf4", "`base_dtype: nf4` is not offered"),
        ("base_dtype: int8", "`base_dtype: int8` is not offered"),
        ("base_dtype: bf16, adapt: full", "trains every weight"),
        ("base_dtype: bf16, adapt: {lora: {init: pissa}}", "would round what `adapt.lora.init` takes"),
    ],
)
def test_refusals(tmp_path: Path, keys: str, said: str) -> None:
    stage = f"{{stage: transfer, steps: 1, learning_rate: 1e-3, {keys}}}"
    with pytest.raises(RecipeError, match=said):
        load_recipe(topics.write_recipe(tmp_path / "r.yaml", tmp_path, tmp_path, stage=stage), check_files=False)
