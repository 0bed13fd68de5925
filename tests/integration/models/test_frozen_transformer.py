"""A language model's blocks for images: what is loaded, what trains, what is saved, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForMaskedLM

from tests.tiny import speech
from tests.tiny.images import SIZE, save_data, save_model
from tests.tiny.runs import run_recipe, weights
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.errors import RecipeError, TltasksError
from tltasks.models.frozen_transformer import DECODERS, ENCODERS, FrozenTransformerConfig

SHAPE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {**SHAPE, "intermediate_size": 32, "max_position_embeddings": 40}
LLAMA = {**BERT, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = {**LLAMA, "num_key_value_heads": 1, "head_dim": 8}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
LOCAL = {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 40}
DISTILBERT = {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 40}
CONFIGS: dict[str, dict[str, Any]] = {
    "albert": {**BERT, "embedding_size": 8},
    "bert": BERT,
    "camembert": BERT,
    "distilbert": DISTILBERT,
    "electra": {**BERT, "embedding_size": 8},
    "modernbert": {**LLAMA, "cls_token_id": 1, "sep_token_id": 2},
    "mpnet": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "gemma": GROUPED,
    "gpt2": GPT2,
    "gpt_neo": {"vocab_size": 50, "hidden_size": 16, "num_layers": 2, "num_heads": 2, **LOCAL},
    "gpt_neox": LLAMA,
    "llama": GROUPED,
    "mistral": GROUPED,
    "phi": LLAMA,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "smollm3": GROUPED,
}
FROZEN = f"as: frozen-transformer, image_size: {SIZE}, patch_size: 8"


def save_language_model(folder: Path, kind: str, **changes: Any) -> Path:
    """A tiny language model with random weights and its head, as the Hub has them."""
    torch.manual_seed(0)
    heads = AutoModelForMaskedLM if kind in ENCODERS else transformers.AutoModelForCausalLM
    heads.from_config(AutoConfig.for_model(kind, **CONFIGS[kind], **changes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("languages")
    for kind in ("bert", "gpt2"):
        save_language_model(folder / kind, kind)
    save_model(folder / "vit")
    save_data(folder / "data", rows=24)
    return folder


def write(path: Path, zoo: Path, *stages: str, model: str) -> Path:
    files = {split: str(zoo / "data" / f"{split}.parquet") for split in ("train", "test")}
    lines = "\n".join(f"  - {stage}" for stage in stages).replace(
        "DATA", f"{{name: parquet, files: {json.dumps(files)}}}"
    )
    path.write_text(
        f"task: image-classification\nmodel: {{name: {zoo}/{model}}}\n"
        f"data: {{name: parquet, files: {json.dumps(files)}}}\n"
        f"stages:\n{lines}\noutput: {path.parent / 'output'}\nprecision: fp32\n"
    )
    return path


def stage(kind: str, steps: int = 2, more: str = "") -> str:
    return f"{{stage: {kind}, steps: {steps}, batch_size: 8, learning_rate: 1e-2{more}}}"


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def ran(request: pytest.FixtureRequest, zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """One of the two after enough steps to learn the training pictures by heart, tested on them."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = write(folder / "recipe.yaml", zoo, stage("transfer", steps=40), model=f"{request.param}, {FROZEN}")
    text = recipe.read_text().replace("test.parquet", "train.parquet")
    recipe.write_text(text)
    run_recipe(recipe, folder / "output")
    return request.param, folder / "output"


# ------------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("kind", sorted(ENCODERS | DECODERS))
def test_blocks_come_from_the_checkpoint_and_words_do_not(kind: str, tmp_path: Path) -> None:
    save_language_model(tmp_path / "language", kind)
    language = transformers.AutoModel.from_pretrained(tmp_path / "language", dtype=torch.float32)
    config = FrozenTransformerConfig(backbone_config=language.config, image_size=16, patch_size=4, num_labels=3)
    model, info = AutoModelForImageClassification.from_pretrained(
        tmp_path / "language", config=config, dtype=torch.float32, output_loading_info=True
    )
    layers = ("classifier.bias", "classifier.weight", "patch_embeddings.bias", "patch_embeddings.weight")
    assert sorted(info["missing_keys"]) == list(layers)
    blocks = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")}
    assert len(blocks) > 10
    assert all(torch.equal(language.state_dict()[name.removeprefix("backbone.")], t) for name, t in blocks.items())
    assert all(50 not in tensor.shape for tensor in blocks.values())
    before = torch.randn(1, 16, model.patch_embeddings.out_channels)
    after = before.clone()
    after[:, -1] = torch.randn(before.shape[-1])
    first = [model.backbone(inputs_embeds=inputs).last_hidden_state[:, 0] for inputs in (before, after)]
    assert torch.allclose(*first, atol=1e-6) == (kind in DECODERS)


def test_every_family_is_tried() -> None:
    assert CONFIGS.keys() == ENCODERS | DECODERS
    assert not ENCODERS & DECODERS


