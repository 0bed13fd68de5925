"""Frozen weights held in 16 bits: loaded so, the same numbers where autocast casts anyway, and a fp32 model saved."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, core_model_loading
from transformers.pytorch_utils import Conv1D

import tltasks
from tests.tiny import images, speech, texts, topics
from tests.tiny.runs import in_processes, largest_difference, run_recipe, weights
from tltasks.config.loading import load_recipe
from tltasks.errors import CheckpointError, RecipeError
from tltasks.experiments import tune
from tltasks.models.adapters import count_parameters
from tltasks.models.held import FORMATS, Held, HeldEmbedding, Quantized, hold, loading_held, restore
from tltasks.runs import stage as stage_module
from tltasks.runtime.precision import check_base_dtype

LORA = "{stage: STAGE, steps: 4, batch_size: 8, learning_rate: 5e-3, adapt: {lora: {rank: 4}}, KEYS}"
ROOMS: dict[str, Any] = {
    "t5": texts,
    "whisper": speech,
    "vit": images,
    "resnet": images,
    "bert": topics,
    "gpt2": topics,
}


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

    def spied(context: Any, stage: Any, model: nn.Module, head: Any, **keys: Any) -> Any:
        seen.append(model)
        formats = {name: p.dtype for name, p in model.named_parameters()}
        matrices = [n for n, p in model.named_parameters() if p.ndim == 2 and not p.requires_grad]
        odd = [n for n in matrices if formats[n] != torch.bfloat16]
        # What a checkpoint does not have is drawn in fp32, as ever; PEFT keeps the replaced head.
        assert all("pooler" in name or "original_module" in name for name in odd), odd
        assert all(formats[n] == torch.float32 for n, p in model.named_parameters() if p.requires_grad or p.ndim == 1)
        return loop(context, stage, model, head, **keys)

    monkeypatch.setattr(stage_module, "_loop", spied)
    result = run_recipe(written(tmp_path, "bert", "base_dtype: bf16"), tmp_path / "run")
    assert result.stages[0].training.base_dtype == "bf16"
    assert not any(isinstance(module, Held) for module in seen[0].modules())
    saved, base = weights(tmp_path / "run"), AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert")
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(saved[name], base.state_dict()[name])  # of the checkpoint, and not what was held of it


FORMATS_BESIDE = ["bf16", "int8", pytest.param("nf4", marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize("dtype", FORMATS_BESIDE)
def test_micro_batches_do_not_change_what_is_learnt_beside_held_weights(tmp_path: Path, dtype: str) -> None:
    for name, more in (("whole", ""), ("cut", ", micro_batch: 3")):
        run_recipe(written(tmp_path, "bert", f"base_dtype: {dtype}{more}"), tmp_path / name)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=2e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["bf16", "int8", "nf4"])
def test_two_processes_learn_the_same_beside_held_weights(tmp_path: Path, dtype: str) -> None:
    recipe = written(tmp_path, "bert", f"base_dtype: {dtype}")
    run_recipe(recipe, tmp_path / "one")
    in_processes(2, recipe, tmp_path / "two")
    assert largest_difference(weights(tmp_path / "two"), weights(tmp_path / "one")) < 1e-5


@pytest.mark.parametrize("dtype", FORMATS_BESIDE)
def test_a_run_goes_on_exactly_beside_held_weights(tmp_path: Path, dtype: str) -> None:
    recipe = written(tmp_path, "t5", f"base_dtype: {dtype}, checkpoint_every: 1")
    run_recipe(recipe, tmp_path / "whole")

    def fail(info: Any) -> None:
        if info.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "cut", on_step=fail)
    run_recipe(recipe, tmp_path / "cut", resume=True)
    assert largest_difference(weights(tmp_path / "cut"), weights(tmp_path / "whole")) == 0


@pytest.mark.parametrize(
    ("dtype", "adapt"),
    [
        ("bf16", "head"),
        ("bf16", "bitfit"),
        ("bf16", "ia3"),
        ("bf16", "{full: {}}, freeze: ['bert.embeddings*']"),
        ("int8", "bitfit"),
        ("nf4", "dora"),
        ("int8", "{full: {}}, freeze: ['bert.embeddings*', 'bert.encoder*']"),
        *(
            pytest.param("int8", adapt, marks=pytest.mark.exhaustive)
            for adapt in ("head", "ia3", "dora", "adalora", "{peft: {type: LOHA}}", "{peft: {type: OFT}}")
        ),
    ],
)
def test_other_methods_that_freeze(tmp_path: Path, dtype: str, adapt: str) -> None:
    stage = f"{{stage: transfer, steps: 2, batch_size: 8, learning_rate: 5e-3, base_dtype: {dtype}, adapt: {adapt}}}"
    result = run_recipe(written(tmp_path, "bert", "", stage=stage), tmp_path / "run")
    assert result.stages[0].training.base_dtype == dtype
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


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_quantised_matrices_come_from_a_file_one_by_one(tmp_path: Path, dtype: str, monkeypatch: Any) -> None:
    texts.save_model(tmp_path / "t5", "t5")
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5", dtype=torch.bfloat16).save_pretrained(tmp_path / "t5")
    monkeypatch.delenv("HF_DEACTIVATE_ASYNC_LOAD", raising=False)
    pools: list[object] = []
    spawn = core_model_loading.spawn_materialize

    def watched(pool: object, *args: Any, **kwargs: Any) -> object:
        pools.append(pool)
        return spawn(pool, *args, **kwargs)

    monkeypatch.setattr(core_model_loading, "spawn_materialize", watched)
    torch.manual_seed(0)
    with loading_held(FORMATS[dtype], lambda model: [], exact=False):
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5", dtype=torch.float32)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert drawn == torch.rand(1)  # nothing is drawn for what the file has
    assert len(pools) > 20
    assert set(pools) == {None}  # each is read when the one before is in its place
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    original = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5", dtype=torch.float32)
    linear = [name for name, module in original.named_modules() if type(module) is nn.Linear and name != "lm_head"]
    assert all(isinstance(model.get_submodule(name), Quantized) for name in linear)
    assert count_parameters(model)[1] == count_parameters(original)[1]
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    assert held < (0.4 if dtype == "int8" else 0.35) * sum(p.numel() * 4 for p in original.parameters())
    restore(model, original, display_name="t5")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), original.parameters(), strict=True))


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_scored_and_saved_is_the_checkpoint_with_what_was_trained_beside_its_codes(tmp_path: Path, dtype: str) -> None:
    result = run_recipe(
        written(tmp_path, "gpt2", f"base_dtype: {dtype}, gradient_checkpointing: true"), tmp_path / "run"
    )
    training, about = result.stages[0].training, result.stages[0].weights
    assert training.base_dtype == dtype
    assert 0 < training.base_difference < 0.5
    assert about.saved_difference < 1e-4  # of what is scored
    card = (tmp_path / "run" / "README.md").read_text()
    assert (
        f"trained beside frozen weights in {dtype}. Scored and saved are its weights with the checkpoint's own" in card
    )
    saved = weights(tmp_path / "run")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "gpt2").state_dict()
    for name in ("transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_proj.weight"):
        update = saved[name] - base[name]
        assert torch.linalg.matrix_norm(update) > 0
        assert torch.linalg.matrix_rank(update, rtol=1e-3) <= 4  # nothing of the rounding has come along


@pytest.mark.exhaustive
def test_formats_are_compared_and_searched(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, "bert", "base_dtype: fp32"))
    formats = {it: {"stages.0.base_dtype": it} for it in ("fp32", "int8", "nf4")}
    asked = {"recipe": recipe.model_dump(mode="json", exclude_unset=True, by_alias=True)}
    compared = tltasks.compare(asked | {"output": str(tmp_path / "compared"), "axes": {"held": formats}, "seeds": [0]})
    assert not compared.failed
    assert {cell.levels["held"] for cell in compared.findings.cells} == set(formats)
    (tmp_path / "search.yaml").write_text(
        yaml.safe_dump(
            asked | {"output": str(tmp_path / "found"), "space": {"stages.0.base_dtype": list(formats)}, "trials": 3}
        )
    )
    found = tune(tmp_path / "search.yaml")
    assert {trial.settings["stages.0.base_dtype"] for trial in found.trials} <= set(formats)
    assert all(trial.state == "finished" for trial in found.trials)


def test_what_cannot_be_held_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(CheckpointError, match=r"has no weights that could be held .* Leave `base_dtype` out"):
        hold(net, FORMATS["int8"], exact=False)
    hold(net, FORMATS["bf16"], exact=True)
    with pytest.raises(RecipeError, match=r"base_dtype: nf4 .* nothing for mps. Use `base_dtype: bf16`"):
        check_base_dtype("nf4", torch.device("mps"))
    recipe = written(tmp_path, "bert", "base_dtype: int8")
    monkeypatch.setattr("tltasks.runs.refusals.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"base_dtype: int8 needs bitsandbytes.*pip install 'tltasks\[quantized\]'"):
        run_recipe(recipe, tmp_path / "run")


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["vit", pytest.param("resnet", marks=pytest.mark.exhaustive)])
def test_as_much_is_trained_beside_held_layers_as_beside_others(tmp_path: Path, name: str, dtype: str) -> None:
    stage = "{stage: transfer, steps: 1, batch_size: 8, learning_rate: 5e-3, base_dtype: DTYPE, adapt: lora}"
    recipes = [written(tmp_path / it, name, "", stage=stage.replace("DTYPE", it)) for it in ("fp32", dtype)]
    plain, held = (run_recipe(recipe, recipe.parent / "run").stages[0] for recipe in recipes)
    assert (held.trainable_parameters, held.total_parameters) == (plain.trainable_parameters, plain.total_parameters)
    assert held.weights.saved_difference < 1e-4


LAYERS = {
    "linear": (lambda: nn.Linear(8, 6), (2, 3, 8)),
    "transposed": (lambda: Conv1D(6, 8), (2, 3, 8)),
    "convolution": (lambda: nn.Conv2d(8, 6, (3, 2), stride=2, padding=1, groups=2), (2, 8, 7, 5)),
    "of sound": (lambda: nn.Conv1d(8, 6, 3, padding=1, bias=False), (2, 8, 9)),
}


@pytest.mark.parametrize("held", ["bf16", "fp16", "int8", "nf4"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_held_layer_answers_as_one_of_its_weight_in_fp32(held: str, kind: str, autocast: bool) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    net, plain = nn.Sequential(make()), make()
    if kind == "transposed":
        nn.init.normal_(net[0].weight)
    original = net[0].weight.detach().clone()
    plain.load_state_dict(net[0].state_dict())
    net.requires_grad_(False)
    hold(net, FORMATS[held], exact=False)
    assert isinstance(net[0], Held)
    assert isinstance(net[0], Quantized) == (held in ("int8", "nf4"))
    whole = net[0].weight.float()
    assert not torch.equal(whole, original)
    torch.testing.assert_close(whole, original, rtol=0, atol=(0.2 if held == "nf4" else 0.01) * float(original.max()))
    assert net[0].stands_for(original)
    assert not net[0].stands_for(original + 0.1)
    with torch.no_grad():
        plain.weight.copy_(whole)
    x, y = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = net(x), plain(y)
        ours += 1  # as AdaLoRA does
        theirs += 1
    (ours.float() ** 2).sum().backward()
    (theirs.float() ** 2).sum().backward()
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(x.grad, y.grad, rtol=2e-2 if autocast else 1e-5, atol=2e-2 if autocast else 1e-6)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("base_dtype: nf4, adapt: full", "trains every weight"),
        ("base_dtype: int8, adapt: {lora: {init: olora}}", "would round what `adapt.lora.init` takes"),
        ("base_dtype: bf16, adapt: full", "trains every weight"),
        ("base_dtype: bf16, adapt: {lora: {init: pissa}}", "would round what `adapt.lora.init` takes"),
    ],
)
def test_refusals(tmp_path: Path, keys: str, said: str) -> None:
    stage = f"{{stage: transfer, steps: 1, learning_rate: 1e-3, {keys}}}"
    with pytest.raises(RecipeError, match=said):
        load_recipe(topics.write_recipe(tmp_path / "r.yaml", tmp_path, tmp_path, stage=stage), check_files=False)
