from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers

from tests.tiny import images, speech, texts
from tltasks.errors import CheckpointError, RecipeError, TltasksError
from tltasks.hub.saved_model import SavedModel, load_saved_model, write_merged

CPU = torch.device("cpu")


def opened(folder: Path, tag: str | None = None) -> SavedModel:
    return load_saved_model(str(folder), tag=tag)


def said(folder: Path, kind: type[TltasksError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        opened(folder)
    return str(caught.value)


def test_the_task_is_told_by_the_models_class(tmp_path: Path) -> None:
    made = {
        "image-classification": images.save_model(tmp_path / "vit"),
        "automatic-speech-recognition": speech.save_whisper(tmp_path / "whisper"),
        "summarization": texts.save_model(tmp_path / "llama", "llama"),
    }
    for tag, folder in made.items():
        trained = opened(folder)
        assert trained.task.tag == tag
        assert trained.base is None
        assert trained.recipe is None
        assert trained.columns[-1] == trained.task.input_kind.column
        assert trained.precision(CPU) == "auto"
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config | {"architectures": ["ViTModel"]}))
    assert "holds ViTModel, which does not tell its task; name it with --task: image-c" in said(
        tmp_path / "vit", RecipeError
    )
    assert opened(tmp_path / "vit", "image-classification").task.tag == "image-classification"


def test_settings_are_those_that_the_checkpoint_was_saved_with(tmp_path: Path) -> None:
    folder = speech.save_whisper(tmp_path / "whisper")
    path = folder / "generation_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"language": "<|es|>", "task": "translate", "num_beams": 3})
    )
    generation = opened(folder).task.recogniser.generation  # type: ignore[attr-defined]
    assert (generation.language, generation.task, generation.num_beams) == ("es", "translate", 3)

    folder = texts.save_model(tmp_path / "bart", "bart")
    form = opened(folder).task.form  # type: ignore[attr-defined]
    assert form.max_document_tokens == 128, "all that it can read"
    path = folder / "config.json"
    stored = {"prefix": "p: ", "suffix": "", "max_document_tokens": 50}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_specific_params": {"summarization": stored}}))
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_new_tokens": 21}))
    form = opened(folder).task.form  # type: ignore[attr-defined]
    assert (form.prompt, form.max_document_tokens, form.max_summary_tokens) == ("p: {document}", 50, 21)


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    folder = images.save_model(tmp_path / "vit")
    ViTModel(ViTConfig.from_pretrained(folder)).save_pretrained(folder)
    trained = opened(folder, "image-classification")
    with pytest.raises(CheckpointError, match="has no weights for its head"):
        trained.build(device=CPU, precision="fp32")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # peft 0.21 asks transformers 5.24 for it
def test_an_adapter_can_be_written_out_whole(tmp_path: Path) -> None:
    base = images.save_model(tmp_path / "vit")
    model = transformers.AutoModelForImageClassification.from_pretrained(base)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, base_model_name_or_path=str(base))
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "run")
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(base / name, tmp_path / "run")
    write_merged(opened(tmp_path / "run"), tmp_path / "whole")
    adapted, whole = opened(tmp_path / "run"), opened(tmp_path / "whole")
    assert (adapted.base is None, whole.base) == (False, None)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        said = [found.build(device=CPU, precision="fp32")[1](pixel_values=pixels).logits for found in (adapted, whole)]
    assert said[0].std() > 0
    torch.testing.assert_close(said[1], said[0])


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert "its config.json cannot be read" in said(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "its config.json cannot be read (not a JSON object)" in said(tmp_path)
    adapter = tmp_path / "adapter_config.json"
    adapter.write_text("{}")
    assert "names no base model" in said(tmp_path)
    adapter.write_text(json.dumps({"base_model_name_or_path": "/not/here/model"}))
    assert "is an adapter for /not/here/model, which is not there" in said(tmp_path)
    folder = images.save_model(tmp_path / "vit")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="its weights cannot be loaded"):
        opened(folder).build(device=CPU, precision="fp32")
    (folder / "recipe.yaml").write_text("task: nothing")
    (folder / "result.json").write_text("{}")
    assert "recipe.yaml" in said(folder, RecipeError)