# ------------------------------------------------------------------------------------------- training

NORMS = {
    "bert": ["embeddings.LayerNorm"]
    + [f"encoder.layer.{i}.{part}output.LayerNorm" for i in (0, 1) for part in ("attention.", "")],
    "gpt2": [f"h.{i}.ln_{k}" for i in (0, 1) for k in (1, 2)] + ["ln_f"],
}
POSITIONS = {
    "bert": ["embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"],
    "gpt2": ["wpe.weight"],
}


def test_what_is_around_the_blocks_is_trained_and_the_blocks_are_not(ran: tuple[str, Path], zoo: Path) -> None:
    kind, output = ran
    trained = {f"backbone.{name}.{part}" for name in NORMS[kind] for part in ("weight", "bias")}
    trained |= {f"backbone.{name}" for name in POSITIONS[kind]}
    new = {f"{name}.{part}" for name in ("patch_embeddings", "classifier") for part in ("weight", "bias")}
    before = {
        f"backbone.{name.removeprefix('bert.').removeprefix('transformer.')}": tensor
        for name, tensor in load_file(zoo / kind / "model.safetensors").items()
    }
    after = weights(output)
    assert {name for name in after if name not in before} == new
    assert {name for name in after if name in before and not torch.equal(after[name], before[name])} == trained
    result = json.loads((output / "result.json").read_text())["stages"][0]
    assert result["trainable_parameters"] == sum(after[name].numel() for name in trained | new)
    assert result["total_parameters"] == sum(tensor.numel() for tensor in after.values())
    assert result["weights"]["loaded_share"] == 1
    assert result["weights"]["model_type"] == "frozen-transformer"


def test_the_checkpoint_as_it_stands_is_the_same_whatever_ran_before(zoo: Path, tmp_path: Path) -> None:
    """Its new layers are drawn: with the seed, and not with what training has left of the random numbers."""
    found = []
    for steps in (1, 2):
        path = write(tmp_path / "recipe.yaml", zoo, stage("transfer", steps), model=f"gpt2, {FROZEN}")
        result = run_recipe(path, tmp_path / str(steps))
        found.append(result.stages[-1].baselines["checkpoint_knn"]["test"].values)
    assert found[0] == found[1]


def test_it_learns_a_few_pictures_by_heart(ran: tuple[str, Path]) -> None:
    score = json.loads((ran[1] / "result.json").read_text())["stages"][0]["metrics"]["test"]
    assert score["values"]["accuracy"] == 1


def test_the_saved_model_is_an_ordinary_one(ran: tuple[str, Path]) -> None:
    kind, output = ran
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["architectures"] == ["FrozenTransformerForImageClassification"]
    assert config["pooling"] == {"bert": "mean", "gpt2": "last"}[kind]
    assert "auto_map" not in config
    assert config["backbone_config"].get("_name_or_path", "") == ""
    model = AutoModelForImageClassification.from_pretrained(output / "model")
    again = AutoModelForImageClassification.from_pretrained(output / "model", dtype=torch.float32)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(model(pixels).logits, again(pixels).logits)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    model.save_pretrained(output.parent / "again")
    assert AutoConfig.from_pretrained(output.parent / "again").id2label == model.config.id2label
    assert transformers.AutoImageProcessor.from_pretrained(output / "model").size == {"height": SIZE, "width": SIZE}


def test_it_answers(ran: tuple[str, Path], zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, output = ran
    table = str(zoo / "data" / "train.parquet")
    assert main(["predict", str(output), table, "--no-vad"]) == 0
    answers = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 24
    assert answers == [["blue", "green", "red"][i % 3] for i in range(24)]


def test_its_card_says_how_to_load_it(
    ran: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, output = ran
    card = (output / "README.md").read_text()
    assert "transformer blocks, frozen, for images" in card
    assert "| trains | the input layer, normalisation layers, positions and the head |" in card
    code = card.split("```python\n")[1].split("```")[0]
    assert code.startswith("import tltasks.models.frozen_transformer")
    monkeypatch.chdir(output)
    exec(code, {})
    assert capsys.readouterr().out.split()[0] in {"blue", "green", "red"}


# --------------------------------------------------------------------------------------------- speech


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def heard(request: pytest.FixtureRequest, zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """One of the two after enough steps to write letters of the right word for most clips."""
    folder = tmp_path_factory.mktemp(f"{request.param}-speech")
    speech.save_data(folder / "data", rows=24, most_words=1)
    recipe = speech.write_recipe(
        folder / "recipe.yaml",
        zoo / request.param,
        folder / "data",
        stage="{stage: transfer, steps: 80, batch_size: 8, learning_rate: 3e-2, evaluate_every: 80, keep: last}",
        model_keys="as: frozen-transformer",
    )
    run_recipe(recipe, folder / "output")
    return request.param, folder / "output"


def test_blocks_hear_words_through_a_new_input_layer(heard: tuple[str, Path], zoo: Path) -> None:
    kind, output = heard
    trained = {f"backbone.{name}.{part}" for name in NORMS[kind] for part in ("weight", "bias")}
    trained |= {f"backbone.{name}" for name in POSITIONS[kind]}
    before = {
        f"backbone.{name.removeprefix('bert.').removeprefix('transformer.')}": tensor
        for name, tensor in load_file(zoo / kind / "model.safetensors").items()
    }
    after = weights(output)
    assert {name for name in after if name not in before} == {
        f"{name}.{part}" for name in ("frame_embeddings", "lm_head") for part in ("weight", "bias")
    }
    assert {name for name in after if name in before and not torch.equal(after[name], before[name])} == trained
    (stage,) = json.loads((output / "result.json").read_text())["stages"]
    assert stage["metrics"]["test"]["values"]["cer"] < 0.7  # silence alone would be 1
    assert stage["metrics"]["test"]["details"]["window_seconds"] == pytest.approx(1.6)  # 40 positions of 40 ms
    assert stage["weights"]["loaded_share"] == 1


def test_a_recognisers_card_says_how_to_load_it(
    heard: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, output = heard
    card = (output / "README.md").read_text()
    assert "transformer blocks, frozen, for speech" in card
    code = card.split("```python\n")[1].split("```")[0]
    assert "import tltasks.models.frozen_transformer" in code
    monkeypatch.chdir(output)
    exec(code, {})
    capsys.readouterr()
    (recorded,) = (output / "predictions").glob("*-test.parquet")
    said = pq.read_table(recorded).column("prediction").to_pylist()
    assert any(said)
    clips = [str(output.parent / "data" / "clips" / f"test-{i}.wav") for i in range(len(said))]
    assert main(["predict", str(output), *clips, "--no-vad"]) == 0
    assert [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()] == said


# ------------------------------------------------------------------------------------------- controls


def test_controls_and_going_on(zoo: Path, tmp_path: Path) -> None:
    every = FROZEN.replace("frozen-", "")
    chain = [
        stage("pretrain", more=f", name: random, model: {{name: {zoo}/bert, {FROZEN}}}"),
        stage("transfer", more=f", name: language, model: {{name: {zoo}/bert, {FROZEN}}}"),
        stage("finetune", more=f", name: thawed, start: previous, model: {{name: {zoo}/bert, {every}}}"),
        stage("pretrain", more=f", name: scratch, model: {{name: {zoo}/bert, {every}}}"),
    ]
    result = run_recipe(write(tmp_path / "chain.yaml", zoo, *chain, model="vit"), tmp_path / "output")
    random, language, thawed, scratch = result.stages
    assert random.trainable_parameters == language.trainable_parameters < thawed.trainable_parameters
    assert thawed.trainable_parameters == thawed.total_parameters == scratch.trainable_parameters
    assert "stage_random" in language.baselines


# ------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("model", "stages", "said"),
    [
        (f"vit, {FROZEN}", stage("transfer"), r"of the type vit; `as: frozen-transformer` takes .*bert.*gpt2"),
        (f"bert, {FROZEN}", stage("transfer", more=", adapt: lora"), "`adapt: lora` would leave at random"),
        (f"bert, {FROZEN}", "{stage: probe}", "`stage: probe` would leave at random"),
        (f"bert, {FROZEN}", stage("finetune"), "`stage: transfer` puts a new head"),
        (f"bert, {FROZEN.replace('8', '4')}", stage("transfer"), r"64 patches are more than .* positions for \(40\)"),
        (
            f"bert, {FROZEN}",
            stage("transfer", more=", task: masked-image-modeling, data: DATA"),
            "model.as: frozen-transformer is for image-classification",
        ),
    ],
)
def test_mistakes_are_told_before_training(model: str, stages: str, said: str, zoo: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipe.yaml", zoo, stages, model=model)
    with pytest.raises(TltasksError, match=said):
        run_recipe(recipe, tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("bert, as: frozen-transformer", "needs `image_size` and `patch_size`"),
        ("bert, patch_size: 8", "`patch_size` is a key of language models under `as`"),
        ("bert, as: transformer, image_size: 32, patch_size: 5", "5 does not divide `image_size` 32"),
        ("bert, as: frozen, image_size: 32, patch_size: 8", "expected 'frozen-transformer', 'transformer'"),
        ("bert, az: frozen-transformer", r"model\.az: unknown key"),
    ],
)
def test_keys_are_checked(model: str, said: str, zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(tmp_path / "recipe.yaml", zoo, stage("transfer"), model=model))


def test_other_tasks_do_not_have_it(zoo: Path, tmp_path: Path) -> None:
    recipe = write(tmp_path / "recipe.yaml", zoo, stage("transfer"), model="bert, as: frozen-transformer")
    recipe.write_text(recipe.read_text().replace("image-classification", "summarization"))
    with pytest.raises(RecipeError, match=r"model\.as: unknown key") as raised:
        load_recipe(recipe)
    assert str(raised.value).count("unknown key") == 1
